"""Schedules, by hand and by shape."""

import itertools
import math

import hypothesis.strategies as st
import pytest
from hypothesis import given

from attent.pipeline import (
    complex_plan,
    constant,
    cosine,
    fixed_interval,
    incremental,
    incremental_interval,
    warmup_cosine,
)
from attent.pipeline.schedules import cyclic, geometric

ratios = st.floats(0.001, 1)
progress = st.floats(0, 1)
slopes = pytest.mark.parametrize("schedule", [cosine, incremental])


@slopes
@pytest.mark.parametrize(("initial", "final"), [(0.2, 0.8), (0.8, 0.2), (0.1, 1.0), (0.5, 0.5)])
def test_end_points_and_middle(schedule, initial, final):
    ratio = schedule(initial, final)
    assert ratio(0) == initial
    assert ratio(1) == pytest.approx(final, abs=1e-15)
    assert ratio(0.5) == pytest.approx((initial + final) / 2)  # cos(pi / 2) = 0


def test_cosine_by_hand():
    # cos(pi / 3) = 1/2, so the share is 1/4: 0.2 + 0.6/4 = 0.35, and 0.8 - 0.6/4 = 0.65 falling.
    assert cosine(0.2, 0.8)(1 / 3) == pytest.approx(0.35)
    assert cosine(0.8, 0.2)(1 / 3) == pytest.approx(0.65)


def test_incremental_by_hand():
    assert incremental(0.2, 0.8)(1 / 3) == pytest.approx(0.4)
    assert incremental(0.8, 0.2)(1 / 3) == pytest.approx(0.6)


@slopes
def test_a_falling_schedule_falls(schedule):
    # Published, min and max were those of a rising one: 0.8 -> 0.2 gave 0.2 throughout.
    ratio = schedule(0.8, 0.2)
    values = [ratio(c / 9) for c in range(10)]
    assert all(a > b for a, b in itertools.pairwise(values))


@given(ratios, ratios, progress, progress, st.sampled_from([cosine, incremental]))
def test_monotone_and_clamped(initial, final, p, q, schedule):
    ratio = schedule(initial, final)
    low, high = sorted([initial, final])
    early, late = ratio(min(p, q)), ratio(max(p, q))
    assert low <= early <= high
    assert low <= late <= high
    assert early <= late if initial <= final else early >= late


@given(ratios, st.sampled_from([cosine, incremental]))
def test_a_final_ratio_of_one_is_one(initial, schedule):
    # At 1 everything is selected without scores: one unit in the last place below is not enough.
    assert schedule(initial, 1.0)(1.0) == 1.0


@given(st.floats(0.001, 1), progress)
def test_constant(ratio, p):
    assert constant(ratio)(p) == ratio


def test_cyclic_goes_there_and_back():
    ratio = cyclic(cycles=10)
    there_and_back = [0.25, 0.5, 1, 0.5]
    assert [ratio(c / 9) for c in range(10)] == [*there_and_back, *there_and_back, 0.25, 0.5]
    # Of one size there is no back; of two, it is the first.
    assert [cyclic([0.3], cycles=3)(p) for p in (0, 0.5, 1)] == [0.3, 0.3, 0.3]
    assert [cyclic([0.3, 0.6], cycles=4)(c / 3) for c in range(4)] == [0.3, 0.6, 0.3, 0.6]
    assert cyclic(cycles=1)(1.0) == 0.25


@given(st.integers(2, 60), st.lists(ratios, min_size=3, max_size=3))
def test_cyclic_takes_every_step(cycles, sizes):
    # Whatever c / (C - 1) rounds to.
    ratio, (a, b, c) = cyclic(sizes, cycles=cycles), sizes
    assert [ratio(i / (cycles - 1)) for i in range(cycles)] == ([a, b, c, b] * 15)[:cycles]


def test_geometric_by_hand():
    # 0.04 * 1.5^8 = 1.025: everything from the ninth on.
    ratio = geometric(cycles=10)
    expected = [0.04, 0.06, 0.09, 0.135, 0.2025, 0.30375, 0.455625, 0.6834375, 1, 1]
    assert [ratio(c / 9) for c in range(10)] == pytest.approx(expected)
    assert ratio(1) == 1.0
    # Doubling thrice reaches exactly 1, where no scores are asked for.
    assert [geometric(0.125, 2, cycles=4)(c / 3) for c in range(4)] == pytest.approx(
        [0.125, 0.25, 0.5, 1]
    )
    assert geometric(0.125, 2, cycles=4)(1.0) == 1.0
    assert geometric(0.5, 1e300, cycles=1000)(1.0) == 1.0  # no overflow
    assert geometric(0.3, cycles=1)(1.0) == 0.3


def test_a_plan_of_geometric_and_cyclic():
    plan = complex_plan(100, 20, ratio=cyclic(cycles=5), interval=fixed_interval(1), cycles=5)
    subset = [phase.size for phase in plan.phases if phase.score]
    assert subset == [25, 50, 50, 25]  # the third is of everything
    plan = complex_plan(100, 20, ratio=geometric(cycles=5), interval=fixed_interval(1), cycles=5)
    # 4, 6, 9, 13.5, 20.25.
    assert [phase.size for phase in plan.phases if phase.score] == [4, 6, 9, 13, 20]


def test_cyclic_and_geometric_out_of_range():
    with pytest.raises(ValueError, match="cyclic needs at least one size"):
        cyclic([], cycles=3)
    with pytest.raises(ValueError, match=r"size 1 of cyclic must be in \(0, 1\], got 1.5"):
        cyclic([0.5, 1.5], cycles=3)
    with pytest.raises(ValueError, match=r"initial_ratio must be in \(0, 1\], got 0"):
        geometric(0.0, cycles=3)
    for growth in (1.0, 0.5, float("inf"), float("nan")):
        with pytest.raises(ValueError, match="growth must be above 1, got"):
            geometric(0.1, growth, cycles=3)
    for cycles in (0, 2.5):
        with pytest.raises(ValueError, match="cycles must be a whole number of at least 1, got"):
            cyclic(cycles=cycles)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="cycles must be a whole number of at least 1, got"):
            geometric(cycles=cycles)  # type: ignore[arg-type]


def test_a_single_cycle_is_at_the_end():
    plan = complex_plan(
        100, 20, ratio=cosine(0.2, 0.6), interval=incremental_interval(2, 7), cycles=1
    )
    only = plan.phases[1]
    assert (only.ratio, only.size, only.passes) == (pytest.approx(0.6), 60, 7)


@pytest.mark.parametrize("schedule", [cosine, incremental])
@pytest.mark.parametrize(("initial", "final"), [(0, 0.5), (1.1, 0.5), (-0.2, 0.5)])
def test_ratios_out_of_range(schedule, initial, final):
    with pytest.raises(ValueError, match=r"initial_ratio must be in \(0, 1\], got"):
        schedule(initial, final)
    with pytest.raises(ValueError, match=r"final_ratio must be in \(0, 1\], got"):
        schedule(final, initial)


@pytest.mark.parametrize("ratio", [0, 1.5, float("nan")])
def test_constant_out_of_range(ratio):
    with pytest.raises(ValueError, match=r"ratio must be in \(0, 1\], got"):
        constant(ratio)


@pytest.mark.parametrize("p", [-0.01, 1.01, float("nan")])
@pytest.mark.parametrize(
    "schedule",
    [
        cosine(0.2, 0.8),
        incremental(0.2, 0.8),
        cyclic(cycles=4),
        geometric(cycles=4),
        incremental_interval(5, 50),
        warmup_cosine(0.1),
    ],
)
def test_progress_out_of_range(schedule, p):
    with pytest.raises(ValueError, match=r"progress is in \[0, 1\], got"):
        schedule(p)


def test_incremental_interval_by_hand():
    # 5 + floor(45 * c / 9) = 5 + 5 c.
    grow = incremental_interval(5, 50)
    assert [grow(c / 9) for c in range(10)] == [5, 10, 15, 20, 25, 30, 35, 40, 45, 50]
    # 5 + floor(5 * c / 9): 0, 0.56, 1.1, 1.7, 2.2, 2.8, 3.3, 3.9, 4.4, 5.
    assert [incremental_interval(5, 10)(c / 9) for c in range(10)] == [
        5,
        5,
        6,
        6,
        7,
        7,
        8,
        8,
        9,
        10,
    ]
    assert incremental_interval(3, 3)(0.7) == 3


@given(st.integers(1, 60), st.integers(2, 40))
def test_incremental_interval_by_one_takes_every_step(initial, cycles):
    # initial + floor((C - 1) * c / (C - 1)) = initial + c, whatever the division rounds to.
    grow = incremental_interval(initial, initial + cycles - 1)
    assert [grow(c / (cycles - 1)) for c in range(cycles)] == [initial + c for c in range(cycles)]


def test_fixed_interval():
    assert [fixed_interval(4)(p) for p in (0, 0.5, 1)] == [4, 4, 4]


@pytest.mark.parametrize("interval", [0, -1, 2.5])
def test_intervals_out_of_range(interval):
    message = "must be a whole number of at least 1, got"
    with pytest.raises(ValueError, match=f"initial_interval {message}"):
        fixed_interval(interval)
    with pytest.raises(ValueError, match=f"initial_interval {message}"):
        incremental_interval(interval, 9)
    with pytest.raises(ValueError, match=f"max_interval {message}"):
        incremental_interval(1, interval)


def test_an_interval_that_would_fall():
    with pytest.raises(ValueError, match=r"max_interval \(4\) is below initial_interval \(5\)"):
        incremental_interval(5, 4)


def test_warmup_cosine_by_hand():
    rate = warmup_cosine(0.4, warmup=0.2, floor=0.1)
    assert rate(0.05) == pytest.approx(0.1)  # 0.4 * 0.05 / 0.2
    assert rate(0.1) == pytest.approx(0.2)
    assert rate(0.2) == pytest.approx(0.4)  # the peak, where the warm-up ends
    assert rate(0.6) == pytest.approx(0.25)  # half of the way down: (0.4 + 0.1) / 2
    assert rate(0.4667) == pytest.approx(0.325, abs=1e-4)  # a third: 0.1 + 0.3 * (1 + 1/2) / 2
    assert rate(1) == 0.1


@given(st.floats(1e-6, 10), st.floats(0, 0.99), st.floats(0, 1), progress)
def test_warmup_cosine_bounds(peak, warmup, share, p):
    floor = share * peak
    rate = warmup_cosine(peak, warmup=warmup, floor=floor)
    assert rate(1) == floor
    assert rate(warmup) == pytest.approx(peak)
    assert 0 <= rate(p) <= peak * (1 + 1e-12)
    if 1e-6 <= p <= 1 - 1e-6:
        assert rate(p) > 0


@given(st.floats(0, 0.9), st.floats(0, 1), st.floats(0, 0.999))
def test_warmup_cosine_never_jumps(warmup, floor, p):
    rate, step = warmup_cosine(1.0, warmup=warmup, floor=floor), 0.001
    # The steepest slopes: 1 / warm-up up, pi / 2 / (1 - warm-up) down.
    slope = math.pi / 2 / (1 - warmup) + (1 / warmup if p < warmup else 0)
    assert abs(rate(p + step) - rate(p)) <= slope * step * (1 + 1e-6) + 1e-12


@pytest.mark.parametrize("peak", [0, -1, float("inf"), float("nan")])
def test_peak_out_of_range(peak):
    with pytest.raises(ValueError, match="lr must be above 0, got"):
        warmup_cosine(peak)


@pytest.mark.parametrize("warmup", [-0.1, 1.0, float("nan")])
def test_warmup_out_of_range(warmup):
    with pytest.raises(ValueError, match=r"warm-up is a share of the budget in \[0, 1\), got"):
        warmup_cosine(0.1, warmup=warmup)


@pytest.mark.parametrize("floor", [-0.1, 0.2, float("nan")])
def test_floor_out_of_range(floor):
    with pytest.raises(ValueError, match=r"min_lr must be from 0 to lr \(0.1\), got"):
        warmup_cosine(0.1, floor=floor)
