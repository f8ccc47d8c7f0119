"""Workers: threads or processes that fetch batches ahead of who reads them.

Why not others': torch's `DataLoader` raises from the handler of a signal where a worker dies, on
whatever line the training is then, so that no state is good any more; `ProcessPoolExecutor` does
not tell which of its processes died or hangs, nor end it; torchdata's `ParallelMapper` waits for
ever.
"""

from __future__ import annotations

import contextlib
import os
import queue
import threading
import time
import weakref
from collections import deque
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor
from torchdata.nodes import BaseNode

from attent.pipeline.fetch import Fetch, Fetched
from attent.pipeline.source import ExampleError, describe_example, watched
from attent.pipeline.worker_process import ProcessWorker, WorkerDied

GRACE = 0.5
"""Seconds that workers are given to end by themselves; then processes are killed."""

_AHEAD = 2  # batches of each worker that are fetched or waiting to be read


class Worker(Protocol):
    """Fetches one batch at a time, asked by a thread of its own."""

    name: str  # "worker process 4242"

    def fetch(self, index: Tensor) -> Fetched:
        """The batch of examples at ``index``."""
        ...

    def reading(self) -> int | None:
        """The example it is reading, as far as its source says."""
        ...

    def kill(self) -> None:
        """End it at once, where that can be done."""
        ...

    def close(self) -> None:
        """End it; it is not fetching."""
        ...


class ThreadWorker:
    """A worker that fetches in the thread that asks it. It cannot be killed."""

    name = "worker thread"

    def __init__(self, fetch: Fetch) -> None:
        self._fetch = fetch
        self._at: int | None = None

    def fetch(self, index: Tensor) -> Fetched:
        """The batch of examples at ``index``."""
        self._at = None
        watched(self._note)
        return self._fetch(index)

    def _note(self, index: int) -> None:
        self._at = index

    def reading(self) -> int | None:
        """The example it is reading, as far as its source says."""
        return self._at

    def kill(self) -> None:
        """Nothing: the program's end will end it."""

    def close(self) -> None:
        """Nothing: it ends with its thread."""


@dataclass
class _Order:
    """A batch that somebody is to fetch.

    Attributes:
        index: ``[B]`` int64, its examples.
        result: what came of it.
        worker: who fetches it; None while nobody does.
    """

    index: Tensor
    result: Future[Fetched] = field(default_factory=Future)
    worker: Worker | None = None


class FetchAhead(BaseNode[Fetched]):
    """Fetches batches by workers and hands them on in order, whoever is fastest.

    What fails is handed on as the `Fetched` of that batch, in its turn: a worker that died, or that
    lets wait for longer than the timeout, with the example it was reading. It ends the node.

    Args:
        source: of batches of indices, ``[B]`` int64.
        fetch: what is done with each.
        workers: how many, at least 1; twice as many batches are fetched ahead.
        processes: they are processes, not threads.
        timeout: seconds that a reader waits for one batch at most; None for ever.
        kept: whose processes are taken where there are some, and to whom they are given back when
            all was read; None: they end then.
    """

    def __init__(
        self,
        source: BaseNode[Tensor],
        fetch: Fetch,
        *,
        workers: int,
        processes: bool = False,
        timeout: float | None = None,
        kept: KeptWorkers | None = None,
    ) -> None:
        super().__init__()
        self.source = source
        self.fetch = fetch
        self.workers = workers
        self.processes = processes
        self.timeout = timeout
        self.kept = kept if processes else None
        self._crew: Crew | None = None
        self._ahead: deque[_Order] = deque()
        self._unread = 0
        self._done = False

    def reset(self, initial_state: dict[str, Any] | None = None) -> None:
        """Start workers, at the beginning of the source or where a state of it says."""
        super().reset(initial_state)
        self.close()
        self.source.reset(initial_state)
        self._done, self._unread = False, 0
        crew = None if self.kept is None else self.kept.take(self.fetch, self.workers)
        if crew is None:
            crew = Crew(self.fetch, self.workers, self.processes)
        self._crew = crew

    def get_state(self) -> dict[str, Any]:
        """Where the source is: ahead of what was handed on."""
        return self.source.state_dict()

    def next(self) -> Fetched:
        """What came of the next batch."""
        self._fill()
        if not self._ahead:
            self.close()
            raise StopIteration
        order = self._ahead.popleft()
        fetched = self._wait(order)
        self._fill()  # the workers go on while this one is used
        return fetched

    def close(self) -> None:
        """End the workers, or have them kept; there is no next batch then. From any thread."""
        idle = self._done and not self._unread
        self._done = True
        crew, self._crew = self._crew, None
        self._ahead.clear()
        if crew is not None and idle and self.kept is not None:
            self.kept.give(crew)
        elif crew is not None:
            crew.close()

    def _fill(self) -> None:
        """Order batches until enough are ahead."""
        crew = self._crew
        while crew is not None and not self._done and len(self._ahead) < _AHEAD * self.workers:
            try:
                order = _Order(next(self.source))
            except StopIteration:
                self._done = True
                return
            self._ahead.append(order)
            self._unread += 1
            crew.orders.put(order)

    def _wait(self, order: _Order) -> Fetched:
        """The result of an order, or what kept it from coming."""
        crew, waited = self._crew, 0.0
        while crew is not None and not crew.stopped.is_set():
            # Seconds are counted as they are waited: those in which the program was stopped
            # (Ctrl-Z) are nobody's fault. Short ones, to see that the stream was closed.
            pause = 1.0 if self.timeout is None else min(1.0, self.timeout - waited)
            with contextlib.suppress(TimeoutError):
                fetched = order.result.result(timeout=pause)
                if isinstance(fetched.batch, WorkerLost):
                    self.close()
                self._unread -= 1
                return fetched
            waited += pause
            if self.timeout is not None and waited >= self.timeout:
                return self._hangs(order)
        raise StopIteration

    def _hangs(self, order: _Order) -> Fetched:
        """The error of a batch that does not come; its worker is killed, if that can be done."""
        worker = order.worker
        name = "a worker" if worker is None else worker.name
        error = WorkerLost(
            f"{name} has been reading {where(self.fetch, order.index, worker)} for "
            f"{self.timeout:g} s, the timeout of workers"
        )
        if worker is not None:
            worker.kill()
        self.close()
        return Fetched(batch=error)


class WorkerLost(ExampleError):
    """A worker that died or hangs; the message says what it was reading."""


class Crew:
    """The workers of a stream, each with the thread that asks it.

    Args:
        fetch: what they do.
        workers: how many.
        processes: they are processes, not threads.
    """

    def __init__(self, fetch: Fetch, workers: int, processes: bool) -> None:
        self.fetch = fetch
        self.orders: queue.SimpleQueue[_Order | None] = queue.SimpleQueue()
        self.stopped = threading.Event()
        self._owner = os.getpid()
        at = torch.full((workers,), -1, dtype=torch.int64)
        if processes:
            at.share_memory_()
        # All processes before any thread: a copy of a process has only the thread that made it,
        # and keeps what the others had locked.
        self._workers: list[Worker] = []
        try:
            for slot in range(workers):
                worker = ProcessWorker(fetch, at, slot) if processes else ThreadWorker(fetch)
                self._workers.append(worker)
        except BaseException:
            for worker in self._workers:
                worker.kill()
                worker.close()
            raise
        # Daemons: a thread that hangs does not keep the program from ending.
        self._threads = [
            threading.Thread(
                target=_work, args=(worker, fetch, self.orders, self.stopped), daemon=True
            )
            for worker in self._workers
        ]
        for thread in self._threads:
            thread.start()

    def __len__(self) -> int:
        return len(self._workers)

    def renew(self, fetch: Fetch) -> bool:
        """Have idle processes fetch for another stream; False where that cannot be done."""
        return all(isinstance(w, ProcessWorker) and w.renew(fetch) for w in self._workers)

    def close(self) -> None:
        """End all: those that fetch are given `GRACE`, then processes are killed."""
        if os.getpid() != self._owner:
            return  # a copy of it, in a worker process
        self.stopped.set()
        for _ in self._threads:
            self.orders.put(None)
        self._join(GRACE)
        for worker, thread in zip(self._workers, self._threads, strict=True):
            if thread.is_alive():
                worker.kill()
        if any(isinstance(worker, ProcessWorker) for worker in self._workers):
            self._join(10 * GRACE)  # killed ones are gone in no time, unless the disk holds them

    def _join(self, seconds: float) -> None:
        """Wait for all threads to end, so long at most."""
        until = time.monotonic() + seconds
        for thread in self._threads:
            # Garbage may be collected, and a stream with it, in any thread.
            if thread is not threading.current_thread():
                thread.join(max(0.0, until - time.monotonic()))


class KeptWorkers:
    """Worker processes that are kept from stream to stream; one serves any number of streams.

    To start a process and to end it takes some hundredths of a second, for each pass, scoring and
    evaluation. Those of a stream that was read to its end wait here for the next of the same
    source and as many workers, with the copy of the source they have: **what is changed about a
    source after its first stream they do not see**. Others end with their stream: those of one
    that is left half-way or fails, and those whose keys cannot be pickled.

    They end when it is closed, when nobody holds it any more, and with the program.
    """

    def __init__(self) -> None:
        # A crew holds its source, which keeps the id from being another's.
        self._idle: dict[tuple[int, int], Crew] = {}
        weakref.finalize(self, _close_all, self._idle)

    def take(self, fetch: Fetch, workers: int) -> Crew | None:
        """Idle ones, told what to do; None where there are none.

        Args:
            fetch: what they are to do.
            workers: how many there must be.
        """
        # One call of a dictionary is one step, whichever threads call.
        crew = self._idle.pop((id(fetch.source), workers), None)
        if crew is not None and not crew.renew(fetch):
            crew.close()
            return None
        return crew

    def give(self, crew: Crew) -> None:
        """Keep idle ones; end them where there are such already."""
        if self._idle.setdefault((id(crew.fetch.source), len(crew)), crew) is not crew:
            crew.close()

    def close(self) -> None:
        """End those that are idle."""
        _close_all(self._idle)


def _close_all(idle: dict[tuple[int, int], Crew]) -> None:
    with contextlib.suppress(KeyError):  # there is none left
        while True:
            idle.popitem()[1].close()


def _work(
    worker: Worker,
    fetch: Fetch,
    orders: queue.SimpleQueue[_Order | None],
    stopped: threading.Event,
) -> None:
    """Have a worker fetch what is ordered, until all is or the worker is lost."""
    try:
        while True:
            order = orders.get()
            if order is None or stopped.is_set():
                return
            order.worker = worker
            try:
                result = worker.fetch(order.index)
            except WorkerDied as end:
                lost = f"{worker.name} {end} while reading {where(fetch, order.index, worker)}"
                order.result.set_result(Fetched(batch=WorkerLost(lost)))
                return
            except BaseException as error:  # also SystemExit, which would end the thread unheard
                at = where(fetch, order.index, worker)
                failed = ExampleError(f"{at} cannot be fetched: {type(error).__name__}: {error}")
                failed.__cause__ = error
                result = Fetched(batch=failed)
            order.result.set_result(result)
            del order, result  # or a batch that was read would be held until the next is there
    finally:
        worker.close()


def where(fetch: Fetch, index: Tensor, worker: Worker | None) -> str:
    """What a worker is reading: the example if its source says, or else the batch."""
    at = None if worker is None else worker.reading()
    return fetch.describe_batch(index) if at is None else describe_example(fetch.source, at)
