"""What is seen where lines of sight end: its colour, from the surface and the light there."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from attent.tasks.data.scenes.cast import (
    LABEL,
    Pairs,
    cast,
    label,
    linear,
    overlapping,
    positions,
    step,
)
from attent.tasks.data.scenes.layout import FAR, SLOTS
from attent.tasks.data.scenes.surface import dot, highlight, normals, parity, pattern
from attent.tasks.data.scenes.world import COLOURS, SCENE, SURFACE, World

CLEARANCE = 2e-3
"""Metres that a solid must be above a point to shade it."""

REACH = 0.1
"""Metres by which what a pixel's parts show may be beside what its patch shows."""

FARTHEST = float(label(torch.tensor([1 / FAR]), 0))
"""One over the sky's depth."""


class Rays(NamedTuple):
    """The lines of sight of T patches: n = r * c of each, or n that are in no order.

    Attributes:
        scene: ``[T]`` int64, the scene that each patch is of.
        rows: ``[C, T]`` float32, `World.scenes` of those scenes.
        p: float32 ``[1, c, T]`` or ``[n, 1, T]``, -1 to 1 from the picture's left to its right.
        q: float32 ``[r, 1, T]`` or ``[n, 1, T]``, -1 to 1 from top to bottom.
    """

    scene: Tensor
    rows: Tensor
    p: Tensor
    q: Tensor


class Parts(NamedTuple):
    """What solids may be seen in patches, and may shade them: lights one after the other."""

    seen: Pairs
    lit: Pairs

    def within(self, parent: Tensor) -> Parts:
        """Those of patches that are each a part of one of these, ``parent`` ``[T']``."""
        both = torch.cat((parent, parent + len(self.seen.counts)))
        return Parts(self.seen.within(parent), self.lit.within(both))


class Seen(NamedTuple):
    """What is seen; all ``[n, T]``.

    Attributes:
        near: float32, one over the depth.
        slot: int32, the solid's slot counted from 1, or 0.
        wall: float32, which wall is behind it, counted from 1, or 0 for the floor and the sky.
    """

    near: Tensor
    slot: Tensor
    wall: Tensor


def look(world: World, rays: Rays, pairs: Pairs, margin: float) -> tuple[Seen, Pairs]:
    """What is seen.

    Args:
        world: B scenes.
        rays: along which to look.
        pairs: which solids may be seen in which patches.
        margin: added around solids in the pairs returned, in the units of p and q.

    Returns:
        Also the pairs that are left.
    """
    scene, rows, p, q = rays
    pairs = overlapping(world.solids, scene, p, q, pairs, margin)
    near = cast(world.solids, scene, p, q, pairs)
    floor, first, second = _forms(rows[SCENE["grounds"]], p, q)
    walls = torch.maximum(first, second).clamp_min_(1 / FAR)
    # 0 for floor and sky; a wall that is seen is before both.
    wall = step(walls - floor.clamp_min(1 / FAR))
    wall.mul_(step(second.sub_(first)).add_(1))
    near = torch.maximum(near, label(torch.maximum(walls, floor), 0))
    return Seen(near, near.view(torch.int32) & LABEL, wall), pairs


def shade(
    world: World, rays: Rays, seen: Seen, pairs: Pairs, margin: float
) -> tuple[Tensor, Pairs]:
    """The light that comes from what is seen, ``[3, n, T]`` float32: red, green and blue.

    Args:
        world: B scenes.
        rays: as in `look`.
        seen: from `look`.
        pairs: which solids may shade which patches, of 2 T patches, T for each light.
        margin: added around solids in the pairs returned, in metres.

    Returns:
        Also the pairs that are left.
    """
    scene, rows, p, q = rays
    rows = rows.unsqueeze(1)
    depth = seen.near.reciprocal()
    ways = _forms(rows[SCENE["rays"]], p, q)
    point = (ways * depth).add_(rows[SCENE["eye"]])
    lit, pairs = _unshaded(world, scene, rows[SCENE["beams"]], point, pairs, margin)
    facing = _facing(rows[SCENE["facing"]].unflatten(0, (3, 2)), seen.wall)
    tiles = rows[SCENE["tiles"]]
    colour = parity((point * tiles[:3]).add_(tiles[3:])).add_(seen.wall, alpha=2).to(torch.int32)
    colour += (scene * COLOURS).to(torch.int32)
    gloss = _solids(world, scene, seen.slot, point, facing, colour)
    first, second = facing.mul_(lit)
    glow, sky = rows[SCENE["glow"]], rows[SCENE["sky"]]
    light = (glow[:3] * first).add_(glow[3:] * second).add_(rows[SCENE["ambient"]])
    light *= world.colours.index_select(1, colour.view(-1)).view_as(light)
    light += gloss.mul_(lit[0]) * glow[:3]
    up = ways[2].mul_(1.4).clamp_(0, 1)
    air = (sky[3:] * up).add_(sky[:3])
    haze = depth.mul_(1 / FAR).square_()
    return light.add_(air.sub_(light).mul_(haze)), pairs


def _forms(rows: Tensor, p: Tensor, q: Tensor) -> Tensor:
    """Linear forms of p and q, ``[3, n, T]``."""
    return linear(rows.view(3, 3, 1, 1, -1), p, q).flatten(1, 2)


def _facing(rows: Tensor, wall: Tensor) -> Tensor:
    """Each light's cosine on floor and walls, ``[2, n, T]``."""
    second = rows[2] * (wall - 1).clamp_min_(0)
    return second.add_(rows[1] * wall.clamp_max(1)).add_(rows[0])


def _unshaded(
    world: World, scene: Tensor, beams: Tensor, point: Tensor, pairs: Pairs, margin: float
) -> tuple[Tensor, Pairs]:
    """1 where each light reaches a point, 0 where a solid is in between, ``[2, n, T]``."""
    count = len(scene)
    x, y, z = point
    place = torch.empty(3, len(x), 2 * count)
    for part, axes in zip(place.chunk(2, dim=2), beams.view(2, 3, 3, 1, count), strict=True):
        torch.mul(axes[0], x, out=part).add_(axes[1] * y).add_(axes[2] * z)
    p, q, height = place.unsqueeze(2)
    family = torch.cat((scene + len(world), scene + 2 * len(world)))
    pairs = overlapping(world.solids, family, p, q, pairs, margin)
    above = cast(world.solids, family, p, q, pairs)
    reached = step(height.squeeze(1).add_(CLEARANCE).sub_(above))
    return reached.view(-1, 2, count).transpose(0, 1), pairs


def _solids(
    world: World, scene: Tensor, slot: Tensor, point: Tensor, facing: Tensor, colour: Tensor
) -> Tensor:
    """Write the solids' cosines to the lights and their colours over those of what is behind them.

    Returns:
        The strength of the highlights, ``[n, T]``.
    """
    gloss = torch.zeros_like(point[0])
    at = positions(slot.numpy() != 0)
    row = (slot + (scene * SLOTS - 1).to(torch.int32)).view(-1).index_select(0, at)
    rows = world.surfaces.index_select(1, row)
    where = point.flatten(1).index_select(1, at)
    local = rows[SURFACE["local"]].unflatten(0, (3, 3))
    own = dot(local, where.unsqueeze(1)).add_(rows[SURFACE["shift"]])
    normal = normals(world.solids.kind.index_select(0, row), own)
    normal = dot(normal.unsqueeze(1), local.transpose(0, 1))
    normal *= dot(normal, normal).rsqrt_()
    lights = rows[SURFACE["light"]].unflatten(0, (3, 2))
    cosines = dot(lights, normal.unsqueeze(1)).clamp_min_(0)
    facing.flatten(1).scatter_(1, at.expand(2, -1), cosines)
    view = rows[SURFACE["eye"]] - where
    shine = highlight(normal, view, lights[:, 0], cosines[0]).mul_(rows[SURFACE["gloss"]][0])
    gloss.view(-1).scatter_(0, at, shine)
    odd = pattern(own, rows[SURFACE["scale"]], rows[SURFACE["phase"]], rows[SURFACE["speckled"]][0])
    # The solids' colours come after those of floor and walls.
    grounds = COLOURS - 2 * SLOTS
    first = torch.div(row, SLOTS, rounding_mode="floor").add_(1).mul_(grounds).add_(row, alpha=2)
    colour.view(-1).scatter_(0, at, first.add_(odd.to(torch.int32)))
    return gloss
