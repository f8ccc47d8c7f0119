"""Permutations too long to be held: any part of one, a function of its key.

A Feistel network permutes the numbers of so many bits (Luby and Rackoff, SIAM J. Computing 17(2),
1988); a number that falls out of range is permuted again until it falls in (Black and Rogaway,
CT-RSA 2002).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from attent.pipeline.keyed import fold, generator, mix

ROUNDS = 6
"""Of the network; four make it pseudo-random where the rounds' functions are."""

TABLED = 16
"""Halves of up to so many bits: what a round does to each is looked up, 3 MiB in all."""

CHUNK = 2**16
"""Places worked on at once: what lies between fits a processor's cache."""

SMALL = 2**12
"""Up to so many, the permutation is drawn whole: a network of few bits has few to choose from."""


class Permutation:
    """A permutation of ``range(size)``, a function of its key, in memory that does not grow.

    ``permutation(positions)`` says what stands at those places; asking for a part takes time in
    proportion to the part.

    Args:
        size: n, at least 1, at most 2^62.
        key: from `attent.pipeline.keyed.fold`.

    Raises:
        ValueError: a size out of range.
    """

    def __init__(self, size: int, key: int) -> None:
        if not 1 <= size <= 2**62:
            raise ValueError(f"a permutation is of 1 to 2^62 numbers, got {size}")
        self.size = size
        self._table: Tensor | None = None
        if size <= SMALL:
            self._table = torch.randperm(size, generator=generator(key))
        bits = max(1, (size - 1).bit_length())
        # Halves of a and b bits change places in every round.
        self._bits = bits // 2, bits - bits // 2
        self._keys = [fold(key, "round", i) for i in range(ROUNDS)]
        self._rounds: list[Tensor] = []
        if self._table is None and self._bits[1] <= TABLED:
            self._rounds = [
                self._round(i, torch.arange(1 << self._right(i))) for i in range(ROUNDS)
            ]

    def __len__(self) -> int:
        return self.size

    def __call__(self, positions: Tensor | slice) -> Tensor:
        """What stands at some places.

        Args:
            positions: int64 of any shape, each in ``[0, n)``; or a slice of them.

        Returns:
            int64 of the same shape.

        Raises:
            IndexError: a place out of range.
        """
        if isinstance(positions, slice):
            positions = torch.arange(*positions.indices(self.size))
        if positions.numel() and not 0 <= int(positions.min()) <= int(positions.max()) < self.size:
            raise IndexError(
                f"places are in [0, {self.size}), got {int(positions.min())} to "
                f"{int(positions.max())}"
            )
        return self._walk(positions, lambda found: found >= self.size)

    def among(self, numbers: Tensor, dropped: Callable[[Tensor], Tensor]) -> Tensor:
        """A permutation of some of the numbers alone, at those places.

        Each goes where the permutation sends it and on from there, until it comes to one that is
        not dropped: in n / k steps, where there are k of those.

        Args:
            numbers: int64 of any shape, none of them dropped.
            dropped: int64 ``[m]`` in ``[0, n)`` -> bool ``[m]``.

        Returns:
            int64 of the same shape, none of them dropped.
        """
        last = self.size - 1
        return self._walk(
            numbers, lambda found: (found > last).logical_or_(dropped(found.clamp(max=last)))
        )

    def _walk(self, places: Tensor, wrong: Callable[[Tensor], Tensor]) -> Tensor:
        """The network, again and again for what is wrong still."""
        parts = []
        for part in places.flatten().split(CHUNK):
            found = self._network(part)
            out = wrong(found).nonzero().squeeze(1)
            while len(out):
                again = self._network(found.index_select(0, out))
                found.scatter_(0, out, again)
                out = out.masked_select(wrong(again))
            parts.append(found)
        return torch.cat(parts).view(places.shape)

    def _network(self, x: Tensor) -> Tensor:
        """The network on numbers of its bits: (l, r) -> (r, l xor f(r)), so many times."""
        if self._table is not None:
            return self._table.to(x.device).index_select(0, x)
        low = self._right(0)
        left, right = x >> low, x & ((1 << low) - 1)
        looked_up = self._rounds if x.device.type == "cpu" else []
        for i in range(ROUNDS):
            f = looked_up[i].index_select(0, right) if looked_up else self._round(i, right)
            left, right = right, f.bitwise_xor_(left)
        return (left << self._right(ROUNDS)) | right

    def _right(self, i: int) -> int:
        """Bits of the right half before a round; the left one has the others."""
        return self._bits[i % 2]

    def _round(self, i: int, right: Tensor) -> Tensor:
        """What a round mixes into the left half."""
        return mix(right ^ self._keys[i]) & ((1 << self._right(i + 1)) - 1)
