"""Observers: what looks at the state between ticks and has effects.

They alone write files, print, and read the clock on the wall.
"""

from __future__ import annotations

import io
import json
import math
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from tensordict import TensorDict
from torch import Tensor

from attent.pipeline.checkpoint import (
    CheckpointError,
    CheckpointFolder,
    load_state,
    write_atomically,
)
from attent.pipeline.keyed import fold, generator
from attent.pipeline.keys import branch, find, has, leaves, number, tensor

Reason = Literal["finished", "interrupted", "failed", "crashed"]
"""Why a run stops: its budget is spent; it was asked to; bad input was found, and the state is good
(failed); something else went wrong, and the state may not be (crashed)."""


class Observer:
    """Called by `attent.pipeline.fit` with the state; the state must not be changed or kept."""

    def start(self, state: TensorDict) -> None:
        """Before the first tick, fresh or resumed."""

    def tick(self, state: TensorDict) -> None:
        """After each tick."""

    def stop(self, state: TensorDict, reason: Reason) -> None:
        """After the last."""


class JsonLog(Observer):
    """One JSON line for each tick that trained: clock, plan, ledger, metrics, seconds.

    Seconds are those of the clock on the wall, ``cpu_seconds`` those of all this process's threads,
    which other work on the machine changes little. On resume, lines from after the checkpoint are
    dropped, so that a resumed run's log is that of an uninterrupted one but for its seconds.

    Args:
        path: of the ``.jsonl`` file.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._began = self._cpu_began = 0.0
        self._step = -1

    def start(self, state: TensorDict) -> None:
        """Drop lines from after this state."""
        self._step = number(state, "clock", "step")
        kept = [line for line in read_log(self.path) if line["step"] <= self._step]
        text = "".join(json.dumps(line) + "\n" for line in kept)
        write_atomically(self.path, text.encode())
        spent = kept[-1] if kept else {}
        self._began = time.monotonic() - spent.get("seconds", 0.0)
        self._cpu_began = time.process_time() - spent.get("cpu_seconds", 0.0)

    def tick(self, state: TensorDict) -> None:
        """Write a line, if the tick trained."""
        if number(state, "clock", "step") > self._step:
            self._step = number(state, "clock", "step")
            line = summary(state)
            line["seconds"] = round(time.monotonic() - self._began, 3)
            line["cpu_seconds"] = round(time.process_time() - self._cpu_began, 3)
            with self.path.open("a") as file:
                file.write(json.dumps(line) + "\n")


def read_log(path: str | Path) -> list[dict[str, Any]]:
    """The lines of a log, without a last one that a kill cut short; none if there is no file."""
    path = Path(path)
    if not path.is_file():
        return []
    lines = []
    for text in path.read_text().splitlines():
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            break
    return lines


def summary(state: TensorDict) -> dict[str, Any]:
    """The scalars of a state as plain numbers; NaN as None; metrics under their own names.

    An evaluation's metrics are there only if it was made at this very step.
    """
    step = number(state, "clock", "step")
    line: dict[str, Any] = {}
    for group in ("clock", "plan", "ledger"):
        for (name,), value in leaves(branch(state, group)):
            line[name] = value.item()
    if has(state, "window"):
        for (name,), value in leaves(branch(state, "window")):
            if value.ndim == 0:
                line[f"window_{name}"] = _plain(value)
    metrics = find(state, "metrics")
    if isinstance(metrics, TensorDict):
        stale = {
            name.removesuffix("_step")
            for (name,), value in leaves(metrics)
            if name.endswith("_step") and int(value) != step
        }
        for (name,), value in leaves(metrics):
            if not any(name.startswith(split + "_") for split in stale):
                line[name] = _plain(value)
    line["saved"] = saving(state)
    return line


def _plain(value: Tensor) -> int | float | None:
    """A scalar as JSON has it."""
    found = value.item()
    return None if isinstance(found, float) and not math.isfinite(found) else found


def saving(state: TensorDict) -> float:
    """The share of compute saved so far against as many passes over everything.

    Everything is what the mask is of; where a running quantile chose what comes into the window,
    all that was looked at of the stream.

    A forward counts 1 and a backward 2, of an example, or of a token where the budget counts
    tokens; scoring is included. Below 0, scoring has cost more than selection has saved yet.
    """
    tokens = number(state, "plan", "pass_tokens")
    forwarded, backwarded = (
        number(state, "ledger", way + ("_tokens" if tokens else ""))
        for way in ("forwarded", "backwarded")
    )
    size = max(1, number(state, "plan", "size"))
    passes = number(state, "clock", "passes") + number(state, "clock", "offset") / size
    full = 3 * (tokens or len(tensor(state, "mask"))) * passes
    if has(state, ("window", "threshold")):
        came_in = len(tensor(state, "mask")) * (number(state, "window", "number") + 1)
        looked_at, seen = number(state, "window", "next"), number(state, "clock", "seen")
        full = 3 * looked_at * seen / max(1, came_in)
    return 1 - (forwarded + 2 * backwarded) / full if full else 0.0


class Checkpoints(Observer):
    """Save the state as it goes, when it stops, and the best by a metric.

    Args:
        folder: where.
        every: examples trained on between checkpoints.
        about: said in each checkpoint, such as the task's name.
        best: the metric by which the best is kept (below ``metrics``); None keeps none.
        larger_is_better: of that metric.
    """

    def __init__(
        self,
        folder: CheckpointFolder,
        *,
        every: int,
        about: Mapping[str, Any] | None = None,
        best: str | None = None,
        larger_is_better: bool = True,
    ) -> None:
        if every < 1:
            raise ValueError(f"every must be at least 1 example, got {every}")
        self.folder = folder
        self.every = every
        self.about = dict(about or {})
        self.best = best
        self.larger_is_better = larger_is_better
        self._due = 0
        self._best_value = math.nan

    def start(self, state: TensorDict) -> None:
        """Learn what the best is so far, and save where there is nothing to resume from yet."""
        for leftover in self.folder.path.glob(".*.tmp"):
            leftover.unlink()
        self._due = self._next(state)
        step = number(state, "clock", "step")
        if self.best and self.folder.best.is_file():
            # Also one from after the checkpoint that is resumed: it will be met again as it was.
            try:
                self._best_value = load_state(self.folder.best)[1][self.best]
            except CheckpointError as error:
                # Nothing is resumed from it: it is set aside and named, and another best kept.
                self.folder.best.rename(self.folder.best.with_suffix(".damaged"))
                warnings.warn(f"the best checkpoint is set aside: {error}", stacklevel=2)
        if step not in self.folder.steps() or self._new_best(state) is not None:
            self._save(state)

    def tick(self, state: TensorDict) -> None:
        """Save if due, or if the metric was just measured and is the best."""
        if number(state, "clock", "seen") >= self._due or self._new_best(state) is not None:
            self._due = self._next(state)
            self._save(state)

    def stop(self, state: TensorDict, reason: Reason) -> None:
        """Save, unless the state may be amiss."""
        if reason != "crashed":
            self._save(state)

    def _next(self, state: TensorDict) -> int:
        return (number(state, "clock", "seen") // self.every + 1) * self.every

    def _new_best(self, state: TensorDict) -> float | None:
        """The metric, if it was measured at this very step and is the best so far."""
        if self.best is None or not has(state, ("metrics", self.best)):
            return None
        measured = number(state, "metrics", self.best.split("_")[0] + "_step")
        value = float(tensor(state, "metrics", self.best))
        if measured != number(state, "clock", "step") or not math.isfinite(value):
            return None
        better = value > self._best_value if self.larger_is_better else value < self._best_value
        return value if better or math.isnan(self._best_value) else None

    def _save(self, state: TensorDict) -> None:
        step = number(state, "clock", "step")
        about = {**self.about, **({self.best: _value(state, self.best)} if self.best else {})}
        path = self.folder.save(state, step, about)
        best = self._new_best(state)
        if best is not None:
            self._best_value = best
            self.folder.mark_best(path)


def _value(state: TensorDict, metric: str) -> float | None:
    value = float(tensor(state, "metrics", metric)) if has(state, ("metrics", metric)) else math.nan
    return value if math.isfinite(value) else None


class Selections(Observer):
    """Record every selection: the mask and the scores it was made by, for the report.

    Of large data sets a fixed random sample is recorded, beside exact counts.

    Args:
        folder: one ``.npz`` file per selection goes here.
        signal: which scores.
        at_most: examples recorded.
    """

    def __init__(
        self, folder: str | Path, *, signal: str | None = "loss", at_most: int = 20_000
    ) -> None:
        self.folder = Path(folder)
        self.signal = signal
        self.at_most = at_most
        self._sample = torch.empty(0, dtype=torch.int64)
        self._version: tuple[int, int] = (0, 0)
        self._clock: dict[str, int] = {}
        self._known: Tensor | None = None

    def start(self, state: TensorDict) -> None:
        """Choose the sample; record the first mask of a fresh run."""
        mask = tensor(state, "mask")
        if len(mask) <= self.at_most:
            self._sample = torch.arange(len(mask))
        else:
            key = fold(number(state, "seed"), "recorded sample")
            drawn = torch.randint(len(mask), (self.at_most,), generator=generator(key))
            self._sample = drawn.unique()
        self.folder.mkdir(parents=True, exist_ok=True)
        self._remember(state)
        for path in self.folder.glob("selection-*.npz"):
            if int(path.stem.split("-")[1]) > number(state, "clock", "passes"):
                path.unlink()
        if number(state, "clock", "step") == 0:
            self._record(state)

    def tick(self, state: TensorDict) -> None:
        """Record the mask if it was written since the last tick."""
        mask = tensor(state, "mask")
        if (mask.data_ptr(), mask._version) != self._version:
            self._record(state)
        self._remember(state)

    def _remember(self, state: TensorDict) -> None:
        mask = tensor(state, "mask")
        self._version = (mask.data_ptr(), mask._version)
        # The tick may have ended the pass that the selection was made for.
        self._clock = {name: number(state, "clock", name) for name in ("cycle", "passes", "seen")}
        # What the next tick selects by, before it trains on what it has selected and observes that.
        self._known = self._scores(state) if bool(tensor(state, "plan", "select_due")) else None

    def _scores(self, state: TensorDict) -> Tensor | None:
        """Of the recorded examples, a copy; None where nothing was measured."""
        if self.signal is None or not has(state, ("scores", self.signal)):
            return None
        if not bool((tensor(state, "scores", "step") >= 0).any()):
            return None
        return tensor(state, "scores", self.signal)[self._sample].cpu()

    def _record(self, state: TensorDict) -> None:
        mask = tensor(state, "mask")
        scores = self._scores(state) if self._known is None else self._known
        path = self.folder / f"selection-{self._clock['passes']:06d}.npz"
        buffer = io.BytesIO()
        np.savez_compressed(
            buffer,
            index=self._sample.numpy(),
            selected=mask[self._sample].cpu().numpy(),
            scores=np.empty(0, np.float32) if scores is None else scores.numpy(),
            num_examples=len(mask),
            num_selected=int(mask.sum()),
            cycle=self._clock["cycle"],
            passes=self._clock["passes"],
            seen=self._clock["seen"],
        )
        write_atomically(path, buffer.getvalue())
