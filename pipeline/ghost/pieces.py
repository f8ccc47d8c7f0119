"""Per-example gradients in parts, and their norms without forming them.

The gradient of one example with respect to one parameter is a sum of pieces, one for each use of
the parameter in the forward. Most uses are matrix products, whose piece is a sum of outer products
over the positions of the example: its norm follows from two small Gram matrices (Goodfellow,
arXiv:1510.01799; Li et al., ICLR 2022, "ghost clipping"), or from the product itself where that is
cheaper.

Shapes: B examples, T positions, a parameter of m rows and n columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

GRAM_COST = 1.0
"""What a multiplication of the Gram form costs in ones of the direct form.

By symmetry a quarter of them is saved; the smaller products take that back.
"""

FUSE_ABOVE = 0.3
"""In training the sum of the gradients is wanted too. From this ratio of multiplications on, Gram
to direct, forming each gradient and summing costs less than the ordinary gradient and the Gram."""

HELD = {"cpu": 1 << 18, "cuda": 1 << 26}
"""How many numbers of formed gradients are held at once: what stays in a core's cache."""


class GhostError(RuntimeError):
    """Gradient norms that cannot be had this way; the message names what is in the way."""


class Rows:
    """One side of a sum of outer products, ``[B, T, n]``.

    Layers that share an input share its Gram matrix: it is computed once and kept.

    Args:
        values: ``[B, T, n]``.
        guard: the tensor that the values are a view of; if it is written to before they are used,
            the norm would be wrong.
    """

    def __init__(self, values: Tensor, guard: Tensor | None = None) -> None:
        self._values = values
        self._guard = guard
        self._version = None if guard is None else guard._version
        self._shared = False
        self._gram: list[Tensor] | None = None

    @property
    def values(self) -> Tensor:
        """The rows.

        Raises:
            GhostError: they were written over since the forward.
        """
        if self._guard is not None and self._guard._version != self._version:
            raise GhostError(
                "the input of a layer was changed in place after the layer had used it, so that "
                "its gradient norm cannot be computed: make that operation out of place"
            )
        return self._values

    @property
    def shape(self) -> torch.Size:
        """``[B, T, n]``."""
        return self._values.shape

    def share(self) -> None:
        """Say that more than one layer has this input."""
        self._shared = True

    def gram(self) -> list[Tensor]:
        """The products of all pairs of rows, ``[B, T, T]``, as `_halves`: it is symmetric."""
        if self._gram is not None:
            return self._gram
        values = self.values
        gram = [values[:, low:high] @ values[:, :high].mT for low, high in _halves(values.shape[1])]
        if self._shared:
            self._gram = gram
        return gram


def _halves(positions: int) -> list[tuple[int, int]]:
    """Spans of rows; of each, the columns up to its end are computed."""
    if positions < 16:
        return [(0, positions)]
    return [(0, positions // 2), (positions // 2, positions)]


@dataclass(frozen=True)
class Dense:
    """A per-example gradient that is small enough to hold, ``[B, *shape]``."""

    grad: Tensor

    def squares(self) -> Tensor:
        """Its squared norms, ``[B]``."""
        return square_sum(self.grad)

    def dense(self) -> Tensor:
        """Itself."""
        return self.grad


@dataclass(frozen=True)
class Outer:
    """``sum over t of left[b, t] right[b, t]^T``, a gradient of ``[m, n]`` for each example."""

    left: Rows
    right: Rows
    shape: torch.Size
    """Of the parameter: as many numbers as ``[m, n]``."""

    @property
    def ratio(self) -> float:
        """Multiplications of its two Gram matrices, over those of forming it."""
        positions, m, n = self.left.shape[1], self.left.shape[2], self.right.shape[2]
        return positions * (m + n) / (m * n)

    def squares(self) -> Tensor:
        """Its squared norms, ``[B]``."""
        if self.left.shape[1] == 1:
            return square_sum(self.left.values) * square_sum(self.right.values)
        if self.ratio * GRAM_COST > 1:
            return self.formed()[0]
        halves = _halves(self.left.shape[1])
        total = torch.zeros((), device=self.left.values.device)
        for (low, _), a, b in zip(halves, self.left.gram(), self.right.gram(), strict=True):
            products = _float(a) * _float(b)
            # What is beside the diagonal block stands for its mirror image too.
            total = total + 2 * products.sum((1, 2)) - products[:, :, low:].sum((1, 2))
        return total.clamp_min(0)  # rounding may take it a little below zero

    def formed(self, *, summed: bool = False) -> tuple[Tensor, Tensor | None]:
        """Its squared norms, ``[B]``, and its sum over the examples, by forming a few at a time."""
        left, right = _alike(self.left.values.mT, self.right.values)
        size, m, n = len(left), left.shape[1], right.shape[2]
        step = max(1, HELD.get(left.device.type, HELD["cuda"]) // (m * n))
        squares, total = [], None
        for start in range(0, size, step):
            grad = left[start : start + step] @ right[start : start + step]
            squares.append(square_sum(grad))
            if summed:
                part = grad[0] if step == 1 else grad.sum(0)
                total = part.clone() if total is None else total.add_(part)
        return torch.cat(squares), None if total is None else total.reshape(self.shape)

    def dense(self) -> Tensor:
        """The gradients themselves, ``[B, *shape]``."""
        left, right = _alike(self.left.values.mT, self.right.values)
        return (left @ right).reshape(-1, *self.shape)


@dataclass(frozen=True)
class Lookup:
    """Rows of a table that were looked up: ``sum over t of onehot(index[b, t]) right[b, t]^T``."""

    index: Tensor
    """``[B, T]``"""
    right: Rows
    shape: torch.Size
    """Of the table, ``[m, n]``."""

    def squares(self) -> Tensor:
        """Its squared norms, ``[B]``: repeated rows of an example are summed first."""
        size, positions = self.index.shape
        example = torch.arange(size, device=self.index.device)[:, None]
        cells, place = torch.unique(example * self.shape[0] + self.index, return_inverse=True)
        values = self.right.values.reshape(size * positions, -1)
        sums = values.new_zeros(len(cells), values.shape[1]).index_add_(0, place.flatten(), values)
        squares = square_sum(sums)
        rows = cells.div(self.shape[0], rounding_mode="floor")
        return squares.new_zeros(size).index_add_(0, rows, squares)

    def dense(self) -> Tensor:
        """The gradients themselves, ``[B, m, n]``."""
        values = self.right.values
        held = values.new_zeros(len(values), *self.shape)
        return held.scatter_add_(1, self.index[:, :, None].expand_as(values), values)


Piece = Dense | Outer | Lookup


def squared_norms(pieces: Sequence[Piece]) -> Tensor:
    """The squared norm of a sum of pieces of one parameter, ``[B]``.

    Norms do not add: pieces of a parameter that is used several times are summed, or the products
    between them are.
    """
    if len(pieces) == 1:
        return pieces[0].squares()
    if any(isinstance(piece, Dense) for piece in pieces):
        return square_sum(dense_sum(pieces))
    outers = _joined([piece for piece in pieces if isinstance(piece, Outer)])
    lookups = _joined_lookups([piece for piece in pieces if isinstance(piece, Lookup)])
    total = torch.zeros((), device=_device(pieces[0]))
    for piece in (outers, lookups):
        if piece is not None:
            total = total + piece.squares()
    if outers is not None and lookups is not None:
        total = total + 2 * _cross(outers, lookups)
    return total


def dense_sum(pieces: Sequence[Piece]) -> Tensor:
    """The sum of pieces of one parameter, formed, ``[B, *shape]``."""
    total = pieces[0].dense()
    for piece in pieces[1:]:
        total = total + piece.dense()
    return total


def square_sum(values: Tensor) -> Tensor:
    """The sum of squares of each example, ``[B]``, in float32 at least."""
    flat = _float(values.reshape(len(values), -1))
    return torch.linalg.vecdot(flat, flat)


def _alike(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Two factors of a product in one type: in autocast an input may be wider than a gradient."""
    dtype = torch.promote_types(a.dtype, b.dtype)
    return a.to(dtype), b.to(dtype)


def _float(values: Tensor) -> Tensor:
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values


def _joined(outers: list[Outer]) -> Outer | None:
    """Several sums of outer products as one, over the positions of them all."""
    if len(outers) < 2:
        return outers[0] if outers else None
    left = Rows(_concatenated([piece.left.values for piece in outers]))
    right = Rows(_concatenated([piece.right.values for piece in outers]))
    return Outer(left, right, outers[0].shape)


def _concatenated(parts: list[Tensor]) -> Tensor:
    dtype = parts[0].dtype
    for part in parts:
        dtype = torch.promote_types(dtype, part.dtype)
    return torch.cat([part.to(dtype) for part in parts], dim=1)


def _joined_lookups(lookups: list[Lookup]) -> Lookup | None:
    if len(lookups) < 2:
        return lookups[0] if lookups else None
    index = torch.cat([piece.index for piece in lookups], dim=1)
    right = Rows(_concatenated([piece.right.values for piece in lookups]))
    return Lookup(index, right, lookups[0].shape)


def _cross(outer: Outer, lookup: Lookup) -> Tensor:
    """The inner products of the two gradients: a table that is also the head, ``[B]``."""
    looked, right = _alike(lookup.right.values, outer.right.values.mT)
    products = looked @ right
    positions = outer.left.shape[1]
    index = lookup.index[:, None, :].expand(-1, positions, -1)
    picked = outer.left.values.gather(2, index)
    flat, other = products.transpose(1, 2).flatten(1), picked.flatten(1)
    return torch.linalg.vecdot(flat.float(), other.float())


def _device(piece: Piece) -> torch.device:
    return piece.grad.device if isinstance(piece, Dense) else piece.right.values.device
