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

from attent.pipeline.keyed import fold, generator
from attent.pipeline.source import ExampleError, Source, fetch_batch, lengths_of

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
        index: ``[k]`` int64, or a range, which takes no memory.
        batch_size: of all batches but the last.
        offset: indices to pass over: where a resumed pass goes on.
    """

    def __init__(self, index: Tensor | range, batch_size: int, offset: int = 0) -> None:
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
        left = len(self.index) - self._at
        size = left if left == self.batch_size + 1 and self.batch_size > 1 else self.batch_size
        batch = self.index[self._at : self._at + size]
        self._at += len(batch)
        return torch.arange(batch.start, batch.stop) if isinstance(batch, range) else batch

    def get_state(self) -> dict[str, Any]:
        """Where it is."""
        return {"at": self._at}


def keyed_order(mask: Tensor, key: int) -> Tensor:
    """The selected indices in an order that is a function of the key.

    Args:
        mask: ``[N]`` bool.
        key: from `attent.pipeline.keyed.fold`.

    Returns:
        ``[k]`` int64, k = the number of True.
    """
    selected = mask.nonzero().squeeze(1)
    return selected[torch.randperm(len(selected), generator=generator(key))]


POOL = 64
"""Batches whose examples are sorted by length together: more of them leave less padding, fewer mix
the company of an example more."""


def bucketed_order(mask: Tensor, key: int, lengths: Tensor, batch_size: int) -> Tensor:
    """The selected indices so that batches hold examples of similar length.

    The keyed order is cut into pools of `POOL` batches; each is sorted by length, examples of one
    length as they were drawn, and cut into batches; batches are shuffled, and examples within them.
    Each selected example is there once, every batch but the last is full, and which one is smaller
    is drawn too: no length is favoured, early or late or in small batches.

    Args:
        mask: ``[N]`` bool.
        key: from `attent.pipeline.keyed.fold`.
        lengths: ``[N]`` integers.
        batch_size: B, of all batches but the last; at least 1.

    Returns:
        ``[k]`` int64, k = the number of True.
    """
    drawn = keyed_order(mask, key)
    draw = generator(fold(key, "batches"))
    whole, rest = divmod(len(drawn), batch_size)
    if whole == 0:
        return drawn
    # The smaller batch is `rest` places anywhere; the others are cut from what is left.
    at = int(torch.randint(len(drawn) - rest + 1, (), generator=draw))
    places = torch.arange(len(drawn))
    batch = (places - (places >= at + rest) * rest).clamp(max=whole * batch_size - 1) // batch_size
    pools = batch * max(1, round(whole / POOL)) // whole
    # By pool, in it by length; a stable sort leaves examples of one length as they were drawn.
    places = lengths[drawn].argsort(stable=True)
    places = places[pools[places].argsort(stable=True)]
    small, full = places[at : at + rest], torch.cat([places[:at], places[at + rest :]])
    batches = full.reshape(whole, batch_size).sort(dim=1).values
    batches = batches[torch.randperm(whole, generator=draw)]
    return drawn[torch.cat([batches.flatten(), small.sort().values])]


def longest_first(source: Source) -> Tensor | range:
    """All examples in the order in which passes that draw nothing read them.

    The longest first where a source says ``lengths``, so that batches are of similar length;
    otherwise as they come.
    """
    lengths = lengths_of(source)
    if lengths is None:
        return range(len(source))
    return lengths.argsort(descending=True, stable=True)


def num_batches(examples: int, batch_size: int) -> int:
    """How many batches `IndexBatches` cuts a pass into."""
    whole, rest = divmod(examples, batch_size)
    return whole + (rest > 1 or (rest == 1 and (whole == 0 or batch_size == 1)))


class Stream:
    """An open stream of batches.

    Args:
        source: where examples come from.
        index: ``[k]`` int64, or a range: which and in what order.
        batch_size: of all batches but the last.
        offset: indices to pass over.
        loading: workers, prefetching.
        keys: index ``[B]`` -> ``[B]`` int64, under which a source that augments changes its
            examples; None for the examples as they are.

    Iterating raises `ExampleError` for an example that cannot be fetched.
    """

    def __init__(
        self,
        source: Source,
        index: Tensor | range,
        batch_size: int,
        *,
        offset: int = 0,
        loading: Loading | None = None,
        keys: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        loading = loading or Loading()

        def fetch(batch: Tensor) -> TensorDict | Exception:
            # Handed on and raised by the reader: raised here, torchdata would wrap it in a new one.
            try:
                return fetch_batch(source, batch, None if keys is None else keys(batch))
            except (ExampleError, ValueError) as error:
                return error

        indices = IndexBatches(index, batch_size, offset)
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
