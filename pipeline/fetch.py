"""A batch fetched as a worker does it: the examples, or stand-ins for some of them, or an error."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from tensordict import TensorDict
from torch import Tensor

from attent.pipeline.keyed import fold, seed_global
from attent.pipeline.source import (
    ExampleError,
    Source,
    describe_example,
    fetch_as_it_is,
    fetch_batch,
    fetch_one_by_one,
    not_together,
    with_index,
)


@dataclass(frozen=True, kw_only=True)
class Fetched:
    """What came of fetching a batch; it can be pickled.

    Attributes:
        batch: the examples, or the error that kept them from being read.
        skipped: examples met for the first time that cannot be read: index -> why.
    """

    batch: TensorDict | Exception
    skipped: dict[int, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Fetch:
    """How the batches of a stream are fetched; called by several threads or processes.

    Attributes:
        source: where examples come from.
        keys: index ``[B]`` -> ``[B]`` int64, for a source that augments; None for the examples as
            they are.
        unreadable: examples known to be unreadable, and why: others of the batch stand in for
            them, and those that are found are added. None: one that cannot be read is an error.
    """

    source: Source
    keys: Callable[[Tensor], Tensor] | None = None
    unreadable: dict[int, str] | None = None

    def __call__(self, index: Tensor) -> Fetched:
        """The examples at ``index`` (``[B]`` int64). An error is returned, not raised."""
        try:
            keys = None if self.keys is None else self.keys(index)
            if self.unreadable is None:
                return Fetched(batch=fetch_batch(self.source, index, keys))
            return fetch_readable(self.source, index, keys, self.unreadable)
        except ExampleError as error:
            return Fetched(batch=error)
        except Exception as error:
            return Fetched(batch=self.failed(index, error))

    def failed(self, index: Tensor, error: BaseException) -> ExampleError:
        """The error of a batch of which nobody can say which example is at fault."""
        failed = ExampleError(
            f"{self.describe_batch(index)} cannot be fetched: {type(error).__name__}: {error}"
        )
        failed.__cause__ = error
        return failed

    def describe_batch(self, index: Tensor) -> str:
        """A batch by its first example."""
        first = describe_example(self.source, int(index[0]))
        return first if len(index) == 1 else f"a batch of {len(index)} examples, the first {first}"

    def seed(self, index: Tensor) -> None:
        """Seed torch, NumPy and `random` by what a batch is, for a process that does nothing else.

        A source draws from its keys. One whose foreign code draws from these all the same then
        gets the same numbers whichever worker fetches the batch, and none that others get.
        """
        keys = index if self.keys is None else self.keys(index)
        key = fold(int(keys[0]), "worker")
        random.seed(key)
        np.random.seed(key % 2**32)  # noqa: NPY002
        seed_global(key)


def fetch_readable(
    source: Source, index: Tensor, keys: Tensor | None, unreadable: dict[int, str]
) -> Fetched:
    """The examples at ``index``; for one that cannot be read, the next of them that can.

    ``index`` in the batch is what was asked for: the data alone are the stand-in's.

    Args:
        source: where they are.
        index: ``[B]`` int64.
        keys: ``[B]`` int64, for a source that augments; a stand-in is augmented under its own.
        unreadable: those known, and why; they are not tried again, and those found are added.

    Raises:
        ExampleError: none of the batch can be read; or each can be alone, but not together.
    """
    failure: Exception | None = None
    readable = _readable(index, unreadable)
    if bool(readable.any()):
        try:
            return Fetched(batch=_with_stand_ins(source, index, keys, readable))
        except Exception as error:
            failure = error
    tried = index[readable], None if keys is None else keys[readable]
    found = {i: f"{type(error).__name__}: {error}" for i, error in fetch_one_by_one(source, *tried)}
    unreadable.update(found)
    readable = _readable(index, unreadable)
    if not bool(readable.any()):
        first = int(index[0])
        raise ExampleError(
            f"none of the {len(index)} examples of a batch can be read, so that none can stand in "
            f"for another; the first is {describe_example(source, first)}: {unreadable[first]}"
        ) from failure
    if failure is not None and not found:
        raise not_together(index, failure) from failure
    return Fetched(batch=_with_stand_ins(source, index, keys, readable), skipped=found)


def _readable(index: Tensor, unreadable: dict[int, str]) -> Tensor:
    """Which of some examples are not known to be unreadable, ``[B]`` bool."""
    return torch.tensor([i not in unreadable for i in index.tolist()], dtype=torch.bool)


def _with_stand_ins(
    source: Source, index: Tensor, keys: Tensor | None, readable: Tensor
) -> TensorDict:
    """The batch in which the next readable one, cyclically, stands in for one that is not."""
    places = readable.nonzero().squeeze(1)
    following = torch.searchsorted(places, torch.arange(len(index))) % len(places)
    stand_in = places[following]
    own = None if keys is None else keys[stand_in]
    batch = fetch_as_it_is(source, index[stand_in], own)
    return with_index(source, batch, index)
