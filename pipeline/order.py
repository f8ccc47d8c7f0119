"""In which order examples are read: functions of the selection and a key.

An order of few examples is a tensor. One of many is made piece by piece as it is read, a
`LazyOrder`, so that a pass over 10^8 examples takes little memory and is resumed anywhere at once.
"""

from __future__ import annotations

import copy
from bisect import bisect_right
from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from attent.pipeline.keyed import fold, generator
from attent.pipeline.permutation import Permutation
from attent.pipeline.source import Source, blocks_of, lengths_of

HELD = 2**22
"""Up to so many examples an order is held whole; recorded runs depend on it."""

PIECE = 2**16
"""Places of a longer order that are drawn at once: enough that drawing them is quick."""

CHUNK = 2**20
"""Of a mask, looked at at once: bounds the memory beside it."""

WINDOW = 8
"""Blocks that are read together, where the source has no ``window`` of its own."""


class LazyOrder:
    """An order that is made piece by piece as it is read; the last two pieces are kept.

    ``order[a:b]`` are the examples at those places, int64, in time that is proportional to them
    and one piece. Several threads may read it.

    Args:
        starts: the place at which each piece begins, rising from 0.
        size: of the whole order.
        make: the number of a piece -> its examples, always the same.
    """

    def __init__(self, starts: Sequence[int], size: int, make: Callable[[int], Order]) -> None:
        self._starts = starts
        self._size = size
        # Two: whoever reads ahead may be a piece further on than whoever trains.
        self._piece = lru_cache(maxsize=2)(make)

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, places: slice) -> Tensor:
        """The examples at some places, in a tensor of their own.

        Raises:
            ValueError: places that are not side by side.
        """
        at, end, step = places.indices(self._size)
        if step != 1:
            raise ValueError(f"an order is read as order[a:b], not in steps of {step}")
        found = torch.empty(max(0, end - at), dtype=torch.int64)
        number, filled = bisect_right(self._starts, at) - 1, 0
        while filled < len(found):
            piece, start = self._piece(number), self._starts[number]
            part = piece[at + filled - start : end - start]
            found[filled : filled + len(part)] = part
            filled += len(part)
            number += 1
        return found

    def first(self, count: int) -> LazyOrder:
        """The same order, ending after so many."""
        shorter = copy.copy(self)
        shorter._size = min(count, self._size)
        return shorter


Order = Tensor | LazyOrder
"""Examples in the order in which they are read: ``len(order)``, ``order[a:b]``."""


def first(order: Order, count: int) -> Order:
    """The beginning of an order, as such an order."""
    return order.first(count) if isinstance(order, LazyOrder) else order[:count]


def keyed_order(mask: Tensor, key: int) -> Order:
    """The selected indices in an order that is a function of the key.

    Args:
        mask: ``[N]`` bool, on the CPU.
        key: from `attent.pipeline.keyed.fold`.

    Returns:
        k int64, k = the number of True; a tensor up to `HELD`. Longer ones are lazy and hold 4
        bytes of each selected example, or a bit of each example where two thirds or more are
        selected, or nothing where all are. The mask may change afterwards: the order will not.
    """
    count = int(mask.count_nonzero())
    if count <= HELD:
        return _shuffled(mask.nonzero().squeeze(1), count, key)
    if count == len(mask):
        return _shuffled(None, count, key)
    if 3 * count >= 2 * len(mask):
        return _walked(mask, count, key)
    return _shuffled(_selected(mask, count), count, key)


def _shuffled(index: Tensor | None, count: int, key: int) -> Order:
    """``[count]`` indices, or all below ``count``, in the key's order."""
    if index is not None and count <= HELD:
        return index[torch.randperm(count, generator=generator(key))].to(torch.int64)
    permutation = Permutation(count, key)

    def piece(number: int) -> Tensor:
        places = permutation(slice(number * PIECE, (number + 1) * PIECE))
        return places if index is None else index.index_select(0, places).to(torch.int64)

    return LazyOrder(range(0, count, PIECE), count, piece)


def _walked(mask: Tensor, count: int, key: int) -> LazyOrder:
    """The selected in the key's order, by a permutation of all examples.

    Each goes where the permutation sends it, and on from there until it comes to one that is
    selected: a permutation of the selected alone, in as many steps as there are examples to one
    selected (Black and Rogaway, CT-RSA 2002).
    """
    permutation, bits = Permutation(len(mask), key), _bits(mask)
    ends = torch.arange(0, len(mask) + PIECE, PIECE).clamp_(max=len(mask))
    counts = _counts(mask, ends)
    flags = torch.from_numpy(bits)

    def dropped(index: Tensor) -> Tensor:
        return (flags.index_select(0, index >> 3) >> (index & 7).to(torch.uint8)) & 1 == 0

    def piece(number: int) -> Tensor:
        start = number * PIECE
        own = _of_block(bits, start, min(start + PIECE, len(permutation)))
        return permutation.among(own, dropped)

    return LazyOrder((counts.cumsum(0) - counts).numpy().data, count, piece)


def _narrow(num_examples: int) -> torch.dtype:
    """The smallest type that holds any index."""
    return torch.int32 if num_examples <= 2**31 else torch.int64


def _selected(mask: Tensor, count: int) -> Tensor:
    """``mask.nonzero()`` of ``count`` in the smallest type, never as int64 of all of them."""
    found, at = torch.empty(count, dtype=_narrow(len(mask))), 0
    for start in range(0, len(mask), CHUNK):
        part = mask[start : start + CHUNK].nonzero().squeeze(1).add_(start)
        found[at : at + len(part)] = part
        at += len(part)
    return found


POOL = 64
"""Batches whose examples are sorted by length together: more of them leave less padding, fewer mix
the company of an example more."""


def bucketed_order(mask: Tensor, key: int, lengths: Tensor, batch_size: int) -> Order:
    """The selected indices so that batches hold examples of similar length.

    The keyed order is cut into pools of `POOL` batches; each is sorted by length, examples of one
    length as they were drawn, and cut into batches; batches are shuffled, and examples within them.
    Each selected example is there once, every batch but the last is full, and which one is smaller
    is drawn too: no length is favoured, early or late or in small batches.

    Beyond `HELD` examples batches are shuffled among those of some pools, as they are read.

    Args:
        mask: ``[N]`` bool, on the CPU.
        key: from `attent.pipeline.keyed.fold`.
        lengths: ``[N]`` integers.
        batch_size: B, of all batches but the last; at least 1.

    Returns:
        k int64, k = the number of True.
    """
    return _bucketed(keyed_order(mask, key), key, lengths, batch_size)


def _bucketed(drawn: Order, key: int, lengths: Tensor, batch_size: int, lead: int = 0) -> Order:
    """An order with batches of similar length; the first ``lead`` stay as they were drawn."""
    if isinstance(drawn, Tensor):
        rest = _by_length(drawn[lead:], key, lengths, batch_size)
        return torch.cat([drawn[:lead], rest]) if lead else rest
    size = batch_size * max(POOL, 4 * PIECE // batch_size)
    starts = [0, *range(lead, len(drawn), size)]

    def piece(number: int) -> Tensor:
        if number == 0:
            return drawn[:lead]
        part = drawn[starts[number] : starts[number] + size]
        return _by_length(part, fold(key, "piece", number), lengths, batch_size)

    return LazyOrder(starts, len(drawn), piece)


def _by_length(drawn: Tensor, key: int, lengths: Tensor, batch_size: int) -> Tensor:
    """Examples that were drawn, in batches of similar length; the smaller one last."""
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


def blockwise_order(
    mask: Tensor,
    key: int,
    blocks: Tensor,
    window: int = WINDOW,
    *,
    lengths: Tensor | None = None,
    batch_size: int = 1,
) -> LazyOrder:
    """The selected indices a few blocks at a time, for sources that keep examples in blocks.

    The blocks that hold a selected example are taken in a keyed order, ``window`` at a time, and
    the selected examples of those are shuffled together. A batch then touches at most ``window``
    blocks, or twice as many where one window ends and the next begins (more, where a window holds
    less than a batch), and a pass reads each block in one stretch. A block with nothing selected is
    never touched. Each example is as likely early in a pass as late.

    What it trades: examples of one block are trained on within one window of a pass, so neighbours
    in storage keep each other's company, in every pass; only which other blocks are with them, and
    when, is drawn anew. An example is never further from a neighbour than the window is long. Where
    storage is sorted (by class, by origin, by time), batches are less mixed than the data set is:
    shuffling the examples once, when the shards are written, gives that back, for a block is then
    a random draw of the data set. A longer window mixes more, and keeps more blocks open.

    Only a window is ever held, and one bit for each example where not all are selected.

    Args:
        mask: ``[N]`` bool, on the CPU. It may change afterwards: the order will not.
        key: from `attent.pipeline.keyed.fold`.
        blocks: ``[S + 1]`` int64 rising from 0 to N, where each block begins, and N.
        window: blocks that are shuffled together, at least 1; S or more shuffle everything.
        lengths: ``[N]`` integers, to have batches of similar length within a window (the one that
            ends a window and begins the next is mixed); None for batches as they are drawn.
        batch_size: B, where there are lengths.

    Raises:
        ValueError: a window of none, or blocks of another number of examples.
    """
    if window < 1:
        raise ValueError(f"window is at least 1 block, got {window}")
    if int(blocks[-1]) != len(mask):
        raise ValueError(f"blocks end at {int(blocks[-1])}, the mask at {len(mask)}")
    counts = _counts(mask, blocks)
    touched = counts.nonzero().squeeze(1)
    draw = generator(fold(key, "blocks"))
    touched = touched[torch.randperm(len(touched), generator=draw)]
    ends = counts[touched].cumsum(0)
    size = int(ends[-1]) if len(ends) else 0
    later = ends[window - 1 : -1 : window]  # the last window's end begins none
    starts = torch.cat([torch.zeros(1, dtype=torch.int64), later]).numpy().data
    # The mask as bits, and a copy: it may change while somebody still reads ahead.
    bits = None if size == len(mask) else _bits(mask)
    dtype = _narrow(len(mask))

    def piece(number: int) -> Order:
        taken = touched[number * window : (number + 1) * window]
        spans = zip(blocks[taken].tolist(), blocks[taken + 1].tolist(), strict=True)
        index = torch.cat([_of_block(bits, *span).to(dtype) for span in spans])
        own = fold(key, "window", number)
        drawn = _shuffled(index, len(index), own)
        if lengths is None:
            return drawn
        # So many complete the batch that the window before has begun.
        return _bucketed(drawn, own, lengths, batch_size, -starts[number] % batch_size)

    return LazyOrder(starts, size, piece)


def _counts(mask: Tensor, blocks: Tensor) -> Tensor:
    """How many of each block are selected, ``[S]``."""
    before, total = torch.zeros_like(blocks), 0
    for start in range(0, len(mask), CHUNK):
        sums = mask[start : start + CHUNK].cumsum(0)
        ends = torch.tensor([start, start + len(sums)])
        low, high = torch.searchsorted(blocks, ends, right=True).tolist()
        before[low:high] = total + sums[blocks[low:high] - start - 1]
        total += int(sums[-1])
    return before.diff()


def _bits(mask: Tensor) -> np.ndarray:
    """A mask as one bit an example."""
    return np.packbits(mask.numpy(), bitorder="little")


def _of_block(bits: np.ndarray | None, start: int, end: int) -> Tensor:
    """The selected of the examples from ``start`` to ``end``, in order."""
    if bits is None:
        return torch.arange(start, end)
    flags = np.unpackbits(bits[start // 8 : -(-end // 8)], bitorder="little")
    return torch.from_numpy(np.flatnonzero(flags[start % 8 :][: end - start])).add_(start)


def window_of(source: Source) -> int:
    """How many of its blocks a source wants to be read together: its ``window``, or `WINDOW`."""
    return int(getattr(source, "window", WINDOW))


def order_of_pass(
    mask: Tensor,
    key: int,
    batch_size: int,
    *,
    lengths: Tensor | None = None,
    blocks: Tensor | None = None,
    window: int = WINDOW,
) -> Order:
    """The order of one pass of training: by block, by length, or as drawn.

    Args:
        mask: ``[N]`` bool, on the CPU.
        key: from `attent.pipeline.keyed.fold`.
        batch_size: of all batches but the last.
        lengths: ``[N]``, where batches are of examples of similar length.
        blocks: ``[S + 1]``, where the source has some.
        window: blocks that are read together.
    """
    if blocks is not None:
        return blockwise_order(mask, key, blocks, window, lengths=lengths, batch_size=batch_size)
    if lengths is not None:
        return bucketed_order(mask, key, lengths, batch_size)
    return keyed_order(mask, key)


def longest_first(source: Source) -> Tensor | range:
    """All examples in the order in which passes that draw nothing read them.

    The longest first where a source says ``lengths``, so that batches are of similar length;
    otherwise as they come. As they come, too, where it has ``blocks``, so that each is read once.
    """
    lengths = lengths_of(source)
    if lengths is None or blocks_of(source) is not None:
        return range(len(source))
    return lengths.argsort(descending=True, stable=True)
