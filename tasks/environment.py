"""What the bits of a run depend on beside its options: versions, machine, threads, device."""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from attent.pipeline.checkpoint import write_atomically

PACKAGES = (
    "torch", "torchvision", "torchdata", "tensordict", "timm", "numpy", "transformers", "peft",
    "tokenizers",
)  # fmt: skip


def write_environment(path: Path, device: str) -> None:
    """Write it down as JSON.

    Args:
        path: of the file.
        device: that the model is on.
    """
    write_atomically(path, (json.dumps(_environment(device), indent=2) + "\n").encode())


def warn_of_changes(path: Path, say: Callable[[str], None]) -> None:
    """Warn where the rest of a run may differ in its last bits from an uninterrupted one.

    Args:
        path: of the file that was written when it began.
        say: told what has changed since.
    """
    if path.is_file():
        was = json.loads(path.read_text())
        now = _environment(was.get("device", "cpu"))
        changed = [f"{k} {was[k]} -> {now[k]}" for k in now if k in was and was[k] != now[k]]
        if changed:
            say(f"warning: not bit for bit as it would have been: {', '.join(changed)}")


def _environment(device: str) -> dict[str, Any]:
    return {
        "python": sys.version.split()[0],
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
        "device": device,
        **{name: version(name) for name in PACKAGES},
    }
