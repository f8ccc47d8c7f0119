"""Labelled images and their augmentation in training.

Shapes: B examples, H x W an image's own size in pixels, S the side of what is made of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from tensordict import TensorDict
from torch import Tensor
from torchvision.transforms.v2 import functional as V
from torchvision.tv_tensors import Image

from attent.pipeline.keyed import fold
from attent.pipeline.source import reading
from attent.tasks.data.joint import JointView, one_key_each
from attent.tasks.data.multimodal import Reader
from attent.tasks.data.pixels import DEVIATION, MEAN, Standardize
from attent.tasks.data.randaugment import STRONGEST, rand_augment


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """Random changes of a training image, each a function of the example's key.

    Attributes:
        scale: smallest share of an image's area that is cropped, in (0, 1].
        hflip: probability of a horizontal flip, in [0, 1].
        rand_augment: magnitude of RandAugment, 0 to 10; 0 for none.
    """

    scale: float = 0.08
    hflip: float = 0.5
    rand_augment: float = 0

    def __post_init__(self) -> None:
        if not 0 <= self.rand_augment <= STRONGEST:
            raise ValueError(f"rand_augment is 0 to {STRONGEST}, got {self.rand_augment}")
        JointView(size=1, scale=(self.scale, 1.0), hflip=self.hflip)  # refuses what is out of range

    def __call__(self, image: Tensor, key: int, size: int) -> Tensor:
        """``[3, H, W]`` uint8 -> ``[3, S, S]`` uint8."""
        view = JointView(size=size, scale=(self.scale, 1.0), hflip=self.hflip)
        picture = view({"rgb": Image(image)}, key)["rgb"].as_subclass(Tensor)
        if self.rand_augment:
            picture = rand_augment(picture, _own(key), self.rand_augment)
        return picture


def _own(key: int) -> int:
    """A key of other draws than those of the crop."""
    return fold(key, "rand_augment")


class Images:
    """Batches of a reader's photographs and their labels: a source.

    Args:
        reader: of rgb uint8 ``[3, H, W]``, with ``labels`` ``[N]`` int64.
        size: S. Images that are not trained on have their shorter side resized to S / crop_pct,
            bicubic, and are cropped in the centre; those of S x S are left alone.
        crop_pct: share of the shorter side that is kept, in (0, 1]; 0.875 is usual.
        augmentation: of training images; None for none.
        mean: of the three channels, for pixels in [0, 1]; ImageNet's by default.
        deviation: of the three channels.

    Attributes:
        kept: share of the shorter side that the fixed view keeps.
        blocks: the reader's, where it keeps images together; else None.
        window: the reader's, where it has one.

    Raises:
        ValueError: a reader without labels, or an argument out of range.
    """

    def __init__(
        self,
        reader: Reader,
        *,
        size: int,
        crop_pct: float = 1.0,
        augmentation: Augmentation | None = None,
        mean: Sequence[float] = MEAN,
        deviation: Sequence[float] = DEVIATION,
    ) -> None:
        if not 0 < crop_pct <= 1:
            raise ValueError(f"crop_pct is in (0, 1], got {crop_pct}")
        labels = getattr(reader, "labels", None)
        if labels is None:
            raise ValueError(f"{type(reader).__name__} has no labels to learn")
        self.reader, self.labels = reader, labels
        self.classes: list[str] | None = getattr(reader, "classes", None)
        self.blocks: Tensor | None = getattr(reader, "blocks", None)
        if hasattr(reader, "window"):
            self.window: int = reader.window  # type: ignore[attr-defined]
        self.size, self.augmentation = size, augmentation
        self._fixed = JointView(size=max(size, round(size / crop_pct)))
        self.kept = size / self._fixed.size
        self.standardized = Standardize(mean, deviation)

    def __len__(self) -> int:
        return len(self.reader)

    def locate(self, index: int) -> str:
        """Where the reader keeps an image."""
        return self.reader.locate(index)

    def fetch(self, index: Tensor) -> TensorDict:
        """``image`` ``[B, 3, S, S]`` float32, standardised, and ``label`` ``[B]`` int64."""
        return self._batch(index, [self.picture(i) for i in index.tolist()])

    def fetch_augmented(self, index: Tensor, keys: Tensor) -> TensorDict:
        """As `fetch`, each image changed by its own key (``[B]`` int64)."""
        if self.augmentation is None:
            return self.fetch(index)
        pictures = [
            self.augmentation(self._read(i), key, self.size)
            for i, key in zip(index.tolist(), one_key_each(index, keys), strict=True)
        ]
        return self._batch(index, pictures)

    def picture(self, index: int) -> Tensor:
        """An image as it is scored and evaluated, ``[3, S, S]`` uint8."""
        return self.viewed(self._read(index))

    def viewed(self, image: Tensor) -> Tensor:
        """An image ``[3, H, W]`` uint8 in the fixed view, ``[3, S, S]`` uint8."""
        if image.shape[-2:] == (self.size, self.size):
            return image
        resized = self._fixed({"rgb": Image(image)}, None)["rgb"]
        return V.center_crop(resized, [self.size, self.size]).as_subclass(Tensor)

    def _read(self, index: int) -> Tensor:
        reading(index)
        return self.reader.read(index)["rgb"]

    def _batch(self, index: Tensor, pictures: Sequence[Tensor]) -> TensorDict:
        images = self.standardized(torch.stack(list(pictures)))
        return TensorDict({"image": images, "label": self.labels[index]}, batch_size=[len(index)])
