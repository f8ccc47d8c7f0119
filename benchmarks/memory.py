"""What a process grows by while something runs (Linux)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path


def growth(work: Callable[[], object]) -> int:
    """Bytes by which the peak resident size is above the present one while ``work`` runs."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = _status("VmRSS")
    result = work()
    after = _status("VmHWM")
    del result
    return after - before


def peak() -> int:
    """Bytes of the peak resident size of this process so far."""
    return _status("VmHWM")


def _status(entry: str) -> int:
    """A figure of /proc/self/status in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(entry):
            return 1024 * int(line.split()[1])
    raise KeyError(entry)
