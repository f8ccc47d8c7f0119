"""A process that fetches batches: what runs in it, and what stands for it in the training process.

It is asked by a pipe and answers by the same one. Large tensors come back in shared memory that is
used again (`attent.pipeline.lending`), small ones with the message. Shared memory that is full ends
the process with SIGBUS.
"""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from multiprocessing import util
from multiprocessing.connection import Connection, wait

import torch
import torch.multiprocessing
from torch import Tensor

from attent.pipeline.fetch import Fetch, Fetched
from attent.pipeline.lending import Borrower, Lender, Message
from attent.pipeline.source import watched

_LOOK_UP = 2.0  # seconds between looks whether the training process is still there
_HINTS = {"SIGKILL": ["out of memory?"], "SIGBUS": ["is shared memory, /dev/shm, full?"]}


class WorkerDied(Exception):
    """A process ended while it was to fetch; the message says how."""


@dataclass(frozen=True)
class _Renewed:
    """What of its `Fetch` a process is told anew where it is kept for another stream."""

    keys: Callable[[Tensor], Tensor] | None
    unreadable: dict[int, str] | None


class ProcessWorker:
    """A worker process, asked for one batch at a time by one thread of the training process.

    Args:
        fetch: what it does; it gets a copy, made when it starts.
        at: ``[W]`` int64 in shared memory: which example each worker is reading, -1 for unknown.
        slot: its place there.
    """

    def __init__(self, fetch: Fetch, at: Tensor, slot: int) -> None:
        self._at, self._slot = at, slot
        util.get_temp_dir()  # of sockets; made here, it is removed here, though a worker be killed
        # Elsewhere processes are not safely copied, and the source is pickled.
        context = torch.multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
        self._borrower = Borrower()
        ours, theirs = context.Pipe()
        self._pipe: Connection = ours
        self._process = context.Process(
            target=_serve, args=(fetch, theirs, ours, at, slot, os.getpid()), daemon=True
        )
        with _held_interrupts():
            self._process.start()
        theirs.close()
        self.name = f"worker process {self._process.pid}"

    def fetch(self, index: Tensor) -> Fetched:
        """Ask for a batch and wait for it.

        Raises:
            WorkerDied: the process is no more.
        """
        try:
            self._pipe.send((index.numpy(), self._borrower.busy()))
            wait([self._pipe, self._process.sentinel])
            # What was sent before the end is still read; where nothing was, this is the end.
            if self._pipe.poll():
                return self._borrower.unpacked(self._pipe.recv())
        except (EOFError, OSError):
            pass  # it ended while one of the two was talking
        raise WorkerDied(self._end())

    def renew(self, fetch: Fetch) -> bool:
        """Have it fetch for another stream of its source; False where that cannot be done.

        Args:
            fetch: of the same source.
        """
        try:
            self._pipe.send(_Renewed(fetch.keys, fetch.unreadable))
        except Exception:  # it is no more, or the keys cannot be pickled
            return False
        return self._process.is_alive()

    def _end(self) -> str:
        """How the process ended."""
        self._process.join(1.0)
        code = self._process.exitcode
        if code is None:
            self._process.kill()
            return "no longer answers"
        if code >= 0:
            return f"ended with exit code {code}"
        name = next((s.name for s in signal.Signals if s == -code), f"signal {-code}")
        return f"died ({', '.join([name, *_HINTS.get(name, ())])})"

    def reading(self) -> int | None:
        """The example it is reading, as far as its source says."""
        at = int(self._at[self._slot])
        return at if at >= 0 else None

    def kill(self) -> None:
        """End it at once; called from any thread."""
        with contextlib.suppress(ValueError):  # closed in the meantime
            self._process.kill()

    def close(self) -> None:
        """Have it end by itself, and wait until it has."""
        # Closing the pipe is not enough: processes that were started later hold copies of its end.
        with contextlib.suppress(OSError):
            self._pipe.send(None)
        self._pipe.close()
        self._process.join()
        self._process.close()


@contextlib.contextmanager
def _held_interrupts() -> Iterator[None]:
    """Ctrl-C waits, here and in a process that is started, until that can say what it does then."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _serve(
    fetch: Fetch, pipe: Connection, other_end: Connection, at: Tensor, slot: int, parent: int
) -> None:
    """Answer until told to end, or until the training process is no more."""
    other_end.close()  # or this process would keep its own pipe open
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the training process to answer
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    gc.freeze()  # to look at what was copied would be to make copies of its memory
    torch.set_num_threads(1)  # those that OpenMP had started are not in this copy
    places, lender = at.numpy(), Lender()

    def note(index: int) -> None:
        places[slot] = index

    watched(note)
    with contextlib.suppress(EOFError, OSError):
        while True:
            while not pipe.poll(_LOOK_UP):
                if os.getppid() != parent:
                    return
            asked = pipe.recv()
            if asked is None:
                return
            if isinstance(asked, _Renewed):
                fetch = replace(fetch, keys=asked.keys, unreadable=asked.unreadable)
                continue
            index, busy = asked
            places[slot] = -1
            pipe.send(_answer(fetch, torch.from_numpy(index), lender, busy))


def _answer(fetch: Fetch, index: Tensor, lender: Lender, busy: list[int]) -> Message:
    """What came of a batch."""
    try:
        fetch.seed(index)
        fetched = fetch(index)
        if isinstance(fetched.batch, Exception):
            # Pickled, an error loses what caused it.
            cause = "".join(traceback.format_exception(fetched.batch)).rstrip()
            fetched.batch.add_note(f"In worker process {os.getpid()}:\n{cause}")
        return lender.packed(fetched, busy)
    except Exception as error:  # what cannot be sent, most likely
        failed = fetch.failed(index, error)
        failed.add_note(f"In worker process {os.getpid()}:\n{traceback.format_exc().rstrip()}")
        return lender.packed(Fetched(batch=failed), busy)
