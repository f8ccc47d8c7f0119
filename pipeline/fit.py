"""The training loop: tick until the budget is spent, and let observers look on."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator, Sequence
from types import FrameType
from typing import cast

from tensordict import TensorDict

from attent.pipeline.keys import branch, clone, leaves, number, tensor
from attent.pipeline.observers import Observer, Reason
from attent.pipeline.plan import spent
from attent.pipeline.processes import processes
from attent.pipeline.stage import Stage, initialize, run
from attent.pipeline.validate import validate


def fit(
    tick: Stage,
    state: TensorDict,
    *,
    observers: Sequence[Observer] = (),
    donate: bool = False,
) -> TensorDict:
    """Run a tick again and again until ``clock/seen`` has reached ``plan/budget``.

    The graph is validated and initialised first; a state that was initialised before (a resumed
    one) goes on where it is. The first interrupt (Ctrl-C, or SIGTERM) stops the run after the tick
    in progress; a second one at once.

    Of several processes (see `attent.pipeline.processes`) each calls it with the same graph and a
    state of the same entries; they begin with what the main one's holds, such as weights that each
    has drawn for itself. An interrupt of one stops all after the same tick.

    Args:
        tick: one round of the training program.
        state: from `initial_state`, or a checkpoint's.
        observers: called with the state, in this order, between ticks; of several processes in the
            main one alone, for which the others wait.
        donate: give ``state`` up instead of copying it first.

    Returns:
        The state after the last tick.

    Raises:
        GraphError: the graph cannot run on this state.
        RuntimeError: a tick changed nothing, though the budget is not spent.
        ValueError: bad input met on the way; observers have been told, and the state they were
            given is as after the last good step.
    """
    validate(tick, state)
    state = initialize(tick, state if donate else clone(state))
    world, stop = processes(), cast(Reason, "crashed")
    world.broadcast_state(state)
    watching = observers if world.main else ()
    with _interrupts() as interrupted:
        for observer in watching:
            observer.start(state)
        try:
            stopping = 0.0
            while not finished(state) and not stopping:
                before = _position(state)
                state = run(tick, state, donate=True)
                if _position(state) == before:
                    raise RuntimeError(_stalled(tick, state))
                for observer in watching:
                    observer.tick(state)
                (stopping,) = world.agree(None, len(interrupted))
            stop = "finished" if finished(state) else "interrupted"
        except ValueError:
            stop = "failed"
            raise
        finally:
            for observer in watching:
                observer.stop(state, stop)
    return state


def finished(state: TensorDict) -> bool:
    """Whether the budget is spent and nothing is due any more."""
    over = spent(state) >= number(state, "plan", "budget")
    return over and not bool(tensor(state, "plan", "eval_due"))


def _position(state: TensorDict) -> list[float]:
    """Everything that some part of a tick moves."""
    return [
        value.item() for group in ("clock", "plan") for _, value in leaves(branch(state, group))
    ]


def _stalled(tick: Stage, state: TensorDict) -> str:
    due = [f for f in ("score_due", "select_due") if bool(tensor(state, "plan", f))]
    why = (
        f"plan/{due[0]} is set and no stage of the graph clears it: put "
        f"when(('plan', '{due[0]}'), {due[0].split('_')[0]}(...)) before train"
        if due
        else "no stage of the graph trains"
    )
    return f"{tick.name!r} changed nothing and would go on for ever: {why}"


@contextlib.contextmanager
def _interrupts() -> Iterator[list[int]]:
    """A list that is empty until the first SIGINT or SIGTERM; the second SIGINT raises."""
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received
        return

    def note(number: int, frame: FrameType | None) -> None:
        received.append(number)
        signal.signal(signal.SIGINT, signal.default_int_handler)

    former = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
