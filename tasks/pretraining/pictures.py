"""Pictures of what a masked autoencoder makes of held-out scenes."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib
import matplotlib.colors
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from tensordict import TensorDict
from torch import Tensor
from torch.nn import functional as F

from attent.pipeline.score import Frozen
from attent.pipeline.source import fetch_batch
from attent.tasks.build import Run
from attent.tasks.data.folder import DEVIATION, MEAN
from attent.tasks.pretraining.losses import normalized_by_patch
from attent.tasks.pretraining.task import MaskedPretraining

SCENES = 6
"""Shown."""

HIDDEN = 0.93
"""Shade of patches that were not seen; near white, which no class of the palettes is."""


WORDS = (
    "Held-out scenes: each modality, the patches of it that were seen, and these with the others as "
    "they were predicted (norm_rgb: its patches at the original's mean and contrast)"
)


def thumbnails(batch: TensorDict) -> list[tuple[Tensor, str]]:
    """The first modality of each example as a small picture, and its class if it has one."""
    domain = next(name for name in ("rgb", "depth", "semseg") if name in batch)
    words = [str(int(label)) for label in batch["label"]] if "label" in batch else [""] * len(batch)
    shown = batch[domain].float()
    return list(zip(shown if shown.ndim == 4 else shown.unsqueeze(1), words, strict=True))


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
    columns: list[tuple[str, np.ndarray, dict]] = []
    for name in shown:
        grid = task.multimae.output_grid(name, layout)
        seen = torch.zeros(count, *grid, dtype=torch.bool)
        if name in layout.grids:
            seen = ~order.masked[:, layout.span(name)].unflatten(1, grid).cpu()
        target, predicted = batch[name].cpu(), predictions[name].float().cpu()
        if name == "rgb" and "norm_rgb" in predictions:
            columns += _rgb(target, predicted, predictions["norm_rgb"].float().cpu(), seen, grid)
        else:
            columns += _three(name, target, predicted, seen)
    return [("reconstructions", _grid(columns, count), WORDS)]


Column = tuple[str, np.ndarray, dict]


def _three(name: str, target: Tensor, predicted: Tensor, seen: Tensor) -> list[Column]:
    """Input, what was seen of it, and the same with the rest predicted; of one modality."""
    if name == "rgb":
        return _colours(target, {"predicted": predicted}, seen)
    if name == "semseg":
        classes = predicted.shape[1]
        truth, guess = target.numpy(), predicted.argmax(dim=1).numpy()
        options = {"cmap": _palette(classes), "vmin": 0, "vmax": classes - 1}
    else:
        truth, guess = target[:, 0].numpy(), predicted[:, 0].numpy()
        low, high = np.quantile(truth, [0.01, 0.99])
        options = {"cmap": "viridis", "vmin": float(low), "vmax": float(high)}
    there = _upsampled(seen, truth.shape[-1])
    hidden = np.ma.masked_array(truth, ~there)
    filled = np.where(there, truth, guess)
    return [(name, truth, options), ("seen", hidden, options), ("predicted", filled, options)]


def _rgb(
    target: Tensor, predicted: Tensor, normalized: Tensor, seen: Tensor, grid: tuple[int, int]
) -> list[Column]:
    """As `_three`, with the second decoder's picture, each patch given its own mean and contrast.

    That decoder does not predict them: they are the target's, as in MAE's own pictures.
    """
    unit = normalized_by_patch(target, grid)
    # x = unit * deviation + mean in each patch: the two numbers from the target and its unit.
    side = target.shape[-1] // grid[1]
    mean = F.avg_pool2d(target.mean(dim=1, keepdim=True), side)
    wide = F.avg_pool2d((unit * target).mean(dim=1, keepdim=True), side)
    scale, shift = (F.interpolate(part, scale_factor=side) for part in (wide, mean))
    return _colours(target, {"predicted": predicted, "norm_rgb": normalized * scale + shift}, seen)


def _colours(target: Tensor, predicted: dict[str, Tensor], seen: Tensor) -> list[Column]:
    mean, deviation = torch.tensor(MEAN)[:, None, None], torch.tensor(DEVIATION)[:, None, None]

    def pixels(pictures: Tensor) -> np.ndarray:
        return (pictures * deviation + mean).clamp(0, 1).permute(0, 2, 3, 1).numpy()

    truth = pixels(target)
    there = _upsampled(seen, truth.shape[2])[..., None]
    hidden = np.where(there, truth, HIDDEN)
    made = [(name, np.where(there, truth, pixels(made)), {}) for name, made in predicted.items()]
    return [("rgb", truth, {}), ("seen", hidden, {}), *made]


def _upsampled(seen: Tensor, side: int) -> np.ndarray:
    """``[B, h, w]`` bool -> ``[B, side, side]``."""
    return F.interpolate(seen.float().unsqueeze(1), size=(side, side))[:, 0].bool().numpy()


def _palette(classes: int) -> matplotlib.colors.Colormap:
    name = "tab10" if classes <= 10 else "tab20" if classes <= 20 else "gist_ncar"
    palette = matplotlib.colormaps[name]
    if classes <= 20:
        return matplotlib.colors.ListedColormap([palette(i) for i in range(classes)])
    return palette.copy()


def _grid(columns: Sequence[Column], rows: int) -> Figure:
    """A row a scene, a column a picture of it; what is masked in near white."""
    with matplotlib.rc_context({"font.size": 8}):
        figure = Figure(figsize=(9, 0.95 * rows * 10 / len(columns)), layout="constrained")
        axes = figure.subplots(rows, len(columns), squeeze=False)
        for j, (title, pictures, options) in enumerate(columns):
            axes[0, j].set_title(title, fontsize=8)
            for i in range(rows):
                ax: Axes = axes[i, j]
                ax.set_axis_off()
                shown = dict(options)
                if "cmap" in shown:
                    shown["cmap"] = matplotlib.colormaps.get_cmap(shown["cmap"]).with_extremes(
                        bad=(HIDDEN, HIDDEN, HIDDEN)
                    )
                ax.imshow(pictures[i], interpolation="nearest", **shown)
    return figure
