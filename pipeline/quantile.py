"""Selection from a stream without a window: keep what is above a running quantile of the scores."""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections import deque
from collections.abc import Iterable
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor

from attent.pipeline.keys import Key, ensure, number, tensor
from attent.pipeline.reader import Reader
from attent.pipeline.score import Frozen, check_finite
from attent.pipeline.signals import Signal, signal_of
from attent.pipeline.source import DatasetSource, fetch_batch
from attent.pipeline.task import LEDGER, Task, spend
from attent.pipeline.window import Keep, Window

RECENT = 256
"""Scores that a running quantile is taken of."""


class Quantile:
    """Whether each of a drifting sequence of scores is among the highest share of the recent ones.

    A score is above if fewer than a share a of the last scores are as high; then, with the ratio r
    and the step g::

        a <- a + g * (r - [above])

    Summed over T scores that says: of them a share of r is above, but for at most (1 + g) / (g T),
    **whatever the scores do**: a can leave [0, 1] by no more than g, for none is above where it is
    below 0 and each where it is above 1. So the share is kept while losses fall tenfold, and of
    equal scores too. It is adaptive conformal inference (Gibbs and Candes), its misses the scores
    that are kept.

    Args:
        ratio: r, in (0, 1).
        step: g: how fast a share that is too small or too large is made up for.
        level: a; r at first.
        recent: the last scores, the oldest first, at most `RECENT`.

    References:
        Gibbs, Candes: Adaptive Conformal Inference Under Distribution Shift. NeurIPS 2021.
    """

    def __init__(
        self, ratio: float, step: float, level: float | None = None, recent: Iterable[float] = ()
    ) -> None:
        self.ratio = ratio
        self.step = step
        self.level = ratio if level is None else level
        self.recent = deque(recent)
        self._ranked = sorted(self.recent)

    @property
    def threshold(self) -> float:
        """The score that the next one must be above; infinite where none or each is."""
        place = len(self._ranked) - math.ceil(self.level * len(self._ranked))
        if 0 <= place < len(self._ranked):
            return self._ranked[place]
        return -math.inf if place < 0 else math.inf

    def above(self, score: float) -> bool:
        """Whether the next score is above; it is one of the recent ones from then on."""
        kept = score > self.threshold
        self.level += self.step * (self.ratio - kept)
        if len(self.recent) == RECENT:
            oldest = self.recent.popleft()
            del self._ranked[bisect_left(self._ranked, oldest)]
        self.recent.append(score)
        insort(self._ranked, score)
        return kept


def above_quantile(
    task: Task,
    *,
    ratio: float = 0.3,
    signal: str | Signal = "loss",
    step: float = 0.01,
    batch_size: int = 256,
    chunk: int | None = 32,
) -> Keep:
    """Keep, of a stream, the examples whose score is above a running quantile of the scores.

    **What.** Candidates are read from the stream, scored by the present weights (one forward for a
    loss, in eval mode, on their fixed view), and come into the window if they score above
    `Quantile`; the rest is dropped. What is in the window is trained on once. No window of
    candidates is held: the window may be as small as one batch, and is all the memory there is.

    **Cost.** In forwards, for each candidate: 1 + 3 r against 3 for training on it (a backward
    counts 2; with a signal that has one 3 + 3 r, which never pays).

    **When it pays.** Below r = 2/3; at r = 0.3 it saves 37 % against training on every example.
    Whether the examples with the highest loss teach as much as as many others is another question.

    **When it fails.** Label noise and broken examples have the highest loss and are kept for ever,
    as every rule of the highest scores keeps them. Of a stream whose order means something (one
    class, then another) the first of each harder kind are kept, and few of an easier one, until the
    quantile has followed. Scores are compared with recent ones, of weights that knew less: while
    the loss falls fast, what is kept is kept to make up the share.

    Candidates are scored a batch at a time and decided one by one. Those after the one that fills
    the window are given back: the next round scores them again, by newer weights. As few are read
    ahead as fill the window on average. With r = 0.3 that makes 1.15 forwards a candidate for a
    window of 16, 1.03 for one of 128; ``ledger/forwarded`` counts what was forwarded.

    Args:
        task: what is learned.
        ratio: r, the share of candidates kept, in (0, 1).
        signal: which score.
        step: in (0, 1): a share that is too small or too large is made up for within about
            1 / step candidates.
        batch_size: candidates in one forward, at most.
        chunk: examples that vmap maps at once, in signals that use it.

    Its entries are ``window/recent`` (``[RECENT]`` float32, the last scores, the oldest first; NaN
    for those there are not yet), ``window/level`` (float64, a) and ``window/threshold`` (float64,
    what the next candidate must be above: for people).

    Raises:
        ValueError: an option outside its range.
    """
    chosen = signal_of(signal)
    if not 0 < ratio < 1:
        raise ValueError(f"the ratio of candidates that are kept is in (0, 1), got {ratio}")
    if not 0 < step < 1:
        raise ValueError(f"the step of a running quantile is in (0, 1), got {step}")
    if batch_size < 1 or (chunk is not None and chunk < 1):
        raise ValueError(f"batch_size and chunk are at least 1, got {batch_size} and {chunk}")

    def fill(state: TensorDict, window: Window) -> tuple[Tensor, int]:
        recent, level = tensor(state, "window", "recent"), tensor(state, "window", "level")
        quantile = Quantile(ratio, step, float(level), recent[~recent.isnan()].tolist())
        search = _Search(state, window, task, chosen, quantile, chunk)
        while (missing := window.size - len(search.kept)) > 0:
            search.go_on(min(batch_size, math.ceil(missing / ratio)))
        positions = torch.tensor(list(search.kept))
        window.hold(positions, list(search.kept.values()))
        window.reader.give_back(search.left)
        recent[: len(quantile.recent)] = torch.tensor(quantile.recent)
        level.fill_(quantile.level)
        tensor(state, "window", "threshold").fill_(quantile.threshold)
        spend(state, search.forwarded, 0, backward=chosen.backward)
        return positions, search.at

    def init(state: TensorDict) -> TensorDict:
        ensure(state, ("window", "recent"), torch.full((RECENT,), math.nan))
        ensure(state, ("window", "level"), torch.tensor(ratio, dtype=torch.float64))
        ensure(state, ("window", "threshold"), torch.tensor(math.nan, dtype=torch.float64))
        return state

    own: set[Key] = {("window", entry) for entry in ("recent", "level", "threshold")}
    return Keep(
        name="above_quantile",
        fill=fill,
        reads={("params",), ("buffers",), ("seed",)},
        writes=own | {*LEDGER},
        init=init,
        provides=own,
        note=f"the {ratio:.0%} of highest {chosen.name}, by a running quantile",
    )


class _Search:
    """Candidates of a stream, batch by batch, until enough are kept."""

    def __init__(
        self,
        state: TensorDict,
        window: Window,
        task: Task,
        signal: Signal,
        quantile: Quantile,
        chunk: int | None,
    ) -> None:
        self.window = window
        self.model = Frozen(task, state)
        self.signal = signal
        self.quantile = quantile
        self.chunk = chunk
        self.at = number(state, "window", "next")
        self.forwarded = 0
        self.kept: dict[int, dict[str, Any]] = {}
        self.left: dict[int, dict[str, Any]] = {}

    def go_on(self, count: int) -> None:
        """Look at so many more candidates, until the window is full."""
        candidates = _Candidates(self.window, self.at, count)
        batch = fetch_batch(candidates, candidates.positions)
        scores = self.model.measure(self.signal, batch, self.chunk).cpu()
        check_finite(scores, candidates.positions, candidates, self.signal.name)
        self.forwarded += count
        for score, example in zip(scores.tolist(), candidates.items, strict=True):
            if len(self.kept) == self.window.size:
                break
            if self.quantile.above(score):
                self.kept[self.at] = example
            self.at += 1
        self.left = candidates.after(self.at)


class _Candidates:
    """The next examples of a stream, as a source by position."""

    def __init__(self, window: Window, start: int, count: int) -> None:
        self.reader: Reader = window.reader
        self.start = start
        self.positions = torch.arange(start, start + count)
        self.items = self.reader.read(self.positions.tolist())
        self._examples = DatasetSource(self.items)

    def __len__(self) -> int:
        return len(self.items)

    def fetch(self, index: Tensor) -> TensorDict:
        return self._examples.fetch(index - self.start)

    def locate(self, index: int) -> str:
        return self.reader.locate(index)

    def after(self, position: int) -> dict[int, dict[str, Any]]:
        """Those from a position on, by position."""
        return dict(enumerate(self.items[position - self.start :], position))
