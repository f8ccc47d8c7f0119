"""Where the solids of a scene stand: on the floor or on one another, and not inside one another."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from attent.tasks.data.scenes.layout import BALL, BOX, CONE, CYLINDER, SLOTS, dot

TRIES = 8
"""Places that are tried for each solid; if none will do there is one solid less."""

HIDDEN = 0.1
"""Share of the dominant solid that each solid in front of it may hide, at most."""


LARGEST = 0.6
"""Extent of each other solid in the picture as a share of the dominant one's, at most."""


@dataclass(frozen=True)
class Camera:
    """The camera's entries of a `Layout`."""

    eye: Tensor
    forward: Tensor
    right: Tensor
    down: Tensor


def reach(kind: Tensor, axes: Tensor) -> tuple[Tensor, Tensor]:
    """How far solids reach from their centres.

    Args:
        kind: ``[...]``.
        axes: ``[..., 3, 3]``.

    Returns:
        Downwards, and sideways in the worst direction, ``[...]`` each.
    """
    first, second, third = axes[..., 2].unbind(-1)
    disc = (first.square() + second.square()).sqrt()
    ball = (first.square() + second.square() + third.square()).sqrt()
    box = first.abs() + second.abs() + third.abs()
    down = torch.where(kind == CONE, torch.maximum(-third, third + disc), disc + third.abs())
    down = torch.where(kind == BALL, ball, torch.where(kind == BOX, box, down))
    level = axes[..., 0].square() + axes[..., 1].square()
    widest = torch.maximum(level[..., 0], level[..., 1])
    wide = torch.where(kind == BOX, level[..., 0] + level[..., 1], widest) + level[..., 2]
    wide = torch.where(kind == BALL, torch.maximum(widest, level[..., 2]), wide)
    return down, wide.sqrt()


def place(
    draws: Callable[..., Tensor],
    camera: Camera,
    walls: tuple[Tensor, Tensor, Tensor],
    kind: Tensor,
    axes: Tensor,
    upright: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Put solids down one after another, the dominant one first.

    Args:
        draws: random numbers: ``draws(*shape) -> [B, *shape]``.
        camera: of B scenes.
        walls: cosine and sine ``[B]`` of the first wall's direction, and how far both are
            ``[B, 2]``.
        kind: ``[B, K]``, -1 for none.
        axes: ``[B, K, 3, 3]``.
        upright: ``[B, K]``, whose third axis is vertical.

    Returns:
        Kinds (-1 where there was no room), centres ``[B, K, 3]``, and the axes: a solid that
        stands on another is made no wider than that.
    """
    down, wide = reach(kind, axes)
    centre = torch.zeros_like(axes[:, :, 0])
    centre[:, 0, :2] = draws(2, low=-0.12, high=0.12)
    centre[..., 2] = down
    places = draws(SLOTS - 1, TRIES, 2)
    kind = kind.clone()
    for slot in range(1, SLOTS):
        tried = _tried(places[:, slot - 1], down[:, slot], wide, slot)
        fits = _fits(tried, slot, centre, down, wide, kind, camera, walls)
        if slot == 1:
            fits[:, -1] = True
        # The first that fits: argmax is of the first greatest.
        first = fits.to(torch.uint8).argmax(1)
        centre[:, slot] = tried[torch.arange(len(tried)), first]
        kind[:, slot] = torch.where(fits.any(1), kind[:, slot], -1)
    return _stack(draws, kind, centre, axes, upright)


def _tried(numbers: Tensor, down: Tensor, wide: Tensor, slot: int) -> Tensor:
    """Places on the floor to try for a solid, ``[B, TRIES, 3]``.

    The last for the second solid is beside and behind the dominant one: there is always room.
    """
    x, y = 3.0 * numbers[..., 0] - 1.5, 3.0 * numbers[..., 1] - 1.3
    if slot == 1:
        side = torch.where(x[:, -1] < 0, -1.0, 1.0)
        away = wide[:, 0] + wide[:, 1] + 0.2
        x[:, -1], y[:, -1] = 0.8 * side * away, 0.6 * away
    return torch.stack((x, y, down[:, None].expand_as(x)), dim=-1)


def _fits(
    tried: Tensor,
    slot: int,
    centre: Tensor,
    down: Tensor,
    wide: Tensor,
    kind: Tensor,
    camera: Camera,
    walls: tuple[Tensor, Tensor, Tensor],
) -> Tensor:
    """Which places ``[B, TRIES]`` are free, in the room, in the picture, and hide little."""
    away = tried[:, :, None, :2] - centre[:, None, :slot, :2]
    gap = (away[..., 0].square() + away[..., 1].square()).sqrt()
    near = gap < (wide[:, :slot] + wide[:, slot, None]).unsqueeze(1) + 0.03
    free = ~(near & (kind[:, None, :slot] >= 0)).any(-1)
    cos, sin, offset = walls[0].unsqueeze(1), walls[1].unsqueeze(1), walls[2] - 0.02
    x, y = tried[..., 0], tried[..., 1]
    free &= sin * x + cos * y + wide[:, slot, None] < offset[:, :1]
    free &= sin * y - cos * x + wide[:, slot, None] < offset[:, 1:]
    x, y, z, rx, ry = _seen(tried, down[:, slot, None], wide[:, slot, None], camera)
    free &= (z > 1.0 + wide[:, slot, None]) & (x.abs() < 0.9) & (y.abs() < 0.9)
    x0, y0, z0, rx0, ry0 = _seen(centre[:, :1], down[:, :1], wide[:, :1], camera)
    overlap = [
        (torch.minimum(a + ra, b + rb) - torch.maximum(a - ra, b - rb)).clamp_min(0)
        for a, ra, b, rb in ((x, rx, x0, rx0), (y, ry, y0, ry0))
    ]
    hidden = overlap[0] * overlap[1]
    free &= rx * ry < LARGEST * rx0 * ry0
    behind = z > z0
    free &= behind | (hidden < HIDDEN * 4 * rx0 * ry0)
    return free & (~behind | (hidden < 0.5 * 4 * rx * ry))


def _seen(
    centre: Tensor, down: Tensor, wide: Tensor, camera: Camera
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """About where solids appear: x and y in [-1, 1], depth, and half their width and height."""
    away = centre - camera.eye.unsqueeze(1)
    depth = dot(away, camera.forward.unsqueeze(1))
    zoom = 1 / dot(camera.right, camera.right).sqrt().unsqueeze(1)
    x = dot(away, camera.right.unsqueeze(1)) * zoom * zoom / depth
    y = dot(away, camera.down.unsqueeze(1)) * zoom * zoom / depth
    return x, y, depth, wide * zoom / depth, down * zoom / depth


def _stack(
    draws: Callable[..., Tensor], kind: Tensor, centre: Tensor, axes: Tensor, upright: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Put the second solid on one with a flat top, in about half of the scenes that have one."""
    flat = ((kind == BOX) | (kind == CYLINDER)) & upright
    flat[:, 1] = False
    # What stands in front of the dominant solid must not be made higher.
    flat &= centre[..., 1] >= centre[:, :1, 1] - 0.05
    host = torch.where(flat, draws(SLOTS), -1).argmax(1)
    stacked = flat.any(1) & (kind[:, 1] >= 0) & (draws() < 0.5)
    rows = torch.arange(len(kind))
    top = axes[rows, host, 0]
    radius = dot(top, top).sqrt()
    other = axes[rows, host, 1]
    radius = torch.minimum(radius, dot(other, other).sqrt())
    _, wide = reach(kind[:, 1], axes[:, 1])
    shrink = torch.where(stacked, (radius / wide).clamp_max(1), 1)
    axes = axes.clone()
    axes[:, 1] = axes[:, 1] * shrink[:, None, None]
    down, _ = reach(kind[:, 1], axes[:, 1])
    host_down, _ = reach(kind[rows, host], axes[rows, host])
    on_top = centre[rows, host].clone()
    on_top[:, 2] = on_top[:, 2] + host_down + down
    aside = (draws(2) - 0.5) * ((radius - wide * shrink).clamp_min(0) + 0.1 * radius)[:, None]
    on_top[:, :2] = on_top[:, :2] + aside
    centre = centre.clone()
    centre[:, 1] = torch.where(stacked[:, None], on_top, centre[:, 1])
    return kind, centre, axes
