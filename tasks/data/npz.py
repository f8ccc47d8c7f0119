"""Images and labels in one NumPy ``.npz`` file."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import torch

from attent.tasks.data.split import Rows, stratified


def npz(path: str | Path, held_out: float, *, seed: int = 0) -> tuple[Rows, Rows]:
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
    images, labels = _read(Path(path))
    if images.ndim == 3:
        images = images[..., None]
    if images.ndim != 4 or labels.shape != images.shape[:1]:
        raise ValueError(
            f"{path}: images are {list(images.shape)} and labels {list(labels.shape)}; expected "
            "[N, H, W] or [N, H, W, C], and [N]"
        )
    if not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"{path}: labels are {labels.dtype}; expected integers")
    if not len(labels):
        raise ValueError(f"{path} holds no images")
    classes, counts = np.unique(labels, return_counts=True)
    if counts.min() < 2:
        raise ValueError(
            f"{path}: class {classes[counts.argmin()]} has one example; a split needs two of each"
        )
    train, test = stratified(labels, held_out, seed=seed)
    finite = np.isfinite(images).all(axis=(1, 2, 3))
    if not finite.all():
        raise ValueError(
            f"{path}: the image of example {int(finite.argmin())} holds a value that is not finite"
        )
    pixels = torch.from_numpy(images.astype(np.float32)).permute(0, 3, 1, 2).contiguous()
    mean = pixels[train].mean(dim=(0, 2, 3), keepdim=True)
    deviation = pixels[train].std(dim=(0, 2, 3), keepdim=True).clamp_min(1e-6)
    pixels = (pixels - mean) / deviation
    targets = torch.from_numpy(labels.astype(np.int64))
    fields = {"image": pixels, "label": targets}
    return Rows(fields, train, str(path)), Rows(fields, test, str(path))


def _read(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """The two arrays of a file, whatever they hold."""
    try:
        # Unzipped by hand: np.load would also take a bare array or a pickle for what it is given.
        with zipfile.ZipFile(path) as archive:
            found = sorted(name.removesuffix(".npy") for name in archive.namelist())
        if not {"images", "labels"} <= set(found):
            raise ValueError(
                f"{path} holds {', '.join(found) or 'nothing'}; expected arrays 'images' [N, H, W] "
                "or [N, H, W, C] and 'labels' [N]"
            )
        with np.load(path, allow_pickle=False) as file:
            return file["images"], file["labels"]
    except (OSError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} is not an .npz file, or is damaged: {error}") from error
    except ValueError as error:
        if str(path) in str(error):
            raise
        raise ValueError(f"{path} cannot be read: {error}") from error
