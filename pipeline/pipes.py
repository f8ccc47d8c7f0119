"""Torch's datapipes: the masked stream as an `IterDataPipe`, for code that expects one.

The other way, an `IterDataPipe` as a source, needs nothing: it is an iterable like any other, and
`attent.pipeline.Window` makes windows of it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import IterDataPipe, get_worker_info

from attent.pipeline.order import order_of_pass, window_of
from attent.pipeline.source import Source, blocks_of, buckets_of, fetch_batch

READ = 64
"""Examples fetched together where they are handed on one by one."""


class SelectedPipe(IterDataPipe):
    """The selected examples of a source in a keyed order; see `selected_pipe`."""

    def __init__(self, source: Source, mask: Tensor, key: int, batch_size: int | None) -> None:
        self.source = source
        self.mask = mask
        self.key = key
        self.batch_size = batch_size
        self._selected = int(mask.count_nonzero())
        self._share: tuple[int, int] | None = None

    def apply_sharding(self, num_of_instances: int, instance_id: int) -> None:
        """Give one share of the examples, as all copies of this pipe together give all.

        `torch.utils.data.DataLoader` calls it in each of its workers, on each rank, as it does that
        of ``sharding_filter``.

        Args:
            num_of_instances: how many shares.
            instance_id: which, from 0.
        """
        self._share = (num_of_instances, instance_id)

    def __len__(self) -> int:
        """Examples, or batches, of this copy's share."""
        return math.ceil(len(self._own()) / (self.batch_size or 1))

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Dictionaries of tensors, of one example or of a batch.

        Raises:
            ExampleError: an example cannot be fetched; it is named.
        """
        size, own = self.batch_size or READ, self._own()
        order = order_of_pass(
            self.mask,
            self.key,
            size,
            lengths=buckets_of(self.source),
            blocks=blocks_of(self.source),
            window=window_of(self.source),
        )
        for start in range(own.start, own.stop, size):
            batch = fetch_batch(self.source, order[start : min(start + size, own.stop)])
            if self.batch_size is not None:
                yield batch.to_dict()
            else:
                yield from (example.to_dict() for example in batch.unbind(0))

    def _own(self) -> range:
        """The places of the order that are this copy's."""
        count, which = self._share or (1, 0)
        worker = get_worker_info()
        if self._share is None and worker is not None:  # below a data set that is no pipe
            count, which = worker.num_workers, worker.id
        return range(self._selected * which // count, self._selected * (which + 1) // count)


def selected_pipe(
    source: Source, mask: Tensor, *, key: int, batch_size: int | None = None
) -> SelectedPipe:
    """What a mask selects of a source, as an `IterDataPipe` (and so an `IterableDataset`).

    Each selected example comes once, with its ``index``, in the order in which a pass of training
    reads them, a function of the key: another key for another epoch. What is not selected is never
    fetched. The mask is copied; a later selection needs another pipe.

    In a `DataLoader` with workers, and on several ranks, the pipe shares itself out, each worker a
    part of the order: it answers to ``apply_sharding`` as ``sharding_filter`` does, so put no
    ``sharding_filter`` behind it (torch refuses to shard twice).

    Args:
        source: of N examples.
        mask: ``[N]`` bool, such as ``state["mask"]``.
        key: from `attent.pipeline.fold`.
        batch_size: None for one example at a time, which a `DataLoader` batches; otherwise
            dictionaries of so many, for ``DataLoader(pipe, batch_size=None)``.

    Raises:
        ValueError: a mask of another length, that selects nothing or is not bool; a batch size
            below 1.
    """
    if tuple(mask.shape) != (len(source),) or mask.dtype != torch.bool:
        raise ValueError(
            f"the mask is {mask.dtype} {list(mask.shape)}; it must be bool of [{len(source)}]"
        )
    if not bool(mask.any()):
        raise ValueError("the mask selects no example")
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"batch_size is at least 1, or None, got {batch_size}")
    return SelectedPipe(source, mask.cpu().clone(), key, batch_size)
