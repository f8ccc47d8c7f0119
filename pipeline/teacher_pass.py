"""A pass that a `Teacher` gives out: what of it was observed, and what that says of its examples.

Shapes: N examples in the data set, n in a pass, b in a call of ``observe``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from tensordict import TensorDict
from torch import Tensor

from attent.pipeline.keys import number, tensor
from attent.pipeline.observed import Observed, running_loss
from attent.pipeline.order import CHUNK, Order
from attent.pipeline.processes import processes
from attent.pipeline.stream import num_batches


@dataclass(frozen=True, kw_only=True)
class Part:
    """Of what is observed at once, that of one batch.

    Attributes:
        batch: number of the batch in its pass.
        rows: ``[b]`` bool, which of what is observed.
        share: of what this process has of the batch, in (0, 1].
        counts: False for an example that stands in where this process has none.
    """

    batch: int
    rows: Tensor
    share: float
    counts: bool


class PresentPass:
    """The pass that is being made, from where observation stopped: what was observed of it.

    It takes 5 bytes of memory for each of N examples.

    Args:
        order: ``[n]``, all of the pass, to where the budget ends.
        num_examples: N.
        batch_size: of all batches but the last.
        offset: examples of it that were trained on before.
    """

    def __init__(self, order: Order, num_examples: int, batch_size: int, offset: int) -> None:
        self.order, self.batch_size, self.offset = order, batch_size, offset
        self.num_batches = num_batches(len(order) - offset, batch_size)
        self.whole = 0  # batches from the first on that were observed
        self._places = torch.full((num_examples,), -1, dtype=torch.int32)
        for start in range(0, len(order), CHUNK):
            index = order[start : start + CHUNK]
            self._places[index] = torch.arange(start, start + len(index), dtype=torch.int32)
        self._observed = torch.zeros(len(order), dtype=torch.bool)
        self._left = [self._own(batch)[1] or 1 for batch in range(self.num_batches)]

    def span(self, batch: int) -> tuple[int, int]:
        """Where in the order a batch begins and ends."""
        start = self.offset + batch * self.batch_size
        last = batch == self.num_batches - 1
        return start, len(self.order) if last else start + self.batch_size

    def batch(self, batch: int) -> Tensor:
        """The examples of a batch, those of other processes too."""
        start, end = self.span(batch)
        return self.order[start:end]

    def _own(self, batch: int) -> tuple[int, int]:
        """The first place of this process in a batch, and how many it has: as `part` cuts it."""
        world, (start, end) = processes(), self.span(batch)
        each, more = divmod(end - start, world.count)
        if not each + (world.rank < more):
            return start, 0
        return start + world.rank * each + min(world.rank, more), each + (world.rank < more)

    def batches(self) -> Iterator[list[int]]:
        """What is left of the pass, the part of this process of each batch."""
        for batch in range(self.whole, self.num_batches):
            yield processes().part(self.batch(batch)).tolist()

    def take(self, index: Tensor) -> list[Part]:
        """Note that examples were observed, ``[b]`` int64, by the batches they are of.

        Raises:
            ValueError: names an example that is not to be observed now.
        """
        places = self._checked(index)
        numbers = ((places - self.offset) // self.batch_size).clamp(max=self.num_batches - 1)
        parts = []
        for batch in numbers.unique().tolist():
            rows = numbers == batch
            first, own = self._own(batch)
            at = places[rows]
            end = first + max(1, own)  # without a part, the first stands in
            if bool(((at < first) | (at >= end)).any()):
                raise ValueError(
                    f"observed example {int(index[rows][0])}'s batch is shared out, and another "
                    "process has that part: observe what this one was given"
                )
            parts.append(Part(batch=batch, rows=rows, share=len(at) / max(1, own), counts=own > 0))
        for part in parts:
            self._left[part.batch] -= int(part.rows.count_nonzero())
        self._observed[places] = True
        return parts

    def advance(self) -> Iterator[int]:
        """The sizes of the batches that are now whole, and those before them; once each."""
        while self.whole < self.num_batches and not self._left[self.whole]:
            start, end = self.span(self.whole)
            self.whole += 1
            yield end - start

    def _checked(self, index: Tensor) -> Tensor:
        """The places of examples in the order, int64."""

        def refuse(bad: Tensor, why: str) -> None:
            if bool(bad.any()):
                raise ValueError(f"observed example {int(index[bad][0])} {why}")

        num_examples = len(self._places)
        refuse((index < 0) | (index >= num_examples), f"is none of the {num_examples:,}")
        if len(index.unique()) < len(index):
            refuse((index[:, None] == index).sum(1) > 1, "is there twice")
        places = self._places[index].long()
        missing = "is not in this pass: it is not selected, or the budget ends before it"
        refuse(places < 0, missing)
        again = (places < self.offset) | self._observed[places]
        refuse(again, "was observed in this pass already")
        return places

    def check_whole(self) -> None:
        """Refuse to go on from a pass that was given out and not observed.

        Raises:
            ValueError: says how many batches, and names the first such example.
        """
        missing = sum(left > 0 for left in self._left)
        if missing == self.num_batches:
            raise ValueError(
                f"a pass of {missing:,} batches has ended and none was observed: call "
                "teacher.observe(index, losses) for each of them"
            )
        if missing:
            batch = next(i for i, left in enumerate(self._left) if left)
            first, own = self._own(batch)
            unseen = ~self._observed[first : first + max(1, own)]
            example = int(self.order[first : first + max(1, own)][unseen][0])
            raise ValueError(
                f"a pass of {self.num_batches:,} batches has ended and {missing:,} were not "
                f"observed, or not all of them; the first such example is {example}: call "
                "teacher.observe(index, losses) for all that the loader gives"
            )


@dataclass(frozen=True, kw_only=True)
class _Seen:
    """What a call of ``observe`` has shown of one batch.

    Attributes:
        step: the number of the batch in the run, from 1.
        share: of these losses in the mean of the whole batch.
        index: ``[b]``; of a stand-in, none.
        losses: ``[b]``, on the CPU.
    """

    step: int
    share: float
    index: Tensor
    losses: Tensor


class Untold:
    """What this process has observed since processes last told each other, step by step."""

    def __init__(self) -> None:
        self._seen: list[_Seen] = []

    def add(self, part: Part, step: int, size: int, index: Tensor, losses: Tensor) -> None:
        """Keep what was observed of one batch.

        Args:
            part: which of what was observed.
            step: the number of its batch in the run.
            size: of the whole batch.
            index: ``[b]``, all that was observed.
            losses: ``[b]``, on the CPU.
        """
        rows = part.rows & part.counts
        losses = losses[rows]
        summed = float(losses.sum(dtype=torch.float32))
        if not math.isfinite(summed):  # finite ones, but huge
            summed = float(losses.double().sum())
        share = summed / size
        self._seen.append(_Seen(step=step, share=share, index=index[rows].long(), losses=losses))

    def clear(self) -> None:
        """Forget it."""
        self._seen = []

    def tell(self, state: TensorDict, signals: tuple[str, ...]) -> None:
        """Record what all processes have observed of whole batches; called by all of them.

        The running loss goes from step to step, as it does where each step is told at once.

        Args:
            state: its scores and its running loss are written; its clock says which are whole.
            signals: from `attent.pipeline.observed.observed_signals`.
        """
        step = number(state, "clock", "step")
        told = [one for one in self._seen if one.step <= step]
        self._seen = [one for one in self._seen if one.step > step]
        if not told:
            return
        world = processes()
        steps, shares = world.gather(
            torch.tensor([one.step for one in told]),
            torch.tensor([one.share for one in told], dtype=torch.float64),
        )
        index, losses, made = world.gather(
            torch.cat([one.index for one in told]),
            torch.cat([one.losses for one in told]),
            torch.cat([torch.full((len(one.index),), one.step) for one in told]),
        )
        steps, which = steps.unique(return_inverse=True)
        means = torch.zeros(len(steps), dtype=torch.float64).index_add_(0, which, shares)
        levels, level = [], float(tensor(state, "metrics", "train_loss"))
        for mean in means.tolist():
            level = running_loss(level, mean)
            levels.append(level)
        tensor(state, "metrics", "train_loss").fill_(level)
        at = torch.tensor(levels, dtype=torch.float64)[torch.searchsorted(steps, made)]
        Observed(state, signals).record(index, made, losses, None, at)


def checked(index: Tensor, losses: Tensor) -> Tensor:
    """Losses as they are recorded, ``[b]``, on the CPU.

    Args:
        index: ``[b]`` integers.
        losses: ``[b]``.

    Raises:
        ValueError: something else, or a loss that is not finite; the first such example is named.
    """
    if index.ndim != 1 or index.is_floating_point() or index.dtype == torch.bool or not len(index):
        raise ValueError(
            f"index is a vector of examples' numbers, got {index.dtype} of {list(index.shape)}"
        )
    if losses.shape != index.shape or not losses.is_floating_point():
        raise ValueError(
            f"losses are one number for each of {len(index)} examples (reduction='none'), got "
            f"{losses.dtype} of {list(losses.shape)}"
        )
    measured = losses.detach().cpu()
    bad = ~torch.isfinite(measured)
    if bool(bad.any()):
        value, example = float(measured[bad][0]), int(index[bad][0])
        raise ValueError(f"the loss of example {example} is not finite ({value})")
    return measured
