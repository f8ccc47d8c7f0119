"""A batch fetched as a worker does it: the examples, or stand-ins for some of them, or an error."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Container
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

TRIES = 16
"""Draws of an example that stands in for another: where half of all cannot be read, one of 65,536
examples is left without."""


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
        unreadable: examples known to be unreadable, and why: others stand in for them, and those
            that are found are added. None: one that cannot be read is an error.
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
    """The examples at ``index``; for one that cannot be read, its stand-in (`stand_in`).

    ``index`` in the batch is what was asked for: the data alone are the stand-in's.

    Args:
        source: where they are.
        index: ``[B]`` int64.
        keys: ``[B]`` int64, for a source that augments; a stand-in is augmented under the key of
            the example it stands for.
        unreadable: those known, and why; they are not tried again, and those found are added.

    Raises:
        ExampleError: an example and all that might stand in for it cannot be read; or each of the
            batch can be alone, but not together.
    """
    found: dict[int, str] = {}
    while True:
        standing = _standing(source, index, unreadable)
        try:
            batch = fetch_as_it_is(source, standing, keys)
            return Fetched(batch=with_index(source, batch, index), skipped=found)
        except Exception as error:
            failure = error
        fresh = {
            i: f"{type(error).__name__}: {error}"
            for i, error in fetch_one_by_one(source, standing, keys)
        }
        if not fresh:
            raise not_together(index, failure) from failure
        unreadable.update(fresh)
        found |= fresh


def _standing(source: Source, index: Tensor, unreadable: dict[int, str]) -> Tensor:
    """The examples at ``index``, those known to be unreadable by their stand-ins; ``[B]`` int64."""
    if not unreadable:
        return index
    standing = [stand_in(i, len(source), unreadable) for i in index.tolist()]
    for i, other in zip(index.tolist(), standing, strict=True):
        if other is None:
            raise ExampleError(
                f"{describe_example(source, i)} cannot be read, nor can any of the {TRIES} "
                f"examples that might stand in for it: {unreadable[i]}"
            )
    return torch.tensor(standing, dtype=torch.int64)


def stand_in(index: int, num_examples: int, unreadable: Container[int]) -> int | None:
    """The example whose data stand in for one that cannot be read; itself if it can.

    It is drawn from all examples by the index alone, so that it is the same in training and in
    scoring, whichever batch the example is in and however many processes share that batch.

    Args:
        index: of the example.
        num_examples: N.
        unreadable: those that cannot be read.

    Returns:
        None where none of `TRIES` draws can be read.
    """
    draws = (fold(index, "stand-in", draw) % num_examples for draw in range(TRIES))
    candidates = itertools.chain([index], draws)
    return next((other for other in candidates if other not in unreadable), None)
