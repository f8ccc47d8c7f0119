"""Real pictures that installed packages carry, cut into crops: photographs, and maps of elevation.

For tests and for trying out. Photographs: scikit-learn's ``china.jpg`` and ``flower.jpg``,
Matplotlib's ``grace_hopper.jpg``. Elevation: Matplotlib's ``jacksboro_fault_dem.npz`` and
``topobathy.npz``. What an installation does not carry is passed over.
"""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from matplotlib import get_data_path
from torch import Tensor

from attent.tasks.data import decode

TRAIN_SHARE = 0.6
"""Of a picture's columns, from the left, that are for training."""

GAP = 16
"""Columns in pixels between training and validation, in neither: neighbours are much alike."""

_ELEVATION = {"jacksboro_fault_dem.npz": "elevation", "topobathy.npz": "topo"}


class Crop(NamedTuple):
    """A square of a picture."""

    picture: str
    top: int
    left: int


class Photos:
    """Overlapping square crops of real pictures; training and validation share no pixel.

    Training takes the left part of each picture, validation the right, with a gap between. A
    picture whose part is smaller than a crop gives none.

    Args:
        domain: ``rgb`` or ``depth``; the two are not of one scene.
        size: side of a crop in pixels.
        split: ``train`` or ``val``.
        stride: pixels from one crop to the next, along both axes; None for half a crop.

    Raises:
        ValueError: another domain or split, a size or stride below 1, or a size at which there is
            no crop.
    """

    def __init__(
        self,
        domain: Literal["rgb", "depth"],
        *,
        size: int,
        split: Literal["train", "val"] = "train",
        stride: int | None = None,
    ) -> None:
        if domain not in ("rgb", "depth") or split not in ("train", "val"):
            raise ValueError(
                f"expected domain rgb or depth and split train or val; got {domain!r}, {split!r}"
            )
        if stride is None:
            stride = max(1, size // 2)
        if size < 1 or stride < 1:
            raise ValueError(f"size and stride are at least 1 pixel; got {size} and {stride}")
        self.domains = (domain,)
        self.size, self.split = size, split
        self._pictures = _pictures(domain)
        self.crops: list[Crop] = []
        largest = 0
        for name, picture in self._pictures.items():
            height, width = picture.shape[-2:]
            first, last = _columns(width, split)
            largest = max(largest, min(height, last - first))
            self.crops += [
                Crop(name, top, left)
                for top in range(0, height - size + 1, stride)
                for left in range(first, last - size + 1, stride)
            ]
        if not self.crops:
            raise ValueError(
                f"no {split} crop of {size} pixels in {', '.join(self._pictures) or 'no picture'}; "
                f"expected a size of at most {largest}"
            )

    def __len__(self) -> int:
        return len(self.crops)

    def locate(self, index: int) -> str:
        """The picture, and where in it."""
        name, top, left = self.crops[index]
        size = self.size
        return f"{name}, rows {top}-{top + size - 1}, columns {left}-{left + size - 1}"

    def read(self, index: int) -> dict[str, Tensor]:
        """``rgb`` uint8 ``[3, size, size]``, or ``depth`` float32 ``[1, size, size]``.

        Depth is elevation in metres above sea level; below it, negative.
        """
        name, top, left = self.crops[index]
        picture = self._pictures[name]
        crop = picture[:, top : top + self.size, left : left + self.size]
        return {self.domains[0]: crop.clone(memory_format=torch.contiguous_format)}


def _columns(width: int, split: str) -> tuple[int, int]:
    """First column of a split, and the one after its last."""
    cut = round(TRAIN_SHARE * width)
    return (0, cut) if split == "train" else (cut + GAP, width)


@cache
def _pictures(domain: str) -> dict[str, Tensor]:
    """File name -> ``[3, H, W]`` uint8 or ``[1, H, W]`` float32; read once, and never written."""
    samples = Path(get_data_path()) / "sample_data"
    if domain == "rgb":
        carried = Path(str(files("sklearn.datasets") / "images"))
        paths = [carried / "china.jpg", carried / "flower.jpg", samples / "grace_hopper.jpg"]
        return {path.name: decode.rgb(path) for path in paths if path.is_file()}
    return {
        name: _elevation(samples / name, entry)
        for name, entry in _ELEVATION.items()
        if (samples / name).is_file()
    }


def _elevation(path: Path, entry: str) -> Tensor:
    with np.load(path, allow_pickle=False) as file:
        return torch.from_numpy(file[entry].astype(np.float32)).unsqueeze(0)
