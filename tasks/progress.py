"""What a person sees while a run goes on."""

from __future__ import annotations

import math
import time
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, TaskProgressColumn, TextColumn
from rich.table import Column
from tensordict import TensorDict

from attent.pipeline.keys import has, number, tensor
from attent.pipeline.observers import Observer, Reason, saving
from attent.pipeline.plan import Plan, spent
from attent.tasks.commands import Measure

WIDE = 110
"""Columns of a terminal from which on there is room for a bar beside the numbers."""


class ProgressBar(Observer):
    """A live bar on a terminal; elsewhere, a line for each evaluation.

    Args:
        plan: tells how many cycles there are.
        measure: the held-out figure shown.
        console: where to; standard error by default.
    """

    def __init__(self, plan: Plan, measure: Measure, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True)
        self.measure = measure
        self.cycles = 1 + max(phase.cycle for phase in plan.phases)
        self.windows = plan.per_window
        line = "{task.fields[cycle]}  {task.percentage:3.0f}% {task.fields[numbers]}"
        columns: list[ProgressColumn] = [
            TextColumn("[bold]{task.fields[cycle]}"),
            BarColumn(bar_width=None),
            TaskProgressColumn(),
            TextColumn("{task.fields[numbers]}"),
        ]
        if self.console.width < WIDE:  # cut at the end instead of folded, and no room for a bar
            columns = [TextColumn(line, table_column=Column(no_wrap=True, overflow="crop"))]
        self._bar = Progress(*columns, console=self.console)
        self._began = time.monotonic()
        self._spent_at_start = 0
        self._evaluated = -1

    def start(self, state: TensorDict) -> None:
        """Show the bar."""
        self._began = time.monotonic()
        self._spent_at_start = spent(state)
        self._evaluated = number(state, "metrics", self._step_entry)
        fields: dict[str, Any] = {**self._fields(state)}
        total = number(state, "plan", "budget")
        self._task = self._bar.add_task("run", start=True, total=total, completed=0, **fields)
        if self.console.is_terminal:
            self._bar.start()

    def tick(self, state: TensorDict) -> None:
        """Move it."""
        if self.console.is_terminal:
            fields: dict[str, Any] = {**self._fields(state)}
            self._bar.update(self._task, completed=spent(state), **fields)
            return
        evaluated = number(state, "metrics", self._step_entry)
        if evaluated != self._evaluated:
            self._evaluated = evaluated
            fields = self._fields(state)
            share = min(1.0, spent(state) / number(state, "plan", "budget"))
            # Not `print`: rich would fold a long line at the width of a terminal that is not there.
            self.console.file.write(f"{share:4.0%} {fields['cycle']}  {fields['numbers']}\n")
            self.console.file.flush()

    def stop(self, state: TensorDict, reason: Reason) -> None:
        """Leave the last of it standing."""
        if self.console.is_terminal:
            self._bar.update(self._task, completed=spent(state))
            self._bar.stop()

    @property
    def _step_entry(self) -> str:
        return self.measure.metric.split("_")[0] + "_step"

    def _fields(self, state: TensorDict) -> dict[str, str]:
        cycle, used = number(state, "clock", "cycle"), spent(state)
        seconds = time.monotonic() - self._began
        rate = (used - self._spent_at_start) / seconds if seconds > 0 else 0.0
        left = max(0, number(state, "plan", "budget") - used) / rate if rate else math.nan
        unit = "tok" if number(state, "plan", "pass_tokens") else "ex"
        selected = number(state, "plan", "size") / len(tensor(state, "mask"))
        parts = [
            f"ratio {selected:.2f}",
            f"loss {_figure(state, 'train_loss')}",
            f"{self.measure.short} {_figure(state, self.measure.metric)}",
            f"saved {saving(state):.0%}",
            f"{rate:,.0f} {unit}/s",
            f"{_minutes(left)} left",
        ]
        where = "warm-up" if cycle < 0 else f"cycle {cycle + 1}/{self.cycles}"
        if self.windows:
            where = f"window {cycle + 1:,}"
        return {"cycle": where if self.cycles else "training", "numbers": "  ".join(parts)}


def _figure(state: TensorDict, metric: str) -> str:
    value = float(tensor(state, "metrics", metric)) if has(state, ("metrics", metric)) else math.nan
    return f"{value:.3f}" if math.isfinite(value) else "-"


def _minutes(seconds: float) -> str:
    if not math.isfinite(seconds):
        return "-:--"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
