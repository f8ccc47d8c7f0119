"""Windows of an endless stream: its next N examples as a source, and the stage that moves it on.

Everything that selects works on N examples. A window makes N of a stream that has no end: they are
scored, selected, trained on and rescheduled as a data set would be, then dropped for the next N.

Shapes: N slots in a window.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor

from attent.pipeline.keys import Key, ensure, number, tensor
from attent.pipeline.processes import processes
from attent.pipeline.reader import Reader, Streamed, StreamEnded
from attent.pipeline.source import DatasetSource
from attent.pipeline.stage import Apply, Stage, identity


class Window:
    """The examples of a stream that are there at present, as a source of ``size`` examples.

    Which they are is in the state (``window/position``), not here: this is a cache of them, which
    `refill` fills at the head of each tick. One window serves one run at a time.

    Slots 0 to N - 1 stand for other examples in each window. Keys of fixed views are made from
    slots, so slot 3 is seen under the same masks or crop in all windows: scores are only compared
    within one, and which example comes to a slot has nothing to do with it. Training's keys hold
    the pass, so its views differ.

    What cannot be read is an error of `refill`, not of `fetch`: a list of skipped examples
    (`Loading`) goes by slots, and would pass over a slot in every window.

    Batches are not made by length, and budgets are in examples: how long the examples of the next
    window will be, nobody knows.

    Args:
        stream: what is read, an example at a time: dictionaries, TensorDicts or tuples of tensors
            and numbers, each with tensors of its own. `Reader` says what may be a stream, and what
            resuming costs for each: a callable ``start -> iterable`` begins anywhere, anything else
            is read again from its beginning. Its ``locate(position) -> str``, if it has one, says
            where an example is kept.
        size: N. Memory holds so many examples, as they come from the stream.
        names: what to call the parts of an example that is a tuple, in order.
        restart: begin the stream anew at its end.

    Raises:
        ValueError: no stream, or a size below 1.
    """

    def __init__(
        self,
        stream: Streamed,
        size: int,
        *,
        names: Sequence[str] = ("image", "label"),
        restart: bool = False,
    ) -> None:
        if size < 1:
            raise ValueError(f"a window holds at least 1 example, got size {size}")
        self.size = size
        self.reader = Reader(stream, names=names, restart=restart)
        self._positions = torch.empty(0, dtype=torch.int64)
        # Replaced, never changed: threads of a stream that was given up may still read it.
        self._examples = DatasetSource([])

    def __len__(self) -> int:
        return self.size

    def fetch(self, index: Tensor) -> TensorDict:
        """The examples in these slots.

        Raises:
            ValueError: no `refill` has filled the window.
        """
        examples = self._examples
        if len(examples) == 0:
            raise ValueError("the window is empty: put refill(window) at the head of the tick")
        return examples.fetch(index)

    def locate(self, index: int) -> str:
        """Where the example in a slot is from."""
        if len(self._positions) == 0:
            return "of an empty window"
        return self.reader.locate(int(self._positions[index]))

    def hold(self, positions: Tensor, examples: list[dict[str, Any]] | None = None) -> None:
        """Hold the examples at these positions of the stream; nothing to do where it does.

        Args:
            positions: ``[N]`` int64, rising.
            examples: they, if they were read already.
        """
        if torch.equal(positions, self._positions):
            return
        # Given up before others are read, so that memory never holds two windows.
        self._positions, self._examples = positions[:0].clone(), DatasetSource([])
        if examples is None:
            examples = self.reader.read(positions.tolist())
        self._positions, self._examples = positions.clone(), DatasetSource(examples)


window = Window
"""``window(stream, size)``: the same, as a word among `score`, `select` and `train`."""


@dataclass(frozen=True, kw_only=True)
class Keep:
    """Which examples of a stream come into a window.

    Attributes:
        name: shown to people.
        fill: (state, window) -> (positions ``[N]`` int64 rising, position of the next example that
            was not looked at). It reads ``window/next``, leaves the window holding what it chose,
            and may write what it declares, once nothing can fail any more.
        reads: entries that influence it, beside those of the window.
        writes: entries it changes.
        init: allocates its own.
        provides: what exists after its init.
        note: a word on what it does.
    """

    name: str
    fill: Callable[[TensorDict, Window], tuple[Tensor, int]]
    reads: Iterable[Key] = ()
    writes: Iterable[Key] = ()
    init: Apply = identity
    provides: Iterable[Key] = ()
    note: str = ""


def everything() -> Keep:
    """Each example of the stream, once: the next N."""

    def fill(state: TensorDict, window: Window) -> tuple[Tensor, int]:
        start = number(state, "window", "next")
        positions = torch.arange(start, start + window.size)
        window.hold(positions)
        return positions, start + window.size

    return Keep(name="everything", fill=fill, note="the next examples")


def refill(window: Window, *, keep: Keep | None = None, name: str = "refill") -> Stage:
    """Fill a window with the next examples of its stream when that is due; then hold them.

    It stands at the head of a tick, not below a `when`: in every tick it makes sure that the window
    holds what the state says (after a checkpoint it reads that again), which costs nothing where it
    does. When ``plan/window_due`` is set, the slots are given to the next examples: scores count as
    never measured, all are selected with weight 1, and the flag is cleared.

    Args:
        window: is filled.
        keep: which examples come in; by default each.
        name: of the stage.

    Its ``init`` allocates ``window/number`` (-1 before the first), ``window/position`` (``[N]``
    int64: where in the stream the example of each slot is, -1 before), ``window/next`` (the first
    that was never looked at) and ``window/length`` (of a stream that has begun anew; 0 before), and
    sets ``plan/window_due``.

    Raises:
        ExampleError: an example cannot be read, or what is kept goes by a score that is NaN or
            infinite; its position is said.
        StreamEnded: the stream ended before the window was full. What is left over is dropped; the
            state is as after the last full window, and goes on from there should there be more.
        ValueError: in ``init``, a state of another number of examples.
    """
    keep = keep or everything()

    def apply(state: TensorDict) -> TensorDict:
        reader, length = window.reader, tensor(state, "window", "length")
        reader.length = int(length) or reader.length
        due = bool(tensor(state, "plan", "window_due"))
        positions, following = tensor(state, "window", "position").cpu(), 0
        bad: ValueError | None = None
        try:
            if due:
                positions, following = keep.fill(state, window)
            else:
                window.hold(positions)
        except ValueError as error:
            bad = error
        _agree(state, bad, window)
        if not due:
            return state
        # In place, so that the state knows of them even if a later stage of this tick fails.
        if reader.restart:
            length.clamp_(min=reader.known_length(following - 1))
        tensor(state, "window", "position").copy_(positions)
        tensor(state, "window", "next").fill_(following)
        tensor(state, "window", "number").add_(1)
        tensor(state, "scores", "step").fill_(-1)
        tensor(state, "mask").fill_(True)
        tensor(state, "weight").fill_(1)
        tensor(state, "plan", "size").fill_(window.size)
        tensor(state, "plan", "window_due").fill_(False)
        return state

    def init(state: TensorDict) -> TensorDict:
        slots = len(tensor(state, "mask"))
        if slots != window.size:
            raise ValueError(
                f"the state is of {slots} examples, the window of {window.size}: make it by "
                "initial_state(task, window)"
            )
        ensure(state, ("window", "position"), torch.full((slots,), -1))
        for entry, first in (("number", -1), ("next", 0), ("length", 0)):
            ensure(state, ("window", entry), torch.tensor(first))
        ensure(state, ("plan", "window_due"), torch.tensor(True))
        return keep.init(state)

    own: set[Key] = {("window", e) for e in ("number", "position", "next", "length")}
    own.add(("plan", "window_due"))
    writes = own | {"mask", "weight", ("scores", "step"), ("plan", "size"), *keep.writes}
    return Stage(
        name=name,
        reads=writes | {("clock", "seen"), ("plan", "budget"), *keep.reads},
        writes=writes,
        apply=apply,
        init=init,
        provides=own | {*keep.provides},
        note=f"a window of {window.size:,} examples: {keep.note or keep.name}",
    )


def _agree(state: TensorDict, bad: ValueError | None, window: Window) -> None:
    """Raise what reading the stream has met; in every process, where one of several has."""
    try:
        processes().agree(bad)
    except ValueError as error:
        if isinstance(bad, StreamEnded):
            raise StreamEnded(_ended(state, bad, window), bad.length) from error
        raise


def _ended(state: TensorDict, error: StreamEnded, window: Window) -> str:
    """What a stream's end means for the run."""
    seen, budget = number(state, "clock", "seen"), number(state, "plan", "budget")
    full = number(state, "window", "number") + 1
    anew = "Window(..., restart=True) begins it anew. " if window.reader.again else ""
    return (
        f"{error}: {full:,} windows of {window.size:,} were full, and {seen:,} examples of a "
        f"budget of {budget:,} were trained on. {anew}A budget of {seen:,} ends there"
    )
