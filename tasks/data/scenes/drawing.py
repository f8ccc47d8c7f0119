"""Scenes drawn at random: every number is a function of the scene's key and class alone.

Only additions, multiplications, divisions and square roots: they round alike wherever they are
done, so that a scene is the same to the last bit in any batch.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from attent.pipeline.keyed import uniform
from attent.tasks.data.scenes.layout import (
    BALL,
    CHECKERED,
    CONE,
    CYLINDER,
    PLAIN,
    RING,
    SLOTS,
    SPECKLED,
    STRIPED,
    Layout,
    cross,
)
from attent.tasks.data.scenes.place import Camera, place

NUMBERS = 288
"""Random numbers that a scene is made of, at most."""

PROPORTIONS = torch.tensor(
    [
        [[0.75, 0.75, 0.75], [1.0, 1.0, 1.0]],  # ball
        [[0.6, 0.6, 0.6], [0.85, 0.85, 1.0]],  # box
        [[0.55, 0.55, 0.65], [0.75, 0.75, 1.05]],  # cylinder
        [[0.7, 0.7, 0.8], [0.95, 0.95, 1.1]],  # cone
        [[0.85, 0.85, 0.22], [1.05, 1.05, 0.4]],  # ring
    ],
    dtype=torch.float64,
)
"""Least and greatest half axes of each shape, for a size of 1."""


class Draws:
    """The numbers of B scenes, handed out one after another."""

    def __init__(self, keys: Tensor) -> None:
        self._numbers = uniform(keys.unsqueeze(1) + torch.arange(NUMBERS))
        self._next = 0

    def __call__(self, *shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        """``[B, *shape]`` float64, uniform in [low, high)."""
        count = 1
        for side in shape:
            count *= side
        first, self._next = self._next, self._next + count
        if self._next > NUMBERS:
            raise IndexError(f"a scene takes more than {NUMBERS} random numbers")
        picked = self._numbers[:, first : self._next]
        return (low + (high - low) * picked).reshape(len(picked), *shape)


def draw(keys: Tensor, scene_class: Tensor) -> Layout:
    """The scenes of some keys.

    Args:
        keys: ``[B]`` int64, from `attent.pipeline.keyed.example_keys`.
        scene_class: ``[B]`` int64, numbers in `SCENE_CLASSES`.
    """
    draws = Draws(keys)
    camera = _camera(draws)
    # Drawn as the camera has it, ahead being the second axis; then turned so that the walls are
    # across the first two.
    turned = turn(draws(low=8 / 360, high=82 / 360))
    walls = torch.where((draws() < 0.5)[:, None], draws(2, low=1.9, high=3.6), torch.inf)
    kind, axes, upright = _solids(draws, torch.div(scene_class, 2, rounding_mode="floor"))
    kind, centre, axes = place(draws, camera, (*turned, walls), kind, axes, upright)
    pattern, cells = _patterns(draws, scene_class % 2, kind)
    light, glow, ambient = _lights(draws)
    ground, tiles, sky = _surroundings(draws)
    return Layout(
        **{name: _turned(value, turned) for name, value in vars(camera).items()},
        kind=kind,
        centre=_turned(centre, turned),
        axes=_turned(axes, turned),
        pattern=pattern,
        cells=cells,
        colours=_colours(draws, pattern),
        gloss=(draws(SLOTS) - 0.45).clamp_min(0) * 1.3,
        light=_turned(light, turned),
        glow=glow,
        ambient=ambient,
        walls=walls,
        ground=ground,
        tiles=tiles,
        sky=sky,
    )


def turn(turns: Tensor) -> tuple[Tensor, Tensor]:
    """Cosine and sine of angles in full turns, to 1e-10."""
    half = (turns - turns.round()) * torch.pi  # half the angle, in [-pi/2, pi/2]
    square = half * half
    both = torch.ones((2, *half.shape), dtype=half.dtype)
    for n in range(18, 0, -2):  # Taylor's series of both, from the last term
        shares = torch.tensor([1 / (n * (n - 1)), 1 / (n * (n + 1))], dtype=half.dtype)
        both = 1 - square * both * shares.view(2, *[1] * half.ndim)
    cos, sin = both
    sin = sin * half
    return cos * cos - sin * sin, 2 * sin * cos


def hsv(hue: Tensor, saturation: Tensor, value: Tensor) -> Tensor:
    """Colours ``[..., 3]`` of hues in turns."""
    channels = []
    for first in (5, 3, 1):
        k = first + 6 * hue
        k = k - 6 * (k / 6).floor()
        ramp = torch.minimum(k, 4 - k).clamp(0, 1)
        channels.append(value * (1 - saturation * ramp))
    return torch.stack(channels, dim=-1)


def choose(number: Tensor, shares: Sequence[float]) -> Tensor:
    """Which of the consecutive shares of [0, 1) a number falls into, int64."""
    steps = torch.tensor(shares, dtype=torch.float64).cumsum(0)[:-1]
    return (number.unsqueeze(-1) >= steps).sum(-1)


def _camera(draws: Draws) -> Camera:
    """Looks along the second axis, down by 10 to 38 degrees, at about where the dominant solid is.

    The picture is 3 m wide at that place, give or take.
    """
    focal = draws(low=1.3, high=2.5)
    # No solid reaches the camera: the greatest is 1 m across any way from its middle.
    distance = (focal * draws(low=1.2, high=1.7)).clamp_min(1.9)
    most = torch.tensor([38.0, 3.0, 5.0], dtype=torch.float64)  # degrees
    least = torch.tensor([10.0, -3.0, -5.0], dtype=torch.float64)
    cos, sin = turn((least + (most - least) * draws(3)) / 360)
    (down_cos, roll_cos, yaw_cos), (down_sin, roll_sin, yaw_sin) = cos.t(), sin.t()
    zero = torch.zeros_like(focal)
    forward = torch.stack((yaw_sin * down_cos, yaw_cos * down_cos, -down_sin), dim=-1)
    level = torch.stack((yaw_cos, -yaw_sin, zero), dim=-1)
    below = cross(forward, level)
    right = level * roll_cos[:, None] + below * roll_sin[:, None]
    down = below * roll_cos[:, None] - level * roll_sin[:, None]
    target = torch.stack(
        (draws(low=-0.3, high=0.3), draws(low=-0.1, high=0.5), draws(low=0.25, high=0.6)), dim=-1
    )
    eye = target - forward * distance[:, None]
    return Camera(eye, forward, right / focal[:, None], down / focal[:, None])


def _turned(vectors: Tensor, turned: tuple[Tensor, Tensor]) -> Tensor:
    """Vectors ``[B, ..., 3]`` in coordinates whose first axis is ``(sin, cos, 0)``."""
    cos, sin = (part.reshape(-1, *[1] * (vectors.ndim - 2)) for part in turned)
    x, y, z = vectors.unbind(-1)
    return torch.stack((sin * x + cos * y, sin * y - cos * x, z), dim=-1)


def _solids(draws: Draws, dominant: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Kinds ``[B, K]``, half axes ``[B, K, 3, 3]``, and which solids stand upright ``[B, K]``."""
    count = 2 + (draws() * (SLOTS - 1)).floor()
    kind = (draws(SLOTS) * len(PROPORTIONS)).floor().long()
    kind[:, 0] = dominant
    size = draws(SLOTS, low=0.18, high=0.31)
    size[:, 0] = size[:, 0] + 0.32
    low, high = PROPORTIONS[kind].unbind(2)
    lengths = low + (high - low) * draws(SLOTS, 3)
    alike = (kind >= CYLINDER) | ((kind == BALL) & (draws(SLOTS) < 0.4))
    lengths[..., 1] = torch.where(alike, lengths[..., 0], lengths[..., 1])
    round_ball = alike & (kind == BALL)
    lengths[..., 2] = torch.where(round_ball, lengths[..., 0], lengths[..., 2])
    lengths = lengths * size.unsqueeze(-1)

    falls = torch.tensor([1.0, 0.0, 0.35, 0.25, 0.5], dtype=torch.float64)[kind]
    falls[:, 0] = torch.where(dominant == RING, 0.75, falls[:, 0])
    upright = draws(SLOTS) >= falls
    yaw = draws(SLOTS)
    # The dominant ring, cone or cylinder is not seen along an axis that hides what it is.
    aside = torch.where(dominant == RING, 0.25 + 0.12 * (2 * yaw[:, 0] - 1), 0.2 * yaw[:, 0] - 0.1)
    aside = aside + 0.5 * (draws() < 0.5)
    yaw[:, 0] = torch.where((dominant >= CYLINDER) & ~upright[:, 0], aside, yaw[:, 0])
    cos, sin = turn(torch.stack((yaw, draws(SLOTS), draws(SLOTS) / 2), dim=-1))
    cos[..., 2], sin[..., 2] = _tilt(cos[..., 2], sin[..., 2], kind, lengths, upright)
    axes = _rotation(cos, sin) * lengths.unsqueeze(-1)
    kind = torch.where(torch.arange(SLOTS) < count[:, None], kind, -1)
    return kind, axes, upright


def _tilt(
    cos: Tensor, sin: Tensor, kind: Tensor, lengths: Tensor, upright: Tensor
) -> tuple[Tensor, Tensor]:
    """Cosine and sine of the angle between a solid's third axis and the vertical, ``[B, K]``.

    Balls take the angle given. The others stand upright or lie: cylinders and rings on their side,
    so that the axis is level; cones on theirs, so that it points down.
    """
    radius, height = lengths[..., 0], 2 * lengths[..., 2]
    side = (radius.square() + height.square()).sqrt()
    lies_cos = torch.where(kind == CONE, -radius / side, 0)
    lies_sin = torch.where(kind == CONE, height / side, 1)
    cos = torch.where(kind == BALL, cos, torch.where(upright, 1, lies_cos))
    sin = torch.where(kind == BALL, sin, torch.where(upright, 0, lies_sin))
    return cos, sin


def _rotation(cos: Tensor, sin: Tensor) -> Tensor:
    """Rows: three axes, turned about the third, tilted, and turned about the vertical.

    Args:
        cos: ``[B, K, 3]``, of the turn about the vertical, that about the third axis, and the tilt.
        sin: likewise.
    """
    (yc, sc, tc), (ys, ss, ts) = cos.unbind(-1), sin.unbind(-1)
    zero = torch.zeros_like(yc)
    ahead = torch.stack((yc * tc, ys * tc, -ts), dim=-1)
    aside = torch.stack((-ys, yc, zero), dim=-1)
    third = torch.stack((yc * ts, ys * ts, tc), dim=-1)
    sc, ss = sc.unsqueeze(-1), ss.unsqueeze(-1)
    return torch.stack((ahead * sc + aside * ss, aside * sc - ahead * ss, third), dim=-2)


def _patterns(draws: Draws, striped: Tensor, kind: Tensor) -> tuple[Tensor, Tensor]:
    """Patterns ``[B, K]`` and their cells ``[B, K, 6]``."""
    pattern = choose(draws(SLOTS), (0.34, 0.22, 0.22, 0.22))
    pattern[:, 0] = striped  # PLAIN and STRIPED are 0 and 1
    phase = draws(SLOTS, 3)
    cells = draws(SLOTS, 1)
    across = draws(SLOTS)
    # Stripes run around the third axis, or along it; of the former a ring's face shows nothing.
    along = (across < 0.3) | (kind == RING)
    direction = torch.stack((along, torch.zeros_like(along), ~along), dim=-1)
    stripes = (2.2 + 1.3 * cells) * direction
    checks = (1.3 + 0.9 * cells).expand(-1, -1, 3)
    flat = torch.where((kind == RING).unsqueeze(-1), torch.tensor([1.0, 1.0, 0.5]), 1.0)
    specks = (3.2 + 1.6 * cells) * flat
    scale = torch.zeros_like(phase)
    for number, chosen in ((STRIPED, stripes), (CHECKERED, checks), (SPECKLED, specks)):
        scale = torch.where((pattern == number).unsqueeze(-1), chosen, scale)
    return pattern, torch.cat((scale, phase), dim=-1)


def _colours(draws: Draws, pattern: Tensor) -> Tensor:
    """Two colours that can be told apart, ``[B, K, 2, 3]``; alike for plain solids."""
    hue, other = draws(SLOTS), draws(SLOTS, low=0.3, high=0.7)
    saturation = draws(SLOTS, low=0.35, high=0.95)
    value = draws(SLOTS, low=0.45, high=0.95)
    first = hsv(hue, saturation, value)
    # The other is white or nearly black, or of another hue and another lightness.
    pale, style = draws(SLOTS), draws(SLOTS)
    dark = value > 0.62
    white = hsv(hue, 0.12 * pale, torch.where(dark, 0.06 + 0.1 * pale, 0.85 + 0.1 * pale))
    turned = hsv(
        hue + other, saturation, torch.where(dark, value * 0.28, (value * 1.9).clamp_max(1))
    )
    second = torch.where((style < 0.5).unsqueeze(-1), white, turned)
    second = torch.where((pattern == PLAIN).unsqueeze(-1), first, second)
    return torch.stack((first, second), dim=2)


def _lights(draws: Draws) -> tuple[Tensor, Tensor, Tensor]:
    """A strong light from above and in front, and often a weaker one; what is left in shadow."""
    up, around = draws(2, low=28 / 360, high=62 / 360), draws(2, low=-105 / 360, high=105 / 360)
    (up_cos, cos), (up_sin, sin) = turn(torch.stack((up, around)))
    light = torch.stack((sin * up_cos, -cos * up_cos, up_sin), dim=-1)
    strength = draws(2, low=0.6, high=1.0) * torch.tensor([1.0, 0.5])
    strength[:, 1] = torch.where(draws() < 0.55, strength[:, 1], 0)
    tint = hsv(draws(2, low=0.05, high=0.16), draws(2, low=0, high=0.3), torch.ones_like(strength))
    ambient = hsv(draws(low=0.5, high=0.7), draws(low=0, high=0.3), draws(low=0.16, high=0.34))
    return light, strength.unsqueeze(-1) * tint, ambient


def _surroundings(draws: Draws) -> tuple[Tensor, Tensor, Tensor]:
    """Colours of floor and walls, their tiles, and the sky."""
    value = draws(3, low=0.25, high=0.75)
    first = hsv(draws(3), draws(3, low=0.0, high=0.45), value)
    contrast = draws(3, low=0.55, high=0.85)
    tiled = torch.stack((draws() < 0.6, *[draws() < 0.35] * 2), dim=-1)
    second = first * torch.where(tiled, contrast, 1).unsqueeze(-1)
    cells = draws(1, low=0.9, high=2.2).expand(-1, 3)
    style = choose(draws(), (0.5, 0.25, 0.25))  # squares, planks along either wall
    kept = torch.tensor([[1.0, 1.0, 1.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])[style]
    tiles = torch.cat((cells * kept, draws(3)), dim=-1)
    day = draws()
    horizon = hsv(0.1 + 0 * day, 0.1 + 0.25 * draws(), 0.65 + 0.3 * day)
    zenith = hsv(0.56 + 0.08 * draws(), 0.45 + 0.35 * draws(), 0.3 + 0.5 * day)
    return torch.stack((first, second), dim=2), tiles, torch.stack((horizon, zenith), dim=1)
