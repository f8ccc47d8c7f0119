"""A pass that a `Teacher` gives out: what of it was observed, and what that says of its examples.

Shapes: N examples in the data set, n in a pass, b in a call of ``observe``.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from tensordict import TensorDict
from torch import Tensor

from attent.pipeline.keys import tensor
from attent.pipeline.observed import Observed, running_loss
from attent.pipeline.order import CHUNK, Order
from attent.pipeline.processes import processes
from attent.pipeline.stream import num_batches
from attent.pipeline.teacher_input import check_range, refuse, total_of

EVERY = slice(None)
BLOCK = 64
"""Batches that are taken from the order at once, to be given out one by one."""


class Part(NamedTuple):
    """Of what is observed at once, that of one batch.

    Attributes:
        batch: number of the batch in its pass.
        size: how many examples.
        rows: which of what is observed.
        places: where in the pass they are.
        share: of what this process has of the batch, in (0, 1].
        counts: False for an example that stands in where this process has none.
    """

    batch: int
    size: int
    rows: Tensor | slice
    places: Tensor | slice
    share: float
    counts: bool


class PresentPass:
    """The pass that is being made, from where observation stopped: what was observed of it.

    It takes a number for each of n examples; 1 byte more for each of them and 4 for each of N where
    batches are told in another way than they were given out.

    Args:
        order: ``[n]``, all of the pass, to where the budget ends.
        num_examples: N.
        batch_size: of all batches but the last.
        offset: examples of it that were trained on before.
        step: optimiser steps before the first of its batches that is left.

    Attributes:
        world: the processes that it is shared out to.
        whole: batches from the first on that were observed.
        fresh: nothing was observed of it.
    """

    def __init__(
        self, order: Order, num_examples: int, batch_size: int, offset: int, step: int
    ) -> None:
        self.order, self.batch_size, self.offset = order, batch_size, offset
        self.num_batches = num_batches(len(order) - offset, batch_size)
        self.whole, self.fresh = 0, True
        self._num_examples, self._step, self.world = num_examples, step, processes()
        sizes = [self._own(batch)[1] for batch in (0, self.num_batches - 1)]
        self._left = [sizes[0]] * (self.num_batches - 1) + [sizes[1]]
        self._means = [0.0] * self.num_batches  # this process's part of each batch's
        self._losses: Tensor | None = None  # by place; of the dtype in which they come
        self._by_place: tuple[Tensor, Tensor] | None = None
        self._agreed = 0  # batches from the first on of which all processes have told something
        self._told = 0  # and of whose losses all know

    def span(self, batch: int) -> tuple[int, int]:
        """Where in the order a batch begins and ends."""
        start = self.offset + batch * self.batch_size
        last = batch == self.num_batches - 1
        return start, len(self.order) if last else start + self.batch_size

    def batch(self, batch: int) -> Tensor:
        """The examples of a batch, those of other processes too."""
        start, end = self.span(batch)
        return self.order[start:end]

    def _own(self, batch: int) -> tuple[int, int, bool]:
        """The first place of this process in a batch, how many it is given, whether they count.

        As `Processes.part` cuts it: where there is none for this process, the first stands in.
        """
        (start, end), world = self.span(batch), self.world
        each, more = divmod(end - start, world.count)
        own = each + (world.rank < more)
        if not own:
            return start, 1, False
        return start + world.rank * each + min(world.rank, more), own, True

    def batches(self) -> Iterator[list[int]]:
        """What is left of the pass, the part of this process of each batch."""
        for block in range(self.whole, self.num_batches, BLOCK):
            until = min(block + BLOCK, self.num_batches)
            start, end = self.span(block)[0], self.span(until - 1)[1]
            examples = self.order[start:end].tolist()
            for batch in range(block, until):
                first, own, _ = self._own(batch)
                yield examples[first - start : first - start + own]

    def look(self, index: Tensor) -> list[Part]:
        """By batches, examples that are to be noted as observed, ``[b]`` int64 on the CPU.

        Raises:
            ValueError: names an example that is not to be observed now.
        """
        given = self._as_given(index)
        return self._by_batch(index) if given is None else [given]

    def _as_given(self, index: Tensor) -> Part | None:
        """The next batch, where it is told as it was given out: nothing else is to be checked."""
        if self.whole == self.num_batches:
            return None
        first, own, counts = self._own(self.whole)
        if len(index) != own or self._left[self.whole] != own:
            return None
        places = slice(first, first + own)
        if not torch.equal(self.order[places], index):
            return None
        return Part(batch=self.whole, size=own, rows=EVERY, places=places, share=1.0, counts=counts)

    def _by_batch(self, index: Tensor) -> list[Part]:
        """The same of any examples, in any order."""
        places = self._checked(index)
        numbers = self._batch_of(places)
        parts = []
        for batch in numbers.unique().tolist():
            rows = numbers == batch
            first, own, counts = self._own(batch)
            at = places[rows]
            if bool(((at < first) | (at >= first + own)).any()):
                raise ValueError(
                    f"the batch of example {int(index[rows][0])} is shared out, and another "
                    "process has that part: observe what this one was given"
                )
            part = Part(
                batch=batch, size=len(at), rows=rows, places=at, share=len(at) / own, counts=counts
            )
            parts.append(part)
        return parts

    def agree(self, parts: list[Part] | None, error: Exception | None) -> None:
        """See that all processes go on with the batches that are now told for the first time.

        Each tells something of every batch, and the first of it where all others do too: before
        a backward that waits for theirs. Of a later part of a batch the others may have none.

        Args:
            parts: what is told; None where it is not known.
            error: what is wrong with it.

        Raises:
            AgreedError: something is, in another process or in this one.
            Exception: what is wrong in this one, where there is no other to tell.
        """
        if parts is None:  # the next batch, unless something is left of the one before it
            begun = self._agreed and self._left[self._agreed - 1] > 0
            end = min(self._agreed + (not begun), self.num_batches)
        else:
            end = parts[-1].batch + 1
        while not self.world.alone and self._agreed < end:
            self.world.agree(error)
            self._agreed += 1
        if error is not None:
            raise error

    def note(self, parts: list[Part], losses: Tensor, total: float) -> list[int]:
        """Note what was observed; the sizes of the batches that are now whole, once each.

        Args:
            parts: from `look`.
            losses: ``[b]``, of what was looked at, on the CPU.
            total: of these losses.
        """
        self.fresh = False
        kept = self._kept(losses.dtype)
        for part in parts:
            self._left[part.batch] -= part.size
            if self._by_place is not None:
                self._by_place[1][part.places] = True
            if part.counts:
                start, end = self.span(part.batch)
                if part.rows is not EVERY:
                    own = losses[part.rows]
                    kept[part.places] = own
                    self._means[part.batch] += total_of(own) / (end - start)
                else:
                    kept[part.places] = losses
                    self._means[part.batch] += total / (end - start)
        sizes = []
        while self.whole < self.num_batches and not self._left[self.whole]:
            start, end = self.span(self.whole)
            self.whole += 1
            sizes.append(end - start)
        return sizes

    def mean(
        self, parts: list[Part], index: Tensor, losses: Tensor, weight: Tensor | None
    ) -> Tensor:
        """The weighted mean of what is observed, a scalar of at least 32 bits.

        Whoever trains in several processes averages what is to be added up.

        Args:
            parts: from `look`.
            index: ``[b]``, the examples.
            losses: ``[b]``, with their gradient, on their device.
            weight: ``[N]`` float32, of each example; None where all weigh 1.
        """
        total, counts = 0.0, True
        for part in parts:
            start, end = self.span(part.batch)
            size = end - start if weight is None else float(weight[self.batch(part.batch)].sum())
            total += size * part.share / self.world.count
            counts &= part.counts
        if counts and weight is None:
            kind = torch.promote_types(losses.dtype, torch.float32)
            whole = total == len(losses)
            return losses.mean(dtype=kind) if whole else losses.sum(dtype=kind) / total
        weights = (
            torch.ones(len(index), dtype=torch.float32, device="cpu")
            if weight is None
            else weight[index]
        )
        for part in parts:
            if not part.counts:
                weights[part.rows] = 0
        return (weights.to(losses.device) * losses).sum() / total

    def _kept(self, dtype: torch.dtype) -> Tensor:
        """The losses of the pass, by place; what was not observed has some number."""
        if self._losses is None:
            self._losses = torch.zeros(len(self.order), dtype=dtype, device="cpu")
        elif self._losses.dtype != dtype:
            self._losses = self._losses.to(torch.promote_types(self._losses.dtype, dtype))
        return self._losses

    def _batch_of(self, places: Tensor) -> Tensor:
        return ((places - self.offset) // self.batch_size).clamp(max=self.num_batches - 1)

    def _places(self) -> tuple[Tensor, Tensor]:
        """Of each of N examples its place, or -1; of each place whether it was observed."""
        if self._by_place is None:
            places = torch.full((self._num_examples,), -1, dtype=torch.int32, device="cpu")
            for start in range(0, len(self.order), CHUNK):
                index = self.order[start : start + CHUNK]
                ends = start, start + len(index)
                places[index] = torch.arange(*ends, dtype=torch.int32, device="cpu")
            observed = torch.zeros(len(self.order), dtype=torch.bool, device="cpu")
            observed[: self.offset] = True
            for batch in range(self.whole):  # up to here, told as they were given out
                first, own, _ = self._own(batch)
                observed[first : first + own] = True
            self._by_place = places, observed
        return self._by_place

    def _checked(self, index: Tensor) -> Tensor:
        """The places of examples in the order, int64."""
        check_range(index, self._num_examples)
        if len(index.unique()) < len(index):
            refuse(index, (index[:, None] == index).sum(1) > 1, "is there twice")
        by_example, observed = self._places()
        places = by_example[index].long()
        missing = "is not in this pass: it is not selected, or the budget ends before it"
        refuse(index, places < 0, missing)
        refuse(index, observed[places], "was observed in this pass already")
        return places

    def check_whole(self) -> None:
        """Refuse to go on from a pass that was given out and not observed.

        Raises:
            ValueError: says how many batches, and names the first such example.
        """
        missing = sum(left > 0 for left in self._left)
        if missing == self.num_batches and self.fresh:
            raise ValueError(
                f"a pass of {missing:,} batches has ended and none was observed: call "
                "teacher.observe(index, losses) for each of them"
            )
        if missing:
            first, own, _ = self._own(self.whole)
            unseen = ~self._places()[1][first : first + own]
            example = int(self.order[first : first + own][unseen][0])
            raise ValueError(
                f"a pass of {self.num_batches:,} batches has ended and {missing:,} were not "
                f"observed, or not all of them; the first such example is {example}: call "
                "teacher.observe(index, losses) for all that the loader gives, before the loop is "
                "asked for more (what reads ahead belongs around the loader, not around the loop)"
            )

    def tell(self, state: TensorDict, signals: tuple[str, ...]) -> None:
        """Record what all processes have observed of whole batches since the last time.

        Called by all of them. The running loss goes from step to step, as it does where each step
        is told at once.

        Args:
            state: its scores and its running loss are written.
            signals: from `attent.pipeline.observed.observed_signals`.
        """
        first, last, self._told = self._told, self.whole, self.whole
        if first == last:
            return
        start, end = self.span(first)[0], self.span(last - 1)[1]
        losses, means = self._of_all(first, last)
        levels, level = [], float(tensor(state, "metrics", "train_loss"))
        for mean in means:
            level = running_loss(level, mean)
            levels.append(level)
        tensor(state, "metrics", "train_loss").fill_(level)
        at = torch.tensor(levels, dtype=torch.float64)
        observed = Observed(state, signals)
        for begin in range(start, end, CHUNK):
            ends = begin, min(begin + CHUNK, end)
            batch = self._batch_of(torch.arange(*ends))
            seen = losses[begin - start : ends[1] - start]
            step = self._step + batch + 1
            observed.record(self.order[begin : ends[1]], step, seen, None, at[batch - first])

    def _of_all(self, first: int, last: int) -> tuple[Tensor, list[float]]:
        """Of some whole batches the losses in all processes, by place; each batch's mean."""
        start, end = self.span(first)[0], self.span(last - 1)[1]
        assert self._losses is not None
        losses, means = self._losses[start:end], self._means[first:last]
        if self.world.alone:
            return losses, means
        own = [torch.empty(0, dtype=torch.int64)]
        for at, size, counts in map(self._own, range(first, last)):
            own.append(torch.arange(at, at + size * counts))
        places, found = self.world.gather(torch.cat(own), self._losses[torch.cat(own)])
        losses = torch.empty(end - start, dtype=found.dtype)
        losses[places - start] = found
        (parts,) = self.world.gather(torch.tensor(means, dtype=torch.float64))
        return losses, parts.view(self.world.count, -1).sum(0).tolist()
