"""Plans of windows: their arithmetic, and the recipes that carry them out."""

from __future__ import annotations

import pytest

from attent.pipeline import (
    GraphError,
    PlanError,
    Window,
    attent_online,
    fit,
    full,
    initial_state,
    online_plan,
    plan_of,
    random,
    tick,
    validate,
)
from tests.streams import begin, online, threshold
from tests.tiny import TinyTask, tiny_train


def test_what_it_costs_before_it_starts():
    plan = online_plan(100, 980, ratio=0.3, interval=2)
    # Two passes over 30 are 60 examples: sixteen windows and a third of another, which is scored.
    assert plan.spans() == [(plan.phases[0], 980)]
    assert plan.scorings == 17
    assert plan.passes == pytest.approx(980 / 30)
    assert plan.cost == 3 * 980 + 17 * 100
    assert plan.saving == pytest.approx(1 - 4_640 / (3 * 100 * 980 / 30))
    assert plan.warnings() == []
    assert online_plan(100, 980, ratio=0.3, score=False).cost == 3 * 980


def test_a_selection_that_cannot_pay_is_warned_of_once():
    plan = online_plan(100, 10_000, ratio=0.7)
    (warning,) = plan.warnings()
    assert "a window cannot pay: scoring 100 examples costs 100 forwards" in warning
    assert "1 passes over 70 of them instead of all save 3 x 30 x 1 = 90" in warning
    assert plan.saving < 0
    assert online_plan(100, 10_000, ratio=0.7, interval=2).warnings() == []


@pytest.mark.parametrize("make", [online, threshold])
def test_a_run_costs_what_its_plan_said(make):
    graph, task, held = make(begin, examples=96)
    plan, state = plan_of(graph), fit(graph, initial_state(task, held))
    spent = int(state["ledger", "forwarded"]) + 2 * int(state["ledger", "backwarded"])
    if make is online:
        assert spent == plan.cost
    else:  # how many candidates there are is not known before
        assert spent == pytest.approx(plan.cost, rel=0.25)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"examples": 0}, PlanError, "needs a budget of at least 1 example, got 0"),
        ({"interval": 0}, ValueError, "an interval is at least 1 pass, got 0"),
        ({"ratio": 0.0}, ValueError, r"ratio must be in \(0, 1\], got 0.0"),
        ({"ratio": 1.1}, ValueError, r"ratio must be in \(0, 1\], got 1.1"),
    ],
)
def test_options_outside_their_range(options, error, message):
    with pytest.raises(error, match=message):
        online(begin, **options)


def test_a_plan_of_windows_without_a_refill_is_refused():
    task, held = TinyTask(), Window(begin, 10)
    graph = tick(online_plan(10, 20, ratio=1.0), train=tiny_train(task, held))
    with pytest.raises(GraphError, match="'reschedule' reads 'plan/window_due', which is neither"):
        validate(graph, initial_state(task, held))


def test_a_state_of_another_budget_is_refused():
    graph, task, held = online(begin, examples=20)
    state = fit(graph, initial_state(task, held))
    other, _, _ = online(begin, examples=30)
    with pytest.raises(ValueError, match="of a plan of 20 examples, this one is of 30"):
        fit(other, state)


def test_a_rule_without_scores_gets_no_score_stage():
    task, held = TinyTask(), Window(begin, 10)
    graph = attent_online(
        task, held, train=tiny_train(task, held), examples=20, rule=random(), ratio=0.5
    )
    assert "score" not in {child.name for stage in graph.children for child in stage.children}
    assert plan_of(graph).scorings == 0


def test_finite_plans_are_as_they_were():
    task = TinyTask()
    held = Window(begin, 10)
    plan = plan_of(full(held, train=tiny_train(task, held), epochs=2))
    assert (plan.per_window, plan.kept, plan.spans()) == (False, 1.0, [(plan.phases[0], 20)])
