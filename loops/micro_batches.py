"""The examples that a `Teacher` chooses, as a loop that accumulates gradients reads them.

A batch of the teacher is what one optimiser step trains on in all processes. The part of this
process is cut into as many micro-batches as gradients are accumulated over; the last ones of a
pass are smaller, not fewer, so that steps never reach from one pass into the next.

Shapes: b examples in a micro-batch.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from attent.loops.collate import Collate
from attent.pipeline.teacher_loading import Batches, Loop, Teaching
from attent.pipeline.teacher_pass import PresentPass

CHOSEN = "attent_chosen"
"""The entry of a batch that says which examples it is of."""


@dataclass(frozen=True)
class Chosen:
    """Which examples a micro-batch is of.

    It is no tensor, so that loops which move what they know to a device leave it where it is.

    Attributes:
        index: ``[b]`` int64, on the CPU.
        share: b over the examples that this process has of the step; 0 of one that only stands in.
    """

    index: Tensor
    share: float


class MicroBatches(Batches):
    """The micro-batches of one pass at each iteration, for the ``batch_sampler`` of a loader.

    Args:
        teacher: says what is left.
        batch_size: of a step, in all processes together.
        parts: micro-batches a step.

    Attributes:
        present: the pass that was begun last; None before the first and after the last.
    """

    def __init__(self, teacher: Teaching, batch_size: int, parts: int) -> None:
        super().__init__(teacher, batch_size)
        self.parts = parts
        self.present: PresentPass | None = None

    def __iter__(self) -> Iterator[list[int]]:
        # At once, as in the class above: a loader asks for an iterator when a pass begins.
        present = self.present = self.teacher.begin(self.batch_size)
        steps = iter(()) if present is None else present.batches()
        return itertools.chain.from_iterable(cut(own, self.parts) for own in steps)

    def __len__(self) -> int:
        return super().__len__() * self.parts

    @property
    def pass_is_whole(self) -> bool:
        """Whether all of the pass that was begun last was trained on."""
        return self.present is not None and self.present.whole == self.present.num_batches


def cut(own: Sequence[int], parts: int) -> list[list[int]]:
    """A list in parts of which sizes differ by one at most; an empty one holds the first instead.

    A model cannot be run on nothing, and processes wait for each other at each of the parts.
    """
    each, more = divmod(len(own), parts)
    ends = list(itertools.accumulate(each + (part < more) for part in range(parts)))
    return [list(own[start:end]) or [own[0]] for start, end in itertools.pairwise([0, *ends])]


class CollateMapping(Collate):
    """A collator of ``(index, item)`` that gives what another makes of the items, and the index.

    Args:
        collate: makes a mapping of a list of items.
    """

    def __call__(self, pairs: Sequence[tuple[int, Any]]) -> dict[str, Any]:
        """The batch, with its `Chosen`.

        Raises:
            ValueError: the collator makes no mapping.
        """
        index, batch = super().__call__(pairs)
        if not isinstance(batch, Mapping):
            raise ValueError(
                f"the data collator makes a {type(batch).__name__}: a mapping of names to tensors "
                "is needed, in which the examples' indices can travel"
            )
        return {**batch, CHOSEN: Chosen(index, 1.0)}


class StepLoader:
    """All that is left of a budget, micro-batch after micro-batch, as an iterable without a length.

    How many there will be is not known exactly before: a rule may select more or fewer than its
    ratio says. Iterated again, it goes on after what was observed.

    Args:
        loop: over a loader of `MicroBatches` with `CollateMapping`.
        sampler: those micro-batches.
    """

    def __init__(self, loop: Loop, sampler: MicroBatches) -> None:
        self.loop, self.sampler = loop, sampler

    def __iter__(self) -> Iterator[dict[str, Any]]:
        batches = iter(self.loop)
        while step := list(itertools.islice(batches, self.sampler.parts)):
            yield from _shared(step)

    @property
    def dataset(self) -> Any:
        """What is read, with indices."""
        return self.loop.dataset


def _shared(step: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The micro-batches of one step with their shares in it."""
    found = [batch[CHOSEN].index for batch in step]
    # Who stands in for an empty part is the step's first example once more.
    stands_in = [k > 0 and bool(index[0] == found[0][0]) for k, index in enumerate(found)]
    size = sum(len(i) for i, spare in zip(found, stands_in, strict=True) if not spare)
    for batch, index, spare in zip(step, found, stands_in, strict=True):
        yield {**batch, CHOSEN: Chosen(index, 0.0 if spare else len(index) / size)}
