"""Streams of batches: selected indices in a keyed order -> fetch -> prefetch, by torchdata.nodes.

A batch is fetched whole, not example by example: a `ParallelMapper` moves about 30 microseconds an
item through its threads. The mask is frozen while a stream is open, since it reads ahead.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor
from torchdata.nodes import BaseNode, Mapper, ParallelMapper, PinMemory, Prefetcher

from attent.pipeline.order import Order
from attent.pipeline.source import ExampleError, Source, fetch_batch

# The nodes' own snapshots are not used: a stream resumes by (seed, pass, offset).
_NO_SNAPSHOTS = 2**30


@dataclass(frozen=True, kw_only=True)
class Loading:
    """How batches are fetched.

    Attributes:
        workers: threads that fetch batches; 0 fetches in the training thread.
        prefetch: batches held ready when there are no workers; 0 for none.
        pin_memory: copy batches into page-locked memory, for a GPU.
    """

    workers: int = 0
    prefetch: int = 0
    pin_memory: bool = False

    def __post_init__(self) -> None:
        if self.workers < 0 or self.prefetch < 0:
            raise ValueError(
                f"workers and prefetch are at least 0, got {self.workers} and {self.prefetch}"
            )


class IndexBatches(BaseNode[Tensor]):
    """A list of indices, cut into batches; the last may be smaller.

    A single one left over goes with the batch before it: batch statistics of one are undefined.

    Args:
        index: an order (``[k]`` int64), or a range, which takes no memory.
        batch_size: of all batches but the last.
        offset: indices to pass over: where a resumed pass goes on.
    """

    def __init__(self, index: Order | range, batch_size: int, offset: int = 0) -> None:
        super().__init__()
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        self.index = index
        self.batch_size = batch_size
        self.start = offset
        self._at = offset

    def reset(self, initial_state: dict[str, Any] | None = None) -> None:
        """Go to the beginning, or to a state from `get_state`."""
        super().reset(initial_state)
        self._at = self.start if initial_state is None else initial_state["at"]

    def next(self) -> Tensor:
        """The next batch of indices."""
        if self._at >= len(self.index):
            raise StopIteration
        size = length_of_batch(len(self.index) - self._at, self.batch_size)
        batch = self.index[self._at : self._at + size]
        self._at += len(batch)
        return torch.arange(batch.start, batch.stop) if isinstance(batch, range) else batch

    def get_state(self) -> dict[str, Any]:
        """Where it is."""
        return {"at": self._at}


def length_of_batch(left: int, batch_size: int) -> int:
    """How many examples `IndexBatches` takes next of those that are left."""
    return left if left == batch_size + 1 and batch_size > 1 else min(left, batch_size)


def num_batches(examples: int, batch_size: int) -> int:
    """How many batches `IndexBatches` cuts a pass into."""
    whole, rest = divmod(examples, batch_size)
    return whole + (rest > 1 or (rest == 1 and (whole == 0 or batch_size == 1)))


class Stream:
    """An open stream of batches.

    Args:
        source: where examples come from.
        index: an order (``[k]`` int64), or a range: which and in what order.
        batch_size: of all batches but the last.
        offset: indices to pass over.
        loading: workers, prefetching.
        keys: index ``[B]`` -> ``[B]`` int64, under which a source that augments changes its
            examples; None for the examples as they are.
        share: the batches of indices -> this process's share of them; None for all.

    Iterating raises `ExampleError` for an example that cannot be fetched.
    """

    def __init__(
        self,
        source: Source,
        index: Order | range,
        batch_size: int,
        *,
        offset: int = 0,
        loading: Loading | None = None,
        keys: Callable[[Tensor], Tensor] | None = None,
        share: Callable[[BaseNode[Tensor]], BaseNode[Tensor]] | None = None,
    ) -> None:
        loading = loading or Loading()

        def fetch(batch: Tensor) -> TensorDict | Exception:
            # Handed on and raised by the reader: raised here, torchdata would wrap it in a new one.
            try:
                return fetch_batch(source, batch, None if keys is None else keys(batch))
            except (ExampleError, ValueError) as error:
                return error

        indices: BaseNode[Tensor] = IndexBatches(index, batch_size, offset)
        if share is not None:
            indices = share(indices)
        node: BaseNode[Any]
        if loading.workers:
            node = ParallelMapper(
                indices, fetch, loading.workers, method="thread", snapshot_frequency=_NO_SNAPSHOTS
            )
        else:
            node = Mapper(indices, fetch)
        if loading.pin_memory:
            node = PinMemory(node, snapshot_frequency=_NO_SNAPSHOTS)
        if loading.prefetch and not loading.workers:
            node = Prefetcher(node, loading.prefetch, snapshot_frequency=_NO_SNAPSHOTS)
        self._node = node

    def __iter__(self) -> Stream:
        return self

    def __next__(self) -> TensorDict:
        batch = next(self._node)
        if isinstance(batch, Exception):
            raise batch
        return batch
