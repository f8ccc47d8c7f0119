"""Pictures of segmentations."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from torch import Tensor

from attent.tasks.build import Run
from attent.tasks.command import Prediction
from attent.tasks.data.scenes import SEMANTIC_CLASSES
from attent.tasks.finetuning.pictures import of_held_out, of_photograph
from attent.tasks.grid import Column, colours, grid, of_classes, palette
from attent.tasks.segmentation.task import IGNORED, Segmentation

OVER = 0.6
"""How much of the classes' colours covers a photograph."""


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
        A figure, and ``labels`` ``[h, w]`` uint8 at the size at which the model sees it.
    """
    assert isinstance(run.task, Segmentation)
    names = SEMANTIC_CLASSES if config.data == "scenes" else ()
    shown, classes = of_photograph(run, image)
    picture, ids = shown.permute(1, 2, 0).numpy(), classes.numpy()
    paint = palette(run.task.num_classes)
    scale = max(run.task.num_classes - 1, 1)
    painted = paint(ids / scale)[..., :3]
    counts = np.bincount(ids.ravel())
    largest = [int(i) for i in np.argsort(-counts)[:12] if counts[i]]
    labels = [f"{_name(i, names)} {counts[i] / ids.size:.0%}" for i in largest]
    handles = [
        Patch(color=paint(i / scale), label=label) for i, label in zip(largest, labels, strict=True)
    ]
    figure = Figure(figsize=(9, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.imshow(picture)
    right.imshow((1 - OVER) * picture / 255 + OVER * painted)
    for ax in (left, right):
        ax.set_axis_off()
    figure.legend(handles=handles, loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    words = ", ".join(labels[:3])
    return Prediction(figure=figure, words=words, arrays={"labels": ids.astype(np.uint8)})


def _name(number: int, names: tuple[str, ...]) -> str:
    return names[number] if number < len(names) else f"class {number}"
