"""The run's arithmetic, by hand; budgets to the example."""

import math

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from attent.pipeline import (
    Phase,
    Plan,
    PlanError,
    complex_plan,
    constant,
    cosine,
    count,
    fixed_interval,
    full_plan,
    incremental,
    incremental_interval,
    paced_plan,
    simple_plan,
)


def rows(plan: Plan) -> list[tuple]:
    """(cycle, size, passes, score) of each phase."""
    return [(p.cycle, p.size, p.passes, p.score) for p in plan.phases]


# N = 100, three cycles of 2 passes over 20, 40 and 60: 2 * 120 = 240 selected examples.
CASE = {"ratio": incremental(0.2, 0.6), "interval": fixed_interval(2), "cycles": 3}


def test_complex_in_examples_by_hand():
    plan = complex_plan(100, 10, **CASE)
    # 1000 - 100 - 240 = 660 left: six full epochs, two a cycle, and 60 examples of a seventh.
    assert rows(plan) == [
        (-1, 100, 1, False),
        (0, 20, 2, True),
        (0, 100, 2, False),
        (1, 40, 2, True),
        (1, 100, 2, False),
        (2, 60, 2, True),
        (2, 100, 2, False),
        (2, 100, 0, False),
    ]
    assert plan.budget == 1000
    assert [spent for _, spent in plan.spans()] == [100, 40, 200, 80, 200, 120, 200, 60]
    assert [p.ratio for p in plan.phases[1::2]] == pytest.approx([0.2, 0.4, 0.6, 1.0])
    assert plan.scorings == 3
    assert plan.passes == pytest.approx(1 + 3 * 2 + 3 * 2 + 0.6)
    assert plan.cost == 3 * 1000 + 3 * 100
    # As many passes over everything: 13.6 * 100 * 3 = 4080.
    assert plan.saving == pytest.approx(1 - 3300 / 4080)


def test_the_earliest_cycles_get_the_remainder():
    # 1150 - 340 = 810: eight full epochs as 3, 3, 2, and 10 examples more.
    plan = complex_plan(100, 11.5, **CASE)
    assert [p.passes for p in plan.phases if p.ratio == 1] == [1, 3, 3, 2, 0]
    assert plan.spans()[-1][1] == 10


def test_complex_in_passes_by_hand():
    plan = complex_plan(100, 12, accounting="passes", **CASE)
    # (12 - 1) = 11 passes for three cycles: 4, 4, 3; less the intervals 2, 2, 1 full ones.
    assert rows(plan) == [
        (-1, 100, 1, False),
        (0, 20, 2, True),
        (0, 100, 2, False),
        (1, 40, 2, True),
        (1, 100, 2, False),
        (2, 60, 2, True),
        (2, 100, 1, False),
    ]
    assert plan.budget == 100 * (1 + 5) + 240
    assert plan.passes == pytest.approx(12)
    assert plan.saving == pytest.approx(1 - (3 * 840 + 300) / 3600)


def test_a_long_interval_borrows_from_the_latest_cycles():
    # Shares of 10 passes: 4, 3, 3. Intervals 1, 3, 5: 3, 0 and -2 full epochs (published: the -2
    # became 0, and two passes too many were made). One full epoch is left, in the earliest.
    plan = complex_plan(
        100, 11, ratio=constant(0.5), interval=incremental_interval(1, 5), cycles=3,
        accounting="passes",
    )  # fmt: skip
    assert [(p.size, p.passes) for p in plan.phases] == [
        (100, 1), (50, 1), (100, 1), (50, 3), (50, 5),
    ]  # fmt: skip
    assert plan.passes == pytest.approx(11)


def test_the_latest_cycles_lend_first():
    # Shares of 15 passes: 5, 5, 5. Intervals 1, 1, 9: 4, 4 and -4 full epochs; the second cycle
    # lends its 4, the first keeps its own.
    plan = complex_plan(
        100, 16, ratio=constant(0.5), interval=lambda p: 9 if p == 1 else 1, cycles=3,
        accounting="passes",
    )  # fmt: skip
    assert [(p.size, p.passes) for p in plan.phases] == [
        (100, 1), (50, 1), (100, 4), (50, 1), (50, 9),
    ]  # fmt: skip


OPTIONS = {
    "num_examples": st.integers(1, 300),
    "epochs": st.integers(1, 40),
    "initial": st.floats(0.01, 1),
    "final": st.floats(0.01, 1),
    "interval": st.integers(1, 5),
    "more": st.integers(0, 6),
    "cycles": st.integers(1, 6),
    "first": st.integers(0, 2),
}


def plan_or_none(accounting, options) -> tuple[Plan | None, int, int]:
    """The plan, or None if it was refused; examples and passes that it needs at least."""
    num_examples, cycles, first = (options[k] for k in ("num_examples", "cycles", "first"))
    ratio = incremental(options["initial"], options["final"])
    interval = incremental_interval(options["interval"], options["interval"] + options["more"])
    progress = [c / (cycles - 1) if cycles > 1 else 1.0 for c in range(cycles)]
    needed = sum(count(ratio(p), num_examples) * int(interval(p)) for p in progress)
    passes = sum(int(interval(p)) for p in progress)
    try:
        plan = complex_plan(
            num_examples, options["epochs"], ratio=ratio, interval=interval, cycles=cycles,
            accounting=accounting, first=first,
        )  # fmt: skip
    except PlanError:
        plan = None
    return plan, first * num_examples + needed, first + passes


def check_phases(plan: Plan, cycles: int):
    assert all(p.passes > 0 for p in plan.phases[:-1])
    assert [spent > 0 for _, spent in plan.spans()] == [True] * len(plan.phases)
    for phase in plan.phases:
        assert phase.size == count(phase.ratio, plan.num_examples)
        assert phase.score <= (phase.ratio < 1)
    ordered = [p.cycle for p in plan.phases]
    assert ordered == sorted(ordered)
    assert set(ordered) - {-1} == set(range(cycles))


@settings(deadline=None)
@given(st.fixed_dictionaries(OPTIONS))
def test_the_budget_in_examples_is_exact(options):
    plan, needed, _ = plan_or_none("examples", options)
    budget = options["epochs"] * options["num_examples"]
    assert (plan is None) == (needed > budget)  # refused only if it does not fit
    if plan is not None:
        assert plan.budget == budget
        assert sum(spent for _, spent in plan.spans()) == budget
        check_phases(plan, options["cycles"])


@settings(deadline=None)
@given(st.fixed_dictionaries(OPTIONS))
def test_the_passes_are_exact(options):
    plan, _, needed = plan_or_none("passes", options)
    assert (plan is None) == (needed > options["epochs"])
    if plan is not None:
        assert sum(p.passes for p in plan.phases) == options["epochs"]
        assert sum(p.size * p.passes for p in plan.phases) == plan.budget
        assert plan.passes == pytest.approx(options["epochs"])
        check_phases(plan, options["cycles"])


def test_the_published_saving():
    n, epochs, cycles = 10_000, 800, 10
    plan = complex_plan(
        n, epochs, ratio=cosine(0.2, 0.8), interval=incremental_interval(5, 50), cycles=cycles,
        accounting="passes",
    )  # fmt: skip
    # From the formulae: pass c of interval 5 + 5 c saves 1 - r_c of an epoch, r_c = 0.2 + 0.6 *
    # (1 - cos(pi c / 9)) / 2. Sum of (5 + 5 c)(1 - r_c) = 103.3 of 800 epochs: 12.9 %.
    saved = sum(
        (5 + 5 * c) * (1 - (0.2 + 0.6 * (1 - math.cos(math.pi * c / 9)) / 2)) for c in range(10)
    )
    plain = 1 - plan.budget / (n * epochs)
    assert plain == pytest.approx(saved / epochs, abs=1e-4)
    assert plain == pytest.approx(0.13, abs=0.003)
    # Ten scorings of a forward each, beside 800 epochs of three: 10 / 2400 = 0.42 %.
    assert plan.saving == pytest.approx(plain - 10 / 2400)
    assert plan.scorings == 10


def test_a_dearer_signal_saves_less():
    cheap, dear = (complex_plan(100, 10, score_cost=cost, **CASE) for cost in (1, 3))
    # Three scorings of 100: 2 * 300 forwards more, of 3 * 100 * 13.6.
    assert cheap.saving - dear.saving == pytest.approx(600 / 4080)


def test_ten_cycles_do_not_fit_thirty_passes():
    message = (
        r"1 full epoch\(s\) and 10 cycles of 5 passes are 1 \+ 50 = 51 passes, but epochs is 30; "
        r"raise epochs to at least 51"
    )
    with pytest.raises(PlanError, match=message):
        complex_plan(100, 30, accounting="passes")
    assert complex_plan(100, 51, accounting="passes").passes == pytest.approx(51)


def test_ten_cycles_do_not_fit_twenty_epochs_of_examples():
    # floor(100 r_c): 20, 21, 27, 35, 44, 55, 65, 72, 78, 80 = 497; 5 * 497 = 2485.
    message = (
        r"10 cycles of 5 passes over 20 to 80 examples are 100 \+ 2,485 = 2,585 examples, but 20 "
        r"epochs are 2,000; raise epochs to at least 26"
    )
    with pytest.raises(PlanError, match=message):
        complex_plan(100, 20)
    assert complex_plan(100, 26).budget == 2600


@pytest.mark.parametrize("accounting", ["examples", "passes"])
def test_a_single_cycle_has_the_final_ratio(accounting):
    plan = complex_plan(100, 10, cycles=1, accounting=accounting)
    assert (plan.phases[1].ratio, plan.phases[1].size) == (pytest.approx(0.8), 80)


def test_a_ratio_of_one_needs_no_score():
    plan = complex_plan(100, 20, ratio=constant(1.0), cycles=2, redraw=True)
    assert plan.scorings == 0
    assert not any(p.score or p.redraw for p in plan.phases)
    assert plan.saving == pytest.approx(0)


def test_observed_scores_cost_nothing():
    plan = complex_plan(100, 10, score=False, redraw=True, **CASE)
    assert plan.cost == 3 * 1000
    assert [p.redraw for p in plan.phases] == [p.ratio < 1 for p in plan.phases]


def test_without_first_epochs():
    plan = complex_plan(100, 10, first=0, **CASE)
    assert rows(plan)[0] == (0, 20, 2, True)
    assert sum(spent for _, spent in plan.spans()) == 1000


def test_full_plan():
    plan = full_plan(100, 2.5)
    assert plan.phases == (Phase(cycle=-1, ratio=1.0, size=100, passes=0),)
    assert (plan.budget, plan.passes, plan.cost) == (250, 2.5, 750)
    assert plan.saving == pytest.approx(0)
    assert plan.warnings() == []


def test_simple_plan():
    plan = simple_plan(10, 3, ratio=0.7)
    assert rows(plan) == [(-1, 10, 1, False), (0, 7, 0, False)]
    assert [spent for _, spent in plan.spans()] == [10, 20]
    # 1 + 20/7 = 27/7 passes for the price of 30 examples; over everything they cost 270/7.
    assert plan.passes == pytest.approx(27 / 7)
    assert plan.saving == pytest.approx(1 - 30 * 7 / 270)
    assert simple_plan(10, 3, first=2).spans()[0][1] == 20


def test_warns_where_scoring_cannot_pay():
    # Break-even (algorithms.md, fact 1): I (1 - r) = 1/3. N = 300, one pass over 200: 3 * 100 = 300
    # saved for 300 paid; over 199: 303.
    one = {"interval": fixed_interval(1), "cycles": 1}
    assert complex_plan(300, 5, ratio=constant(199 / 300), **one).warnings() == []
    (found,) = complex_plan(300, 5, ratio=constant(200 / 300), **one).warnings()
    assert found == (
        "cycle 1 cannot pay: scoring 300 examples costs 300 forwards, and 1 passes over 200 of "
        "them instead of all save 3 x 100 x 1 = 300"
    )
    dear = complex_plan(300, 5, ratio=constant(0.5), score_cost=3, **one)
    # 900 paid, 3 * 150 = 450 saved.
    assert "costs 900 forwards" in dear.warnings()[0]
    assert complex_plan(300, 5, ratio=constant(0.9), score=False, **one).warnings() == []


def test_warns_of_the_cycles_concerned():
    # Ratios 0.5, 0.7, 0.9 for one pass: 150, 90 and 30 saved for 100.
    plan = complex_plan(100, 9, ratio=incremental(0.5, 0.9), interval=fixed_interval(1), cycles=3)
    assert [w.split()[1] for w in plan.warnings()] == ["2", "3"]  # of 1 to 3


def test_a_phase_the_budget_cuts_short():
    scored = Phase(cycle=0, ratio=0.5, size=50, passes=10, score=True)
    never = Phase(cycle=1, ratio=0.5, size=50, passes=10, score=True)
    plan = Plan(name="cut", num_examples=100, phases=(scored, never), budget=25)
    assert [spent for _, spent in plan.spans()] == [25, 0]
    assert plan.scorings == 1
    assert plan.passes == 0.5
    # Half a pass saves 3 * 50 / 2 = 75 of 100 paid; the second phase is never scored.
    assert len(plan.warnings()) == 1


@pytest.mark.parametrize("epochs", [0, -1, float("nan"), float("inf")])
@pytest.mark.parametrize(
    "make",
    [full_plan, simple_plan, lambda n, epochs: complex_plan(n, epochs, cycles=1)],
    ids=["full", "simple", "complex"],
)
def test_epochs_out_of_range(make, epochs):
    with pytest.raises(ValueError, match="epochs must be above 0, got"):
        make(100, epochs)


@pytest.mark.parametrize("epochs", [0, -3, 12.5, float("nan"), float("inf")])
def test_epochs_are_whole_in_passes(epochs):
    with pytest.raises(ValueError, match="epochs is a whole number, got"):
        complex_plan(100, epochs, cycles=1, accounting="passes")


def test_bad_counts():
    with pytest.raises(ValueError, match="total_cycles must be at least 1, got 0"):
        complex_plan(100, 10, cycles=0)
    with pytest.raises(ValueError, match="before the first cycle are at least 0, got -1"):
        complex_plan(100, 10, first=-1)
    with pytest.raises(ValueError, match=r"ratio must be in \(0, 1\], got 0"):
        complex_plan(100, 10, ratio=lambda p: p)
    with pytest.raises(ValueError, match=r"ratio must be in \(0, 1\], got 2"):
        simple_plan(100, 10, ratio=2)
    with pytest.raises(ValueError, match="at least 1, got 0"):
        simple_plan(100, 10, first=0)


@pytest.mark.parametrize("accounting", ["examples", "passes"])
@pytest.mark.parametrize("passes", [0, -2, 0.5])
def test_an_interval_schedule_of_no_passes(passes, accounting):
    # 0 passes mean "to the end of the budget": in the middle of a plan that would eat the rest.
    with pytest.raises(ValueError, match=r"interval.*at least 1"):
        complex_plan(100, 30, interval=lambda p: passes, cycles=2, accounting=accounting)
    with pytest.raises(ValueError, match=r"interval.*at least 1, got nan"):
        complex_plan(100, 30, interval=lambda p: math.nan, cycles=2, accounting=accounting)


def test_nothing_left_after_the_first_epochs():
    message = (
        r"2 full epoch\(s\) of 1,000 examples to observe their losses use up the budget of "
        r"2 x 1,000 = 2,000 examples; raise epochs"
    )
    with pytest.raises(PlanError, match=message):
        simple_plan(1000, 2, first=2)


def test_unknown_accounting():
    with pytest.raises(ValueError, match=r"accounting.*'epochs'"):
        complex_plan(100, 60, accounting="epochs")  # type: ignore[arg-type]


def test_a_paced_plan_by_hand():
    plan = paced_plan(100, 4, ratio=constant(0.5))
    # 100 first; 350 is reached by five passes of 50, then 50 examples of everything.
    assert rows(plan) == [(-1, 100, 1, False), (0, 50, 0, False), (0, 100, 0, False)]
    assert [spent for _, spent in plan.spans()] == [100, 250, 50]
    assert plan.passes == 1 + 5 + 0.5
    # Nothing is scored: three forwards' worth for each example, and saved is what 6.5 epochs cost.
    assert plan.cost == 3 * 400
    assert plan.saving == pytest.approx(1 - 4 / 6.5)
    assert plan.warnings() == []


def test_the_passes_of_a_paced_plan_grow():
    plan = paced_plan(100, 8, ratio=incremental(0.2, 0.8), last=0.0)
    (_, first), (_, rest) = plan.spans()
    assert (first, rest) == (100, 700)
    # Begun after s examples, a pass is of 20 + 60 (s - 100) / 700; the last is cut to the budget.
    sizes, spent = [], 100
    while spent < 800:
        sizes.append(math.floor(20 + 60 * (spent - 100) / 700 + 1e-6))
        spent += sizes[-1]
    assert plan.passes == pytest.approx(
        1 + len(sizes) - 1 + (sizes[-1] - (spent - 800)) / sizes[-1]
    )


def test_the_passes_of_each_phase():
    plan = paced_plan(100, 4, ratio=constant(0.5))
    assert [plan.passes_of(phase) for phase in plan.phases] == [[100], [50] * 5, [50]]
    rising = paced_plan(100, 8, ratio=incremental(0.2, 0.8), last=0.0)
    # Begun after 100, 120, ... examples: 20 + 60 (s - 100) / 700.
    sizes = rising.passes_of(rising.phases[1])
    assert sizes[:3] == [20, 21, 23]
    assert sum(sizes) == 700
    with pytest.raises(ValueError, match="no such phase"):
        plan.passes_of(rising.phases[1])


def test_a_paced_plan_that_does_not_fit():
    with pytest.raises(PlanError, match=r"100 \+ 25 = 125 examples.* above 1.40899 epochs"):
        paced_plan(100, 1.14, last=0.2193)
    # Half a pass over 20 must fit too: 1.1 / (1 - 0.2193) = 1.40899; below, the first selected pass
    # would end further from the last part than it begins.
    with pytest.raises(PlanError, match=r"raise the budget above 1\.1 epochs' worth"):
        paced_plan(100, 1.1, last=0)
    assert len(paced_plan(100, 1.11, last=0).phases) == 2
    with pytest.raises(ValueError, match="at least 0"):
        paced_plan(100, 3, first=-1)
    with pytest.raises(ValueError, match=r"\[0, 1\)"):
        paced_plan(100, 3, last=1.0)
