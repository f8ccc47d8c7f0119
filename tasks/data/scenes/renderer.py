"""Scenes to pictures."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from attent.tasks.data.scenes.cast import everything, positions
from attent.tasks.data.scenes.layout import FLOOR, SKY, SLOTS, WALL, Layout
from attent.tasks.data.scenes.shade import FARTHEST, REACH, Parts, Rays, Seen, look, shade
from attent.tasks.data.scenes.world import World, make_ready

VERSION = 2
"""Raised when the same parameters give other pictures."""

PATCH = 8
"""Side in pixels of the patches that rays are traced in."""

CONTRAST = 32
"""Difference of neighbouring pixels, of 255, above which they are smoothed."""

OFFSETS = torch.tensor([[0.425, -0.311, -0.114], [0.114, 0.311, -0.425]])
"""To the right and down, in pixels, of the rays traced beside that through a smoothed pixel's
middle: a triangle so turned that no two of the four are in one row or column. They come as near to
many rays' mean as a square of four new ones, for three quarters of the work."""

PIXELS = 2**17
"""Pixels that are traced together: what is done to them stays in the processor's cache."""


def render(layout: Layout, size: int, *, smooth: bool = True) -> dict[str, Tensor]:
    """Pictures of B scenes, of ``size`` x ``size`` pixels.

    A scene's pictures are the same to the last bit whatever else is in the batch: all that is done
    to numbers is exact or rounds alike wherever it is done.

    Args:
        layout: of the scenes.
        size: side in pixels.
        smooth: trace four rays instead of one for pixels that differ from a neighbour.

    Returns:
        ``rgb`` uint8 ``[B, 3, S, S]``; of the ray through each pixel's middle: ``depth`` float32
        ``[B, 1, S, S]`` in metres along the camera's axis, ``semseg`` uint8 ``[B, S, S]`` in
        `SEMANTIC_CLASSES`, ``instances`` uint8 ``[B, S, S]``, slots counted from 1 or 0; and
        ``boxes`` float32 ``[B, K, 4]``, the first column and row of each solid's pixels and those
        after the last, zero where it has none, and ``box_labels`` int64 ``[B, K]``, its shape
        counted from 1, or 0 where it has no pixel.
    """
    batch = len(layout)
    world = make_ready(layout)
    kinds = torch.cat((torch.zeros_like(layout.kind[:, :1]), layout.kind + 1 + SKY), dim=1)
    result = {
        "rgb": torch.empty(batch, 3, size, size, dtype=torch.uint8),
        "depth": torch.empty(batch, 1, size, size),
        "semseg": torch.empty(batch, size, size, dtype=torch.uint8),
        "instances": torch.empty(batch, size, size, dtype=torch.uint8),
    }
    together = max(1, PIXELS // size**2)
    for first in range(0, batch, together):
        scenes = torch.arange(first, min(first + together, batch))
        _trace(world, scenes, kinds.to(torch.uint8), smooth, result)
    result["boxes"], seen = _boxes(result["instances"])
    result["box_labels"] = (layout.kind + 1) * seen
    return result


def _trace(
    world: World, scenes: Tensor, kinds: Tensor, smooth: bool, result: dict[str, Tensor]
) -> None:
    """Write the pictures of some consecutive scenes."""
    size = result["rgb"].shape[-1]
    side = -(-size // PATCH)  # patches across; what is beyond the picture is thrown away
    rays = _patches(world, scenes, side, size)
    patches = len(rays.scene)
    pairs = everything(patches), everything(2 * patches)
    seen, seen_pairs = look(world, rays, pairs[0], margin=1 / size)
    light, lit_pairs = shade(world, rays, seen, pairs[1], margin=REACH)

    def picture(x: Tensor) -> Tensor:
        """``[n, T]`` as ``[B, S, S]``."""
        x = x.view(PATCH, PATCH, len(scenes), side, side).permute(2, 3, 0, 4, 1)
        x = x.reshape(len(scenes), PATCH * side, PATCH * side)
        return x[:, :size, :size].contiguous()

    rgb = torch.stack([picture(x) for x in _bytes(light)])
    if smooth:
        _smooth(world, scenes, rgb, Parts(seen_pairs, lit_pairs))
    part = slice(int(scenes[0]), int(scenes[-1]) + 1)
    result["rgb"][part] = rgb.transpose(0, 1)
    result["depth"][part, 0] = picture(seen.near).reciprocal_()
    result["instances"][part] = picture(seen.slot.to(torch.uint8))
    result["semseg"][part] = picture(_semantics(seen, rays.scene, kinds))


def _patches(world: World, scenes: Tensor, side: int, size: int) -> Rays:
    """The lines of sight of all pixels of some scenes."""
    pixel = (torch.arange(side * PATCH, dtype=torch.float32) + 0.5) * (2 / size) - 1
    pixel = pixel.view(side, PATCH).t()
    p = pixel[None, :, None, None, :].expand(1, -1, len(scenes), side, -1)
    q = pixel[:, None, None, :, None].expand(-1, 1, len(scenes), -1, side)
    scene = scenes.repeat_interleave(side * side)
    rows = world.scenes[:, int(scenes[0]) : int(scenes[-1]) + 1, None].expand(-1, -1, side * side)
    return Rays(scene, rows.flatten(1), p.flatten(2), q.flatten(2))


def _bytes(light: Tensor) -> Tensor:
    """Light as it is shown: its root in 256 steps."""
    return light.clamp_(0, 1).sqrt_().mul_(255).add_(0.5).to(torch.uint8)


def _smooth(world: World, scenes: Tensor, rgb: Tensor, parts: Parts) -> None:
    """Trace three more rays for pixels that differ from a neighbour; ``[3, B, S, S]``, in place."""
    size = rgb.shape[-1]
    at = positions(_edges(rgb).numpy())
    where = at.to(torch.int32)  # faster to divide
    own = torch.div(where, size * size, rounding_mode="floor")
    row = torch.div(where, size, rounding_mode="floor") - own * size
    column = where - (own * size + row) * size
    right, below = OFFSETS.add(0.5)[..., None, None]
    p = ((column + right) * (2 / size)).sub_(1)
    q = ((row + below) * (2 / size)).sub_(1)
    own, row, column = (v.long() for v in (own, row // PATCH, column // PATCH))
    own += scenes[0]
    # One scene's pixels come after another's: a few wide copies instead of many single ones.
    counts = torch.bincount(own, minlength=len(world)).tolist()
    rows = [world.scenes[:, i : i + 1].expand(-1, n) for i, n in enumerate(counts) if n]
    rays = Rays(own, torch.cat(rows, dim=1), p, q)
    side = -(-size // PATCH)
    parts = parts.within(((own - scenes[0]) * side + row) * side + column)
    seen, _ = look(world, rays, parts.seen, margin=0)
    light, _ = shade(world, rays, seen, parts.lit, margin=0)
    light.clamp_(0, 1)
    pixels = rgb.view(3, -1)
    middle = pixels.index_select(1, at).to(torch.float32).mul_(1 / 255).square_()
    mean = middle.add_(light[:, 0]).add_(light[:, 1]).add_(light[:, 2]).mul_(0.25)
    pixels.index_copy_(1, at, _bytes(mean))


def _edges(rgb: Tensor) -> Tensor:
    """Pixels ``[B, S, S]`` that differ from one beside, above or below them."""
    size = rgb.shape[-1]
    edges = torch.zeros(rgb.shape[1:], dtype=torch.bool)
    flat, line = edges.view(-1), rgb.flatten(1)
    for stride, ends in ((1, (..., -1)), (size, (..., -1, slice(None)))):
        low, high = line[:, :-stride], line[:, stride:]
        unlike = torch.zeros_like(flat)
        contrast = (torch.maximum(low, high) - torch.minimum(low, high)).amax(0)
        np.greater(contrast.numpy(), CONTRAST, out=unlike[:-stride].numpy())
        # The last ones are followed by pixels of another row or another picture.
        unlike.view_as(edges)[ends] = False
        flat.logical_or_(unlike)
        flat[stride:].logical_or_(unlike[:-stride])
    return edges


def _semantics(seen: Seen, scene: Tensor, kinds: Tensor) -> Tensor:
    """Semantic classes, ``[n, T]`` uint8."""
    row = seen.slot + (scene * (SLOTS + 1)).to(torch.int32)
    solid = kinds.view(-1).index_select(0, row.view(-1)).view_as(row)
    ground = seen.wall.clamp_max(1).to(torch.uint8).mul_(WALL - FLOOR).add_(FLOOR)
    ground.masked_fill_(seen.near == FARTHEST, SKY)
    return ground.mul_(seen.slot == 0).add_(solid)


def _boxes(instances: Tensor) -> tuple[Tensor, Tensor]:
    """Bounds ``[B, K, 4]`` of each slot's pixels, and which slots ``[B, K]`` have any."""
    bits = np.left_shift(1, instances.numpy(), dtype=np.uint8)
    slots = np.arange(1, SLOTS + 1, dtype=np.uint8)[:, None]
    sides, seen = [], None
    for axis in (1, 2):
        line = np.bitwise_or.reduce(bits, axis=axis)  # columns, then rows
        has = line[:, None] >> slots & 1
        first = has.argmax(-1)
        last = has.shape[-1] - has[..., ::-1].argmax(-1)
        seen = has.any(-1)
        sides.append((first, last))
    (x0, x1), (y0, y1) = sides
    assert seen is not None
    boxes = np.stack((x0, y0, x1, y1), axis=-1) * seen[..., None]
    return torch.from_numpy(boxes.astype(np.float32)), torch.from_numpy(seen)
