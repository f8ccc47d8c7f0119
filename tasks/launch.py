"""Several processes, where a launcher has started them: `accelerate launch`, `torchrun`.

Accelerate sets them up, by its own settings and the launcher's: which device each has, how they
talk, DistributedDataParallel or fully_shard, precision, gradient accumulation. What they then do
together is in `attent.pipeline.processes`.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch

from attent.tasks.config import ConfigError

if TYPE_CHECKING:
    from accelerate import Accelerator

_active: list[Accelerator] = []


def launched() -> bool:
    """Whether a launcher has started this process, as one of several or with its own settings."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1 or "ACCELERATE_MIXED_PRECISION" in os.environ


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
    from accelerate import Accelerator, DistributedDataParallelKwargs
    from accelerate.utils import DistributedType

    wrapping = DistributedDataParallelKwargs(
        broadcast_buffers=False, find_unused_parameters=_may_skip_parameters(config)
    )
    # Of several processes without a GPU it would set up none, unless it is told of the CPU.
    cpu = config.device == "cpu" or not torch.accelerator.is_available()
    made = Accelerator(cpu=cpu, kwargs_handlers=[wrapping])
    try:
        if made.num_processes != int(os.environ.get("WORLD_SIZE", "1")):
            raise ConfigError(
                f"the launcher has started {os.environ['WORLD_SIZE']} processes, accelerate sees "
                f"{made.num_processes}"
            )
        if made.distributed_type in (DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM):
            raise ConfigError(
                f"{made.distributed_type.value} keeps the optimiser's state itself, where no "
                "checkpoint of ours can hold it; use FSDP (accelerate launch --use_fsdp) to share "
                "out a language model that is too large for one device"
            )
        if made.mixed_precision not in ("no", "bf16"):
            raise ConfigError(
                f"mixed_precision {made.mixed_precision} scales losses, which are scores here; "
                "use bf16"
            )
        _active.append(made)
        yield
    finally:
        _active.clear()
        made.end_training()
        _forget()


def _may_skip_parameters(config: Any) -> bool:
    """Whether a step may leave parameters without a gradient: where nothing is detected."""
    from attent.tasks.detection.config import DetectConfig

    return isinstance(config, DetectConfig)


def _forget() -> None:
    """Let a later session of the same program begin anew."""
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)


def device_here(name: str) -> torch.device | None:
    """The device that the launcher gave this process, where a run leaves it to it."""
    made = accelerator()
    if made is None or (name not in ("auto", "cuda") and name != made.device.type):
        return None
    return made.device
