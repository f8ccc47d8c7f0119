"""Views for dense tasks: one resize, crop, flip and padding of pictures, maps and masks.

Shapes: C channels, H x W the scene's own size in pixels, S the view's side.

A sample is name -> `Image` ``[3, H, W]`` uint8 (rgb), `Mask` ``[H, W]`` uint8 (ids) or bool (which
pixels count), or `Mask` ``[C, H, W]`` float32 (depth and other measurements). Images are resized
bilinearly with antialiasing, masks by torch's ``nearest``: no id and no measurement is made up.
Padding is grey in images, `IGNORED` in ids, false in bool and 0 in measurements.

A view with a key is a function of the sample and the key: it draws from no generator, so that
threads share nothing. Without one it is the fixed view of evaluation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as V
from torchvision.tv_tensors import Image, Mask

from attent.pipeline.keyed import uniforms

IGNORED = 255
"""The id of pixels that are of no class, and of those that padding adds."""

GREY = 128
"""Of the pixels that padding adds to images."""

DIRECTED = frozenset({"normal"})
"""Names whose values turn with the picture: a sample that has one is never flipped."""


class View(Protocol):
    """A sample -> a square of it, the same for all its entries."""

    @property
    def size(self) -> int:
        """S, side of the view in pixels."""
        ...

    def __call__(self, sample: Mapping[str, Tensor], key: int | None) -> dict[str, Tensor]:
        """The view of a sample: random by ``key``, or the fixed one."""
        ...


class _Draws(NamedTuple):
    """Numbers of a key in [0, 1), and what each is for."""

    flip: float
    scale: float
    top: float
    left: float
    jitter: float
    grey: float
    brightness: float
    contrast: float
    saturation: float
    hue: float
    first: float  # the least of these four is the first change of colours
    second: float
    third: float
    fourth: float


def _draws(key: int) -> _Draws:
    return _Draws(*uniforms(torch.tensor([key]), len(_Draws._fields))[0].tolist())


def _check_size(size: int) -> None:
    if size < 1:
        raise ValueError(f"size is a side in pixels, at least 1; got {size}")


def _check_probabilities(**chances: float) -> None:
    for name, chance in chances.items():
        if not 0 <= chance <= 1:
            raise ValueError(f"{name} is a probability in [0, 1]; got {chance}")


Bounds = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Jitter:
    """Random changes of a picture's colours, as torchvision's ``ColorJitter``, in random order.

    Attributes:
        brightness: least and largest factor, at least 0.
        contrast: least and largest factor of the distance from the mean grey.
        saturation: least and largest factor of the distance from grey.
        hue: least and largest turn of the hues, in [-0.5, 0.5].
        probability: that the colours change.
        grey: probability that the picture is grey, changed or not.
    """

    brightness: Bounds = (1.0, 1.0)
    contrast: Bounds = (1.0, 1.0)
    saturation: Bounds = (1.0, 1.0)
    hue: Bounds = (0.0, 0.0)
    probability: float = 0.5
    grey: float = 0.0

    def __post_init__(self) -> None:
        for name in ("brightness", "contrast", "saturation"):
            low, high = getattr(self, name)
            if not 0 <= low <= high:
                raise ValueError(f"{name} is two rising factors from 0; got {getattr(self, name)}")
        if not -0.5 <= self.hue[0] <= self.hue[1] <= 0.5:
            raise ValueError(f"hue is two rising turns in [-0.5, 0.5]; got {self.hue}")
        _check_probabilities(probability=self.probability, grey=self.grey)

    def __call__(self, image: Tensor, key: int) -> Tensor:
        """The picture ``[3, H, W]`` uint8 in the colours of a key."""
        draws = _draws(key)
        if draws.jitter < self.probability:
            changes: list[tuple[float, Callable[..., Tensor], Bounds, float]] = [
                (draws.first, V.adjust_brightness, self.brightness, draws.brightness),
                (draws.second, V.adjust_contrast, self.contrast, draws.contrast),
                (draws.third, V.adjust_saturation, self.saturation, draws.saturation),
                (draws.fourth, V.adjust_hue, self.hue, draws.hue),
            ]
            for _, change, bounds, draw in sorted(changes, key=lambda change: change[0]):
                image = change(image, _between(bounds, draw))
        return V.rgb_to_grayscale(image, 3) if draws.grey < self.grey else image


@dataclass(frozen=True, kw_only=True)
class SegmentView:
    """For semantic segmentation: nothing is cut off that a fixed view is to see.

    With a key: the longer side resized to S times a random factor, a random crop of at most S x S,
    a flip, other colours. Without: the longer side resized to S. Either is padded at the bottom and
    right to S x S. Contrast is about the mean of the crop.

    Attributes:
        size: S, side of the view in pixels.
        scale: least and largest factor, above 0.
        hflip: probability of a flip, in [0, 1].
        jitter: of the colours.
    """

    size: int
    scale: Bounds = (0.1, 2.0)
    hflip: float = 0.5
    jitter: Jitter = Jitter(
        brightness=(0.6, 1.4), contrast=(0.6, 1.4), saturation=(0.8, 1.2), hue=(-0.1, 0.1)
    )

    def __post_init__(self) -> None:
        _check_size(self.size)
        if not 0 < self.scale[0] <= self.scale[1]:
            raise ValueError(f"scale is two rising factors above 0; got {self.scale}")
        _check_probabilities(hflip=self.hflip)

    def __call__(self, sample: Mapping[str, Tensor], key: int | None) -> dict[str, Tensor]:
        """The view of a sample.

        Returns:
            name -> the same type and dtype, ``[..., S, S]``. May share memory with ``sample``.

        Raises:
            ValueError: sizes differ, or an entry is not as the module says.
        """
        height, width = _common_size(sample)
        ratio = self.size / max(height, width)
        if key is None:
            return _placed(sample, self.size, _scaled(height, width, ratio))
        draws = _draws(key)
        height, width = _scaled(height, width, ratio * _between(self.scale, draws.scale))
        corner = _corner(height, width, self.size, draws)
        viewed = _placed(
            sample, self.size, (height, width), corner, _flips(sample, self.hflip, draws)
        )
        return _recoloured(viewed, self.jitter, key, min(height, self.size), min(width, self.size))


@dataclass(frozen=True, kw_only=True)
class DepthView:
    """For depth: the shorter side resized to S and a crop; nothing is padded.

    With a key: a random crop, a flip, other colours. Without: the centre crop.

    Attributes:
        size: S, side of the view in pixels.
        hflip: probability of a flip, in [0, 1].
        jitter: of the colours.
    """

    size: int
    hflip: float = 0.5
    jitter: Jitter = Jitter(
        brightness=(0.8745, 1.1255),
        contrast=(0.6, 1.4),
        saturation=(0.5, 1.5),
        hue=(-0.2, 0.2),
        grey=0.3,
    )

    def __post_init__(self) -> None:
        _check_size(self.size)
        _check_probabilities(hflip=self.hflip)

    def __call__(self, sample: Mapping[str, Tensor], key: int | None) -> dict[str, Tensor]:
        """As `SegmentView` is called."""
        height, width = _common_size(sample)
        height, width = _scaled(height, width, self.size / min(height, width))
        if key is None:
            middle = ((height - self.size) // 2, (width - self.size) // 2)
            return _placed(sample, self.size, (height, width), middle)
        draws = _draws(key)
        corner = _corner(height, width, self.size, draws)
        viewed = _placed(
            sample, self.size, (height, width), corner, _flips(sample, self.hflip, draws)
        )
        return _recoloured(viewed, self.jitter, key, self.size, self.size)


@dataclass(frozen=True, kw_only=True)
class DenseView:
    """The whole scene resized to S x S, whatever its shape; with a key, perhaps flipped.

    Attributes:
        size: S, side of the view in pixels.
        hflip: probability of a flip, in [0, 1]; samples with a name of `DIRECTED` are not flipped.
    """

    size: int
    hflip: float = 0.5

    def __post_init__(self) -> None:
        _check_size(self.size)
        _check_probabilities(hflip=self.hflip)

    def __call__(self, sample: Mapping[str, Tensor], key: int | None) -> dict[str, Tensor]:
        """As `SegmentView` is called."""
        _common_size(sample)
        flipped = key is not None and _flips(sample, self.hflip, _draws(key))
        return _placed(sample, self.size, (self.size, self.size), flipped=flipped)


def _between(bounds: Bounds, draw: float) -> float:
    return bounds[0] + (bounds[1] - bounds[0]) * draw


def _scaled(height: int, width: int, ratio: float) -> tuple[int, int]:
    return max(1, round(height * ratio)), max(1, round(width * ratio))


def _corner(height: int, width: int, size: int, draws: _Draws) -> tuple[int, int]:
    """Top and left of a random crop of ``size``, or 0 along a side that is not longer."""
    return (
        int(draws.top * (max(0, height - size) + 1)),
        int(draws.left * (max(0, width - size) + 1)),
    )


def _flips(sample: Mapping[str, Tensor], hflip: float, draws: _Draws) -> bool:
    return draws.flip < hflip and not DIRECTED & set(sample)


def _placed(
    sample: Mapping[str, Tensor],
    size: int,
    resized: tuple[int, int],
    corner: tuple[int, int] = (0, 0),
    flipped: bool = False,
) -> dict[str, Tensor]:
    """Every entry resized, cropped from a corner to at most S x S, flipped, and padded to that."""
    height, width = min(size, resized[0] - corner[0]), min(size, resized[1] - corner[1])
    placed = {}
    for name, value in sample.items():
        value = V.resize(value, list(resized), antialias=True)
        value = V.crop(value, *corner, height, width)
        value = V.horizontal_flip(value) if flipped else value
        if (height, width) != (size, size):
            value = V.pad(value, [0, 0, size - width, size - height], fill=_padding(value))
        placed[name] = value
    return placed


def _padding(value: Tensor) -> int:
    if isinstance(value, Image):
        return GREY
    return IGNORED if value.dtype == torch.uint8 else 0


def _recoloured(
    viewed: dict[str, Tensor], jitter: Jitter, key: int, height: int, width: int
) -> dict[str, Tensor]:
    """The images of a view in other colours, but for what is padding."""
    for name, value in viewed.items():
        if isinstance(value, Image):
            picture = value.clone()
            picture[:, :height, :width] = jitter(value[:, :height, :width], key)
            viewed[name] = Image(picture)
    return viewed


def _common_size(sample: Mapping[str, Tensor]) -> tuple[int, int]:
    """Height and width of all entries, once each is seen to be what it should."""
    for name, value in sample.items():
        if isinstance(value, Image):
            good = value.ndim == 3 and len(value) == 3 and value.dtype == torch.uint8
        elif isinstance(value, Mask):
            flat = value.ndim == 2 and value.dtype in (torch.uint8, torch.bool)
            good = flat or (value.ndim == 3 and value.dtype == torch.float32)
        else:
            good = False
        if not good or not value.numel():
            raise ValueError(
                f"{name} is {type(value).__name__} {list(value.shape)} {value.dtype}; expected "
                "Image [3, H, W] uint8, Mask [H, W] uint8 or bool, or Mask [C, H, W] float32"
            )
    sizes = {name: tuple(value.shape[-2:]) for name, value in sample.items()}
    if len(set(sizes.values())) != 1:
        raise ValueError(
            "the entries of a sample must have one size (height, width); found "
            + (", ".join(f"{name} {size}" for name, size in sizes.items()) or "no entry")
        )
    height, width = next(iter(sizes.values()))
    return height, width
