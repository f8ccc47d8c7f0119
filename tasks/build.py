"""From options to what a run is made of: what every command shares."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor, nn

from attent.models.layers import layer_scales
from attent.models.sharding import shard_frozen
from attent.pipeline import (
    Loading,
    Optimizer,
    Plan,
    Source,
    Stage,
    Step,
    Task,
    adamw,
    evaluate,
    initial_state,
    initialize,
    plan_of,
    sgd,
    train,
    validate,
    warmup_cosine,
)
from attent.pipeline.keyed import all_global_generators, fold
from attent.pipeline.optimizer import Scales
from attent.pipeline.processes import processes
from attent.pipeline.skipped import SkippedList
from attent.pipeline.workers import KeptWorkers
from attent.tasks.config import ConfigError
from attent.tasks.data.shards.damaged import damaged_of
from attent.tasks.launch import accelerator, device_here, half_precision, shares_out
from attent.tasks.recipe import payable, recipe_of, signal_of_options
from attent.tasks.zero import Settings, settings, updates_of


@dataclass(frozen=True, kw_only=True)
class Run:
    """What a run is made of.

    Attributes:
        task: what is learned.
        source: the training examples.
        held_out: the examples it is measured on, the split called ``val``.
        tick: the graph.
        plan: its arithmetic.
        state: before the first tick.
        signal: which scores are recorded; None if there are none.
        notes: what is to be said of it when it starts.
        skipped: examples that could not be read and were passed over, filled as they are met; None
            where one would be an error.
    """

    task: Task
    source: Source
    held_out: Source
    tick: Stage
    plan: Plan
    state: TensorDict
    signal: str | None
    notes: tuple[str, ...] = ()
    skipped: SkippedList | None = None


def device_of(name: str) -> torch.device:
    """A device by name; ``auto`` is a GPU where there is one, and of several processes each's own.

    Raises:
        ConfigError: a GPU is asked for where there is none.
    """
    given = device_here(name)
    if given is not None:
        return given
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise ConfigError(f"device {name}: torch sees no GPU here; use device cpu or auto")
    return torch.device(name)


def seeded(config: Any, make: Callable[[], nn.Module]) -> nn.Module:
    """A model, its initial weights a function of the run's seed, on the run's device."""
    with all_global_generators(fold(config.seed, "model")):
        return make().to(device_of(config.device))


def assemble(
    config: Any,
    task: Task,
    source: Source,
    held_out: Source,
    *,
    frozen: bool = True,
    optimizer: Optimizer | None = None,
) -> Run:
    """The graph of a command's options, checked before any training.

    Args:
        config: with the options of selection, training and run.
        task: what is learned, its model on the run's device.
        source: the training examples.
        held_out: the examples it is measured on.
        frozen: whether the state holds what is frozen too; False where it is loaded from where it
            came from each time, such as a language model below its adapters.
        optimizer: what takes the steps; None for what the options name.

    Raises:
        ValueError: what the options ask for cannot be; the message says why.
    """
    config, notes = payable(config, len(source))
    for one in (*damaged_of(source), *damaged_of(held_out)):
        notes += (f"a shard cannot be read and is left out: {one.reason}",)
    loading = loading_of(config, pin_memory=device_of(config.device).type == "cuda")
    if shares_out(config):
        blocks = shard_frozen(task.model)
        notes += (f"{blocks} blocks are shared out over {processes().count} processes (FSDP)",)
    zero = settings()
    shared = zero is not None and not processes().alone
    if shared:
        notes += (f"moments are shared out over {processes().count} processes (DeepSpeed, ZeRO)",)
    optimizer = optimizer or optimizer_of(config)
    stage = train(
        task,
        source,
        optimizer=optimizer,
        step=_step_of(config, zero),
        steps=config.steps_per_tick,
        observe=config.observed or False,
        ema=config.ema,
        loading=loading,
        **_engine_of(optimizer, zero),
    )
    measure = evaluate(
        task,
        held_out,
        batch_size=config.score_batch_size,
        weights=weights_of(config),
        loading=loading,
    )
    tick = recipe_of(config, task, source, stage, measure, loading)
    state = initial_state(task, source, seed=config.seed)
    # Weights that a run starts from may fill what is frozen too (position embeddings), and are not
    # loaded again on resume: a checkpoint holds all of the model, unless told otherwise.
    for name, value in task.model.named_parameters():
        if frozen and not value.requires_grad:
            state["buffers", name] = value.detach().clone()
    validate(tick, state)
    state = initialize(tick, state)
    if shared:
        state["optim"] = state["optim"].cpu()  # DeepSpeed has what the device is to hold of it
    return Run(
        task=task,
        source=source,
        held_out=held_out,
        tick=tick,
        plan=plan_of(tick),
        state=state,
        signal=signal_of_options(config).name if config.asks_scores else None,
        notes=notes,
        skipped=loading.skipped,
    )


def _step_of(config: Any, zero: Settings | None) -> Step:
    """How the options, and the launcher's settings, have a step made."""
    accumulate = [config.accumulate, getattr(accelerator(), "gradient_accumulation_steps", 1)]
    clips = [config.clip]
    if zero is not None:
        accumulate.append(zero.accumulate)
        clips.append(zero.clip)
    return Step(
        batch_size=config.batch_size,
        accumulate=max(accumulate),
        clip=min((clip for clip in clips if clip is not None), default=None),
        bfloat16=config.bf16 or half_precision(),
        compile=config.compile,
    )


def _engine_of(optimizer: Optimizer, zero: Settings | None) -> dict[str, Any]:
    """What a train stage is told of the launcher's engine: who averages, and who updates."""
    made = accelerator()
    if made is None:
        return {}
    if zero is not None:
        return {"wrap": lambda model: model, "updates": updates_of(optimizer, zero)}
    return {"wrap": partial(made.prepare_model, device_placement=False)}


def loading_of(config: Any, *, pin_memory: bool = False) -> Loading:
    """How the options have batches fetched.

    Args:
        config: with the options of a run.
        pin_memory: copy batches into page-locked memory, for a GPU.
    """
    return Loading(
        workers=config.workers,
        processes=config.worker_processes,
        timeout=config.worker_timeout,
        skipped=SkippedList() if config.skip_unreadable else None,
        kept=KeptWorkers() if config.worker_processes else None,
        pin_memory=pin_memory,
    )


def check_labels(labels: Tensor, num_classes: int, split: str) -> None:
    """Refuse labels that no class has.

    Args:
        labels: ``[N]`` integers.
        num_classes: K.
        split: what the examples are called in the message.

    Raises:
        ConfigError: names the first such example.
    """
    bad = (labels < 0) | (labels >= num_classes)
    if bool(bad.any()):
        first = int(bad.nonzero()[0])
        raise ConfigError(
            f"labels out of range: {split} example {first} has label {int(labels[first])}; with "
            f"num_classes {num_classes} labels are 0 to {num_classes - 1} "
            f"({int(bad.sum())} examples are out of range)"
        )


def weights_of(config: Any) -> str:
    """The entry of the state whose weights are evaluated and exported."""
    return "params" if config.ema is None else "ema"


def optimizer_of(config: Any) -> Optimizer:
    """The optimiser and its schedule that the options name."""
    decay = config.layer_decay
    scales: Scales | None = None if decay == 1 else partial(layer_scales, decay=decay)
    share = 0.05
    if config.warmup_epochs is not None:
        share = config.warmup_epochs / (config.epochs * config.budget_share)
    lr = warmup_cosine(config.peak_lr, warmup=share, floor=config.min_lr)
    if config.optimizer == "sgd":
        return sgd(lr, momentum=config.momentum, weight_decay=config.weight_decay, scales=scales)
    first, second = config.betas
    return adamw(lr, weight_decay=config.weight_decay, betas=(first, second), scales=scales)
