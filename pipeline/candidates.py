"""RHO-loss, and what it and Selective-Backprop choose from: batches of candidates of a data set.

**What.** Of a batch of candidates the examples with the largest reducible loss are trained on:
their loss less that of a model that was trained on held-out data ("irreducible": what stays of it
however much is learned). What is noisy has both high, what is learned already has both low. The
held-out losses are found once, by a run of one's own on other data and a scoring with its weights;
`WithColumn` puts them beside the examples::

    source = WithColumn(source, "holdout_loss", losses)
    held = Window(shuffled(source, seed), 320)
    attent_online(task, held, train=..., examples=..., ratio=0.1, signal=reducible_loss())

**Cost.** In forwards, for each b of B candidates: B + 3 b, beside the other model's training. As
published, B 320 and b 32, 416 against 96 for a plain step of 32: to pay, it has to need fewer than
a quarter of the steps.

**When it pays.** Much data that is seen once, noisy and redundant, as of the web, where steps are
what is scarce; and where many runs share the held-out losses.

**When it fails.** Data of a few classes that is learned to the end anyway; a held-out set that is
noisy, or of another mixture, whose errors are taken for the examples'; late in training, when the
model is better than the other one, and the difference says little. Compared by steps alone it
flatters itself.

References:
    Mindermann et al.: Prioritized Training on Points that are Learnable, Worth Learning, and Not
    Yet Learnt. ICML 2022.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor

from attent.pipeline.keyed import fold
from attent.pipeline.permutation import Permutation
from attent.pipeline.signals import Signal, Tensors, example_losses
from attent.pipeline.source import (
    ExampleError,
    Source,
    buckets_of,
    describe_example,
    fetch_batch,
)
from attent.pipeline.task import Task

AHEAD = 64
"""Examples that a shuffled stream reads from its source at once."""


def reducible_loss(column: str = "holdout_loss") -> Signal:
    """An example's loss less what the batch says of it: RHO-loss. Its card heads this file.

    Args:
        column: the batch's entry, ``[B]``: the example's loss under a model of held-out data.

    Returns:
        A signal named ``reducible_loss``, at the cost of a forward; below 0 where the example is
        known better than by the other model.

    Raises:
        ValueError: when measured, a batch without that entry, or with one that is not ``[B]``.
    """

    def measure(
        task: Task, params: Tensors, buffers: Tensors, batch: TensorDict, chunk: int | None
    ) -> Tensor:
        known = batch.get(column, None)
        if not isinstance(known, Tensor) or known.shape != batch.batch_size:
            what = "has none" if known is None else f"has {list(known.shape)}"
            raise ValueError(
                f"signal reducible_loss needs the entry {column!r} of [{len(batch)}] in a batch; "
                f"this one {what}: give the source WithColumn(source, {column!r}, losses)"
            )
        return example_losses(task, params, buffers, batch, chunk) - known.float()

    return Signal(name="reducible_loss", measure=measure)


class WithColumn:
    """A source with one more entry in its examples, a number each.

    All else (``lengths``, ``blocks``, ``locate`` and whatever it has) is the source's own.

    Args:
        source: the examples.
        name: of the entry.
        values: ``[N]``.

    Raises:
        ValueError: another number of values, or one that is NaN or infinite; when fetched, a source
            that has an entry of that name.
    """

    def __init__(self, source: Source, name: str, values: Tensor) -> None:
        if values.shape != (len(source),):
            raise ValueError(
                f"the column {name!r} is {list(values.shape)}; the source has {len(source):,} "
                "examples"
            )
        bad = ~torch.isfinite(values)
        if bool(bad.any()):
            first = int(bad.nonzero()[0])
            raise ValueError(
                f"the column {name!r} of {describe_example(source, first)} is "
                f"{float(values[first])}"
            )
        self.source = source
        self.name = name
        self.values = values.detach().cpu()

    def __len__(self) -> int:
        return len(self.source)

    def fetch(self, index: Tensor) -> TensorDict:
        """The examples at ``index``, with the column."""
        return self._with_column(self.source.fetch(index), index)

    @property
    def fetch_augmented(self) -> Callable[[Tensor, Tensor], TensorDict]:
        """The same of a source that augments; there is none where it does not."""
        fetch = self.source.fetch_augmented  # type: ignore[attr-defined]
        return lambda index, keys: self._with_column(fetch(index, keys), index)

    def __getattr__(self, name: str) -> Any:
        """What the source has. A copy that is being made has none yet, and no private names."""
        if name.startswith("_") or "source" not in self.__dict__:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return getattr(self.source, name)

    def _with_column(self, batch: TensorDict, index: Tensor) -> TensorDict:
        if self.name in batch.keys():
            raise ValueError(f"the source has an entry {self.name!r} of its own: take another name")
        return batch.set(self.name, self.values[index])


def shuffled(source: Source, seed: int) -> Callable[[int], Iterable[TensorDict]]:
    """A data set as an endless stream for `Window`: all of it in a keyed order, then anew.

    A window of it is a batch of candidates. Each pass has another order, in which every example is
    once; where the size of the window does not divide N, a window may hold an example twice. The
    stream begins at any position at no cost, so that a run resumes where it was.

    Examples come as ``fetch`` has them: a source's own augmentation (``fetch_augmented``) is not
    asked for, the task's ``view`` is. In a window, ``index`` is the slot; to know the example, give
    the source a column: ``WithColumn(source, "example", torch.arange(len(source)))``.

    Args:
        source: of examples that are of one shape.
        seed: of the orders.

    Raises:
        ValueError: no examples, or examples of different lengths, which no window can collate.
    """
    return _Shuffled(source, seed)


class _Shuffled:
    """See `shuffled`."""

    def __init__(self, source: Source, seed: int) -> None:
        if len(source) == 0:
            raise ValueError("a source of no examples makes no stream")
        lengths = buckets_of(source)
        if lengths is not None and int(lengths.min()) != int(lengths.max()):
            raise ValueError(
                f"shuffled is for examples of one shape; those of {type(source).__name__} are of "
                f"lengths from {int(lengths.min())} to {int(lengths.max())}, which a window cannot "
                "hold: pad them to one, or pack them"
            )
        self.source = source
        self.seed = seed

    def __call__(self, start: int) -> Iterator[TensorDict]:
        """The examples from a position on."""
        size = len(self.source)
        while True:
            order, first = self._order(start // size), start % size
            for begin in range(first, size, AHEAD):
                yield from self._read(order(slice(begin, begin + AHEAD)))
            start += size - first

    def locate(self, position: int) -> str:
        """Which example is at a position."""
        size = len(self.source)
        index = self._order(position // size)(slice(position % size, position % size + 1))
        return describe_example(self.source, int(index))

    def _order(self, number: int) -> Permutation:
        return Permutation(len(self.source), fold(self.seed, "shuffled stream", number))

    def _read(self, index: Tensor) -> Iterable[TensorDict]:
        try:
            return fetch_batch(self.source, index).exclude("index").unbind(0)
        except ExampleError:
            # One at a time, so that those before the bad one come, and its position is its own.
            return (fetch_batch(self.source, one).exclude("index")[0] for one in index.split(1))
