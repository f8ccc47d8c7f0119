"""Images and labels in one NumPy ``.npz`` file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from sklearn.model_selection import train_test_split

from attent.pipeline.source import TensorSource


def npz(path: str | Path, held_out: float, *, seed: int = 0) -> tuple[TensorSource, TensorSource]:
    """Training and held-out images of a file, split by class in equal shares.

    Args:
        path: holds ``images`` ``[N, H, W]`` or ``[N, H, W, C]``, of integers or floats, and
            ``labels`` ``[N]``, integers from 0.
        held_out: share held out, in (0, 1).
        seed: of the split.

    Returns:
        Two sources of ``image`` ``[C, H, W]`` float32, each channel standardised by the training
        images, and ``label`` int64.

    Raises:
        ValueError: the file does not hold that; says what was found.
    """
    with np.load(path, allow_pickle=False) as file:
        if not {"images", "labels"} <= set(file.files):
            raise ValueError(
                f"{path} holds {', '.join(file.files) or 'nothing'}; expected arrays 'images' "
                "[N, H, W] or [N, H, W, C] and 'labels' [N]"
            )
        images, labels = file["images"], file["labels"]
    if images.ndim == 3:
        images = images[..., None]
    if images.ndim != 4 or labels.shape != images.shape[:1]:
        raise ValueError(
            f"{path}: images are {list(images.shape)} and labels {list(labels.shape)}; expected "
            "[N, H, W] or [N, H, W, C], and [N]"
        )
    if not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"{path}: labels are {labels.dtype}; expected integers")
    classes, counts = np.unique(labels, return_counts=True)
    if counts.min() < 2:
        raise ValueError(
            f"{path}: class {classes[counts.argmin()]} has one example; a split needs two of each"
        )
    rows = np.arange(len(labels))
    split = train_test_split(rows, test_size=held_out, random_state=seed, stratify=labels)
    train, test = np.asarray(split[0]), np.asarray(split[1])
    pixels = torch.from_numpy(images.astype(np.float32)).permute(0, 3, 1, 2).contiguous()
    mean = pixels[train].mean(dim=(0, 2, 3), keepdim=True)
    deviation = pixels[train].std(dim=(0, 2, 3), keepdim=True).clamp_min(1e-6)
    pixels = (pixels - mean) / deviation
    targets = torch.from_numpy(labels.astype(np.int64))

    def part(rows: np.ndarray) -> TensorSource:
        index = torch.from_numpy(rows)
        return TensorSource({"image": pixels[index], "label": targets[index]})

    return part(train), part(test)
