"""What runs of paired seeds say, and how surely: numpy arrays in, plain numbers out.

**Intervals** are bootstrap intervals over seeds: whole seeds are drawn with replacement, and all
is computed anew from those drawn. Percentiles of resamples are too narrow for few seeds; they are
taken at the levels that give the t interval's width where the data are normal (the expanded
percentile interval: Hesterberg, What Teachers Should Know About the Bootstrap, 2015).

**p-values** are those of a sign-flip permutation test of paired differences: exact up to 16 seeds,
from 100,000 draws above. They ask for differences that are symmetric under the null, as those of
two arms that are alike are.

Letters of shapes: S seeds, K budgets, R resamples.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

RESAMPLES = 10_000
LEVEL = 0.95
EXACT = 16
"""Up to so many seeds every flip of signs is made."""
FLIPS = 100_000
SURE = 0.05
"""Of p-values, corrected, that a difference is called by."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A figure and its interval; ``-inf`` stands for "not reached"."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Saved:
    """The budget saved at the quality of full at budget 1, less the margin.

    Args:
        needed: smallest budget at which the arm is there; ``inf``: not reached.
        needed_by_baseline: the same of the baseline, shortened.
        against_full: 1 - needed.
        against_short: 1 - needed / needed_by_baseline.
        at_floor: the arm is there at its smallest budget already: it may save more.
        baseline_at_floor: so is the baseline: ``against_short`` may be less than it says.
        reached: share of resamples in which the arm is there at all.
        num_seeds: seeds with every run of the arm and of the baseline.
    """

    needed: Estimate
    needed_by_baseline: Estimate
    against_full: Estimate
    against_short: Estimate
    at_floor: bool
    baseline_at_floor: bool
    reached: float
    num_seeds: int


def generator(*words: str | int) -> np.random.Generator:
    """A generator of its own for what the words name, the same every time."""
    digest = hashlib.blake2b("\0".join(map(str, words)).encode(), digest_size=8).digest()
    return np.random.default_rng(int.from_bytes(digest, "little"))


def resampled_seeds(count: int, rng: np.random.Generator, resamples: int = RESAMPLES) -> np.ndarray:
    """[R, S] places of seeds drawn with replacement."""
    return rng.integers(0, count, (resamples, count))


def interval(resamples: np.ndarray, count: int, level: float = LEVEL) -> tuple[float, float]:
    """The expanded percentile interval.

    Args:
        resamples: [R] the figure in each resample; may hold infinities.
        count: seeds.
        level: share of intervals that hold the truth.

    Returns:
        Its two ends, which are values among the resamples. Of one seed nothing is known: both ends
        are NaN.
    """
    if count < 2:
        return np.nan, np.nan
    t = stats.t.ppf((1 + level) / 2, count - 1)
    tail = float(stats.norm.cdf(-t * np.sqrt(count / (count - 1))))
    # Not interpolated: between a number and infinity there is nothing.
    low = np.quantile(resamples, tail, method="lower")
    high = np.quantile(resamples, 1 - tail, method="higher")
    return float(low), float(high)


def mean(values: np.ndarray, rng: np.random.Generator, resamples: int = RESAMPLES) -> Estimate:
    """The mean over seeds.

    Args:
        values: [S]; of paired arms, the differences.
        rng: draws the resamples.
        resamples: how many.
    """
    values = np.asarray(values, float)
    drawn = values[resampled_seeds(len(values), rng, resamples)].mean(1)
    low, high = interval(drawn, len(values))
    return Estimate(value=float(values.mean()), low=low, high=high)


def standard_error(values: np.ndarray) -> float:
    """Of the mean of ``values``, [S]; NaN of one."""
    return float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else np.nan


def resplit(differences: np.ndarray, test_to_train: float, level: float = LEVEL) -> Estimate:
    """The mean of differences over splits of one pool, as it may be for examples not in the pool.

    Splits of one pool share most of their training examples, and an example is tested in many of
    them, so that seeds are not independent draws of data. The t interval with the variance that
    Nadeau and Bengio propose (Machine Learning 52, 2003): ``s^2 (1 / S + test / train)``.

    Args:
        differences: [S].
        test_to_train: test examples over training examples of a split.
        level: share of intervals that hold the truth.
    """
    values = np.asarray(differences, float)
    if len(values) < 2:
        return Estimate(value=float(values.mean()), low=np.nan, high=np.nan)
    wide = stats.t.ppf((1 + level) / 2, len(values) - 1) * standard_error(values)
    wide *= widened(len(values), test_to_train)
    return Estimate(value=float(values.mean()), low=values.mean() - wide, high=values.mean() + wide)


def widened(count: int, test_to_train: float) -> float:
    """How many times as wide as over seeds an interval is for examples not in the pool.

    That of `resplit` over that of independent seeds: ``sqrt(1 + S * test / train)``.

    Args:
        count: seeds.
        test_to_train: test examples over training examples of a split.
    """
    return float(np.sqrt(1 + count * test_to_train))


def power(differences: np.ndarray, margin: float) -> float:
    """The chance that a test of being no worse says yes of an arm that is exactly as good.

    Of paired differences with the spread of these, at `SURE`, not corrected; by the normal
    distribution.

    Args:
        differences: [S].
        margin: in their unit, at least 0.
    """
    error = standard_error(differences)
    if error == 0:
        return 1.0
    return float(stats.norm.cdf(margin / error - stats.norm.ppf(1 - SURE)))


def sign_flip_p(
    differences: np.ndarray, rng: np.random.Generator, *, above: float | None = None
) -> float:
    """The p-value of the null that paired differences are as likely to be of either sign.

    Args:
        differences: [S].
        rng: draws the flips where they are too many to make them all.
        above: if given, one-sided: against the mean difference being above this. With minus a
            margin, a small p says "not worse by the margin".

    Returns:
        In (0, 1]; never below 2^-S, so that a few seeds cannot say much.
    """
    values = np.asarray(differences, float) - (0.0 if above is None else above)
    if len(values) <= EXACT:
        bits = np.arange(2 ** len(values))[:, None] >> np.arange(len(values)) & 1
        flips, own = 1.0 - 2.0 * bits, 0  # no flip at all is among them
    else:
        flips, own = rng.choice([-1.0, 1.0], (FLIPS, len(values))), 1
    means, seen = flips @ values, values.sum()
    if above is None:
        means, seen = np.abs(means), abs(seen)
    # Sums of the same numbers in another order differ by rounding.
    extreme = int((means >= seen - 1e-9 * np.abs(values).sum()).sum())
    return (extreme + own) / (len(flips) + own)


def holm(p: Sequence[float]) -> list[float]:
    """p-values corrected for their number (Holm, 1979), in the order given.

    The smallest of m is multiplied by m, the next by m - 1, and none is let below one before it.
    """
    order = np.argsort(p, kind="stable")
    adjusted = np.empty(len(p))
    highest = 0.0
    for rank, place in enumerate(order):
        highest = max(highest, min(1.0, (len(p) - rank) * p[place]))
        adjusted[place] = highest
    return [float(value) for value in adjusted]


def rising(curves: np.ndarray) -> np.ndarray:
    """The nearest curves that do not fall: isotonic regression along the last axis, equal weights.

    Args:
        curves: [..., K] quality at rising budgets.

    By the min-max formula: at i, the largest over j <= i of the smallest over l >= i of the mean of
    j to l.
    """
    count = curves.shape[-1]
    sums = np.concatenate([np.zeros_like(curves[..., :1]), np.cumsum(curves, -1)], -1)
    risen = np.full_like(curves, -np.inf)
    for j in range(count):
        lowest = np.full_like(curves[..., 0], np.inf)
        for end in range(count - 1, j - 1, -1):
            lowest = np.minimum(lowest, (sums[..., end + 1] - sums[..., j]) / (end + 1 - j))
            risen[..., end] = np.maximum(risen[..., end], lowest)
    return risen


def reaches(budgets: np.ndarray, quality: np.ndarray, target: np.ndarray) -> np.ndarray:
    """The smallest budget at which a curve is at its target.

    Curves are made to rise (isotonic regression) and are straight between budgets: a single lucky
    budget does not count as having reached it, as it would at the first crossing of a raw curve.
    Nothing is said beyond the budgets that were run.

    Args:
        budgets: [..., K] rising.
        quality: [..., K], higher is better.
        target: [...].

    Returns:
        [...] budgets: the smallest run if that is enough; ``inf`` if none is.
    """
    curve = rising(quality)
    # Equal means may differ by rounding, which must not hide that full reaches itself.
    slack = 1e-9 * np.maximum(1.0, np.abs(target))
    there = curve >= (target - slack)[..., None]
    first = np.argmax(there, -1)
    before = np.maximum(first - 1, 0)

    def at(values: np.ndarray, place: np.ndarray) -> np.ndarray:
        return np.take_along_axis(values, place[..., None], -1)[..., 0]

    low, high = at(curve, before), at(curve, first)
    rise = np.where(high > low, high - low, 1.0)
    share = np.where(first == before, 0.0, np.clip((target - low) / rise, 0.0, 1.0))
    budget = at(budgets, before) + share * (at(budgets, first) - at(budgets, before))
    return np.where(there.any(-1), budget, np.inf)


def saved(
    arm: tuple[np.ndarray, np.ndarray],
    baseline: tuple[np.ndarray, np.ndarray],
    margin: float,
    rng: np.random.Generator,
    resamples: int = RESAMPLES,
    widen: float = 1.0,
) -> Saved:
    """The budget an arm saves at the quality of full at budget 1, less the margin.

    Args:
        arm: [K, S] what each run cost, and [K, S] its quality, higher is better, budgets rising.
        baseline: the same of the baseline, [L, S] each; its last budget is full's.
        margin: in the unit of quality.
        rng: draws the resamples.
        resamples: how many.
        widen: how many times as far from the mean over seeds as it came out each resample's
            quality is taken to be: see `widened`.

    Every resample of seeds has its own target, curves and costs. Where an arm does not reach the
    target, it needs ``inf`` and saves ``-inf``: the low end of an interval is that as soon as more
    resamples fail to reach it than the interval leaves out.
    """
    count = arm[1].shape[1]
    # The first row are the seeds themselves: the figure, before its resamples.
    places = np.vstack([np.arange(count), resampled_seeds(count, rng, resamples)])

    def curve(values: np.ndarray) -> np.ndarray:  # [K, S] -> [1 + R, K]
        return values[:, places].mean(-1).T

    cost, quality = curve(arm[0]), curve(arm[1])
    full_cost, full_quality = curve(baseline[0]), curve(baseline[1])
    if widen != 1.0:
        quality = quality[0] + widen * (quality - quality[0])
        full_quality = full_quality[0] + widen * (full_quality - full_quality[0])
    # The aim is read off the same curve as what is needed: of two budgets of full, the greater of
    # which came out lower by chance, it is their mean.
    target = rising(full_quality)[:, -1] - margin
    needed = reaches(cost, quality, target)
    by_baseline = reaches(full_cost, full_quality, target)

    def estimate(values: np.ndarray) -> Estimate:
        low, high = interval(values[1:], count)
        return Estimate(value=float(values[0]), low=low, high=high)

    return Saved(
        needed=estimate(needed),
        needed_by_baseline=estimate(by_baseline),
        against_full=estimate(1 - needed / full_cost[:, -1]),
        against_short=estimate(1 - needed / by_baseline),
        at_floor=bool(needed[0] <= cost[0, 0]),
        baseline_at_floor=bool(by_baseline[0] <= full_cost[0, 0]),
        reached=float(np.isfinite(needed[1:]).mean()),
        num_seeds=count,
    )
