"""One view of a scene for all its modalities: the same crop and the same flip of each.

Shapes: C channels, H x W the scene's own size in pixels, S the view's side.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as V
from torchvision.tv_tensors import Image, Mask

from attent.pipeline.keyed import uniform

ATTEMPTS = 10
"""Boxes drawn before the central one is taken."""

# Which of a key's numbers is for what. An attempt at a box takes two, from `_ATTEMPT` on.
_FLIP, _TOP, _LEFT, _ATTEMPT = 0, 1, 2, 3


@dataclass(frozen=True, kw_only=True)
class JointView:
    """A scene -> a square of it, the same for all modalities.

    With a key: one random box (an area of ``scale`` of the scene, at an aspect of ``ratio``, log
    uniform; the largest central box if `ATTEMPTS` of them do not fit), resized, and one flip.
    Without: the fixed view, shorter side resized to ``size``, centre cropped; a scene that is
    ``size`` x ``size`` already is left alone.

    Images are resized bicubically with antialiasing, and clamped to the range of the pixels they
    are made from: there is no depth beyond the nearest and the farthest. Masks keep their ids:
    each pixel is one of the scene's (torch's ``nearest``).

    Attributes:
        size: S, side of the view in pixels.
        scale: least and largest share of the scene's area, in (0, 1].
        ratio: least and largest width / height.
        hflip: probability of a flip, in [0, 1].
    """

    size: int
    scale: tuple[float, float] = (0.2, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    hflip: float = 0.5

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"size is a side in pixels, at least 1; got {self.size}")
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise ValueError(f"scale is two rising shares in (0, 1]; got {self.scale}")
        if not 0 < self.ratio[0] <= self.ratio[1] < math.inf:
            raise ValueError(f"ratio is two rising, positive numbers; got {self.ratio}")
        if not 0 <= self.hflip <= 1:
            raise ValueError(f"hflip is a probability in [0, 1]; got {self.hflip}")

    def __call__(self, sample: Mapping[str, Tensor], key: int | None) -> dict[str, Tensor]:
        """The view of a scene.

        Args:
            sample: name -> `Image` ``[C, H, W]`` (uint8 or float32) or `Mask` ``[H, W]`` (integer).
            key: what the crop and the flip are drawn from; None for the fixed view.

        Returns:
            name -> the same type and dtype, ``[C, S, S]`` or ``[S, S]``. May share memory with
            ``sample``.

        Raises:
            ValueError: sizes differ, or an entry is neither an image nor a mask as above.
        """
        height, width = _common_size(sample)
        if key is None:
            if (height, width) == (self.size, self.size):
                return dict(sample)
            return {name: self._fixed(value) for name, value in sample.items()}
        box, flipped = self.box(key, height, width), self.flips(key)
        return {name: self._random(value, box, flipped) for name, value in sample.items()}

    def box(self, key: int, height: int, width: int) -> tuple[int, int, int, int]:
        """The box of a key in a scene of ``height`` x ``width``: top, left, height, width."""
        log_ratio = (math.log(self.ratio[0]), math.log(self.ratio[1]))
        for attempt in range(ATTEMPTS):
            draw = _ATTEMPT + 2 * attempt
            area = height * width * _between(key, draw, *self.scale)
            ratio = math.exp(_between(key, draw + 1, *log_ratio))
            w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < w <= width and 0 < h <= height:
                top = math.floor(_between(key, _TOP, 0, height - h + 1))
                left = math.floor(_between(key, _LEFT, 0, width - w + 1))
                return top, left, h, w
        h = min(height, max(1, round(width / self.ratio[0])))
        w = min(width, max(1, round(height * self.ratio[1])))
        return (height - h) // 2, (width - w) // 2, h, w

    def flips(self, key: int) -> bool:
        """Whether the view of a key is flipped."""
        return _between(key, _FLIP, 0, 1) < self.hflip

    def _fixed(self, value: Tensor) -> Tensor:
        def view(x: Tensor) -> Tensor:
            x = V.resize(x, [self.size], InterpolationMode.BICUBIC, antialias=True)
            return V.center_crop(x, [self.size, self.size])

        return _pixels_kept(view, value) if isinstance(value, Mask) else _clamped(view, value)

    def _random(self, value: Tensor, box: tuple[int, int, int, int], flipped: bool) -> Tensor:
        top, left, height, width = box

        def view(x: Tensor) -> Tensor:
            size = [self.size, self.size]
            bicubic = InterpolationMode.BICUBIC
            return V.resized_crop(x, *box, size=size, interpolation=bicubic, antialias=True)

        if isinstance(value, Mask):
            cropped = _pixels_kept(view, value)
        else:
            inside = value[..., top : top + height, left : left + width]
            cropped = _clamped(view, value, inside)
        return V.horizontal_flip(cropped) if flipped else cropped


def _between(key: int, draw: int, low: float, high: float) -> float:
    """A number in [low, high), one of the key's."""
    return low + (high - low) * float(uniform(torch.tensor([key]), draw))


def _clamped(
    view: Callable[[Tensor], Tensor], image: Tensor, inside: Tensor | None = None
) -> Tensor:
    """The view of an image, within the range of ``inside`` (default: of the whole image)."""
    viewed = view(image)
    if not image.is_floating_point():  # torchvision saturates bytes itself
        return viewed
    low, high = (image if inside is None else inside).as_subclass(Tensor).aminmax()
    return Image(viewed.as_subclass(Tensor).clamp(low, high))


def _pixels_kept(view: Callable[[Tensor], Tensor], mask: Tensor) -> Tensor:
    """The view of a mask, whatever its ids.

    torchvision resizes by way of float32, which merges ids beyond 2^24, unless the mask is of
    bytes; so that is what it gets, a channel for each byte of an id.
    """
    ids = mask.as_subclass(Tensor).contiguous().unsqueeze(-1)
    octets = view(Mask(ids.view(torch.uint8).permute(2, 0, 1))).as_subclass(Tensor)
    return Mask(octets.permute(1, 2, 0).contiguous().view(mask.dtype).squeeze(-1))


def _common_size(sample: Mapping[str, Tensor]) -> tuple[int, int]:
    """Height and width of all entries, once each is seen to be what it should."""
    for name, value in sample.items():
        if isinstance(value, Mask):
            good = value.ndim == 2 and is_integer(value.dtype)
        else:
            good = isinstance(value, Image) and value.dtype in (torch.uint8, torch.float32)
            good = good and value.ndim == 3
        if not good:
            raise ValueError(
                f"{name} is {type(value).__name__} {list(value.shape)} {value.dtype}; expected "
                "Image [C, H, W] of uint8 or float32, or Mask [H, W] of integers"
            )
    sizes = {name: tuple(value.shape[-2:]) for name, value in sample.items()}
    if len(set(sizes.values())) != 1:
        raise ValueError(
            "the modalities of a scene must have one size (height, width); found "
            + (", ".join(f"{name} {size}" for name, size in sizes.items()) or "no modality")
        )
    height, width = next(iter(sizes.values()))
    return height, width


def one_key_each(index: Tensor, keys: Tensor) -> list[int]:
    """The keys (``[B]`` int64) of the examples at ``index`` (``[B]`` int64), as numbers.

    Raises:
        ValueError: they are not one for each.
    """
    if keys.shape != index.shape:
        raise ValueError(
            f"keys are one for each index: expected {list(index.shape)}, got {list(keys.shape)}"
        )
    return keys.tolist()


def is_integer(dtype: torch.dtype) -> bool:
    """Whether ids can be of this type; bool is none."""
    return not (dtype.is_floating_point or dtype.is_complex or dtype == torch.bool)
