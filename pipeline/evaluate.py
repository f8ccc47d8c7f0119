"""The evaluation stage: measure the model on held-out examples."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
import torchmetrics
from tensordict import TensorDict
from torch import Tensor, nn
from torchmetrics.utilities.distributed import gather_all_tensors

from attent.pipeline.keys import ensure, number, place
from attent.pipeline.order import longest_first
from attent.pipeline.processes import is_sharded, processes, sending_device
from attent.pipeline.score import Frozen
from attent.pipeline.source import Source
from attent.pipeline.stage import Stage
from attent.pipeline.stream import Loading, Stream, num_batches
from attent.pipeline.task import Task


def evaluate(
    task: Task,
    source: Source,
    *,
    split: str = "val",
    batch_size: int = 256,
    weights: str = "params",
    loading: Loading | None = None,
    name: str | None = None,
) -> Stage:
    """Measure the task's metrics over a held-out source, in eval mode on fixed views.

    Args:
        task: its ``metrics`` are made anew for each evaluation. Several processes share the batches
            out where all of them are of torchmetrics; of others each process measures everything.
        source: the held-out examples.
        split: what they are called: metrics are ``metrics/<split>_<name>``.
        batch_size: examples in one forward.
        weights: the entry that holds them: ``params``, or ``ema``, which `train` may keep.
        loading: workers and prefetching.
        name: of the stage; by default ``evaluate <split>``.

    Writes the metrics, ``metrics/<split>_step`` (when), and clears ``plan/eval_due``.

    Raises:
        ValueError: the source is empty, or a batch would be.
    """
    if len(source) < 1:
        raise ValueError(f"the {split} split holds no examples")
    if batch_size < 1:
        raise ValueError(f"batch_size is at least 1, got {batch_size}")
    names, order = tuple(task.metrics()), longest_first(source)

    def apply(state: TensorDict) -> TensorDict:
        model, metrics = Frozen(task, state, weights), task.metrics()
        world = processes()
        dealt = _can_be_dealt(metrics, num_batches(len(source), batch_size), task.model)
        share = world.dealt if dealt else None
        for metric in metrics.values():
            _set_adding(metric, dealt and not world.alone)
        bad: ValueError | None = None
        try:
            with torch.no_grad():
                for batch in Stream(source, order, batch_size, loading=loading, share=share):
                    ready = model.prepare(batch)
                    task.update(metrics, task.forward(model, ready), ready)
        except ValueError as error:
            bad = error
        world.agree(bad)
        for metric in names:
            value = torch.as_tensor(metrics[metric].compute(), dtype=torch.float64)
            place(state, ("metrics", f"{split}_{metric}"), value.reshape(()).cpu())
        place(state, ("metrics", f"{split}_step"), torch.tensor(number(state, "clock", "step")))
        place(state, ("plan", "eval_due"), torch.tensor(False))
        return state

    def init(state: TensorDict) -> TensorDict:
        for metric in names:
            ensure(state, ("metrics", f"{split}_{metric}"), torch.tensor(math.nan).double())
        ensure(state, ("metrics", f"{split}_step"), torch.tensor(-1))
        return state

    own = {("metrics", f"{split}_{entry}") for entry in (*names, "step")}
    return Stage(
        name=name or f"evaluate {split}",
        reads={weights, "buffers", "seed", ("clock", "step")},
        writes=own | {("plan", "eval_due")},
        apply=apply,
        init=init,
        provides=own,
        note=f"{', '.join(names)} of {len(source):,} examples",
    )


def _set_adding(metric: object, over_processes: bool) -> None:
    """Say whether a metric, and those it is made of, is to add up what all processes have seen."""
    for part in metric.modules() if isinstance(metric, nn.Module) else ():
        if isinstance(part, torchmetrics.Metric):
            part.distributed_available_fn = lambda: over_processes
            part.dist_sync_fn = _gathered


def _gathered(value: Tensor, group: object = None) -> list[Tensor]:
    """What each process holds: metrics are on the CPU, where NCCL cannot send them."""
    sent = value.to(sending_device())
    return [found.to(value.device) for found in gather_all_tensors(sent, group)]


def _can_be_dealt(metrics: Mapping[str, object], batches: int, model: nn.Module) -> bool:
    """Whether each of several processes may measure a share of the batches.

    Metrics of torchmetrics add up over processes what each has seen, if each has seen something; of
    others nothing is known, and every process measures everything. So it is where processes hold
    parts of the model, which none can call alone.
    """
    known = all(isinstance(metric, torchmetrics.Metric) for metric in metrics.values())
    return known and batches >= processes().count and not is_sharded(model)
