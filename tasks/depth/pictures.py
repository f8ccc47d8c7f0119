"""Pictures of depth, and of other maps of numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from attent.tasks.build import Run
from attent.tasks.command import Prediction
from attent.tasks.depth.task import NEAREST, DenseRegression
from attent.tasks.finetuning.pictures import of_held_out, of_photograph
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
        A figure, and ``map`` ``[C, h, w]`` float32 at the size at which the model sees it.
    """
    assert isinstance(run.task, DenseRegression)
    shown, found = of_photograph(run, image)
    values = found.numpy()
    unit = "metres" if run.task.depth else config.target
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.imshow(shown.permute(1, 2, 0).numpy())
    drawn = right.imshow(values[0], **of_numbers(values[0]))
    figure.colorbar(drawn, ax=right, label=unit, shrink=0.9)
    for ax in (left, right):
        ax.set_axis_off()
    low, high = float(values[0].min()), float(values[0].max())
    words = f"{config.target} from {low:.3g} to {high:.3g}" + (" m" if run.task.depth else "")
    return Prediction(figure=figure, words=words, arrays={"map": values})
