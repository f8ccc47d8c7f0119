"""Surfaces of solids at points on them; vectors are ``[3, M]`` float32."""

from __future__ import annotations

import torch
from torch import Tensor

from attent.tasks.data.scenes.cast import positions, step
from attent.tasks.data.scenes.layout import BOX, HOLE


def dot(a: Tensor, b: Tensor) -> Tensor:
    """Inner products over the first dimension."""
    return (a[0] * b[0]).add_(a[1] * b[1]).add_(a[2] * b[2])


PROFILES = (
    torch.tensor(
        [
            [0.0, 0.0, -9.0, 1.0, 0.0],  # ball: nothing but a side
            [0.0, 0.0, 0.0, 0.0, 0.0],  # box: not used
            [1.0, 0.0, -9.0, 0.0, 0.0],  # cylinder
            [0.5, -0.5, -9.0, 0.0, 0.25],  # cone
            [1.0, 0.0, HOLE, 0.0, 0.0],  # ring
        ]
    )
    .t()
    .contiguous()
)
"""What the sides of round shapes are like: radius at z = 0, how it grows with z, radius of the
hole, and what the normal's z is made of: a share of z and a share of 1 - z."""


def normals(kind: Tensor, own: Tensor) -> Tensor:
    """Outward normals, of any length, in the coordinates of the solids that points are on.

    Args:
        kind: ``[M]``.
        own: ``[3, M]``, points in those coordinates.
    """
    radius, grows, hole, own_z, slope = PROFILES.index_select(1, kind)
    x, y, z = own
    distance = (x * x).add_(y * y).sqrt_()
    # A point is on that one of the solid's surfaces that it is least inside of.
    outer = (grows * z).add_(radius).neg_().add_(distance)
    inner = hole - distance
    side = step(torch.maximum(outer, inner).sub_(z.abs()).add_(1))
    # Outwards is inwards on the inner side.
    across = step(outer - inner).mul_(2).sub_(1).mul_(side)
    up = (own_z * z).add_((1 - z).mul_(slope)).sub_(z).mul_(side).add_(z)
    result = torch.stack((x * across, y * across, up))
    at = positions(kind.numpy() == BOX)
    return result.scatter_(1, at.expand(3, -1), _box(own.index_select(1, at)))


def _box(own: Tensor) -> Tensor:
    size = own.abs()
    return (size >= size.amax(0)) * own


def parity(cells: Tensor) -> Tensor:
    """0 or 1: whether points ``[3, ...]`` are in an odd cell of a chequered space; overwrites."""
    x, y, z = cells.floor_()
    total = x.add_(y).add_(z)
    return total.sub_((total * 0.5).floor_().mul_(2))


def pattern(own: Tensor, scale: Tensor, phase: Tensor, speckled: Tensor) -> Tensor:
    """0 or 1: which of a solid's two colours a point has.

    Args:
        own: ``[3, M]``, points in the solids' own coordinates.
        scale: ``[3, M]``, cells for each unit.
        phase: ``[3, M]``, where the first begins.
        speckled: ``[M]``, 1 for spots in the cells, 0 for cells that take turns.
    """
    at = (own * scale).add_(phase)
    cells = at.floor()
    away = at.sub_(cells).sub_(0.5)
    # A number of each cell that looks random, from arithmetic that rounds alike everywhere.
    noise = (cells[0] * 0.3127).add_(cells[1] * 0.7419).add_(cells[2] * 0.5381)
    for factor in (37.13, 61.57):
        noise = (noise - noise.floor()).mul_(factor)
    noise -= noise.floor()
    spot = step(noise.mul_(0.3).add_(0.04).sub_(dot(away, away)))
    return parity(cells).mul_(1 - speckled).add_(spot.mul_(speckled))


def highlight(normal: Tensor, view: Tensor, light: Tensor, cosine: Tensor) -> Tensor:
    """Blinn's highlight, ``[M]``: the cosine to halfway between eye and light, to the 32nd power.

    Args:
        normal: ``[3, M]``, unit length.
        view: ``[3, M]``, towards the eye.
        light: ``[3, M]``, towards the light, unit length.
        cosine: ``[M]``, of normal and light, or 0 where it is negative: no highlight.
    """
    far = dot(view, view).sqrt_()
    along = dot(normal, view).div_(far).add_(cosine).clamp_min_(0)
    both = dot(light, view).div_(far).mul_(2).add_(2).clamp_min_(1e-3)
    shine = along.square_().div_(both)
    for _ in range(4):
        shine.square_()
    return shine.mul_(step(cosine.clone()))
