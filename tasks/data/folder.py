"""Images in folders: ``root/{train,val}/CLASS/IMAGE``, as ImageNet is kept."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from tensordict import TensorDict
from torch import Tensor
from torchvision.transforms.v2 import functional as V

EXTENSIONS = frozenset({".jpg", ".jpeg", ".png", ".ppm", ".pgm", ".bmp", ".tif", ".tiff", ".webp"})

MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of ImageNet's training images, per channel, for pixels in [0, 1]."""


class ImageFolder:
    """The images of one split, decoded when they are asked for.

    Shorter side resized to ``size`` (bicubic), centre crop, standardisation by channel.

    Args:
        root: has a folder for each class.
        classes: class names in the order of their labels; None for the folders' names, sorted.
        size: side in pixels.
        mean: of the three channels, for pixels in [0, 1]; ImageNet's by default.
        deviation: of the three channels.

    Raises:
        ValueError: no such folder, no classes, no images, or a class that is not among ``classes``;
            says what was expected and what was found.
    """

    def __init__(
        self,
        root: str | Path,
        *,
        size: int,
        classes: list[str] | None = None,
        mean: Sequence[float] = MEAN,
        deviation: Sequence[float] = DEVIATION,
    ) -> None:
        root = Path(root)
        if not root.is_dir():
            beside = sorted(p.name for p in root.parent.iterdir()) if root.parent.is_dir() else []
            raise ValueError(
                f"no folder {root}; expected ROOT/train/CLASS/IMAGE and ROOT/val/CLASS/IMAGE, "
                f"found {', '.join(beside[:8]) or 'nothing'} in {root.parent}"
            )
        found = sorted(p.name for p in root.iterdir() if p.is_dir() and p.name[0] != ".")
        if not found:
            raise ValueError(f"{root} has no class folders; expected {root.name}/CLASS/IMAGE")
        self.classes = classes or found
        unknown = sorted(set(found) - set(self.classes))
        if unknown:
            raise ValueError(f"{root} has classes that the training split has not: {unknown[:8]}")
        self.size = size
        self.mean, self.deviation = list(mean), list(deviation)
        self.paths: list[Path] = []
        labels: list[int] = []
        for name in found:
            images = sorted(p for p in (root / name).rglob("*") if p.suffix.lower() in EXTENSIONS)
            self.paths += images
            labels += [self.classes.index(name)] * len(images)
        if not self.paths:
            raise ValueError(f"{root} holds no images ({', '.join(sorted(EXTENSIONS))})")
        self.labels = torch.tensor(labels)

    def __len__(self) -> int:
        return len(self.paths)

    def locate(self, index: int) -> str:
        """The image's path."""
        return str(self.paths[index])

    def read(self, index: int) -> dict[str, Tensor]:
        """``rgb`` of one image as it is, uint8 ``[3, H, W]``."""
        with Image.open(self.paths[index]) as file:
            return {"rgb": V.pil_to_tensor(file.convert("RGB"))}

    def fetch(self, index: Tensor) -> TensorDict:
        """``image`` ``[B, 3, size, size]`` float32 and ``label`` ``[B]`` int64."""
        images = torch.stack([self._read(self.paths[i]) for i in index.tolist()])
        return TensorDict({"image": images, "label": self.labels[index]}, batch_size=[len(index)])

    def _read(self, path: Path) -> Tensor:
        with Image.open(path) as file:
            image = file.convert("RGB")
        scale = self.size / min(image.size)
        height, width = (
            max(self.size, round(side * scale)) for side in (image.height, image.width)
        )
        resized = image.resize((width, height), Image.Resampling.BICUBIC)
        cropped = V.center_crop(V.pil_to_tensor(resized), [self.size, self.size])
        return V.normalize(cropped.float() / 255, self.mean, self.deviation)
