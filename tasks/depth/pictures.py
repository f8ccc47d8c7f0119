"""Pictures of depth, and of other maps of numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from attent.tasks.build import Run
from attent.tasks.command import Prediction
from attent.tasks.depth.task import NEAREST, DenseRegression
from attent.tasks.finetuning.pictures import (
    of_held_out,
    of_photograph,
    resized,
    shown,
    side_by_side,
)
from attent.tasks.grid import Column, colours, grid, of_numbers


def maps(run: Run) -> list[tuple[str, Figure, str]]:
    """Of a few held-out scenes: picture, target, prediction; the first channel.

    Args:
        run: its state holds the weights that are shown.
    """
    batch, predicted = of_held_out(run)
    target, guess = batch["target"][:, 0].numpy(), predicted[:, 0].numpy()
    depth = isinstance(run.task, DenseRegression) and run.task.depth
    if depth:  # by its logarithm, or what is near would all look alike
        target, guess = (np.log10(np.maximum(x, NEAREST)) for x in (target, guess))
    known = np.ma.masked_array(target, ~batch["valid"][:, 0].numpy())
    options = of_numbers(known.filled(np.nan))
    columns: list[Column] = [
        ("target", known, options),
        ("predicted", guess, options),
    ]
    if "rgb" in batch:
        columns.insert(0, ("rgb", colours(batch["rgb"]), {}))
    words = "Held-out scenes and what is predicted of them" + (" (log depth)" if depth else "")
    return [("maps", grid(columns, len(batch)), words)]


def predicted(run: Run, config: Any, image: Tensor) -> Prediction:
    """What a run makes of a photograph.

    Args:
        run: its state holds the weights.
        config: its options.
        image: ``[3, H, W]`` uint8.

    Returns:
        A figure, of normals in their colours and else of the first channel, and ``map``
        ``[C, H, W]`` float32.
    """
    assert isinstance(run.task, DenseRegression)
    found = of_photograph(run, image)
    small = shown(image)
    values = resized(found, *small.shape[-2:]).numpy()
    figure, left, right = side_by_side(small, below=0.7 if len(values) < 3 else 0)
    if len(values) < 3:
        drawn = right.imshow(values[0], **of_numbers(values[0]))
        unit = "metres" if run.task.depth else config.target
        key: dict[str, Any] = {"location": "bottom", "shrink": 0.5, "aspect": 40}
        figure.colorbar(drawn, ax=[left, right], label=unit, **key)
    else:  # directions, which are kept as colours
        right.imshow(values.transpose(1, 2, 0).clip(0, 1))
    low, high = float(found[0].min()), float(found[0].max())
    words = f"{config.target} from {low:.3g} to {high:.3g}" + (" m" if run.task.depth else "")
    return Prediction(figure=figure, words=words, arrays={"map": found.numpy()})
