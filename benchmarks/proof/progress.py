"""What a person sees while jobs run."""

from __future__ import annotations

import time
from collections.abc import Mapping

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
from rich.progress import Progress as Bar

from benchmarks.proof.campaign import Planned, seconds_left
from benchmarks.proof.jobs import Job, Record, key_of

EVERY = 60.0
"""Seconds between lines where there is no terminal for a bar."""


class Progress:
    """A live bar on a terminal; elsewhere a line a minute. Failures are said as they come.

    Args:
        stage: what is run.
        workers: by how many processes.
        console: where to.
    """

    def __init__(self, stage: str, workers: int, console: Console) -> None:
        self.failed = 0
        self.note = ""
        self._stage, self._workers, self._console = stage, workers, console
        self._bar = Bar(
            TextColumn("[bold]{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[said]}"),
            console=console,
        )
        self._left: dict[tuple, Job] = {}
        self._ended: list[Record] = []
        self._said = 0.0

    def __enter__(self) -> Progress:
        if self._console.is_terminal:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def tell(self, planned: Mapping[str, Planned], job: Job | None, record: Record | None) -> None:
        """Take in what is planned, then each job that has ended."""
        if job is None or record is None:
            self._left = {job.key: job for part in planned.values() for job in part.left}
            untuned = sum(part.untuned for part in planned.values())
            if untuned:
                self.note = f"{untuned} runs wait for tuning: they have no rate yet."
            total = sum(len(part.jobs) for part in planned.values())
            done = total - len(self._left)
            self._task = self._bar.add_task(self._stage, total=total, completed=done, said="")
            return
        self._left.pop(key_of(record))
        self._ended.append(record)
        if record["status"] == "failed":
            self.failed += 1
            where = f"{job.world}, {job.arm} at {job.budget:g}, lr {job.lr:g}, seed {job.seed}"
            self._console.print(
                f"failed: {where}: {record['why']}", markup=False, highlight=False, soft_wrap=True
            )
        seconds = seconds_left(self._left.values(), self._ended)
        said = f"{job.world}: {job.arm} at {job.budget:g}"
        if seconds is not None:
            said += f"; about {duration(seconds / self._workers)} left"
        self._bar.update(self._task, advance=1, said=said)
        if not self._console.is_terminal and time.monotonic() - self._said > EVERY:
            self._said = time.monotonic()
            state = self._bar.tasks[0]
            self._console.print(f"{self._stage} {state.completed:.0f}/{state.total:.0f} {said}")


def duration(seconds: float) -> str:
    """Seconds as people say them."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
