"""Pictures of what a masked autoencoder makes of held-out scenes."""

from __future__ import annotations

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn import functional as F

from attent.pipeline.score import Frozen
from attent.pipeline.source import fetch_batch
from attent.tasks.build import Run
from attent.tasks.grid import HIDDEN, Column, colours, grid, of_classes, of_numbers
from attent.tasks.pretraining.losses import normalized_by_patch
from attent.tasks.pretraining.task import MaskedPretraining

SCENES = 6
"""Shown."""


WORDS = (
    "Held-out scenes: each modality, the patches of it that were seen, and these with the others "
    "as they were predicted (norm_rgb: its patches at the original's mean and contrast)"
)


def reconstructions(run: Run) -> list[tuple[str, Figure, str]]:
    """Of a few held-out scenes: input, what was seen of it, and the rest as it was predicted.

    Args:
        run: its state holds the weights that are shown.

    Returns:
        One figure for the report: its name, itself, and what it shows.
    """
    task = run.task
    assert isinstance(task, MaskedPretraining)
    count = min(SCENES, len(run.held_out))
    model = Frozen(task, run.state)
    batch = model.prepare(fetch_batch(run.held_out, torch.arange(count)))
    with torch.no_grad():
        predictions = task.forward(model, batch).predictions[0]
    order, layout = task.orders(batch)[0], task.layout(batch)
    shown = [name for name in ("rgb", "depth", "semseg") if name in predictions]
    columns: list[Column] = []
    for name in shown:
        patches = task.multimae.output_grid(name, layout)
        seen = torch.zeros(count, *patches, dtype=torch.bool)
        if name in layout.grids:
            seen = ~order.masked[:, layout.span(name)].unflatten(1, patches).cpu()
        target, predicted = batch[name].cpu(), predictions[name].float().cpu()
        if name == "rgb" and "norm_rgb" in predictions:
            columns += _rgb(target, predicted, predictions["norm_rgb"].float().cpu(), seen, patches)
        else:
            columns += _three(name, target, predicted, seen)
    return [("reconstructions", grid(columns, count), WORDS)]


def _three(name: str, target: Tensor, predicted: Tensor, seen: Tensor) -> list[Column]:
    """Input, what was seen of it, and the same with the rest predicted; of one modality."""
    if name == "rgb":
        return _colours(target, {"predicted": predicted}, seen)
    if name == "semseg":
        classes = predicted.shape[1]
        truth, guess = target.numpy(), predicted.argmax(dim=1).numpy()
        options = of_classes(classes)
    else:
        truth, guess = target[:, 0].numpy(), predicted[:, 0].numpy()
        options = of_numbers(truth)
    there = _upsampled(seen, truth.shape[-1])
    hidden = np.ma.masked_array(truth, ~there)
    filled = np.where(there, truth, guess)
    return [(name, truth, options), ("seen", hidden, options), ("predicted", filled, options)]


def _rgb(
    target: Tensor, predicted: Tensor, normalized: Tensor, seen: Tensor, patches: tuple[int, int]
) -> list[Column]:
    """As `_three`, with the second decoder's picture, each patch given its own mean and contrast.

    That decoder does not predict them: they are the target's, as in MAE's own pictures.
    """
    unit = normalized_by_patch(target, patches)
    # x = unit * deviation + mean in each patch: the two numbers from the target and its unit.
    side = target.shape[-1] // patches[1]
    mean = F.avg_pool2d(target.mean(dim=1, keepdim=True), side)
    wide = F.avg_pool2d((unit * target).mean(dim=1, keepdim=True), side)
    scale, shift = (F.interpolate(part, scale_factor=side) for part in (wide, mean))
    return _colours(target, {"predicted": predicted, "norm_rgb": normalized * scale + shift}, seen)


def _colours(target: Tensor, predicted: dict[str, Tensor], seen: Tensor) -> list[Column]:
    truth = colours(target)
    there = _upsampled(seen, truth.shape[2])[..., None]
    hidden = np.where(there, truth, HIDDEN)
    made = [(name, np.where(there, truth, colours(made)), {}) for name, made in predicted.items()]
    return [("rgb", truth, {}), ("seen", hidden, {}), *made]


def _upsampled(seen: Tensor, side: int) -> np.ndarray:
    """``[B, h, w]`` bool -> ``[B, side, side]``."""
    return F.interpolate(seen.float().unsqueeze(1), size=(side, side))[:, 0].bool().numpy()
