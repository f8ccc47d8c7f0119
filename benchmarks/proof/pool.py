"""Jobs over worker processes, one thread each, of which any may fail or die without the others."""

from __future__ import annotations

import contextlib
import importlib
import json
import math
import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Generator, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any

from benchmarks.proof.jobs import Job, Record

ONE_THREAD = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


class WorkerError(RuntimeError):
    """Workers cannot run any job: the runner cannot be imported, or they die before their first."""


def run_jobs(
    jobs: Sequence[Job], runner: str, *, workers: int, deadline: float = math.inf
) -> Generator[tuple[Job, Record], None, None]:
    """What comes of each job, in the order in which they end.

    Closing the iterator, or an exception where it is waited for, ends the workers at once; what
    they were at is lost.

    Args:
        jobs: begun in this order.
        runner: "module:function" that takes a job and returns its record.
        workers: how many processes.
        deadline: of `time.monotonic`; no job is begun after it, those begun are ended.

    Yields:
        The job, and its record: what the runner returned with ``status`` "ok", or ``status``
        "failed" and ``why``; and ``wall_seconds``.

    Raises:
        WorkerError: no job can be run.
    """
    left = deque(jobs)
    pool = [_Worker(runner) for _ in range(min(workers, len(left)))]
    try:
        while left or any(worker.job for worker in pool):
            for worker in pool:
                if worker.ready and worker.job is None and left and time.monotonic() < deadline:
                    worker.begin(left.popleft())
            if time.monotonic() >= deadline:
                left.clear()
            busy = [worker for worker in pool if worker.job or (left and not worker.ready)]
            if not busy:
                continue
            for ended in wait([worker.pipe for worker in busy], timeout=1.0):
                i = next(i for i, worker in enumerate(pool) if worker.pipe is ended)
                outcome = pool[i].take()
                if outcome is not None:
                    yield outcome
                if pool[i].dead:
                    pool[i].stop()
                    pool[i] = _Worker(runner)
    finally:
        for worker in pool:
            worker.stop()


IMPOSSIBLE = "impossible"
"""What a worker says of a job for which a package is missing."""


class _Worker:
    """One process, as its parent sees it."""

    def __init__(self, runner: str) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, runner), daemon=True)
        # The thread counts are read when torch is imported, which the runner's module does.
        before = {name: os.environ.get(name) for name in ONE_THREAD}
        os.environ.update(dict.fromkeys(ONE_THREAD, "1"))
        try:
            self.process.start()
        finally:
            for name, value in before.items():
                if value is None:
                    del os.environ[name]
                else:
                    os.environ[name] = value
        theirs.close()
        self.ready = self.dead = False
        self.job: Job | None = None
        self._began = 0.0

    def begin(self, job: Job) -> None:
        self.job, self._began = job, time.monotonic()
        with contextlib.suppress(OSError):  # it has died meanwhile: `take` says so
            self.pipe.send(job)

    def take(self) -> tuple[Job, Record] | None:
        """What it has sent: nothing yet but that it is ready, or a job's outcome."""
        try:
            said = self.pipe.recv()
        except (EOFError, OSError):
            self.process.join()
            self.dead = True
            said = {"status": "failed", "why": f"its process died ({_ending(self.process)})"}
        if not self.ready:
            if said != "ready":
                raise WorkerError(f"no job can be run: {said['why']}")
            self.ready = True
            return None
        if self.job is None:
            return None
        if said["status"] == IMPOSSIBLE:
            raise WorkerError(f"no job of {self.job.world} can be run: {said['why']}")
        job, self.job = self.job, None
        return job, {**said, "wall_seconds": round(time.monotonic() - self._began, 3)}

    def stop(self) -> None:
        self.pipe.close()
        self.process.kill()
        self.process.join()


def _ending(process: Any) -> str:
    code = process.exitcode
    if code is not None and code < 0:
        return f"signal {-code}, {signal.Signals(-code).name}"
    return f"exit status {code}"


def _serve(pipe: Connection, runner: str) -> None:
    """A worker's life: jobs in, records out, until its parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to hear
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        run = _load(runner)
    except Exception as error:
        pipe.send({"status": "failed", "why": f"{runner}: {type(error).__name__}: {error}"})
        return
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)
    pipe.send("ready")
    while True:
        try:
            job = pipe.recv()
        except EOFError:
            return
        pipe.send(_outcome(run, job))


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _load(runner: str) -> Callable[[Job], Record]:
    module, _, name = runner.partition(":")
    return getattr(importlib.import_module(module), name)


def _outcome(run: Callable[[Job], Record], job: Job) -> Record:
    """The runner's record as JSON knows it, or what it raised."""
    try:
        record = _plain(dict(run(job)))
        json.dumps(record, allow_nan=False)
    except ModuleNotFoundError as error:  # of this machine, and so no result of the job's
        return {"status": IMPOSSIBLE, "why": str(error)}
    except Exception as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        at = f"{os.path.basename(last.filename)}, line {last.lineno}"
        return {"status": "failed", "why": f"{type(error).__name__}: {error} ({at})"}
    return {"status": "ok", **record}


def _plain(value: Any) -> Any:
    """Numbers that JSON has no word for become null."""
    if isinstance(value, dict):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
