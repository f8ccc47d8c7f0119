"""A pass of training: how far it may go, and the stream of its examples."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from tensordict import TensorDict
from torch import Tensor

from attent.pipeline.keyed import fold
from attent.pipeline.keys import number, tensor
from attent.pipeline.order import CHUNK, Order, first, order_of_pass, window_of
from attent.pipeline.plan import spent
from attent.pipeline.processes import processes
from attent.pipeline.source import Source, augments, blocks_of, buckets_of, lengths_of
from attent.pipeline.stream import Loading, Stream, length_of_batch
from attent.pipeline.task import view_keys


@dataclass(frozen=True)
class Room:
    """How far training may go before it must stop: the clock against the plan.

    Attributes:
        offset: examples of this pass already trained on.
        end: of this pass, in examples.
        spent: of the budget, in its unit, as ``budget`` and ``pause`` are.
        budget: where the run ends.
        pause: where an evaluation is due; 0 for nowhere. A step may overshoot it, never a pass.
        lengths: ``[N]``, what an example takes of the budget; None for one each.
    """

    offset: int
    end: int
    spent: int
    budget: int
    pause: int
    lengths: Tensor | None

    @staticmethod
    def of(state: TensorDict, lengths: Tensor | None) -> Room:
        """What a state leaves.

        Args:
            state: its clock and its plan.
            lengths: ``[N]``, tokens of each example; None where they have none.

        Raises:
            ValueError: no budget in the plan, or one in tokens that nobody can count.
        """
        in_tokens = number(state, "plan", "pass_tokens") > 0
        if in_tokens and lengths is None:
            raise ValueError(
                "the plan's budget is in tokens, but the source that is trained on has no lengths"
            )
        offset, size = number(state, "clock", "offset"), number(state, "plan", "size")
        budget, pause = number(state, "plan", "budget"), number(state, "plan", "pause")
        if budget < 1:
            raise ValueError(
                "the plan has no budget: put a reschedule stage into the graph (its init sets it), "
                "or set plan/budget in the state"
            )
        return Room(offset, size, spent(state), budget, pause, lengths if in_tokens else None)

    @property
    def ended(self) -> bool:
        """Whether training must stop here."""
        stops = (self.budget, self.pause) if self.pause > 0 else (self.budget,)
        return self.offset >= self.end or self.spent >= min(stops)

    @property
    def progress(self) -> float:
        """The share of the budget spent, in [0, 1]."""
        return min(1.0, self.spent / self.budget)  # tokens: the last example may overshoot it

    def cut(self, order: Order) -> Room:
        """Room in a pass that ends with the example that reaches the budget.

        Args:
            order: of the examples of the whole pass.
        """
        left = self.budget - self.spent
        if self.lengths is None:
            return replace(self, end=min(self.end, self.offset + left))
        if left > int(self.lengths.sum()):
            return self  # whatever the order
        for start in range(self.offset, self.end, CHUNK):
            ends = self.lengths[order[start : min(self.end, start + CHUNK)]].cumsum(0)
            if int(ends[-1]) >= left:
                return replace(self, end=start + int(torch.searchsorted(ends, left)) + 1)
            left -= int(ends[-1])
        return self

    def after(self, examples: int, tokens: int) -> Room:
        """Room that is left by a batch."""
        used = examples if self.lengths is None else tokens
        return replace(self, offset=self.offset + examples, spent=self.spent + used)


@dataclass(frozen=True)
class _SourceKeys:
    """The keys under which a source augments the examples of one pass."""

    seed: int
    passes: int

    def __call__(self, index: Tensor) -> Tensor:
        return view_keys(self.seed, index, purpose="source", passes=self.passes)


class OpenStream:
    """The stream of the present pass, kept open between ticks.

    A cache, never meaning: it is used only if it stands exactly where the state says the next
    batch is, of exactly the same selection.
    """

    def __init__(self, source: Source, batch_size: int, loading: Loading | None) -> None:
        self.source = source
        self.batch_size = batch_size
        self.loading = loading
        self.lengths, self.buckets = lengths_of(source), buckets_of(source)
        self.blocks, self.window = blocks_of(source), window_of(source)
        self._stream: Stream | None = None
        self._mask: Tensor | None = None
        self._order: Order = torch.empty(0, dtype=torch.int64)
        self._at: tuple = ()

    def at(self, state: TensorDict, room: Room) -> tuple[Stream, Room]:
        """The stream that goes on at the room's offset, and the room until its end."""
        mask = tensor(state, "mask")
        seed, passes = number(state, "seed"), number(state, "clock", "passes")
        # Holding the mask keeps its address from being used again; its version counts its writes.
        self._pass = (seed, passes, room.end, room.budget, mask.data_ptr(), mask._version)
        if self._stream is None or self._at != (*self._pass, room.offset):
            order = order_of_pass(
                mask.cpu(),
                fold(seed, "order", passes),
                self.batch_size,
                lengths=self.buckets,
                blocks=self.blocks,
                window=self.window,
            )
            if len(order) < room.end:
                raise ValueError(
                    f"the mask selects {len(order)} examples, but plan/size asks for {room.end}"
                )
            self._order = first(order, room.cut(order).end)
            self._stream = Stream(
                self.source,
                self._order,
                self.batch_size,
                offset=room.offset,
                loading=self.loading,
                keys=_SourceKeys(seed, passes) if augments(self.source) else None,
                share=processes().parts,
            )
        self._mask = mask
        self._at = ()  # not reusable until the tick ends well
        return self._stream, replace(room, end=len(self._order))

    def batch_at(self, room: Room) -> Tensor:
        """The examples of the next batch, those of the other processes too, ``[B]``."""
        size = length_of_batch(room.end - room.offset, self.batch_size)
        return self._order[room.offset : room.offset + size]

    def tokens_of(self, index: Tensor) -> int:
        """Of some examples together; 0 where they have no lengths."""
        return 0 if self.lengths is None else int(self.lengths[index].sum())

    def ahead(self, room: Room, steps: int) -> Tensor:
        """The examples that up to ``steps`` batches from here on may hold."""
        # The last batch of a pass may hold one more.
        return self._order[room.offset : room.offset + steps * self.batch_size + 1]

    def left_at(self, room: Room) -> None:
        """Keep the stream open for a tick that goes on here."""
        if room.offset >= room.end:
            self._stream = None
            self._order = self._order[:0].clone()
        else:
            self._at = (*self._pass, room.offset)
