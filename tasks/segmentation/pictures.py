"""Pictures of segmentations."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
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
    return [("segmentations", grid(columns, len(batch)), words)]


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
    scale = max(run.task.num_classes - 1, 1)
    painted = paint(resized(ids, *small.shape[-2:]).numpy() / scale)[..., :3]
    counts = torch.bincount(ids.flatten()).numpy()
    largest = [int(i) for i in np.argsort(-counts)[:KEYS] if counts[i]]
    labels = [f"{names[i]} {counts[i] / ids.numel():.0%}" for i in largest]
    handles = [
        Patch(color=paint(i / scale), label=label) for i, label in zip(largest, labels, strict=True)
    ]
    figure, _, right = side_by_side(small, below=0.2 * math.ceil(len(labels) / COLUMNS) + 0.1)
    right.imshow((1 - OVER) * small.permute(1, 2, 0).numpy() / 255 + OVER * painted)
    key = {"loc": "outside lower center", "ncols": COLUMNS, "fontsize": 8, "frameon": False}
    figure.legend(handles=handles, **key)
    return Prediction(figure=figure, words=", ".join(labels[:3]), arrays={"labels": ids.numpy()})


def class_names(run: Run) -> tuple[str, ...]:
    """What the classes are called, those without a name by their number."""
    assert isinstance(run.held_out, Dense)
    known = run.held_out.class_names
    return known or tuple(f"class {i}" for i in range(run.held_out.num_outputs))
