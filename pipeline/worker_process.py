"""A process that fetches batches: what runs in it, and what stands for it in the training process.

It is asked by a pipe and answers by the same one. Large tensors come back in shared memory, by
torch's own reductions; a tensor takes a file descriptor there and half a millisecond, so that small
ones are sent with the message. Shared memory that is full ends the process with SIGBUS.
"""

from __future__ import annotations

import contextlib
import io
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from multiprocessing import util
from multiprocessing.connection import Connection, wait
from multiprocessing.reduction import ForkingPickler
from typing import Any

import torch
import torch.multiprocessing
from torch import Tensor
from torch.multiprocessing.reductions import reduce_tensor

from attent.pipeline.fetch import Fetch, Fetched
from attent.pipeline.source import watched

SMALL = 2**16
"""Bytes of a tensor up to which it is sent with the message."""

_LOOK_UP = 2.0  # seconds between looks whether the training process is still there
_HINTS = {"SIGKILL": ["out of memory?"], "SIGBUS": ["is shared memory, /dev/shm, full?"]}


class WorkerDied(Exception):
    """A process ended while it was to fetch; the message says how."""


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
        ours, theirs = context.Pipe()
        self._pipe: Connection = ours
        self._process = context.Process(
            target=_serve, args=(fetch, theirs, ours, at, slot, os.getpid()), daemon=True
        )
        self._process.start()
        theirs.close()
        self.name = f"worker process {self._process.pid}"

    def fetch(self, index: Tensor) -> Fetched:
        """Ask for a batch and wait for it.

        Raises:
            WorkerDied: the process is no more.
        """
        try:
            self._pipe.send(index.numpy())
            wait([self._pipe, self._process.sentinel])
            # What was sent before the end is still read; where nothing was, this is the end.
            if self._pipe.poll():
                return self._pipe.recv()
        except (EOFError, OSError):
            pass  # it ended while one of the two was talking
        raise WorkerDied(self._end())

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


def _serve(
    fetch: Fetch, pipe: Connection, other_end: Connection, at: Tensor, slot: int, parent: int
) -> None:
    """Answer until told to end, or until the training process is no more."""
    other_end.close()  # or this process would keep its own pipe open
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the training process to answer
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    torch.set_num_threads(1)  # those that OpenMP had started are not in this copy
    places = at.numpy()

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
            places[slot] = -1
            pipe.send_bytes(_answer(fetch, torch.from_numpy(asked)))


def _answer(fetch: Fetch, index: Tensor) -> bytes:
    """What came of a batch, pickled."""
    try:
        fetch.seed(index)
        fetched = fetch(index)
        if isinstance(fetched.batch, Exception):
            # Pickled, an error loses what caused it.
            cause = "".join(traceback.format_exception(fetched.batch)).rstrip()
            fetched.batch.add_note(f"In worker process {os.getpid()}:\n{cause}")
        return _pickled(fetched)
    except Exception as error:  # what cannot be sent, most likely
        failed = fetch.failed(index, error)
        failed.add_note(f"In worker process {os.getpid()}:\n{traceback.format_exc().rstrip()}")
        return _pickled(Fetched(batch=failed))


def _pickled(fetched: Fetched) -> bytes:
    buffer = io.BytesIO()
    _Pickler(buffer, 5).dump(fetched)
    return buffer.getvalue()


class _Pickler(ForkingPickler):
    """torch's way to other processes, with small tensors by value and no more than is seen."""

    def reducer_override(self, obj: Any) -> Any:
        if type(obj) is not Tensor or obj.device.type != "cpu" or obj.layout != torch.strided:
            return NotImplemented
        size = obj.numel() * obj.element_size()
        if size <= SMALL and not obj.requires_grad and obj.dtype in _BY_VALUE:
            return torch.from_numpy, (obj.numpy(force=True),)
        if obj.untyped_storage().nbytes() > size:
            # A view would take all it is a view of along.
            return reduce_tensor(obj.clone(memory_format=torch.contiguous_format))
        return NotImplemented


_BY_VALUE: Sequence[torch.dtype] = (
    torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64,
    torch.float16, torch.float32, torch.float64,
)  # fmt: skip
