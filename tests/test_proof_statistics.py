"""What benchmarks.proof concludes from numbers: by hand, and by how often it is right."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats as scipy_stats
from scipy.optimize import isotonic_regression
from scipy.stats import permutation_test

from benchmarks.proof import statistics
from benchmarks.proof.statistics import generator


def test_holm_by_hand():
    # Sorted .01 .03 .04 .2, times 4 3 2 1: .04 .09 .08 .2; .08 is not let below .09.
    assert statistics.holm([0.04, 0.01, 0.2, 0.03]) == pytest.approx([0.09, 0.04, 0.2, 0.09])
    assert statistics.holm([0.6, 0.7]) == [1.0, 1.0]
    assert statistics.holm([]) == []


def test_sign_flips_by_hand():
    # Of eight flips of (1, 2, 3), |sum| is 6 twice; of (1, 2, -1) it is at least 2 six times
    # (2 2 0 4, twice each).
    assert statistics.sign_flip_p(np.array([1.0, 2, 3]), generator()) == 2 / 8
    assert statistics.sign_flip_p(np.array([1.0, 2, -1]), generator()) == 6 / 8
    # Not worse than by 1: (0.5, 1.0, -0.2) + 1 are all above 0, and one flip of eight is as high.
    above = statistics.sign_flip_p(np.array([0.5, 1.0, -0.2]), generator(), above=-1.0)
    assert above == 1 / 8
    assert statistics.sign_flip_p(np.zeros(4), generator()) == 1.0


def test_many_seeds_are_flipped_at_random_and_agree_with_scipy():
    values = generator("flips").normal(0.4, 1, 25)
    theirs = permutation_test(
        (values,), np.mean, permutation_type="samples", n_resamples=50_000, rng=generator("other")
    )
    assert statistics.sign_flip_p(values, generator("x")) == pytest.approx(theirs.pvalue, abs=0.005)


def test_rising_curves_by_hand_and_as_scipy_says():
    # 3 and 1 are pooled to 2; then 4, 6, 2 to 4.
    given = np.array([[3.0, 1, 4, 6, 2], [1, 2, 3, 4, 5]])
    assert statistics.rising(given).tolist() == [[2, 2, 4, 4, 4], [1, 2, 3, 4, 5]]
    for row in generator("curves").normal(size=(50, 7)):
        assert statistics.rising(row) == pytest.approx(isotonic_regression(row).x)


@pytest.mark.parametrize(
    ("quality", "target", "expected"),
    [
        ([80, 90, 94], 92, 0.7),  # half-way from 90 to 94
        ([80, 90, 94], 90, 0.6),
        ([80, 90, 94], 79, 0.4),  # the smallest that was run: nothing is said below it
        ([80, 90, 94], 94.1, np.inf),
        ([80, 93, 89], 92, np.inf),  # 93 and 89 are pooled to 91: one lucky budget does not count
        ([80, 93, 89], 91, 0.6),
        ([90, 90, 90], 90, 0.4),
    ],
)
def test_the_budget_at_which_a_target_is_reached(quality, target, expected):
    budgets = np.array([0.4, 0.6, 0.8])
    found = statistics.reaches(budgets, np.array(quality, float), np.array(float(target)))
    assert float(found) == pytest.approx(expected)


def test_budget_saved_by_hand():
    # Two seeds that differ by 2 everywhere: every resample has the same answer. Full ends at 90,
    # the aim is 89; full is there at 0.9 (88 at 0.8, 90 at 1), the arm at 0.6 (88 at 0.5, 90 at
    # 0.7).
    seeds = np.array([-1.0, 1.0])
    full = (np.array([[0.6], [0.8], [1.0]]) + 0 * seeds, np.array([[86.0], [88], [90]]) + seeds)
    arm = (np.array([[0.5], [0.7]]) + 0 * seeds, np.array([[88.0], [90]]) + seeds)
    saved = statistics.saved(arm, full, 1.0, generator(), 100)
    for estimate, value in [
        (saved.needed, 0.6),
        (saved.needed_by_baseline, 0.9),
        (saved.against_full, 0.4),
        (saved.against_short, 1 / 3),
    ]:
        assert (estimate.value, estimate.low, estimate.high) == pytest.approx((value,) * 3)
    assert not saved.at_floor
    assert not saved.baseline_at_floor
    assert saved.reached == 1
    worse = statistics.saved((arm[0], arm[1] - 2), full, 1.0, generator(), 100)
    assert worse.needed.value == np.inf
    assert worse.against_full.value == worse.against_full.high == -np.inf
    assert worse.reached == 0
    better = statistics.saved((arm[0], arm[1] + 2), full, 1.0, generator(), 100)
    assert better.at_floor
    assert better.needed.value == 0.5


def test_an_unlucky_end_of_full_lowers_no_aim():
    # Full at 1 came out below full at 0.8: what it can do is the mean of both, 89, and the arm,
    # at 88, is not there. Above full's own end it is.
    flat = np.zeros(2)
    full = (np.array([[0.6], [0.8], [1.0]]) + flat, np.array([[86.0], [91], [87]]) + flat)
    arm = (np.array([[0.5], [0.7]]) + flat, np.array([[80.0], [88]]) + flat)
    assert statistics.saved(arm, full, 0.5, generator(), 100).needed.value == np.inf
    assert statistics.saved(arm, full, 1.0, generator(), 100).needed.value == 0.7
    assert statistics.saved(full, full, 0.0, generator(), 100).needed.value == 0.8


def test_what_is_not_reached_in_some_resamples_is_in_the_interval():
    # The arm is above full's end for two seeds of four, and below it for the others.
    full = (np.array([[0.5], [1.0]]) + np.zeros(4), np.array([[80.0], [90]]) + np.zeros(4))
    arm = (np.array([[0.5]]) + np.zeros(4), 90 + np.array([[1.0, 1.0, -0.9, -0.9]]))
    saved = statistics.saved(arm, full, 0.1, generator(), 2000)
    assert saved.against_full.value == 0.5
    assert (saved.against_full.low, saved.against_full.high) == (-np.inf, 0.5)
    # Sums of four draws that are below -0.4: four or three of the low ones, 5 of 16.
    assert saved.reached == pytest.approx(11 / 16, abs=0.03)


def test_one_seed_has_no_interval():
    estimate = statistics.mean(np.array([1.0]), generator())
    assert estimate.value == 1
    assert np.isnan(estimate.low)


def test_draws_are_a_function_of_what_they_are_for():
    values = generator("data").normal(size=10)
    first = statistics.mean(values, generator("a", 1))
    assert first == statistics.mean(values, generator("a", 1))
    assert first != statistics.mean(values, generator("a", 2))


@pytest.mark.parametrize("num_seeds", [8, 20])
def test_intervals_of_the_mean_hold_the_truth_as_often_as_they_say(num_seeds):
    """Of 1,000 intervals 950 are expected to, with a standard deviation of 7."""
    rng = generator("coverage", num_seeds)
    covered = 0
    for _ in range(1000):
        estimate = statistics.mean(rng.normal(0.3, 1, num_seeds), rng, 1000)
        covered += estimate.low <= 0.3 <= estimate.high
    assert 925 <= covered <= 975


def test_intervals_of_what_is_saved_hold_the_truth_and_two_equal_arms_save_nothing():
    """Of 300 intervals 285 are expected to, with a standard deviation of 4."""
    rng = generator("saved")
    full_at, arm_at = np.array([0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0]), np.array([0.4, 0.6, 0.8, 1.0])

    def runs(budgets: np.ndarray, gain: float, seeds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        spent = budgets[:, None] + np.zeros(len(seeds))
        own = rng.normal(0, 0.006, spent.shape)
        return spent, 0.90 + 0.05 * spent + gain + seeds + own

    hits = np.zeros(3)
    for _ in range(300):
        seeds = rng.normal(0, 0.01, 20)
        full = runs(full_at, 0.0, seeds)
        # The aim is 0.945: full is there at 0.9, an arm that is 0.01 better at 0.7.
        good = statistics.saved(runs(arm_at, 0.01, seeds), full, 0.005, rng, 600)
        same = statistics.saved(runs(arm_at, 0.0, seeds), full, 0.005, rng, 600)
        hits += [
            good.against_full.low <= 0.3 <= good.against_full.high,
            good.against_short.low <= 1 - 0.7 / 0.9 <= good.against_short.high,
            same.against_short.low <= 0 <= same.against_short.high,
        ]
    assert (hits >= 271).all(), hits
    assert (hits <= 297).all(), hits


def test_two_equal_arms_are_called_different_as_rarely_as_p_says():
    rng = generator("null")
    called = [statistics.sign_flip_p(rng.normal(0, 1, 10), rng) < 0.05 for _ in range(1000)]
    assert 25 <= sum(called) <= 75


def test_splits_of_one_pool_are_no_independent_draws():
    # Two differences, 1 and 3: mean 2, variance 2; t of one degree of freedom is 12.706.
    found = statistics.resplit(np.array([1.0, 3.0]), 0.5)
    assert found.value == 2
    assert found.high - 2 == pytest.approx(2 - found.low) == pytest.approx(12.7062 * 2**0.5, 1e-5)
    # Of a pool that is never shared it is the t interval of the mean.
    values = np.random.default_rng(3).normal(size=20)
    t = scipy_stats.ttest_1samp(values, 0.0).confidence_interval()
    free = statistics.resplit(values, 0.0)
    assert (free.low, free.high) == pytest.approx((t.low, t.high))
    assert np.isnan(statistics.resplit(np.array([1.0]), 0.5).low)
    # As many times as wide, whatever the values.
    wide = statistics.resplit(values, 0.5)
    assert (wide.high - wide.low) / (free.high - free.low) == pytest.approx(
        statistics.widened(20, 0.5)
    )


def test_savings_of_other_data_are_as_much_less_sure():
    # Both curves are straight, an arm's 0.1 above full's: it is there 0.1 / slope earlier, and a
    # seed is above all of it or below: savings move with the arm's own seeds alone.
    rng, budgets = np.random.default_rng(0), np.array([0.5, 0.75, 1.0])
    cost = np.repeat(budgets[:, None], 12, 1)
    arm = budgets[:, None] + 0.1 + rng.normal(0, 0.01, 12)[None]
    full = np.repeat(budgets[:, None], 12, 1)

    def found(widen: float) -> statistics.Saved:
        drawn = statistics.generator("saved")
        return statistics.saved((cost, arm), (cost, full), 0.0, drawn, 2000, widen)

    near, far = found(1.0), found(3.0)
    assert near.against_full.value == far.against_full.value == pytest.approx(arm.mean(1)[0] - 0.5)
    one, three = near.against_full, far.against_full
    assert three.high - three.value == pytest.approx(3 * (one.high - one.value))
    assert three.value - three.low == pytest.approx(3 * (one.value - one.low))


def test_the_power_of_being_no_worse_is_how_often_equal_arms_pass():
    rng, margin, passed = np.random.default_rng(5), 0.6, []
    for _ in range(1000):
        values = rng.normal(size=14)
        passed.append(statistics.sign_flip_p(values, rng, above=-margin) < statistics.SURE)
    spread = rng.normal(size=14)
    told = statistics.power(spread / spread.std(ddof=1), margin)
    assert 0.4 < told < 0.9
    assert np.mean(passed) == pytest.approx(told, abs=0.05)
    assert statistics.power(np.zeros(5), 0.1) == 1
    assert np.isnan(statistics.power(np.array([1.0]), 0.1))
