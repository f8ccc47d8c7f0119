"""Pictures of examples in rows, and what they are drawn with."""

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

from attent.tasks.data.pixels import DEVIATION, MEAN

HIDDEN = 0.93
"""Shade of pixels of which nothing is shown; near white, which no class of the palettes is."""

GOLDEN = 0.381966
"""Of a turn: no number of such steps leads near where it began."""

RICHNESS, BRIGHTNESS = (0.9, 0.6, 0.75), (0.9, 0.6, 0.75)
"""Of the colours of many classes."""

Column = tuple[str, np.ndarray, dict]
"""A title, a picture for each row, and the options of matplotlib's ``imshow``."""


def colours(pictures: Tensor) -> np.ndarray:
    """Standardised rgb ``[B, 3, H, W]`` as it is shown, ``[B, H, W, 3]`` in [0, 1]."""
    mean, deviation = torch.tensor(MEAN)[:, None, None], torch.tensor(DEVIATION)[:, None, None]
    return (pictures * deviation + mean).clamp(0, 1).permute(0, 2, 3, 1).numpy()


def palette(classes: int) -> matplotlib.colors.Colormap:
    """A colour for each class, asked by its number; those of classes in a row are well apart.

    Data sets put their most frequent classes first, which then stand side by side in most pictures.
    """
    if classes <= 20:
        found = matplotlib.colormaps["tab10" if classes <= 10 else "tab20"]
        return matplotlib.colors.ListedColormap([found(i) for i in range(classes)])
    number = np.arange(classes)
    turned = number * GOLDEN % 1  # hues of neighbours 137 degrees apart
    rich, bright = np.array(RICHNESS)[number % 3], np.array(BRIGHTNESS)[number // 3 % 3]
    hsv = np.stack([turned, rich, bright], axis=1)
    return matplotlib.colors.ListedColormap(list(matplotlib.colors.hsv_to_rgb(hsv)))


def of_classes(classes: int) -> dict:
    """How maps of class ids are shown."""
    return {"cmap": palette(classes), "vmin": 0, "vmax": classes - 1}


def of_numbers(values: np.ndarray) -> dict:
    """How maps of numbers such as these are shown: on a perceptual scale without their outliers."""
    known = np.ma.compressed(np.ma.masked_invalid(values))
    low, high = np.quantile(known, [0.01, 0.99]) if known.size else (0.0, 1.0)
    return {"cmap": "viridis", "vmin": float(low), "vmax": float(high)}


def thumbnails(batch: TensorDict) -> list[tuple[Tensor, str]]:
    """The first modality of each example as a small picture, and its class if it has one."""
    domain = next(name for name in ("rgb", "depth", "semseg") if name in batch)
    words = [str(int(label)) for label in batch["label"]] if "label" in batch else [""] * len(batch)
    shown = batch[domain].float()
    return list(zip(shown if shown.ndim == 4 else shown.unsqueeze(1), words, strict=True))


def grid(columns: Sequence[Column], rows: int) -> Figure:
    """A row an example, a column a picture of it; what is masked in near white."""
    with matplotlib.rc_context({"font.size": 8}):
        size = 9 / max(len(columns), 6)
        figure = Figure(figsize=(size * len(columns), 1.05 * size * rows), layout="constrained")
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
