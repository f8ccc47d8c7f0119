"""The reschedule stage: what is due next, from the clock and the plan."""

from __future__ import annotations

import torch
from tensordict import TensorDict

from attent.pipeline.keys import branch, number, place
from attent.pipeline.plan import Phase, Plan, spent
from attent.pipeline.stage import Stage
from attent.pipeline.validate import walk


def reschedule(plan: Plan, *, eval_every: float | None = 1.0, name: str = "reschedule") -> Stage:
    """Move the clock on at the end of a pass and say what is due.

    Args:
        plan: phases and budget; see `complex_plan`, `simple_plan`, `paced_plan`, `full_plan`,
            `online_plan`. If it is one of windows, the end of the last phase makes the next window
            due, which counts as the next cycle.
        eval_every: what is trained on between evaluations, in multiples of all examples (or of
            all their tokens); one is always due at the end. None: no evaluation is ever due.
        name: of the stage.

    Its ``init`` puts the plan's budget and first phase into the state.

    Raises:
        ValueError: ``eval_every`` that is not above 0; a plan of windows in which a phase is open;
            in ``init``, a state of another plan.
    """
    if eval_every is not None and not eval_every > 0:
        raise ValueError(f"eval_every must be above 0, got {eval_every}")
    if plan.per_window and not all(phase.passes for phase in plan.phases):
        raise ValueError(f"plan {plan.name!r} is of windows, but a phase of it has no end")
    gap = 0 if eval_every is None else max(1, round(eval_every * plan.pass_units))

    def apply(state: TensorDict) -> TensorDict:
        clock, due = branch(state, "clock"), branch(state, "plan")
        used, offset = spent(state), number(clock, "offset")
        over = used >= number(due, "budget")
        if offset and offset >= number(due, "size"):
            # A pass that the budget cuts short keeps its offset: it was not made whole.
            _end_pass(clock, due, plan, used)
        pause = number(due, "pause")
        if gap and offset and (over or used >= pause):
            _set(due, "eval_due", True)
            _set(due, "pause", (used // gap + 1) * gap)
        return state

    def init(state: TensorDict) -> TensorDict:
        due = branch(state, "plan")
        if number(due, "budget") == 0:
            _set(due, "budget", plan.budget)
            _set(due, "pass_tokens", plan.pass_tokens)
            _set(due, "pause", gap)
            _enter(branch(state, "clock"), due, plan.phases[0], 0)
        elif (number(due, "budget"), number(due, "pass_tokens")) != (plan.budget, plan.pass_tokens):
            unit = "tokens" if number(due, "pass_tokens") else "examples"
            raise ValueError(
                f"the state is of a plan of {number(due, 'budget'):,} {unit}, this one is of "
                f"{plan.budget:,} {plan.unit}: go on under the former, or put its params into a "
                "state of initial_state(...) to train them further under a new plan"
            )
        return state

    own = {("clock", entry) for entry in ("cycle", "phase", "epoch", "passes", "offset")} | {
        ("plan", entry)
        for entry in ("ratio", "interval", "pause", "score_due", "select_due", "eval_due")
    }
    others = {("plan", "window_due")} if plan.per_window else set()  # which `refill` allocates
    return Stage(
        name=name,
        reads=own
        | others
        | {("clock", "seen"), ("clock", "tokens")}
        | {("plan", "size"), ("plan", "budget"), ("plan", "pass_tokens")},
        writes=own | others,
        apply=apply,
        init=init,
        provides=own | {("plan", "budget"), ("plan", "pass_tokens")},
        made_from=plan,
        note=f"{plan.name}: {len(plan.phases)} phases, {plan.budget:,} {plan.unit}",
    )


def plan_of(graph: Stage) -> Plan:
    """The plan by which a graph is rescheduled.

    Raises:
        ValueError: it has no reschedule stage.
    """
    for _, stage in walk(graph):
        if isinstance(stage.made_from, Plan):
            return stage.made_from
    raise ValueError(f"graph {graph.name!r} has no reschedule stage")


def _end_pass(clock: TensorDict, due: TensorDict, plan: Plan, used: int) -> None:
    """Count the pass; go on to the next phase if this one has made all of its own."""
    index, epoch = number(clock, "phase"), number(clock, "epoch") + 1
    _set(clock, "epoch", epoch)
    _set(clock, "passes", number(clock, "passes") + 1)
    _set(clock, "offset", 0)
    if used >= plan.budget:
        return
    phase = plan.phases[index]
    last = index + 1 == len(plan.phases)
    ratio: float | None = phase.ratio
    if phase.passes == 0:
        ratio = plan.next_ratio(phase, used)
    elif epoch >= phase.passes:
        ratio = None
    if ratio is None and (plan.per_window or not last):
        following, window = 0 if last else index + 1, number(clock, "cycle") + last
        _enter(clock, due, plan.phases[following], following)
        if plan.per_window:  # the cycle is the window, and a phase after the last needs another
            _set(clock, "cycle", window)
            _set(due, "window_due", last)
    elif phase.redraw:
        if ratio is not None:
            place(due, "ratio", torch.tensor(ratio, dtype=torch.float64))
        _set(due, "select_due", True)


def _enter(clock: TensorDict, due: TensorDict, phase: Phase, index: int) -> None:
    """Begin a phase: its ratio is in force from the next selection on, which is now due."""
    _set(clock, "phase", index)
    _set(clock, "cycle", phase.cycle)
    _set(clock, "epoch", 0)
    place(due, "ratio", torch.tensor(phase.ratio, dtype=torch.float64))
    _set(due, "interval", phase.passes)
    # Scoring, when it is done, makes a selection due.
    everything_first = index == 0 and phase.ratio == 1
    _set(due, "score_due", phase.score)
    _set(due, "select_due", not phase.score and not everything_first)


def _set(entries: TensorDict, name: str, value: int | bool) -> None:
    dtype = torch.bool if isinstance(value, bool) else torch.int64
    place(entries, name, torch.tensor(value, dtype=dtype))
