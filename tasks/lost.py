"""What is said where a run ends before its end: another process is gone, or it was told to stop."""

from __future__ import annotations

import contextlib
import re
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType

import torch.distributed as dist

from attent.tasks.launch import launched

_LOST = re.compile(
    r"gloo/transport/|closed by peer|reset by peer|Broken pipe|Connection refused|not connected|"
    r"Connection was likely closed|remote process exited|unhandled|"
    r"Timed out waiting|Wait timeout|Socket Timeout",
    re.IGNORECASE,
)
"""What gloo, NCCL and torch's store say where another process does not answer any more.

Gloo names the file that the error is from: whatever its transport has met, it is the others."""

_STORE = ("DistNetworkError", "DistStoreError")  # which torch has where it can be distributed


class LostProcessError(RuntimeError):
    """Another process of the run has died, or does not answer."""


@contextlib.contextmanager
def noticing_the_lost(run: str | None = None) -> Iterator[None]:
    """Say what has happened where another process does not answer any more, and what goes on.

    Args:
        run: the folder of the run; None while there is none yet.

    Raises:
        LostProcessError: instead of what gloo, NCCL or the store raise.
        KeyboardInterrupt: instead of one that does not say what resumes the run.
    """
    try:
        yield
    except KeyboardInterrupt as stop:
        if run is None or stop.args:
            raise
        raise KeyboardInterrupt(f"attent resume {run}") from stop
    except RuntimeError as error:
        if isinstance(error, LostProcessError) or not _tells_of_the_lost(error):
            raise
        why = str(error).strip().splitlines()[0]
        goes_on = (
            "nothing was done yet: start it again"
            if run is None
            else f"attent resume {run} goes on from what was saved last"
        )
        raise LostProcessError(f"another process of this run is gone; {goes_on} ({why})") from error


@contextlib.contextmanager
def terminable() -> Iterator[None]:
    """Take SIGTERM as Ctrl-C: a KeyboardInterrupt, where nobody else waits for one.

    A launcher sends it when another process has died. One that has noticed so itself is not
    disturbed: it is about to say it.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    former = signal.signal(signal.SIGTERM, _stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, former)


def _stop(number: int, frame: FrameType | None) -> None:
    error = sys.exc_info()[1]  # what this thread is dealing with, wherever the signal has met it
    while error is not None:
        if isinstance(error, LostProcessError) or _tells_of_the_lost(error):
            return
        error = error.__context__
    raise KeyboardInterrupt


def _tells_of_the_lost(error: BaseException) -> bool:
    """Whether an error is of talking to other processes."""
    if not launched() or not isinstance(error, RuntimeError):
        return False
    of_the_store = tuple(getattr(dist, name) for name in _STORE if hasattr(dist, name))
    return isinstance(error, of_the_store) or _LOST.search(str(error)) is not None
