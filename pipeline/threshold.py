"""Exact top-k of up to 10^8 scores as a mask, in a few passes and little memory.

``torch.topk`` sorts pairs of (value, index): 16 bytes an example beside the scores. Here the k-th
largest value is found by counting: floats are mapped to integers of the same order, a histogram of
their upper 16 bits finds the bin the k-th value is in, one of the lower 16 bits finds the value.
Work is done in chunks, so that nothing but the mask is as long as the scores.
"""

from __future__ import annotations

import torch
from torch import Tensor

from attent.pipeline.keyed import fold, generator

CHUNK = 1 << 20
"""Elements worked on at once: bounds the memory beside scores and mask."""

_LISTED = 1 << 22
"""Ties up to this many are listed, at 8 bytes each."""

_BINS = 1 << 16


def count(ratio: float, num_examples: int) -> int:
    """How many examples a ratio selects: ``k = max(1, floor(ratio * N + 1e-6))``.

    The 1e-6 mends products such as 0.29 * 100 = 28.999999999999996.

    Raises:
        ValueError: a ratio outside (0, 1].
    """
    if not 0 < ratio <= 1:
        raise ValueError(f"ratio must be in (0, 1], got {ratio}")
    return min(num_examples, max(1, int(ratio * num_examples + 1e-6)))


def top_k_mask(values: Tensor, k: int, key: int) -> Tensor:
    """A mask of exactly the k largest values; ties are broken by the key, without favour.

    Args:
        values: ``[N]`` float32 without NaN; infinities are allowed.
        k: 1 <= k <= N.
        key: decides which of several equal values at the threshold are taken.

    Returns:
        ``[N]`` bool with k True.

    Raises:
        ValueError: k out of range, or values that are not a float32 vector.
    """
    if values.dtype != torch.float32 or values.ndim != 1:
        raise ValueError(f"values are a float32 vector, not {values.dtype} {list(values.shape)}")
    if not 1 <= k <= len(values):
        raise ValueError(f"k must be from 1 to {len(values)}, got {k}")
    if k == len(values):
        return torch.ones_like(values, dtype=torch.bool)
    threshold, above, equal = _kth_largest(values, k)
    mask = torch.empty_like(values, dtype=torch.bool)
    for part, out in zip(values.split(CHUNK), mask.split(CHUNK), strict=True):
        torch.gt(part, threshold, out=out)
    if above + equal == k:
        for part, out in zip(values.split(CHUNK), mask.split(CHUNK), strict=True):
            out.logical_or_(part == threshold)
        return mask
    return _add_ties(mask, values, threshold, equal, k - above, key)


def _add_ties(
    mask: Tensor, values: Tensor, threshold: Tensor, equal: int, wanted: int, key: int
) -> Tensor:
    """Take ``wanted`` of the values equal to the threshold, by the order of keyed noise.

    A few are listed. Many have noise for all N instead: a list could be longer than that.
    """
    draw = generator(fold(key, "ties"), values.device)
    if equal <= _LISTED:
        ties = torch.cat(
            [(part == threshold).nonzero().squeeze(1) + start for start, part in _chunks(values)]
        )
        order = torch.randperm(equal, generator=draw, device=values.device)
        mask[ties[order[:wanted]]] = True
        return mask
    noise = torch.rand(len(values), generator=draw, device=values.device)
    for start, part in _chunks(values):
        noise[start : start + len(part)].masked_fill_(part != threshold, -1.0)
    level, above, _ = _kth_largest(noise, wanted)
    # Noise has 2^24 values: the few that tie at the level are taken in order of position.
    left = wanted - above
    for start, part in _chunks(noise):
        chosen = part > level
        at_level = (part == level).nonzero().squeeze(1)[:left]
        chosen[at_level] = True
        left -= len(at_level)
        mask[start : start + len(part)].logical_or_(chosen)
    return mask


def _kth_largest(values: Tensor, k: int) -> tuple[Tensor, int, int]:
    """The k-th largest value, how many are larger, and how many equal it."""
    high = _descending_histogram(values, None)
    upper, above = _bin_of(high, k)
    low = _descending_histogram(values, upper)
    lower, above_within = _bin_of(low, k - above)
    code = torch.tensor([(upper << 16 | lower) - 2**31], device=values.device).to(torch.int32)
    return _floats(code)[0], above + above_within, int(low[lower])


def _bin_of(histogram: Tensor, k: int) -> tuple[int, int]:
    """The bin that holds the k-th largest, and how many lie in the bins above it."""
    from_top = histogram.flip(0).cumsum(0)
    position = int(torch.searchsorted(from_top, torch.tensor(k, device=histogram.device)))
    above = int(from_top[position - 1]) if position else 0
    return len(histogram) - 1 - position, above


def _descending_histogram(values: Tensor, upper: int | None) -> Tensor:
    """Counts of the upper 16 bits, or of the lower 16 bits of those whose upper bits are given."""
    total = torch.zeros(_BINS, dtype=torch.int64, device=values.device)
    for _, part in _chunks(values):
        codes = _codes(part)
        high = (codes >> 16) + _BINS // 2
        if upper is None:
            total += torch.bincount(high, minlength=_BINS)
        else:
            total += torch.bincount(codes[high == upper] & 0xFFFF, minlength=_BINS)
    return total


def _codes(values: Tensor) -> Tensor:
    """int32 in the order of the floats: negative floats have their lower 31 bits flipped.

    -0.0 and 0.0 are equal as floats, so the first is made the second.
    """
    bits = (values + 0.0).view(torch.int32)
    return torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits)


def _floats(codes: Tensor) -> Tensor:
    """The inverse of `_codes`."""
    return torch.where(codes < 0, codes ^ 0x7FFFFFFF, codes).view(torch.float32)


def _chunks(values: Tensor) -> list[tuple[int, Tensor]]:
    return [(i, values[i : i + CHUNK]) for i in range(0, len(values), CHUNK)]
