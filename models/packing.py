"""Texts of a batch put end to end in fewer rows, none of them seeing another.

Shapes: B texts of at most T tokens, R rows of T places.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Packed:
    """Where the tokens of a batch are.

    Attributes:
        rows: R.
        at: ``[B, T]`` int64, the place of each token among the ``R * T``; 0 where there is none.
        positions: ``[R, T]`` int64, from 0 in each text. Models of transformers that are given
            these and no mask let a token see its own text alone: where positions begin anew,
            another text does.
    """

    rows: int
    at: Tensor
    positions: Tensor

    def put(self, tokens: Tensor, there: Tensor) -> Tensor:
        """Tokens in their places, zeros between them.

        Args:
            tokens: ``[B, T]``.
            there: ``[B, T]`` bool, false where there is only padding.

        Returns:
            ``[R, T]``.
        """
        placed = tokens.new_zeros(self.rows * tokens.shape[1])
        return placed.index_put((self.at[there],), tokens[there]).view(self.rows, -1)


def pack(lengths: Tensor, width: int) -> Packed:
    """Place texts in few rows, by first-fit decreasing: at most 11/9 of the fewest, and one.

    Args:
        lengths: ``[B]`` integers, each at most ``width``.
        width: T.

    Raises:
        ValueError: a text that is longer than a row.
    """
    if int(lengths.max()) > width:
        raise ValueError(f"a text of {int(lengths.max())} tokens in rows of {width}")
    sizes = lengths.tolist()
    filled: list[int] = []
    starts = [0] * len(sizes)
    for i in sorted(range(len(sizes)), key=lambda i: -sizes[i]):
        row = next((r for r, used in enumerate(filled) if used + sizes[i] <= width), len(filled))
        if row == len(filled):
            filled.append(0)
        starts[i] = row * width + filled[row]
        filled[row] += sizes[i]
    device = lengths.device
    place = torch.arange(width, device=device)
    there = place < lengths[:, None]
    at = (torch.tensor(starts, device=device)[:, None] + place) * there
    positions = torch.zeros(len(filled) * width, dtype=torch.int64, device=device)
    positions[at[there]] = place.expand_as(at)[there]
    return Packed(len(filled), at, positions.view(-1, width))
