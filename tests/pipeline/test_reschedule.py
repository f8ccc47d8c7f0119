"""The reschedule stage, driven without a model by a train stage that only moves the clock."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field

import pytest
import torch
from tensordict import TensorDict

from attent.pipeline import (
    Phase,
    Plan,
    Stage,
    bare_state,
    complex_plan,
    constant,
    count,
    fixed_interval,
    full_plan,
    incremental,
    incremental_interval,
    initialize,
    paced_plan,
    plan_of,
    reschedule,
    run,
    sequence,
    simple_plan,
    when,
)


@dataclass
class Log:
    """What happened: the clock is (phase, passes, seen) then."""

    passes: list[tuple[int, int]] = field(default_factory=list)  # (phase, size) of each whole pass
    scored: list[tuple[int, int, int]] = field(default_factory=list)
    selected: list[tuple[int, int, int]] = field(default_factory=list)
    evaluated: list[tuple[int, int, int]] = field(default_factory=list)
    seen: list[int] = field(default_factory=list)
    state: TensorDict = field(default_factory=TensorDict)


def number(state: TensorDict, *key: str) -> int:
    return int(state[key])


def clock(state: TensorDict) -> tuple[int, int, int]:
    return tuple(number(state, "clock", entry) for entry in ("phase", "passes", "seen"))


def put(state: TensorDict, group: str, **values: int | bool) -> None:
    for name, value in values.items():
        state[group, name] = torch.tensor(value)


def fake_train(state: TensorDict, batch_size: int, steps: int) -> None:
    """Move the clock as training does: to the pass's end, the pause or the budget, whole steps."""
    for _ in range(steps):
        size, offset = number(state, "plan", "size"), number(state, "clock", "offset")
        seen, pause = number(state, "clock", "seen"), number(state, "plan", "pause")
        left = min(size - offset, number(state, "plan", "budget") - seen)
        if left <= 0 or (pause and seen >= pause):
            return
        trained = min(batch_size, left)
        put(state, "clock", offset=offset + trained, seen=seen + trained)


def drive(plan: Plan, *, batch_size=10, steps=1, eval_every=1.0) -> Log:
    """A whole run of ticks; what is due is fulfilled and noted, and nothing else happens."""
    stage = reschedule(plan, eval_every=eval_every)
    state = initialize(stage, bare_state(plan.num_examples))
    log = Log()
    for _ in range(10_000):
        if number(state, "clock", "seen") >= number(state, "plan", "budget"):
            log.state = state
            return log
        if bool(state["plan", "score_due"]):
            log.scored.append(clock(state))
            put(state, "plan", score_due=False, select_due=True)
        if bool(state["plan", "select_due"]):
            log.selected.append(clock(state))
            size = count(float(state["plan", "ratio"]), plan.num_examples)
            put(state, "plan", size=size, select_due=False)
        phase, size, passes = (
            number(state, "clock", "phase"),
            number(state, "plan", "size"),
            number(state, "clock", "passes"),
        )
        fake_train(state, batch_size, steps)
        state = run(stage, state)
        log.seen.append(number(state, "clock", "seen"))
        if number(state, "clock", "passes") > passes:
            log.passes.append((phase, size))
        if bool(state["plan", "eval_due"]):
            log.evaluated.append(clock(state))
            put(state, "plan", eval_due=False)
    raise AssertionError("the run does not end")


# 1 pass of 100, then 2 of 20, 2 of 100, 2 of 40, 2 of 100, 2 of 60, 2 of 100, and 60 examples.
PLAN = complex_plan(100, 10, ratio=incremental(0.2, 0.6), interval=fixed_interval(2), cycles=3)


def sizes_by_phase(log: Log) -> list[tuple[int, int, int]]:
    """(phase, passes, size) in the order they were made."""
    grouped = itertools.groupby(log.passes)
    return [(phase, len(list(same)), size) for (phase, size), same in grouped]


@pytest.mark.parametrize(
    "plan",
    [
        PLAN,
        complex_plan(97, 30, interval=incremental_interval(1, 4), cycles=5),
        complex_plan(97, 40, interval=fixed_interval(3), cycles=7, accounting="passes"),
        complex_plan(50, 9, ratio=constant(1.0), interval=fixed_interval(2), cycles=3),
        complex_plan(50, 9, ratio=constant(0.01), interval=fixed_interval(2), cycles=3, first=0),
        simple_plan(100, 4, ratio=0.7),
        full_plan(64, 3.5),
        paced_plan(100, 3, ratio=constant(0.3), last=0),
        paced_plan(100, 4, ratio=constant(0.3)),
        paced_plan(100, 4, ratio=constant(0.5), first=0),
    ],
    ids=lambda plan: f"{plan.name}-{plan.num_examples}-{len(plan.phases)}",
)
def test_the_run_is_the_plan(plan):
    log = drive(plan, batch_size=7, steps=3)
    planned = [
        (i, spent // phase.size, phase.size)
        for i, (phase, spent) in enumerate(plan.spans())
        if spent >= phase.size
    ]
    assert sizes_by_phase(log) == planned
    # The run ends exactly on budget, and the last pass is cut to it.
    assert log.seen[-1] == plan.budget == number(log.state, "clock", "seen")
    phase, spent = plan.spans()[-1]
    assert number(log.state, "clock", "offset") == spent % phase.size
    assert number(log.state, "clock", "passes") == len(log.passes)
    # One monotone count of examples, whatever was selected.
    assert all(a < b for a, b in itertools.pairwise(log.seen))
    # Scores are due where the plan has them, and only there.
    starts = [phase for phase, _, _ in log.scored]
    assert starts == [i for i, phase in enumerate(plan.phases) if phase.score]


def test_the_clock_of_each_phase():
    log = drive(PLAN)
    # Passes before each phase: 0, 1, 3, 5, 7, 9, 11, 13; examples: 0, 100, 140, 340, 420, 620, ...
    assert log.scored == [(1, 1, 100), (3, 5, 340), (5, 9, 620)]
    assert log.selected == [
        (1, 1, 100), (2, 3, 140), (3, 5, 340), (4, 7, 420), (5, 9, 620), (6, 11, 740), (7, 13, 940),
    ]  # fmt: skip
    assert clock(log.state) == (7, 13, 1000)


def test_what_a_phase_puts_into_the_state():
    stage = reschedule(PLAN)
    state = initialize(stage, bare_state(100))
    plan, now = state["plan"], state["clock"]
    assert (int(plan["budget"]), int(plan["pause"]), int(plan["interval"])) == (1000, 100, 1)
    assert (float(plan["ratio"]), bool(plan["score_due"]), bool(plan["select_due"])) == (1, 0, 0)
    assert int(now["cycle"]) == -1
    put(state, "clock", offset=100, seen=100)
    state = run(stage, state)
    plan, now = state["plan"], state["clock"]
    assert float(plan["ratio"]) == pytest.approx(0.2)
    assert int(plan["interval"]) == 2
    # The selection waits for the scores.
    assert (bool(plan["score_due"]), bool(plan["select_due"])) == (True, False)
    assert [int(now[e]) for e in ("cycle", "phase", "epoch", "passes", "offset")] == [0, 1, 0, 1, 0]


def test_the_cycle_in_the_clock():
    stage, cycles = reschedule(PLAN), []
    state = initialize(stage, bare_state(100))
    for phase in PLAN.phases[:-1]:
        for epoch in range(phase.passes):
            assert number(state, "clock", "epoch") == epoch
            cycles.append(number(state, "clock", "cycle"))
            put(state, "plan", size=phase.size)
            put(state, "clock", offset=phase.size, seen=number(state, "clock", "seen") + phase.size)
            state = run(stage, state)
    assert cycles == [-1] + [0] * 4 + [1] * 4 + [2] * 4


def test_nothing_moves_in_the_middle_of_a_pass():
    stage = reschedule(PLAN)
    state = initialize(stage, bare_state(100))
    put(state, "clock", offset=99, seen=99)
    before = state.clone()
    assert bool((run(stage, state) == before).all())


@pytest.mark.parametrize("eval_every", [0.25, 1.0, 1.5])
def test_evaluations_are_at_the_multiples_and_at_the_end(eval_every):
    plan = complex_plan(100, 9.9, ratio=constant(0.2), interval=fixed_interval(2), cycles=2)
    log = drive(plan, batch_size=5, eval_every=eval_every)
    gap = int(eval_every * 100)
    expected = [*range(gap, 990, gap), 990]
    assert [seen for _, _, seen in log.evaluated] == expected


def test_an_end_on_a_multiple_is_evaluated_once():
    assert [seen for _, _, seen in drive(full_plan(100, 3)).evaluated] == [100, 200, 300]


def test_a_step_over_the_multiple_is_evaluated_after_it():
    # Steps of 32: 96, 100 (a pass ends), 132, ...; evaluations are due at 50, 100, 150, ...
    log = drive(full_plan(100, 2), batch_size=32, eval_every=0.5)
    assert [seen for _, _, seen in log.evaluated] == [64, 100, 164, 200]


def test_an_evaluation_that_a_step_skipped_is_not_made_up_for():
    # Due every 10, steps of 32: once a step.
    log = drive(full_plan(100, 1), batch_size=32, eval_every=0.1)
    assert [seen for _, _, seen in log.evaluated] == [32, 64, 96, 100]


def test_no_evaluations():
    log = drive(PLAN, eval_every=None)
    assert log.evaluated == []
    assert number(log.state, "plan", "pause") == 0
    assert log.seen[-1] == 1000


@pytest.mark.parametrize("eval_every", [0.3, 1.0, None])
@pytest.mark.parametrize("batch_size", [7, 10, 64])
def test_steps_in_a_tick_change_nothing(batch_size, eval_every):
    one, seven, fifty = (
        drive(PLAN, batch_size=batch_size, steps=steps, eval_every=eval_every)
        for steps in (1, 7, 50)
    )
    for other in (seven, fifty):
        assert other.passes == one.passes
        assert other.scored == one.scored
        assert other.selected == one.selected
        assert other.evaluated == one.evaluated
        assert bool((other.state == one.state).all())
    assert len(one.seen) >= len(seven.seen) >= len(fifty.seen)


def test_redraw_selects_before_every_pass():
    plan = complex_plan(
        100, 8, ratio=constant(0.3), interval=fixed_interval(3), cycles=2, redraw=True
    )
    # 800 - 100 - 2 * 3 * 30 = 520: three full epochs, two, and 20 examples.
    assert [phase.passes for phase in plan.phases] == [1, 3, 3, 3, 2, 0]
    log = drive(plan)
    made = [(phase, passes) for phase, passes, _ in log.selected]
    expected, passes = [], 0
    for i, phase in enumerate(plan.phases):
        if phase.redraw:
            expected += [(i, passes + n) for n in range(phase.passes)]
        elif i:
            expected.append((i, passes))
        passes += phase.passes
    assert made == expected
    # Scores are taken once a cycle all the same.
    assert [phase for phase, _, _ in log.scored] == [1, 3]


def test_the_last_pass_selects_no_more():
    phase = Phase(cycle=0, ratio=0.5, size=50, passes=2, score=True, redraw=True)
    plan = Plan(name="short", num_examples=100, phases=(phase,), budget=100)
    log = drive(plan)
    assert [passes for _, passes, _ in log.selected] == [0, 1]
    due = log.state["plan"]
    assert not bool(due["select_due"] | due["score_due"])


def test_a_first_phase_on_a_subset_is_due_at_once():
    plan = complex_plan(100, 9, interval=fixed_interval(1), cycles=2, first=0)
    assert drive(plan).scored[0] == (0, 0, 0)
    unscored = complex_plan(100, 9, interval=fixed_interval(1), cycles=2, first=0, score=False)
    log = drive(unscored)
    assert log.scored == []
    assert log.selected[0] == (0, 0, 0)


def test_init_leaves_a_resumed_state_alone():
    stage = reschedule(PLAN)
    state = initialize(stage, bare_state(100))
    put(state, "clock", offset=100, seen=100)
    state = run(stage, state)
    assert bool((initialize(stage, state.clone()) == state).all())


@pytest.mark.parametrize("eval_every", [0, -1.0, float("nan")])
def test_bad_eval_every(eval_every):
    with pytest.raises(ValueError, match="eval_every must be above 0, got"):
        reschedule(PLAN, eval_every=eval_every)


def test_plan_of():
    graph = sequence("tick", when("flag", Stage(name="a", reads=(), writes=(), apply=lambda s: s)))
    with pytest.raises(ValueError, match="graph 'tick' has no reschedule stage"):
        plan_of(graph)
    assert plan_of(sequence("outer", graph, reschedule(PLAN))) is PLAN


def test_a_state_of_another_plan_is_refused():
    state = initialize(reschedule(full_plan(20, 1)), bare_state(20))
    with pytest.raises(ValueError, match="a plan of 20 examples, this one is of 60"):
        initialize(reschedule(full_plan(20, 3)), state)


def test_a_paced_phase_by_hand():
    plan = paced_plan(100, 8, ratio=incremental(0.2, 0.8))
    log = drive(plan)
    # Of 800 examples 100 are first and 100 last; over the 600 between them the ratio rises by 0.1
    # for each 100. The passes begin after 100, 120, 142, 166, 192, ... examples: 0.2, 0.22, 0.242,
    # 0.266, 0.292, ...
    sizes = [size for _, size in log.passes]
    assert sizes[:6] == [100, 20, 22, 24, 26, 29]
    # Each begins where those before it end; the last part begins with the end nearest to 700.
    selected = sizes[1:]
    spent = list(itertools.accumulate(selected, initial=100))
    expected = [math.floor(100 * (0.2 + 0.6 * (s - 100) / 600) + 1e-6) for s in spent]
    paced = [size for phase, size in log.passes if phase == 1]
    assert paced == expected[: len(paced)]
    ended = 100 + sum(paced)
    assert abs(ended - 700) <= paced[-1] / 2
    assert log.seen[-1] == 800
    assert clock(log.state)[0] == 2


def test_the_end_of_a_paced_phase_is_the_nearest_pass():
    # 100 + 50 k: 350 of 400 is the end of the fifth pass; at an end of 340 and of 330 too, at 320
    # that of the fourth: 300.
    for last, passes in ((50, 5), (60, 5), (70, 5), (80, 4)):
        plan = paced_plan(100, 4, ratio=constant(0.5), last=last / 400)
        log = drive(plan)
        assert [size for phase, size in log.passes if phase == 1] == [50] * passes
