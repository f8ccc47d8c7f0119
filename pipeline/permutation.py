"""Permutations too long to be held: any part of one, a function of its key.

A Feistel network permutes the numbers of so many bits (Luby and Rackoff, SIAM J. Computing 17(2),
1988); a number that falls out of range is permuted again until it falls in (Black and Rogaway,
CT-RSA 2002).
"""

from __future__ import annotations

import torch
from torch import Tensor

from attent.pipeline.keyed import fold, generator, mix

ROUNDS = 6
"""Of the network; four make it pseudo-random where the rounds' functions are."""

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
        if self._table is not None:
            return self._table.to(positions.device)[positions]
        found = self._network(positions.flatten())
        out = (found >= self.size).nonzero().squeeze(1)
        while len(out):
            again = self._network(found[out])
            found[out] = again
            out = out[again >= self.size]
        return found.view(positions.shape)

    def _network(self, x: Tensor) -> Tensor:
        """The network on numbers of its bits: (l, r) -> (r, l xor f(r)), so many times."""
        low, high = self._bits
        left, right = x >> low, x & ((1 << low) - 1)
        widths = high, low  # of left, right
        for key in self._keys:
            left, right = right, left ^ (mix(right ^ key) & ((1 << widths[0]) - 1))
            widths = widths[1], widths[0]
        return (left << widths[1]) | right
