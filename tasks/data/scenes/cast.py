"""The nearest solid on each of many lines.

Lines come in patches (neighbouring pixels, whose lines are close to one another): a solid is
tested only against the patches that its bounds overlap.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from attent.tasks.data.scenes.layout import BOX, RING, SLOTS
from attent.tasks.data.scenes.lines import ACROSS, BESIDE, BIG, INNER, OUTER, Solids

STEEP = 1e30
"""Makes a step of a ramp: ``(x * STEEP).clamp(0, 1)`` is 1 where x > 0 (faster than `where`)."""

LABEL = 7
"""The last bits of ``s``, which carry the slot: an error of a millionth."""


def step(x: Tensor) -> Tensor:
    """1 where x > 0 and 0 elsewhere, in place."""
    return x.mul_(STEEP).clamp_(0, 1)


def label(s: Tensor, slot: Tensor | int) -> Tensor:
    """Write a slot into the last bits of positive or negative float32 numbers, in place."""
    bits = s.view(torch.int32)
    bits.bitwise_and_(~LABEL).bitwise_or_(slot)
    return s


def positions(mask: np.ndarray) -> Tensor:
    """Where a mask is true, in its flat order.

    NumPy compares and looks through several times as fast as torch.
    """
    return torch.from_numpy(np.flatnonzero(mask))


class Pairs(NamedTuple):
    """Which solids may meet which patches' lines: two lists, in the order of the patches.

    Attributes:
        slot: ``[P]`` int64, counted from 0.
        patch: ``[P]`` int64.
        counts: ``[T]`` int64, how many pairs each patch is in.
    """

    slot: Tensor
    patch: Tensor
    counts: Tensor

    def within(self, parent: Tensor) -> Pairs:
        """What may meet patches that are each a part of one of these, ``parent`` ``[T']``."""
        count = self.counts.index_select(0, parent)
        patch = torch.arange(len(parent)).repeat_interleave(count)
        # Where a patch's pairs begin here, and where its parent's do.
        before = self.counts.cumsum(0).sub_(self.counts).index_select(0, parent)
        before -= count.cumsum(0).sub_(count)
        at = torch.arange(len(patch)) + before.index_select(0, patch)
        return Pairs(self.slot.index_select(0, at), patch, count)


def everything(patches: int) -> Pairs:
    """Every solid and every patch."""
    slot = torch.arange(SLOTS).repeat(patches)
    patch = torch.arange(patches).repeat_interleave(SLOTS)
    return Pairs(slot, patch, torch.full((patches,), SLOTS))


def overlapping(
    solids: Solids, family: Tensor, p: Tensor, q: Tensor, pairs: Pairs, margin: float
) -> Pairs:
    """Those pairs whose bounds overlap.

    Args:
        solids: as V families of lines meet them.
        family: ``[T]`` int64, the family that each patch's lines are of.
        p: float32 ``[c, d, T]``, broadcasts with q to the n = r * c lines of each patch.
        q: float32 ``[r, e, T]``.
        pairs: of T patches.
        margin: by which bounds are widened, in the units of p and q.
    """
    column = family.index_select(0, pairs.patch).mul_(SLOTS).add_(pairs.slot)
    least, most = solids.bounds.index_select(1, column).unflatten(0, (2, 2))
    p, q = p.flatten(0, 1), q.flatten(0, 1)
    ends = torch.stack((p.amin(0), q.amin(0), p.amax(0), q.amax(0)))
    first, last = ends.index_select(1, pairs.patch).unflatten(0, (2, 2))
    shared = torch.minimum(most.sub_(first), last.sub_(least)).amin(0)
    kept = positions(shared.numpy() >= -margin)
    slot, patch = (v.index_select(0, kept) for v in (pairs.slot, pairs.patch))
    return Pairs(slot, patch, torch.bincount(patch, minlength=len(family)))


def cast(solids: Solids, family: Tensor, p: Tensor, q: Tensor, pairs: Pairs) -> Tensor:
    """Where lines first meet a solid, and which one; arguments as of `overlapping`.

    Returns:
        ``[n, T]`` float32: the greatest ``s`` at which each line meets a solid, ``-BIG`` where it
        meets none. The last three bits of its pattern are the solid's slot, counted from 1.
    """
    column = family.index_select(0, pairs.patch).mul_(SLOTS).add_(pairs.slot)
    kinds = solids.kind.index_select(0, column).numpy()
    box, ring = kinds == BOX, kinds == RING
    groups, found = [], []
    for group, rows, meet in (
        (~(box | ring), slice(OUTER.start, ACROSS.stop), _round),
        (box, BESIDE, _box),
        (ring, slice(INNER.start, ACROSS.stop), _ring),
    ):
        which = positions(group)
        table = solids.table[rows].index_select(1, column.index_select(0, which))
        patch = pairs.patch.index_select(0, which)
        s = meet(table[:, None, None], columns(p, patch), columns(q, patch))
        groups.append(which)
        found.append(s.flatten(0, 1))
    order = torch.cat(groups)
    s = label(torch.cat(found, dim=1), pairs.slot.index_select(0, order).add_(1).to(torch.int32))
    column = torch.empty_like(order).scatter_(0, order, torch.arange(len(order)))
    return _nearest(s, column, pairs)


def _nearest(s: Tensor, column: Tensor, pairs: Pairs) -> Tensor:
    """The greatest of each patch's pairs, ``[n, T]``; a pair's own are ``s[:, column[pair]]``."""
    best = s.new_full((len(s), len(pairs.counts)), -BIG)
    counts, first = pairs.counts.numpy(), pairs.counts.cumsum(0).sub_(pairs.counts)
    # First every patch's first pair, then every patch's second, and so on.
    for r in range(int(counts.max())):
        at = positions(counts > r)
        other = s.index_select(1, column.index_select(0, first.index_select(0, at).add_(r)))
        if r:
            torch.maximum(other, best.index_select(1, at), out=other)
        best.scatter_(1, at.expand_as(other), other)
    return best


def columns(x: Tensor, index: Tensor) -> Tensor:
    """``x[:, :, index]``, by way of a matrix, which is much faster."""
    return x.flatten(0, 1).index_select(1, index).unflatten(0, x.shape[:2])


def linear(c: Tensor, p: Tensor, q: Tensor) -> Tensor:
    """Linear forms ``c[0] + c[1] p + c[2] q``."""
    return (c[1] * p).add_(c[0]) + c[2] * q


def _quadric(c: Tensor, p: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
    """Near and far end ``[2, ...]``; the number under the root, negative where there is neither."""
    under = (c[7] * p).add_(c[5]) + c[8] * q
    under = under.mul_(q).add_((c[6] * p).add_(c[4]).mul_(p).add_(c[3]))
    root = under.clamp_min(0).sqrt_()
    return (c[9:11] * root).add_(linear(c[:3], p, q)).add_(c[11:13]), under


def _clip(ends: Tensor, c: Tensor, p: Tensor, q: Tensor) -> None:
    """Cut stretches of lines off at the two planes of a slab, in place."""
    near, far, other = linear(c.unflatten(0, (3, 3)), p, q)
    torch.minimum(ends[0], near, out=ends[0])
    torch.maximum(ends[1], torch.maximum(far, other, out=far), out=ends[1])


def _kept(near: Tensor, *conditions: Tensor) -> Tensor:
    """``near`` where all conditions are at least 0, and about ``-BIG`` elsewhere, in place."""
    for condition in conditions:
        near.add_(condition.clamp_max_(0).mul_(STEEP))
    return near.clamp_min_(-BIG)


def _round(c: Tensor, p: Tensor, q: Tensor) -> Tensor:
    """A ball, a cylinder or a cone."""
    ends, under = _quadric(c, p, q)
    _clip(ends, c[13:], p, q)
    return _kept(ends[0], ends[0] - ends[1], under)


def _box(c: Tensor, p: Tensor, q: Tensor) -> Tensor:
    forms = linear(c.unflatten(0, (3, 9)), p, q)
    near = forms[:3].amin(0)
    return _kept(near, near - forms[3:].amax(0))


def _ring(c: Tensor, p: Tensor, q: Tensor) -> Tensor:
    """A cylinder; a line that enters it through the hole meets it where it leaves the hole."""
    ends, under = _quadric(c[OUTER], p, q)
    _clip(ends, c[ACROSS], p, q)
    near, far = ends
    (hole_near, hole_far), hole = _quadric(c[INNER], p, q)
    torch.minimum(hole, hole_near.sub_(near), out=hole)
    through = step(torch.minimum(hole, near - hole_far))
    near = near * (1 - through) + hole_far * through
    return _kept(near, near - far, under)
