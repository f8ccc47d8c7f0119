"""Streams of batches: selected indices in a keyed order -> fetch -> pin, by torchdata.nodes.

A batch is fetched whole, not example by example: handing an item from a worker to its reader takes
as long as a small example. The mask is frozen while a stream is open, since it reads ahead.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor
from torchdata.nodes import BaseNode, Mapper, PinMemory, Prefetcher

from attent.pipeline.fetch import Fetch, Fetched
from attent.pipeline.order import Order
from attent.pipeline.skipped import SkippedList
from attent.pipeline.source import Source
from attent.pipeline.workers import FetchAhead, KeptWorkers

# The nodes' own snapshots are not used: a stream resumes by (seed, pass, offset).
_NO_SNAPSHOTS = 2**30


@dataclass(frozen=True, kw_only=True)
class Loading:
    """How batches are fetched.

    What comes out is the same however it is done. A worker that dies or hangs is an `ExampleError`
    that says where it was.

    With a ``skipped`` list, data that cannot be read are passed over without any count, order or
    score going amiss: the example keeps its place and its ``index`` in the batch, and its data are
    those of another, drawn from all examples by its index alone (`attent.pipeline.fetch.stand_in`).
    It is trained on and scored as that one, in every pass and every process; budgets, orders and
    what each process does are as they were planned. Where most of the data cannot be read, it is an
    error all the same.

    Attributes:
        workers: that fetch batches; 0 fetches in the training thread.
        processes: workers are processes, not threads: for sources that keep Python busy, which
            threads would take turns at. Each works on a copy of the source, made when a stream is
            opened.
        kept: where processes wait between streams, for sources that do not change; None: they are
            started for each stream and end with it.
        timeout: seconds that training waits for one batch, until its worker counts as hung; None
            for ever. In the training thread (no workers) nobody counts.
        skipped: where examples that cannot be read are entered as they are passed over; None: one
            that cannot be read is an error.
        prefetch: batches held ready when there are no workers; 0 for none.
        pin_memory: copy batches into page-locked memory, for a GPU.
    """

    workers: int = 0
    processes: bool = False
    kept: KeptWorkers | None = None
    timeout: float | None = 600.0
    skipped: SkippedList | None = None
    prefetch: int = 0
    pin_memory: bool = False

    def __post_init__(self) -> None:
        if self.workers < 0 or self.prefetch < 0:
            raise ValueError(
                f"workers and prefetch are at least 0, got {self.workers} and {self.prefetch}"
            )
        if self.timeout is not None and not 0 < self.timeout < math.inf:
            raise ValueError(f"timeout is above 0 seconds, or None for never; got {self.timeout}")


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

    It ends, and its workers with it, when it is read to the end, with the first error, when it is
    closed, and when nobody holds it any more.

    Args:
        source: where examples come from.
        index: an order (``[k]`` int64), or a range: which and in what order.
        batch_size: of all batches but the last.
        offset: indices to pass over.
        loading: workers, prefetching.
        keys: index ``[B]`` -> ``[B]`` int64, under which a source that augments changes its
            examples; None for the examples as they are.
        share: the batches of indices -> this process's share of them; None for all.

    Iterating raises `ExampleError` for an example that cannot be fetched, and for a worker that
    died or hangs.
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
        skipped = loading.skipped
        known = None if skipped is None else skipped.of(source)
        fetch = Fetch(source=source, keys=keys, unreadable=known)

        def opened(fetched: Fetched) -> TensorDict | Exception:
            # Handed on and raised by the reader: raised here, torchdata would wrap it in a new one.
            if skipped is not None:
                skipped.add(source, fetched.skipped)
            return fetched.batch

        indices: BaseNode[Tensor] = IndexBatches(index, batch_size, offset)
        if share is not None:
            indices = share(indices)
        self._end: Callable[[], object] | None = None
        node: BaseNode[Any]
        if loading.workers:
            node = ahead = FetchAhead(
                indices,
                fetch,
                workers=loading.workers,
                processes=loading.processes,
                timeout=loading.timeout,
                kept=loading.kept,
            )
            self._end = weakref.finalize(self, ahead.close)
        else:
            node = Mapper(indices, fetch)
        node = Mapper(node, opened)
        if loading.pin_memory:
            node = PinMemory(node, snapshot_frequency=_NO_SNAPSHOTS)
        if loading.prefetch and not loading.workers:
            node = Prefetcher(node, loading.prefetch, snapshot_frequency=_NO_SNAPSHOTS)
        self._node: BaseNode[Any] | None = node

    def __iter__(self) -> Stream:
        return self

    def __next__(self) -> TensorDict:
        if self._node is None:
            raise StopIteration
        try:
            batch = next(self._node)
            if isinstance(batch, Exception):
                raise batch
        except BaseException:
            self.close()
            raise
        return batch

    def close(self) -> None:
        """End its workers; nothing comes after that."""
        self._node = None
        if self._end is not None:
            self._end()
