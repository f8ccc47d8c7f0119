"""Schedules: functions of progress in [0, 1].

Of the cycle (ratio, interval) or of the budget spent (learning rate, weight decay).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

Schedule = Callable[[float], float]


def _progress(progress: float) -> float:
    if not 0 <= progress <= 1:
        raise ValueError(f"progress is in [0, 1], got {progress}")
    return progress


def _between(value: float, a: float, b: float) -> float:
    """Clamped to the interval between a and b, whichever is the larger."""
    return min(max(value, min(a, b)), max(a, b))


def _check_ratio(**ratios: float) -> None:
    for name, ratio in ratios.items():
        if not 0 < ratio <= 1:
            raise ValueError(f"{name} must be in (0, 1], got {ratio}")


def cosine(initial: float, final: float) -> Schedule:
    """A ratio that goes from initial to final along half a cosine, slow at both ends.

    ``initial + (final - initial) * (1 - cos(pi * p)) / 2``; it may rise or fall.

    Raises:
        ValueError: a ratio outside (0, 1].
    """
    _check_ratio(initial_ratio=initial, final_ratio=final)

    def ratio(progress: float) -> float:
        share = (1 - math.cos(math.pi * _progress(progress))) / 2
        return _between(initial + (final - initial) * share, initial, final)

    return ratio


def incremental(initial: float, final: float) -> Schedule:
    """A ratio that goes from initial to final in a straight line; it may rise or fall.

    Raises:
        ValueError: a ratio outside (0, 1].
    """
    _check_ratio(initial_ratio=initial, final_ratio=final)

    def ratio(progress: float) -> float:
        return _between(initial + (final - initial) * _progress(progress), initial, final)

    return ratio


def constant(ratio: float) -> Schedule:
    """The same ratio in every cycle.

    Raises:
        ValueError: a ratio outside (0, 1].
    """
    _check_ratio(ratio=ratio)
    return lambda progress: ratio


def cyclic(sizes: Sequence[float] = (0.25, 0.5, 1.0), *, cycles: int) -> Schedule:
    """A ratio that goes through some sizes to the last and back, again and again.

    With the sizes .25, .5, 1, cycle by cycle: .25, .5, 1, .5, .25, .5, 1, ... Cyclical Curriculum
    Learning, published with such sizes, draws the subsets by `inverse` of fixed scores, one pass
    each. A pass over a subset costs its size: these sizes are .5625 of full passes, on average.

    Args:
        sizes: ratios, each in (0, 1].
        cycles: of the plan, C: progress c / (C - 1) is the c-th size.

    Raises:
        ValueError: no size, one outside (0, 1], fewer than one cycle.

    References:
        Kesgin, Amasyali: Cyclical Curriculum Learning. IEEE TNNLS 2023 (arXiv:2202.05531).
    """
    if not sizes:
        raise ValueError("cyclic needs at least one size")
    for i, size in enumerate(sizes):
        _check_ratio(**{f"size {i} of cyclic": size})
    _check_cycles(cycles)
    there_and_back = [*sizes, *sizes[-2:0:-1]]

    def ratio(progress: float) -> float:
        return there_and_back[round(_progress(progress) * (cycles - 1)) % len(there_and_back)]

    return ratio


def geometric(initial: float = 0.04, growth: float = 1.5, *, cycles: int) -> Schedule:
    """A ratio that grows by a factor from cycle to cycle, up to everything.

    ``min(1, initial * growth ** (p * (C - 1)))``: with the default, .04, .06, .09, ..., and 1 from
    the ninth cycle on. The pace of exposure of self-paced learning, with `easy` (or, with `hard`,
    its opposite).

    Args:
        initial: the ratio of the first cycle, in (0, 1].
        growth: above 1.
        cycles: of the plan, C.

    Raises:
        ValueError: a value out of range.

    References:
        Kumar, Packer, Koller: Self-Paced Learning for Latent Variable Models. NeurIPS 2010.
        Hacohen, Weinshall: On The Power of Curriculum Learning in Training Deep Networks. ICML 2019
        (exponential pacing).
    """
    _check_ratio(initial_ratio=initial)
    if not (growth > 1 and math.isfinite(growth)):
        raise ValueError(f"growth must be above 1, got {growth}")
    _check_cycles(cycles)
    top = math.log(1 / initial) / math.log(growth)  # cycles until everything

    def ratio(progress: float) -> float:
        grown = _progress(progress) * (cycles - 1)
        return 1.0 if grown >= top else min(1.0, initial * growth**grown)

    return ratio


def _check_cycles(cycles: int) -> None:
    if cycles < 1 or cycles != int(cycles):
        raise ValueError(f"cycles must be a whole number of at least 1, got {cycles}")


def fixed_interval(initial: int) -> Schedule:
    """The same number of passes in every cycle.

    Raises:
        ValueError: below 1.
    """
    _check_interval(initial_interval=initial)
    return lambda progress: initial


def incremental_interval(initial: int, maximum: int) -> Schedule:
    """Passes that grow from initial to maximum: ``initial + floor((maximum - initial) * p)``.

    Raises:
        ValueError: below 1, or a maximum below the initial.
    """
    _check_interval(initial_interval=initial, max_interval=maximum)
    if maximum < initial:
        raise ValueError(f"max_interval ({maximum}) is below initial_interval ({initial})")
    # The 1e-9 mends products such as (1/3) * 3 * 0.1 that fall just short of a whole number.
    return lambda progress: initial + math.floor((maximum - initial) * _progress(progress) + 1e-9)


def _check_interval(**intervals: int) -> None:
    for name, interval in intervals.items():
        if interval < 1 or interval != int(interval):
            raise ValueError(f"{name} must be a whole number of at least 1, got {interval}")


def warmup_cosine(peak: float, *, warmup: float = 0.0, floor: float = 0.0) -> Schedule:
    """A learning rate over the budget spent: a straight rise, then half a cosine down.

    At progress p the rate is ``peak * p / warmup`` up to p = warmup, and then
    ``floor + (peak - floor) * (1 + cos(pi * (p - warmup) / (1 - warmup))) / 2``; exactly ``floor``
    at p = 1. It is evaluated at the budget spent *after* a step, so that no step has a rate of 0
    but, with a floor of 0, the last.

    Args:
        peak: above 0.
        warmup: share of the budget, in [0, 1).
        floor: in [0, peak].

    Raises:
        ValueError: a value out of range.
    """
    if not (peak > 0 and math.isfinite(peak)):
        raise ValueError(f"lr must be above 0, got {peak}")
    if not 0 <= warmup < 1:
        raise ValueError(f"warm-up is a share of the budget in [0, 1), got {warmup}")
    if not 0 <= floor <= peak:
        raise ValueError(f"min_lr must be from 0 to lr ({peak}), got {floor}")

    def rate(progress: float) -> float:
        p = _progress(progress)
        if p < warmup:
            return peak * p / warmup
        if p >= 1:
            return floor
        return floor + (peak - floor) * (1 + math.cos(math.pi * (p - warmup) / (1 - warmup))) / 2

    return rate
