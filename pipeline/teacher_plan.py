"""What a `Teacher` asks of a plan: whether it can be carried out, how long it is, what it is."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tensordict import TensorDict

from attent.pipeline.keys import clone, number, tensor, view
from attent.pipeline.plan import Plan
from attent.pipeline.stage import Stage, run
from attent.pipeline.stream import num_batches
from attent.pipeline.threshold import count


def check_plan(plan: Plan, num_examples: int) -> None:
    """Refuse what a loop that only tells its losses cannot carry out.

    Raises:
        ValueError: says why.
    """
    why = ""
    if plan.num_examples != num_examples:
        why = f"is of {plan.num_examples:,} examples, not {num_examples:,}"
    elif plan.pass_tokens:
        why = "has a budget in tokens: lengths are not known here"
    elif plan.per_window or plan.kept < 1:
        why = "is of windows of a stream: what is selected here is read by index"
    elif any(phase.score for phase in plan.phases):
        why = "has scorings, for which there is no model here: use scores observed in training"
    if why:
        raise ValueError(f"plan {plan.name!r} {why}")


def described(plan: Plan) -> list[Any]:
    """A plan in numbers and strings: schedules are functions, which are told by some values."""
    phases = [
        [
            phase.cycle, phase.ratio, phase.size, phase.passes, phase.redraw, phase.since,
            phase.until, [phase.pace(k / 16) for k in range(17)] if phase.pace else [],
        ]
        for phase in plan.phases
    ]  # fmt: skip
    return [plan.name, phases]


def batches_to_come(
    state: TensorDict, plan: Plan, reschedule: Stage, batch_size: int
) -> Iterator[int]:
    """Batches left of the present pass, then those of each to come.

    As if every rule selected as many as its ratio says; the state is left alone.

    Args:
        state: its clock and its plan say where training stands.
        plan: of the whole run.
        reschedule: the stage that follows it.
        batch_size: of all batches but a pass's last.
    """
    state = clone(view(state, [("clock",), ("plan",)]))
    while (seen := number(state, "clock", "seen")) < plan.budget:
        state = run(reschedule, state, donate=True)
        if bool(tensor(state, "plan", "select_due")):
            size = count(float(tensor(state, "plan", "ratio")), plan.num_examples)
            tensor(state, "plan", "size").fill_(size)
            tensor(state, "plan", "select_due").fill_(False)
        left = number(state, "plan", "size") - number(state, "clock", "offset")
        left = min(left, plan.budget - seen)
        yield num_batches(left, batch_size)
        for entry in ("offset", "seen"):
            tensor(state, "clock", entry).add_(left)
