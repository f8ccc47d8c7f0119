"""Typed options and their checks.

One dataclass a command: its fields are the YAML keys, the flags and the Python arguments.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Container, Iterable
from dataclasses import dataclass
from typing import Any, Literal

from attent.tasks.checks import ConfigError, need
from attent.tasks.option_types import mistyped
from attent.tasks.selection import Method, SelectionConfig, check_selection, idle_selection

__all__ = [
    "ConfigError",
    "Method",
    "RunConfig",
    "SelectionConfig",
    "TrainingConfig",
    "as_dict",
    "check_patches",
    "check_shared",
    "did_you_mean",
    "from_dict",
    "need",
    "without_effect",
]


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """How the model is trained.

    Args:
        epochs: the budget; see the option budget.
        batch_size: examples in an optimiser step.
        optimizer: by torch.
        lr: peak learning rate, above 0; null for blr * batch_size / 256.
        blr: peak learning rate of a batch of 256; for batches of other sizes in proportion.
        min_lr: learning rate at the end of the budget.
        warmup_epochs: over this many of the epochs, as a share of the budget, the learning rate
            rises from 0; null for a twentieth of them.
        weight_decay: at least 0; not applied to norms, biases, and tables such as position
            embeddings and tokens.
        betas: of optimizer adamw, two numbers in [0, 1).
        momentum: of optimizer sgd, in [0, 1).
        clip: largest norm of the gradient; null for no clipping.
        accumulate: parts a batch is cut into, to save memory.
        layer_decay: learning rates by layer: each block of the encoder has this share of that of
            the block after it; 1 for the same everywhere, in (0, 1].
        ema: share that a moving average of the weights keeps of itself at each step, in [0, 1); it
            is what is evaluated and exported. null for none.
        bf16: forward under bfloat16 autocast.
        compile: run the model through torch.compile.
    """

    epochs: int = 100
    batch_size: int = 32
    optimizer: Literal["adamw", "sgd"] = "adamw"
    lr: float | None = 1e-3
    blr: float | None = None
    min_lr: float = 0.0
    warmup_epochs: float | None = None
    weight_decay: float = 0.05
    betas: list[float] = dataclasses.field(default_factory=lambda: [0.9, 0.999])
    momentum: float = 0.9
    clip: float | None = None
    accumulate: int = 1
    layer_decay: float = 1.0
    ema: float | None = None
    bf16: bool = False
    compile: bool = False

    @property
    def peak_lr(self) -> float:
        """The peak learning rate: ``lr``, or what ``blr`` makes of the batch size."""
        if self.lr is not None:
            return self.lr
        assert self.blr is not None  # `check_shared` has seen to it
        return self.blr * self.batch_size / 256


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Where and how a run goes on.

    Args:
        output_dir: the run folder; by default the next free out/COMMAND-N.
        seed: the one seed of everything random.
        device: auto, cpu, cuda or cuda:N.
        workers: threads that fetch batches; 0 fetches in the training thread.
        worker_processes: workers are processes, not threads: quicker where Python itself is what
            takes the time, as in augmenting and tokenising.
        worker_timeout: seconds that training waits for one batch, until its worker counts as hung
            and the run stops; null for ever.
        skip_unreadable: an example that cannot be read is passed over and listed in skipped.jsonl,
            another in its place, and a shard of pictures that is damaged is left out; otherwise
            they stop the run.
        threads: of torch on the CPU; null leaves torch's own choice. The same number is needed for
            the same bits.
        steps_per_tick: optimiser steps between looks of the progress bar, log and checkpoints.
        eval_every: epochs' worth of examples (or of tokens) between evaluations.
        save_every: epochs' worth of examples between checkpoints.
        keep: checkpoints kept, beside the best one.
        progress: show the live bar (on a terminal) or a line per evaluation (elsewhere).
        report_to: trackers that are told what the log is: tensorboard, wandb and others that
            accelerate knows.
    """

    output_dir: str | None = None
    seed: int = 0
    device: str = "auto"
    workers: int = 0
    worker_processes: bool = False
    worker_timeout: float | None = 600.0
    skip_unreadable: bool = False
    threads: int | None = None
    steps_per_tick: int = 50
    eval_every: float = 1.0
    save_every: float = 1.0
    keep: int = 3
    progress: bool = True
    report_to: list[str] = dataclasses.field(default_factory=list)


TRACKERS = {
    "aim": "aim",
    "clearml": "clearml",
    "comet_ml": "comet-ml",
    "dvclive": "dvclive",
    "mlflow": "mlflow",
    "swanlab": "swanlab",
    "tensorboard": "tensorboard",
    "trackio": "trackio",
    "wandb": "wandb",
}
"""Trackers that accelerate knows -> the package that each needs."""


# Options that say how a run is carried out, not what comes out: free to change on resume. To pass
# over what cannot be read changes nothing before the first such example, which stops the run
# otherwise: there it can be asked for.
RUNTIME = frozenset(
    {
        "output_dir",
        "device",
        "workers",
        "worker_processes",
        "worker_timeout",
        "skip_unreadable",
        "threads",
        "steps_per_tick",
        "save_every",
        "keep",
        "progress",
        "report_to",
    }
)


def check_shared(config: Any) -> None:
    """Refuse values out of range, of the options that every command has.

    What only one part knows (a plan that does not fit, a model that does not exist) that part
    refuses.

    Raises:
        ConfigError: names the option and what is accepted.
    """
    for mistake in mistyped(config):
        raise ConfigError(mistake)
    check_selection(config)
    for name in ("epochs", "batch_size", "accumulate", "steps_per_tick", "keep"):
        need(config, name, lambda v: v >= 1, "at least 1")
    for name in ("eval_every", "save_every"):
        need(config, name, lambda v: 0 < v < float("inf"), "above 0")
    for name in ("lr", "blr", "worker_timeout"):
        need(config, name, lambda v: v is None or 0 < v < float("inf"), "above 0, or null")
    for name in ("weight_decay", "min_lr", "workers"):
        need(config, name, lambda v: v >= 0, "at least 0")
    need(config, "layer_decay", lambda v: 0 < v <= 1, "in (0, 1]")
    need(config, "ema", lambda v: v is None or 0 <= v < 1, "in [0, 1), or null")
    need(config, "momentum", lambda v: 0 <= v < 1, "in [0, 1)")
    two = "two numbers in [0, 1)"
    need(config, "betas", lambda v: len(v) == 2 and all(0 <= beta < 1 for beta in v), two)
    need(config, "warmup_epochs", lambda v: v is None or v >= 0, "at least 0, or null")
    need(config, "clip", lambda v: v is None or v > 0, "above 0, or null")
    known = f"among {', '.join(sorted(TRACKERS))}"
    need(config, "report_to", lambda v: set(v) <= TRACKERS.keys(), known)
    need(config, "threads", lambda v: v is None or v >= 1, "at least 1, or null")
    _check_together(config)
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", config.device):
        raise ConfigError(f"device is auto, cpu, cuda or cuda:N, not {config.device!r}")


def _check_together(config: Any) -> None:
    """Refuse values that contradict each other."""
    if config.lr is None and config.blr is None:
        raise ConfigError("lr and blr are both null; give one of them")
    if config.min_lr > config.peak_lr:
        raise ConfigError(f"min_lr ({config.min_lr}) is above lr ({config.peak_lr})")
    bought = config.epochs * config.budget_share
    if config.warmup_epochs is not None and config.warmup_epochs >= bought:
        share = "" if config.budget_share == 1 else f" x budget_share ({config.budget_share:g})"
        raise ConfigError(
            f"warmup_epochs ({config.warmup_epochs:g}) must be below epochs "
            f"({config.epochs}){share}"
        )


def check_patches(config: Any, *, semseg: bool) -> None:
    """Refuse pictures that are not a whole number of patches.

    Args:
        config: with ``input_size`` and ``patch_size``.
        semseg: maps of classes are involved, of which a pixel stands for four by four.

    Raises:
        ConfigError: names the options.
    """
    if config.input_size % config.patch_size:
        raise ConfigError(
            f"input_size {config.input_size} is not a whole number of patches of patch_size "
            f"{config.patch_size}"
        )
    if semseg and config.patch_size % 4:
        raise ConfigError(
            f"patch_size {config.patch_size} is not a multiple of 4, the pixels to one of a map of "
            "classes"
        )


def without_effect(config: Any, asked: Container[str] = ()) -> list[str]:
    """A warning for each option that was changed from its default, or asked for, and does nothing.

    Args:
        config: may have a method ``idle() -> {option: why}`` for the options of its own command.
        asked: options that are warned of at their default, too.
    """
    idle = _idle(config) | getattr(config, "idle", dict)()
    defaults = type(config)()
    return [
        f"{name} = {getattr(config, name)} has no effect: {why}"
        for name, why in idle.items()
        if name in asked or getattr(config, name) != getattr(defaults, name)
    ]


def _idle(config: Any) -> dict[str, str]:
    """The options that do nothing, of those that every command has, and why."""
    idle = idle_selection(config)
    if config.optimizer != "sgd":
        idle["momentum"] = f"optimizer is {config.optimizer}"
    if config.optimizer != "adamw":
        idle["betas"] = f"optimizer is {config.optimizer}"
    if config.lr is not None:
        idle["blr"] = "lr is set"
    if config.workers == 0:
        idle |= dict.fromkeys(("worker_processes", "worker_timeout"), "workers is 0")
    return idle


def as_dict(config: Any) -> dict[str, Any]:
    """A config as plain values, for YAML and JSON."""
    return dataclasses.asdict(config)


def from_dict(kind: type, values: dict[str, Any], origin: str) -> Any:
    """A config from plain values.

    Raises:
        ConfigError: an unknown key, with the nearest known one.
    """
    known = [field.name for field in dataclasses.fields(kind)]
    for name in values:
        if name not in known:
            raise ConfigError(f"{origin}: unknown option {name!r}{did_you_mean(name, known)}")
    return kind(**values)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """``; did you mean 'x'?``, or nothing."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {near[0]!r}?" if near else ""
