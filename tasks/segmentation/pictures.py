"""Pictures of segmentations."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from matplotlib.colors import Colormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from torch import Tensor

from attent.tasks.build import Run
from attent.tasks.command import Prediction
from attent.tasks.data.dense import Dense
from attent.tasks.finetuning.pictures import (
    of_held_out,
    of_photograph,
    resized,
    shown,
    side_by_side,
)
from attent.tasks.grid import Column, colours, grid, of_classes, palette
from attent.tasks.segmentation.task import IGNORED, Segmentation

OVER = 0.6
"""How much of the classes' colours covers a photograph."""

KEYS, COLUMNS = 12, 4
"""Classes of which the colours are told, the most frequent, and how many in a row."""


def segmentations(run: Run) -> list[tuple[str, Figure, str]]:
    """Of a few held-out scenes: picture, labels, prediction.

    Args:
        run: its state holds the weights that are shown.
    """
    assert isinstance(run.task, Segmentation)
    batch, predicted = of_held_out(run)
    options = of_classes(run.task.num_classes)
    target = batch["target"].numpy()
    columns: list[Column] = [
        ("labels", np.ma.masked_equal(target, IGNORED), options),
        ("predicted", predicted.numpy(), options),
    ]
    if "rgb" in batch:
        columns.insert(0, ("rgb", colours(batch["rgb"]), {}))
    words = "Held-out scenes, their labels, and what is predicted"
    figure, names = grid(columns, len(batch)), class_names(run)
    seen = torch.cat([batch["target"][batch["target"] != IGNORED], predicted.flatten()])
    labels = {i: names[i] for i in _frequent(seen)}
    width, height = figure.get_size_inches()
    figure.set_size_inches(width, height + 0.2 * math.ceil(len(labels) / COLUMNS) + 0.1)
    _key(figure, options["cmap"], labels)
    return [("segmentations", figure, words)]


def predicted(run: Run, config: Any, image: Tensor) -> Prediction:
    """What a run makes of a photograph: its classes over it, and a key to them.

    Args:
        run: its state holds the weights.
        config: its options.
        image: ``[3, H, W]`` uint8.

    Returns:
        A figure, and ``labels`` ``[H, W]`` uint8.
    """
    assert isinstance(run.task, Segmentation)
    names = class_names(run)
    ids, small = of_photograph(run, image).byte(), shown(image)
    paint = palette(run.task.num_classes)
    painted = paint(resized(ids, *small.shape[-2:]).numpy().astype(int))[..., :3]
    labels = {i: f"{names[i]} {share:.0%}" for i, share in _frequent(ids).items()}
    figure, _, right = side_by_side(small, below=0.2 * math.ceil(len(labels) / COLUMNS) + 0.1)
    right.imshow((1 - OVER) * small.permute(1, 2, 0).numpy() / 255 + OVER * painted)
    _key(figure, paint, labels)
    words = ", ".join(list(labels.values())[:3])
    return Prediction(figure=figure, words=words, arrays={"labels": ids.numpy()})


def _frequent(ids: Tensor) -> dict[int, float]:
    """The most frequent classes of some pixels -> their shares, the largest first."""
    counts = torch.bincount(ids.flatten())
    order = counts.argsort(descending=True)[:KEYS].tolist()
    return {i: int(counts[i]) / ids.numel() for i in order if counts[i]}


def _key(figure: Figure, paint: Colormap, labels: Mapping[int, str]) -> None:
    """Say below a figure what the colours of classes stand for."""
    patches = [Patch(color=paint(i), label=label) for i, label in labels.items()]
    where: dict[str, Any] = {"loc": "outside lower center", "ncols": COLUMNS}
    figure.legend(handles=patches, fontsize=8, frameon=False, **where)


def class_names(run: Run) -> tuple[str, ...]:
    """What the classes are called, those without a name by their number."""
    assert isinstance(run.held_out, Dense)
    known = run.held_out.class_names
    return known or tuple(f"class {i}" for i in range(run.held_out.num_outputs))
