"""Several processes, where a launcher has started them: `accelerate launch`, `torchrun`.

Accelerate sets them up, by its own settings and the launcher's: which device each has, how they
talk, DistributedDataParallel or fully_shard, precision, gradient accumulation. What they then do
together is in `attent.pipeline.processes`; DeepSpeed's part in it in `attent.tasks.zero`.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch

from attent.tasks.config import ConfigError
from attent.tasks.zero import settings

if TYPE_CHECKING:
    from accelerate import Accelerator

_active: list[Accelerator] = []
_whole: list[bool] = []


def launched() -> bool:
    """Whether a launcher has started this process, as one of several or with its own settings."""
    return _count() > 1 or any(name.startswith("ACCELERATE_") for name in os.environ)


def _count() -> int:
    """How many processes the launcher says it has started."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def _asked(name: str) -> bool:
    """Whether the launcher has set a switch."""
    return os.environ.get(name, "false").lower() in ("true", "1", "yes")


def is_main() -> bool:
    """Whether this process is the one that writes and speaks, also before and after a session."""
    return int(os.environ.get("RANK", "0")) == 0


def accelerator() -> Accelerator | None:
    """Of the session in force; None where this process is alone."""
    return _active[-1] if _active else None


@contextlib.contextmanager
def session(config: Any) -> Iterator[None]:
    """Set the processes up for a run, and take them down again.

    Args:
        config: the options; their ``device`` may be the CPU where there are GPUs.

    Raises:
        ConfigError: what the launcher was told cannot be.
    """
    if not launched() or _active:  # a run may be part of another, which has set them up
        yield
        return
    _check_engines(config)
    if ":" in config.device and _count() > 1:
        raise ConfigError(
            f"device {config.device} is one device, but there are several processes: leave it to "
            "the launcher (device auto, or cpu)"
        )
    from accelerate import Accelerator, DistributedDataParallelKwargs
    from accelerate.utils import patch_environment

    wrapping = DistributedDataParallelKwargs(find_unused_parameters=_may_skip_parameters(config))
    # Of several processes without a GPU it would set up none, unless it is told of the CPU.
    cpu = config.device == "cpu" or not torch.accelerator.is_available()
    if cpu and settings() is not None:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # DeepSpeed would look for one, and warn
    with patch_environment(ACCELERATE_USE_DEEPSPEED="false"):  # it has the updates alone
        made = Accelerator(cpu=cpu, mixed_precision="no", kwargs_handlers=[wrapping])
    try:
        if made.num_processes != _count():
            raise ConfigError(
                f"the launcher has started {_count()} processes, accelerate sees "
                f"{made.num_processes}"
            )
        _active.append(made)
        yield
    finally:
        _active.clear()
        made.end_training()
        _forget()


def _check_engines(config: Any) -> None:
    """Refuse what the launcher asks for and cannot have."""
    if _asked("ACCELERATE_USE_MEGATRON_LM"):
        raise ConfigError(
            "Megatron-LM keeps the optimiser's state itself, where no checkpoint of ours holds it; "
            "FSDP (accelerate launch --use_fsdp) shares out a language model that is too large for "
            "one device"
        )
    if settings() is not None and _may_skip_parameters(config):
        raise ConfigError(
            "a step of detect may leave parameters without a gradient, which ZeRO would update all "
            "the same: start the processes without DeepSpeed"
        )


def _may_skip_parameters(config: Any) -> bool:
    """Whether a step may leave parameters without a gradient: where nothing is detected."""
    from attent.tasks.detection.config import DetectConfig

    return isinstance(config, DetectConfig)


def _forget() -> None:
    """Let a later session of the same program begin anew."""
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)


def half_precision() -> bool:
    """Whether the launcher asks for bfloat16.

    The step sees to it itself, in training alone: accelerate would change how the model is called
    in scoring too, but not where there is one process.

    Raises:
        ConfigError: another precision is asked for.
    """
    zero = settings()
    asked = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if zero is not None and zero.precision != "no":
        asked = zero.precision
    if asked not in ("no", "bf16"):
        raise ConfigError(f"mixed_precision {asked} scales losses, which are scores here; use bf16")
    return asked == "bf16"


def shares_out(config: Any) -> bool:
    """Whether the launcher asks for FSDP: frozen weights are to be shared out.

    Args:
        config: the options.

    Raises:
        ConfigError: there are none, or they cannot be.
    """
    made = accelerator()
    if made is None or made.num_processes == 1 or not _asked("ACCELERATE_USE_FSDP") or _whole:
        return False
    adapter = getattr(config, "adapter", None)
    if adapter is None or adapter == "full":
        raise ConfigError(
            "FSDP shares out the frozen weights of language models with adapters; here everything "
            "is trained: start the processes without it (they average gradients then)"
        )
    if getattr(config, "bits", 32) < 16:
        raise ConfigError(f"FSDP cannot share out weights of {config.bits} bits; use bits 16 or 32")
    return True


@contextlib.contextmanager
def whole_models() -> Iterator[None]:
    """What is built in this block is not shared out: the model below adapters, made anew."""
    _whole.append(True)
    try:
        yield
    finally:
        _whole.pop()


def device_here(name: str) -> torch.device | None:
    """The device that the launcher gave this process, where a run leaves it to it."""
    made = accelerator()
    if made is None or (name not in ("auto", "cuda") and name != made.device.type):
        return None
    return made.device
