"""The train stage: optimiser steps on the examples in force.

The step runs the real module, its parameters bound to the state's storage, and a real torch
optimiser: hooks, compilation and wrappers see what they would see in any training loop.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from tensordict import TensorDict
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from attent.pipeline.keyed import fold, global_generators
from attent.pipeline.keys import branch, ensure, has, number, place, tensor
from attent.pipeline.observed import Observe, Observed, observed_signals, running_loss
from attent.pipeline.optimizer import Bound, BoundOptimizer, Optimizer, Updates, decays, moments
from attent.pipeline.passes import OpenStream, Room
from attent.pipeline.processes import AgreedError, processes
from attent.pipeline.source import Source
from attent.pipeline.stage import Stage
from attent.pipeline.step import Compute, Draw, Seen, Step
from attent.pipeline.stream import Loading
from attent.pipeline.task import (
    LEDGER,
    Task,
    bind,
    ensure_scores,
    spend,
    trainable,
    view_keys,
)

FIGURES = {("metrics", "train_loss"), ("metrics", "lr")}
"""What is said of the steps made: the running loss, and the last learning rate used."""


def train(
    task: Task,
    source: Source,
    *,
    optimizer: Optimizer,
    step: Step | None = None,
    steps: int = 50,
    observe: Observe = False,
    ema: float | None = None,
    loading: Loading | None = None,
    wrap: Callable[[nn.Module], nn.Module] | None = None,
    updates: Callable[[Bound], Updates] = BoundOptimizer,
    name: str = "train",
) -> Stage:
    """Train on the examples in force for up to ``steps`` optimiser steps.

    Stops early at the end of the pass, at the next evaluation (``plan/pause``) and at the budget,
    so that where ticks begin and end changes nothing: weights, moments and clock are committed at
    every step. Does nothing while a score or a selection is due.

    The step minimises ``sum(weight * loss) / sum(weight)`` over the batch. Several processes share
    out every batch (see `attent.pipeline.processes`); their number changes nothing but what is
    drawn or computed over a batch as a whole: dropout, statistics of a batch, mixed examples.

    Args:
        task: what is learned.
        source: the N training examples; batches are of similar length where it has ``lengths``.
        optimizer: see `adamw`, `sgd`.
        step: batch size, accumulation, clipping, precision, compilation.
        steps: optimiser steps in a tick, at most.
        observe: record scores from the training step itself, under augmentation and dropout and at
            weights that move; ``scores/step`` says when. One signal of
            `attent.pipeline.observed.Observed` or several: ``"loss"`` (or True),
            ``"relative_loss"`` and ``"loss_drop"`` are free; ``"grad_norm"`` records the norm of
            each example's gradient too, for a part of a step more (see `attent.pipeline.ghost`).
        ema: keep an exponential moving average of the parameters too, as ``ema``: after each step
            it is ``ema`` of what it was and the rest of what they are. It starts at the initial
            parameters. In [0, 1); `evaluate` can measure it.
        loading: workers and prefetching.
        wrap: a module that holds the model -> the same, averaging its gradients over several
            processes, such as ``accelerator.prepare_model``; None for torch's
            DistributedDataParallel. Not asked where there is one process.
        updates: who makes the updates of a tick; torch's optimiser unless told otherwise.
        name: of the stage.

    Raises:
        ExampleError: an example cannot be read, or its loss is not finite; it is named, and the
            state is as after the last good step.
        GhostError: gradient norms that cannot be observed for this model.
        ValueError: no budget in the plan; a batch larger than the data set.
    """
    step = step or Step()
    num_examples = len(source)
    if not trainable(task.model):
        raise ValueError(f"task {task.name!r} has no trainable parameter")
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    if ema is not None and not 0 <= ema < 1:
        raise ValueError(f"ema is in [0, 1), got {ema}")
    if step.batch_size > num_examples:
        raise ValueError(
            f"batch_size {step.batch_size} is above the {num_examples} training examples"
        )
    observed = observed_signals(observe)
    if "grad_norm" in observed and step.compile:
        raise ValueError("gradient norms cannot be observed in a compiled model: compile=False")
    compute = Compute(task, source, step, norms="grad_norm" in observed, wrap=wrap)
    streams = OpenStream(source, step.batch_size, loading)
    trainer = _Trainer(compute, streams, optimizer, updates, steps, observed, ema)
    averages = set() if ema is None else {("ema",)}
    scores = {("scores", entry) for entry in (*observed, "step")} if observed else set()
    writes = {"params", "buffers", "optim"} | FIGURES | scores | averages | {
        ("clock", "offset"), ("clock", "step"), ("clock", "seen"), ("clock", "tokens"), *LEDGER,
    }  # fmt: skip
    plan = ("budget", "pass_tokens", "size", "pause", "score_due", "select_due")
    reads = writes | {"seed", "mask", "weight", ("clock", "passes")}
    reads |= {("plan", entry) for entry in plan}
    return Stage(
        name=name,
        reads=reads,
        writes=writes,
        apply=trainer.apply,
        init=trainer.init,
        provides={"optim"} | FIGURES | averages | (scores - {("scores", "step")}),
        note=f"{optimizer.name}, batches of {step.batch_size}, up to {steps} steps a tick",
    )


class _Trainer:
    """The two functions of a train stage, and the caches they share."""

    def __init__(
        self,
        compute: Compute,
        streams: OpenStream,
        optimizer: Optimizer,
        updates: Callable[[Bound], Updates],
        steps: int,
        observe: tuple[str, ...],
        ema: float | None,
    ) -> None:
        self.compute, self.task, self.source = compute, compute.task, compute.source
        self.streams = streams
        self.optimizer, self.updates = optimizer, updates
        self.decays = decays(self.task.model)
        self.scales = optimizer.scales_of(self.task.model)
        self.steps = steps
        self.observe = observe
        self.ema = ema

    def init(self, state: TensorDict) -> TensorDict:
        if not has(state, "optim"):
            place(state, "optim", moments(self.optimizer, trainable(self.task.model)))
        if self.ema is not None and not has(state, "ema"):
            place(state, "ema", branch(state, "params").clone())
        for figure in FIGURES:
            ensure(state, figure, torch.tensor(math.nan, dtype=torch.float64))
        for signal in self.observe:
            ensure_scores(state, signal, len(self.source))
        return state

    def apply(self, state: TensorDict) -> TensorDict:
        if bool(tensor(state, "plan", "score_due")) or bool(tensor(state, "plan", "select_due")):
            return state
        room = Room.of(state, self.streams.lengths)
        if room.ended:
            return state
        self.compute.prepare()  # a wrapper may put the weights elsewhere, so before they are bound
        params, buffers = bind(self.task.model, state)
        if not all(module.training for module in self.task.model.modules()):
            self.task.model.train()  # which is slow
        bound = Bound(
            optimizer=self.optimizer,
            params=params,
            held=branch(state, "optim"),
            decay=self.decays,
            scales=self.scales,
            clip=self.compute.step.clip,
        )
        books = _Books(state, self.observe)
        averages = _Averages(state, params, self.ema) if self.ema is not None else None
        stream, room = self.streams.at(state, room)
        # What is known of the whole tick's examples at once: a call costs more than its numbers.
        ahead = self.streams.ahead(room, self.steps)
        keys = view_keys(books.seed, ahead, purpose="train", passes=books.passes)
        weight = tensor(state, "weight")[ahead].to(self.compute.device)
        start = room.offset
        with global_generators(self.compute.device), self.updates(bound) as updates, books:
            for _ in range(self.steps):
                index = self.streams.batch_at(room)
                at = slice(room.offset - start, room.offset - start + len(index))
                read = partial(next, stream)
                dropout = books.key_of_dropout()
                draw = Draw(read=read, weight=weight[at], keys=keys[at], dropout=dropout)
                seen = self.compute.gradients(draw, params, buffers)
                tokens = self.streams.tokens_of(index)
                room = room.after(len(index), tokens)
                rate = updates.step(room.progress)
                if averages is not None:
                    averages.update()
                books.commit(len(index), tokens, seen, rate)
                if room.ended:
                    break
        self.streams.left_at(room)
        return state


class _Averages:
    """The moving averages of the parameters, the state's own tensors."""

    def __init__(self, state: TensorDict, params: dict[str, nn.Parameter], decay: float) -> None:
        held = branch(state, "ema")
        self.params: list[Tensor] = list(params.values())
        self.averages = [tensor(held, name) for name in params]
        self.average = get_ema_multi_avg_fn(decay)

    def update(self) -> None:
        self.average(self.averages, self.params, None)


class _Books:
    """What finished steps write beside weights and moments: clock, ledger, running loss, scores.

    The numbers are written when it is left, also after a step that failed, so that a donated
    state is never behind its weights; and with them what other processes have observed.
    """

    def __init__(self, state: TensorDict, observe: tuple[str, ...]) -> None:
        self.state = state
        self.seed = number(state, "seed")
        self.passes = number(state, "clock", "passes")
        self.step = number(state, "clock", "step")
        self._trained = self._tokens = 0
        self._rate = float(tensor(state, "metrics", "lr"))
        self._average = float(tensor(state, "metrics", "train_loss"))
        self._observed = Observed(state, observe)
        self._world = processes()
        self._later: list[tuple[int, float, Seen]] = []

    def key_of_dropout(self) -> int:
        """Of the next step: another one in every process, whose examples are others."""
        which = () if self._world.main else ("process", self._world.rank)
        return fold(self.seed, "dropout", self.step, *which)

    def commit(self, examples: int, tokens: int, seen: Seen, rate: float) -> None:
        """Enter a step that was made.

        Args:
            examples: of the whole batch.
            tokens: of the whole batch.
            seen: what this process has seen of it.
            rate: the learning rate.
        """
        self.step += 1
        self._trained += examples
        self._tokens += tokens
        self._rate = rate
        self._average = running_loss(self._average, seen.mean)
        if self._world.alone:
            self._observed.record(seen.index, self.step, seen.losses, seen.norms, self._average)
        elif self._observed:
            self._later.append((self.step, self._average, seen))

    def _gather(self) -> None:
        """Record what all processes have observed since the last time."""
        steps, levels, seen = zip(*self._later, strict=True)
        columns = [torch.cat([one.index.cpu() for one in seen])]
        for values in (steps, levels):
            pairs = zip(seen, values, strict=True)
            columns.append(torch.cat([torch.full((len(one.index),), v) for one, v in pairs]))
        columns.append(torch.cat([one.losses.cpu() for one in seen]))
        if self._observed.norms:
            columns.append(torch.cat([one.norms.cpu() for one in seen if one.norms is not None]))
        index, steps, levels, losses, *norms = self._world.gather(*columns)
        self._observed.record(index, steps, losses, norms[0] if norms else None, levels)
        self._later.clear()

    def __enter__(self) -> _Books:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        # Where one process has failed alone, the others will not answer.
        if self._later and (kind is None or issubclass(kind, AgreedError)):
            self._gather()
        self._close()

    def _close(self) -> None:
        tensor(self.state, "clock", "step").fill_(self.step)
        for entry in ("seen", "offset"):
            tensor(self.state, "clock", entry).add_(self._trained)
        tensor(self.state, "clock", "tokens").add_(self._tokens)
        spend(self.state, self._trained, self._tokens, backward=True)
        tensor(self.state, "metrics", "lr").fill_(self._rate)
        tensor(self.state, "metrics", "train_loss").fill_(self._average)
