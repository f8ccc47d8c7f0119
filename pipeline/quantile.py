"""Selection from a stream without a window: keep what is above a running quantile of the scores."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor

from attent.pipeline.keyed import example_keys, fold, uniform
from attent.pipeline.keys import Key, ensure, number, tensor
from attent.pipeline.reader import Reader
from attent.pipeline.score import Frozen, check_finite
from attent.pipeline.signals import Signal, signal_of
from attent.pipeline.source import DatasetSource, fetch_batch
from attent.pipeline.task import LEDGER, Task, spend
from attent.pipeline.window import Keep, Window

FLOOR = 1e-6
"""Least scale, as a share of the threshold: one that has met equal scores only can still move."""


@dataclass
class Quantile:
    """A threshold that a given share of a drifting sequence of scores is above.

    After each score s, with the threshold q, the share r, the step eta and the scale d::

        q <- q + eta * d * ([s > q] - r)
        d <- d + eta * (|s - q| - d)

    It is Robbins and Monro's search for a root with a step that stays constant, so that it follows
    scores that drift. Summing the first line, the share kept, each score weighted by its d, differs
    from r by no more than q has moved, over eta times the sum of d: whatever the scores do (the
    quantile tracker of Angelopoulos, Candes and Tibshirani, 2023, whose step goes with the scale of
    recent scores too). Scores that grow tenfold are followed within about 3 / eta of them.

    Attributes:
        ratio: r, in (0, 1].
        step: eta.
        threshold: q; NaN before the first scores.
        scale: d, the mean distance of recent scores from q.

    References:
        Robbins, Monro: A Stochastic Approximation Method. Annals of Mathematical Statistics, 1951.
        Angelopoulos, Candes, Tibshirani: Conformal PID Control for Time Series Prediction. NeurIPS
        2023.
    """

    ratio: float
    step: float
    threshold: float = math.nan
    scale: float = math.nan

    def begin(self, scores: Tensor) -> None:
        """Start from some first scores, ``[B]``: from their own quantile."""
        values = scores.double()
        self.threshold = float(values.quantile(1 - self.ratio))
        self.scale = float((values - self.threshold).abs().mean())

    def above(self, score: float, chance: float) -> bool:
        """Whether a score is above the threshold; then move it on.

        Args:
            score: the next of the sequence.
            chance: in [0, 1), by which one that is equal to the threshold is kept or not: of equal
                scores, too, the share is kept.
        """
        distance = score - self.threshold
        kept = distance > 0 or (distance == 0 and chance < self.ratio)
        least = FLOOR * max(abs(self.threshold), FLOOR)
        self.threshold += self.step * max(self.scale, least) * (kept - self.ratio)
        self.scale += self.step * (abs(distance) - self.scale)
        return kept


def above_quantile(
    task: Task,
    *,
    ratio: float = 0.3,
    signal: str | Signal = "loss",
    step: float = 0.02,
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
    as every rule of the highest scores keeps them; a stream whose order means something (one class,
    then another) keeps the first of each new kind, until the threshold has followed. The first
    scores are those of weights that know nothing.

    Candidates are scored a batch at a time and decided one by one. Those after the one that fills
    the window are given back: the next round scores them again, by newer weights. As few are read
    ahead as fill the window on average, so that this costs a few per cent more for windows of a few
    batches; ``ledger/forwarded`` counts what was forwarded.

    Args:
        task: what is learned.
        ratio: r, the share of candidates kept, in (0, 1).
        signal: which score.
        step: how fast the threshold moves, in (0, 1): it follows within about 3 / step candidates,
            and wanders the less the smaller it is.
        batch_size: candidates in one forward, at most.
        chunk: examples that vmap maps at once, in signals that use it.

    Its entries are ``window/threshold`` and ``window/scale``, float64.

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
        held = [tensor(state, "window", entry) for entry in ("threshold", "scale")]
        quantile = Quantile(ratio, step, *(float(entry) for entry in held))
        search = _Search(state, window, task, chosen, quantile, chunk)
        while (missing := window.size - len(search.kept)) > 0:
            first = math.isnan(quantile.threshold)
            search.go_on(batch_size if first else min(batch_size, math.ceil(missing / ratio)))
        positions = torch.tensor(list(search.kept))
        window.hold(positions, list(search.kept.values()))
        window.reader.give_back(search.left)
        held[0].fill_(quantile.threshold)
        held[1].fill_(quantile.scale)
        spend(state, search.forwarded, 0, backward=chosen.backward)
        return positions, search.at

    def init(state: TensorDict) -> TensorDict:
        for entry in ("threshold", "scale"):
            ensure(state, ("window", entry), torch.tensor(math.nan, dtype=torch.float64))
        return state

    own: set[Key] = {("window", "threshold"), ("window", "scale")}
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
        self.ties = fold(self.model.seed, "running quantile")
        self.forwarded = 0
        self.kept: dict[int, Any] = {}
        self.left: dict[int, Any] = {}

    def go_on(self, count: int) -> None:
        """Look at so many more candidates, until the window is full."""
        candidates = _Candidates(self.window, self.at, count)
        batch = fetch_batch(candidates, candidates.positions)
        scores = self.model.measure(self.signal, batch, self.chunk).cpu()
        check_finite(scores, candidates.positions, candidates, self.signal.name)
        self.forwarded += count
        if math.isnan(self.quantile.threshold):
            self.quantile.begin(scores)
        chances = uniform(example_keys(self.ties, candidates.positions)).tolist()
        for score, chance, example in zip(scores.tolist(), chances, candidates.items, strict=True):
            if len(self.kept) == self.window.size:
                break
            if self.quantile.above(score, chance):
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
        self._examples = DatasetSource(self.items, window.names)

    def __len__(self) -> int:
        return len(self.items)

    def fetch(self, index: Tensor) -> TensorDict:
        return self._examples.fetch(index - self.start)

    def locate(self, index: int) -> str:
        return self.reader.locate(index)

    def after(self, position: int) -> dict[int, Any]:
        """Those from a position on, by position."""
        return dict(enumerate(self.items[position - self.start :], position))
