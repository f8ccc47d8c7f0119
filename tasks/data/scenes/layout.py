"""What a batch of scenes is made of: the parameters that `render` turns into pictures."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

SHAPES: tuple[str, ...] = ("ball", "box", "cylinder", "cone", "ring")
"""Kinds of solids, in the order of their numbers."""

BALL, BOX, CYLINDER, CONE, RING = range(len(SHAPES))

PATTERNS: tuple[str, ...] = ("plain", "striped", "checkered", "speckled")
"""Patterns of a surface, in the order of their numbers."""

PLAIN, STRIPED, CHECKERED, SPECKLED = range(len(PATTERNS))

SEMANTIC_CLASSES: tuple[str, ...] = ("floor", "wall", "sky", *SHAPES)
"""What a pixel of ``semseg`` may show, in the order of its values."""

FLOOR, WALL, SKY = range(3)

SCENE_CLASSES: tuple[str, ...] = tuple(
    f"{pattern} {shape}" for shape in SHAPES for pattern in PATTERNS[:2]
)
"""Shape and pattern of the dominant solid: class = 2 * shape + pattern."""

SLOTS = 6
"""Solids a scene has room for; the dominant one is in the first slot."""

FAR = 40.0
"""Depth of the sky in metres: nothing is farther away."""

HOLE = 0.6
"""A ring's inner radius as a share of its outer one."""


@dataclass(frozen=True)
class Layout:
    """B scenes of K solids, in metres; the world's third axis points up and the floor is at 0.

    Everything is float64, but ``kind`` and ``pattern``, which are int64.

    Attributes:
        eye: ``[B, 3]``, where the camera is.
        forward: ``[B, 3]``, unit length: depth is measured along it.
        right: ``[B, 3]``, from the middle of the picture to the middle of its right side, at a
            depth of 1.
        down: ``[B, 3]``, the same to the lower side.
        kind: ``[B, K]``, a shape's number, or -1 for an empty slot.
        centre: ``[B, K, 3]``.
        axes: ``[B, K, 3, 3]``, ``axes[..., i, :]`` is the i-th half axis, at right angles to the
            others. In the coordinates they span, a ball is ``x^2 + y^2 + z^2 <= 1``, a box has
            ``|x|, |y|, |z| <= 1``, a cylinder is ``x^2 + y^2 <= 1`` and ``|z| <= 1``, a cone has
            its point at ``z = 1`` and radius 1 at ``z = -1``, a ring is a cylinder but for the
            radius `HOLE`. The first two axes of all but balls and boxes are equally long.
        pattern: ``[B, K]``, a pattern's number.
        cells: ``[B, K, 6]``, cells of the pattern for each unit of x, y and z (0: none across),
            and where the first begins.
        colours: ``[B, K, 2, 3]``, shares of red, green and blue light reflected by the solid, and
            by its pattern.
        gloss: ``[B, K]``, strength of the highlight, 0 for a matte solid.
        light: ``[B, 2, 3]``, directions to the two lights, unit length.
        glow: ``[B, 2, 3]``, the lights' colours times their strengths; zero for a missing one.
        ambient: ``[B, 3]``, light from everywhere.
        walls: ``[B, 2]``: walls at ``x = walls[0]`` and ``y = walls[1]``, in front of which
            everything is; infinite in the open.
        ground: ``[B, 3, 2, 3]``, the two colours of the floor and of each wall.
        tiles: ``[B, 6]``, cells of the floor's and walls' patterns for each metre of x, y and z,
            and where the first begins.
        sky: ``[B, 2, 3]``, colours of the horizon and of the zenith.
    """

    eye: Tensor
    forward: Tensor
    right: Tensor
    down: Tensor
    kind: Tensor
    centre: Tensor
    axes: Tensor
    pattern: Tensor
    cells: Tensor
    colours: Tensor
    gloss: Tensor
    light: Tensor
    glow: Tensor
    ambient: Tensor
    walls: Tensor
    ground: Tensor
    tiles: Tensor
    sky: Tensor

    def __len__(self) -> int:
        return len(self.eye)


def dot(a: Tensor, b: Tensor) -> Tensor:
    """Inner product over the last dimension, of 3.

    Written out: a reduction may add in another order in a batch of another size, and the last bit
    of a scene would depend on its company.
    """
    return a[..., 0] * b[..., 0] + a[..., 1] * b[..., 1] + a[..., 2] * b[..., 2]


def unit(a: Tensor) -> Tensor:
    """Vectors of length 1 in the direction of ``[..., 3]``."""
    return a / dot(a, a).sqrt().unsqueeze(-1)


def cross(a: Tensor, b: Tensor) -> Tensor:
    """The vector product of ``[..., 3]``."""
    (ax, ay, az), (bx, by, bz) = a.unbind(-1), b.unbind(-1)
    return torch.stack((ay * bz - az * by, az * bx - ax * bz, ax * by - ay * bx), dim=-1)
