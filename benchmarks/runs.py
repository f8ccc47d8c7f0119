"""Runs of the command line as benchmarks make and read them: each is a folder, made once."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from attent.pipeline.observers import read_log
from attent.tasks.commands import COMMANDS
from attent.tasks.folder import RunFolder
from attent.tasks.run import resume, start


def run(out: Path, name: str, command: str, options: dict[str, Any]) -> list[dict[str, Any]]:
    """The log of a run, made now unless it is there."""
    folder = RunFolder(out / name)
    if folder.config.is_file():
        log = read_log(folder.log)
        if not log or spent(log[-1]) < log[-1]["budget"]:
            resume(folder.path, print)
    else:
        config = COMMANDS[command].config(
            output_dir=str(folder.path), progress=False, keep=1, **options
        )
        start(command, config, lambda message: None)
    log = read_log(folder.log)
    if spent(log[-1]) < log[-1]["budget"]:
        raise KeyboardInterrupt  # it was stopped; it goes on when this is called again
    print(f"  {folder.path}", flush=True)
    return log


def spent(line: dict[str, Any]) -> int:
    """What a line of a log says that was spent of the budget, in its unit."""
    return line["tokens"] if line.get("pass_tokens") else line["seen"]


def measured(log: Sequence[dict[str, Any]], metric: str) -> list[dict[str, Any]]:
    """The lines of a log at which a figure was measured."""
    return [line for line in log if line.get(metric) is not None]


def last(log: Sequence[dict[str, Any]], metric: str) -> float:
    return measured(log, metric)[-1][metric]


def mean(values: Sequence[float], digits: int = 1, scale: float = 1.0) -> str:
    """Mean and its standard error over seeds."""
    values = [scale * value for value in values]
    if len(values) < 2:
        return f"{values[0]:.{digits}f}"
    error = statistics.stdev(values) / len(values) ** 0.5
    return f"{statistics.fmean(values):.{digits}f} +- {error:.{digits}f}"
