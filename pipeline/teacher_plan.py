"""What a `Teacher` asks of its options and its plan: that they serve, and how long the run is."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, cast

from tensordict import TensorDict

from attent.pipeline.keys import clone, covered, number, tensor, view
from attent.pipeline.observed import NEEDS, Observe, observed_signals
from attent.pipeline.plan import Plan
from attent.pipeline.processes import processes
from attent.pipeline.stage import Stage, run
from attent.pipeline.stream import num_batches
from attent.pipeline.teacher_defaults import plain_defaults
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


FREE = tuple(name for name in NEEDS if name != "grad_norm")
"""Signals that losses alone show."""


def observed_for(signal: str, rank: Stage | None) -> tuple[str, ...]:
    """What is recorded so that there is this signal.

    Raises:
        ValueError: losses do not show it, or the rank stage does not write it.
    """
    if rank is None:
        if signal not in FREE:
            raise ValueError(
                f"signal is one that losses show, of {', '.join(FREE)}, or what rank= writes; "
                f"not {signal!r}"
            )
        return observed_signals(cast(Observe, signal))
    if ("scores", signal) not in rank.write_keys:
        raise ValueError(f"stage {rank.name!r} does not write scores/{signal}")
    read = [name for name in FREE if covered(("scores", name), rank.read_keys)]
    return observed_signals(cast(Observe, read or ["loss"]))  # with which comes when it was seen


def whole_budget(budget: float | None) -> int:
    """A budget as a number of examples.

    Raises:
        ValueError: it is none.
    """
    if budget is None or not math.isfinite(budget) or budget != int(budget) or budget < 1:
        raise ValueError(
            "budget is the number of examples to train on, such as epochs * len(dataset): a whole "
            f"number of at least 1 (or give a plan), got {budget}"
        )
    return int(budget)


PHASE = ("cycle", "ratio", "size", "passes", "redraw", "since", "until", "ratio")
"""What `described` says of a phase; the second ratio is a schedule's values."""


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


def differing(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """In what two teachers differ: the name of it, what it is for one and for the other.

    Args:
        one: names and values, ``plan`` from `described`.
        other: the same of another; a value that it lacks is None.
    """
    found = []
    for name, value in one.items():
        theirs = other.get(name)
        if value != theirs:
            if name == "plan" and isinstance(theirs, list):
                value, theirs = _first_difference(value, theirs)
            found.append((name, value, theirs))
    return found


def _first_difference(one: list[Any], other: list[Any]) -> tuple[str, str]:
    """Where two plans part, in words for each."""
    (name, one), (other_name, other) = one, other
    if name != other_name:
        return name, other_name
    for at, phases in enumerate(zip(one, other, strict=False), 1):
        for what, *values in zip(PHASE, *phases, strict=False):
            if values[0] != values[1]:
                mine, theirs = (_shown(value) for value in values)
                return f"{what} {mine} in phase {at}", f"{what} {theirs}"
    return f"of {len(one)} phases", f"of {len(other)}"


def _shown(value: Any) -> str:
    """A value of a phase; a schedule's by its ends."""
    if not isinstance(value, list):
        return str(value)
    return f"{value[0]:g} to {value[-1]:g}" if value else "fixed"


def check_alike(about: Mapping[str, Any]) -> None:
    """Refuse several processes whose teachers would choose differently; called by all of them.

    Args:
        about: names and values that they must agree in, ``plan`` from `described`.

    Raises:
        ValueError: in all of them; says in what two of them differ.
    """
    world = processes()
    if world.alone:
        return
    first, *others = world.gather_objects(dict(about))
    for rank, other in enumerate(others, 1):
        for name, value, theirs in differing(first, other):
            raise ValueError(
                f"{name} is {value} in process 0 and {theirs} in process {rank}: all of them make "
                "the same teacher, with batches of the same size, and load the same state"
            )


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
        left = min(_rest_of_pass(state, plan, reschedule), plan.budget - seen)
        yield num_batches(left, batch_size)
        for entry in ("offset", "seen"):
            tensor(state, "clock", entry).add_(left)


@plain_defaults()
def _rest_of_pass(state: TensorDict, plan: Plan, reschedule: Stage) -> int:
    """Do what is due without selecting; the examples left of the pass."""
    run(reschedule, state, donate=True)
    if bool(tensor(state, "plan", "select_due")):
        size = count(float(tensor(state, "plan", "ratio")), plan.num_examples)
        tensor(state, "plan", "size").fill_(size)
        tensor(state, "plan", "select_due").fill_(False)
    return number(state, "plan", "size") - number(state, "clock", "offset")
