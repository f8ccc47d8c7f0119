"""A batch of scenes made ready for rays: tables of coefficients, in float32."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from attent.tasks.data.scenes.layout import SLOTS, SPECKLED, Layout, dot
from attent.tasks.data.scenes.lines import Solids, across, plane, sight, solids


def _rows(**counts: int) -> dict[str, slice]:
    """Consecutive rows under names."""
    rows, first = {}, 0
    for name, count in counts.items():
        rows[name] = slice(first, first + count)
        first += count
    return rows


SCENE = _rows(
    eye=3,
    rays=9,  # of each of 1, p and q: x, y, z of the line of sight's direction
    grounds=9,  # of each of 1, p and q: one over the depth of the floor and of the walls
    beams=18,  # for each light, of each of x, y and z: two axes across and one along
    facing=6,  # both lights' cosines to the floor, what the first wall adds, and the second
    glow=6,
    ambient=3,
    sky=6,  # the horizon, and what the zenith adds
    tiles=6,
)
"""Rows of `World.scenes`."""

SURFACE = _rows(local=9, shift=3, light=6, eye=3, scale=3, phase=3, gloss=1, speckled=1)
"""Rows of `World.surfaces`; ``local`` (of each of x, y and z: the solid's own coordinates) and
``shift`` lead to the solid's own coordinates."""

COLOURS = 2 * (3 + SLOTS)
"""Colours in a scene: two for the floor, for each wall, and for each solid."""


@dataclass(frozen=True)
class World:
    """B scenes of K solids.

    Attributes:
        solids: as 3 B families of lines meet them: the lines of sight, and each light's beams.
        scenes: ``[C, B]`` float32, rows by `SCENE`.
        surfaces: ``[C, B * K]`` float32, rows by `SURFACE`.
        colours: ``[3, B * COLOURS]`` float32.
    """

    solids: Solids
    scenes: Tensor
    surfaces: Tensor
    colours: Tensor

    def __len__(self) -> int:
        return self.scenes.shape[1]


def make_ready(layout: Layout) -> World:
    """The tables of a batch of scenes."""
    lines = sight(layout)
    rays = lines.span[:, 1:, :3].flatten(1)
    normals = torch.eye(3, dtype=torch.float64)[[2, 0, 1]]
    offsets = torch.cat((torch.zeros_like(layout.walls[:, :1]), layout.walls), dim=1)
    grounds = [plane(lines, normals[i].expand(len(layout), -1), offsets[:, i]) for i in range(3)]
    x, y, z = layout.light.unbind(-1)
    facing = torch.stack((z, -x, -y), dim=1).clamp_min(0)
    facing = torch.cat((facing[:, :1], facing[:, 1:] - facing[:, :-1]), dim=1)
    axes = torch.stack((*across(layout.light), layout.light), dim=-2)  # [B, light, axis, xyz]
    parts = {
        "eye": layout.eye,
        "rays": rays,
        "grounds": torch.stack(grounds, dim=2),
        "beams": axes.transpose(2, 3),
        "facing": facing,
        "glow": layout.glow,
        "ambient": layout.ambient,
        "sky": torch.stack((layout.sky[:, 0], layout.sky[:, 1] - layout.sky[:, 0]), dim=1),
        "tiles": layout.tiles,
    }
    scenes = torch.cat([parts[name].flatten(1) for name in SCENE], dim=1)
    colours = torch.cat((layout.ground, layout.colours), dim=1)
    return World(
        solids=solids(layout),
        scenes=scenes.t().contiguous().float(),
        surfaces=_surfaces(layout),
        colours=colours.reshape(-1, 3).t().contiguous().float(),
    )


def _surfaces(layout: Layout) -> Tensor:
    """See `World.surfaces`."""
    inverse = layout.axes / dot(layout.axes, layout.axes).unsqueeze(-1)
    batch, slots = layout.kind.shape

    def each(value: Tensor) -> Tensor:
        return value.flatten(1).unsqueeze(1).expand(-1, slots, -1)

    parts = {
        "local": inverse.transpose(2, 3).flatten(2),
        "shift": -dot(inverse, layout.centre.unsqueeze(2)),
        "light": each(layout.light.transpose(1, 2)),
        "eye": each(layout.eye),
        "scale": layout.cells[..., :3],
        "phase": layout.cells[..., 3:],
        "gloss": layout.gloss.unsqueeze(-1),
        "speckled": (layout.pattern == SPECKLED).to(torch.float64).unsqueeze(-1),
    }
    table = torch.cat([parts[name] for name in SURFACE], dim=-1)
    return table.view(batch * slots, -1).t().contiguous().float()
