"""Images in folders: ``root/{train,val}/CLASS/IMAGE``, as ImageNet is kept."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from attent.tasks.data import decode

EXTENSIONS = frozenset({".jpg", ".jpeg", ".png", ".ppm", ".pgm", ".bmp", ".tif", ".tiff", ".webp"})


class ImageFolder:
    """A reader of the images of one split, decoded when they are asked for.

    Args:
        root: has a folder for each class.
        classes: class names in the order of their labels; None for the folders' names, sorted.

    Attributes:
        classes: the same.
        labels: ``[N]`` int64.

    Raises:
        ValueError: no such folder, no classes, no images, or a class that is not among ``classes``;
            says what was expected and what was found.
    """

    def __init__(self, root: str | Path, *, classes: list[str] | None = None) -> None:
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
        """``rgb`` of one image at its own size, upright, uint8 ``[3, H, W]``.

        Raises:
            ValueError: a file that cannot be read, or holds more than 8 bits a channel; names it.
        """
        return {"rgb": decode.rgb(self.paths[index], upright=True)}
