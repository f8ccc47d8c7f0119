"""Pictures with objects in them: one view for picture, boxes and masks, and batches of them.

Shapes: H x W the picture's own size in pixels, S the view's side, n objects of a picture, B
pictures of a batch, M the most objects of any of them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms.v2 import functional as V
from torchvision.tv_tensors import BoundingBoxes, BoundingBoxFormat, Image, Mask

from attent.pipeline.keyed import uniforms
from attent.tasks.data.pixels import DEVIATION, MEAN

# Which of a key's numbers is for what.
_FLIP, _SCALE, _TOP, _LEFT, _DRAWS = range(5)


@dataclass(frozen=True)
class Scene:
    """A picture and its objects.

    Attributes:
        image: ``[3, H, W]`` uint8.
        boxes: ``[n, 4]`` float32: left, top, right, bottom in pixels.
        labels: ``[n]`` int64, from 1.
        masks: ``[n, H, W]`` uint8, 0 or 1.
        crowd: ``[n]`` bool, for many objects under one mask.
    """

    image: Tensor
    boxes: Tensor
    labels: Tensor
    masks: Tensor
    crowd: Tensor

    @property
    def size(self) -> tuple[int, int]:
        """(H, W)."""
        return self.image.shape[-2], self.image.shape[-1]

    def kept(self, chosen: Tensor) -> Scene:
        """With some of the objects, ``[n]`` bool."""
        names = ("boxes", "labels", "masks", "crowd")
        return replace(self, **{name: getattr(self, name)[chosen] for name in names})


@dataclass(frozen=True, kw_only=True)
class ObjectView:
    """A picture at the top left of a square, as large as fits; the same for its objects.

    With a key: flipped, then its longer side resized to ``S`` times a number from ``scale``, log
    uniform, and where that is larger than the square, cropped at random (large scale jitter:
    Ghiasi et al., Simple Copy-Paste, CVPR 2021). Objects of which less than a pixel is left are
    dropped. Without a key: none of that, and every object is kept.

    Images are resized bilinearly with antialiasing, masks to the nearest pixel.

    Attributes:
        size: S, in pixels.
        scale: least and largest size of the picture, in squares.
        hflip: probability of a flip, in [0, 1].
    """

    size: int
    scale: tuple[float, float] = (0.5, 1.5)
    hflip: float = 0.5

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"size is a side in pixels, at least 1; got {self.size}")
        if not 0 < self.scale[0] <= self.scale[1] < math.inf:
            raise ValueError(f"scale is two rising, positive numbers; got {self.scale}")
        if not 0 <= self.hflip <= 1:
            raise ValueError(f"hflip is a probability in [0, 1]; got {self.hflip}")

    def __call__(self, scene: Scene, key: int | None) -> Scene:
        """The view of a scene, at most S x S; `batch_of` pads it.

        Args:
            scene: as it was read.
            key: what flip, scale and crop are drawn from; None for the fixed view.
        """
        height, width = scene.size
        if key is None:
            return _resized(scene, self.fit(height, width))
        draws = uniforms(torch.tensor([key]), _DRAWS)[0].tolist()
        if draws[_FLIP] < self.hflip:
            scene = _each(scene, V.horizontal_flip)
        low, high = (math.log(bound) for bound in self.scale)
        factor = math.exp(low + (high - low) * draws[_SCALE])
        scene = _resized(scene, self.fit(height, width, factor))
        height, width = scene.size
        top = math.floor(draws[_TOP] * (max(0, height - self.size) + 1))
        left = math.floor(draws[_LEFT] * (max(0, width - self.size) + 1))
        window = top, left, min(height, self.size), min(width, self.size)
        if window[2:] != (height, width):
            scene = _each(scene, V.crop, *window)
        sides = scene.boxes[:, 2:] - scene.boxes[:, :2]
        return scene.kept((sides >= 1).all(dim=1) & scene.masks.flatten(1).bool().any(dim=1))

    def fit(self, height: int, width: int, factor: float = 1.0) -> tuple[int, int]:
        """Height and width of a picture whose longer side is S times a factor."""
        scale = factor * self.size / max(height, width)
        return max(1, round(height * scale)), max(1, round(width * scale))


def batch_of(scenes: Sequence[Scene], size: int) -> TensorDict:
    """Scenes, each at the top left of a square of S x S pixels.

    Returns:
        Of batch size ``[B]``: ``rgb`` float32 ``[3, S, S]``, standardised by ImageNet's mean and
        deviation, 0 beside the picture; ``boxes`` float32 ``[M, 4]``, ``labels`` int64 ``[M]``,
        ``masks`` bool ``[M, S, S]`` and ``crowd`` bool ``[M]``, 0 for no object.
    """
    most = max((len(scene.labels) for scene in scenes), default=0)
    fields: dict[str, list[Tensor]] = {}
    for scene in scenes:
        height, width = scene.size
        rgb = V.normalize(
            scene.image.as_subclass(Tensor).float() / 255, list(MEAN), list(DEVIATION)
        )
        beside, more = (0, size - width, 0, size - height), most - len(scene.labels)
        row = {
            "rgb": F.pad(rgb, beside),
            "boxes": F.pad(scene.boxes.as_subclass(Tensor).float(), (0, 0, 0, more)),
            "labels": F.pad(scene.labels, (0, more)),
            "masks": F.pad(scene.masks.as_subclass(Tensor), (*beside, 0, more)).bool(),
            "crowd": F.pad(scene.crowd, (0, more)),
        }
        for name, value in row.items():
            fields.setdefault(name, []).append(value)
    stacked = {name: torch.stack(values) for name, values in fields.items()}
    return TensorDict(stacked, batch_size=[len(scenes)])


def _resized(scene: Scene, size: tuple[int, int]) -> Scene:
    return scene if size == scene.size else _each(scene, V.resize, list(size), antialias=True)


def _each(scene: Scene, change: Any, *args: Any, **options: Any) -> Scene:
    """The same change of picture, boxes and masks."""
    boxes = BoundingBoxes(scene.boxes, format=BoundingBoxFormat.XYXY, canvas_size=scene.size)  # type: ignore[call-arg]
    image = change(Image(scene.image), *args, **options).as_subclass(Tensor)
    if len(scene.labels):
        masks = change(Mask(scene.masks), *args, **options).as_subclass(Tensor)
        moved = change(boxes, *args, **options).as_subclass(Tensor)
    else:  # torchvision resizes no empty stack of masks
        masks, moved = scene.masks.new_zeros(0, *image.shape[-2:]), scene.boxes
    return replace(scene, image=image, boxes=moved, masks=masks)
