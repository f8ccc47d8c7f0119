"""What a fine-tuned model makes of held-out scenes, and of a photograph."""

from __future__ import annotations

import math
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from tensordict import TensorDict
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms.v2 import functional as V
from torchvision.tv_tensors import Image, Mask

from attent.pipeline.score import Frozen
from attent.pipeline.source import fetch_batch
from attent.tasks.build import Run
from attent.tasks.config import ConfigError
from attent.tasks.data.dense import Dense
from attent.tasks.data.dense_view import DepthView, View

SCENES = 6
"""Shown."""

VIEWS = 8
"""Of a photograph, in one forward."""

LARGEST = 1000
"""Longer side of a photograph as a figure shows it, in pixels."""

HALF, LEAST, MOST = 4.5, 1.2, 7.0
"""Inches: width of each of two pictures side by side, and their height at least and at most."""


def of_held_out(run: Run) -> tuple[TensorDict, Tensor]:
    """A few held-out scenes as the model sees them, and what it predicts of them."""
    task: Any = run.task
    model = Frozen(task, run.state)
    index = torch.arange(min(SCENES, len(run.held_out)))
    batch = model.prepare(fetch_batch(run.held_out, index))
    with torch.no_grad():
        predicted = task.predict(task.forward(model, batch))
    return batch.cpu(), predicted.cpu()


def of_photograph(run: Run, image: Tensor) -> Tensor:
    """What a run predicts of a whole photograph, ``[..., H, W]``: its own size.

    The photograph is seen as in evaluation. Where that would cut off its ends (`DepthView`), the
    view is moved along it instead; numbers of views that overlap are averaged.

    Args:
        run: of segmentation or depth, its held-out source a `Dense`.
        image: ``[3, H, W]`` uint8.

    Raises:
        ConfigError: the model encodes more than rgb.
    """
    source = run.held_out
    assert isinstance(source, Dense)
    if source.inputs != ("rgb",):
        raise ConfigError(
            f"a photograph is rgb alone; the run {run.task.name} encodes {', '.join(source.inputs)}"
        )
    predict = _Predict(run, source)
    find = _along if isinstance(source.view, DepthView) else _at_once
    return resized(find(predict, source.view, image), image.shape[-2], image.shape[-1])


class _Predict:
    """Pictures ``[B, 3, S, S]`` uint8 -> what a run predicts of them, ``[B, ..., S, S]``."""

    def __init__(self, run: Run, source: Dense) -> None:
        self.task: Any = run.task
        self.model, self.standardized = Frozen(run.task, run.state), source.standardized

    def __call__(self, pictures: Tensor) -> Tensor:
        fields = {"rgb": self.standardized(pictures), "index": torch.arange(len(pictures))}
        batch = self.model.prepare(TensorDict(fields, batch_size=[len(pictures)]))
        with torch.no_grad():
            return self.task.predict(self.task.forward(self.model, batch)).cpu()


def _at_once(predict: _Predict, view: View, image: Tensor) -> Tensor:
    """Of one view, ``[..., h, w]``, without what was added to it as padding."""
    inside = torch.ones(image.shape[-2:], dtype=torch.bool)
    viewed = view({"rgb": Image(image), "inside": Mask(inside)}, None)
    shown, kept = (viewed[name].as_subclass(Tensor) for name in ("rgb", "inside"))
    rows, columns = int(kept.any(dim=1).sum()), int(kept.any(dim=0).sum())
    return predict(shown[None])[0][..., :rows, :columns]


def _along(predict: _Predict, view: View, image: Tensor) -> Tensor:
    """Of views along the longer side, half a view apart at most, ``[C, h, w]``; h or w is S."""
    size = view.size
    wide = image.shape[-1] >= image.shape[-2]
    lying = image if wide else image.transpose(1, 2)
    length = max(size, round(lying.shape[-1] * size / lying.shape[-2]))
    form = [size, length] if wide else [length, size]
    shown = V.resize(Image(image), form, antialias=True).as_subclass(Tensor)
    count = 1 + math.ceil(2 * (length - size) / size)
    starts = torch.linspace(0, length - size, count).round().long().tolist()
    axis = 2 if wide else 1
    pictures = torch.stack([shown.narrow(axis, start, size) for start in starts])
    found = torch.cat([predict(some) for some in pictures.split(VIEWS)])
    # Least at the ends of a view, of whose surroundings the model has seen least.
    place = torch.arange(size)
    share = torch.minimum(place, size - 1 - place).float() + 1
    share = (share if wide else share[:, None]).expand(size, size)
    total, shares = torch.zeros(found.shape[1], *form), torch.zeros(1, *form)
    for start, one in zip(starts, found, strict=True):
        total.narrow(axis, start, size).add_(share * one)
        shares.narrow(axis, start, size).add_(share)
    return total / shares


def resized(values: Tensor, height: int, width: int) -> Tensor:
    """A map at another size: numbers smoothly, labels to the nearest pixel."""
    if values.is_floating_point():
        form = (height, width)
        return F.interpolate(values[None], size=form, mode="bilinear", antialias=True)[0]
    rows, columns = (
        ((torch.arange(new) + 0.5) * old / new).long()
        for new, old in ((height, values.shape[-2]), (width, values.shape[-1]))
    )
    return values[..., rows[:, None], columns]


def shown(image: Tensor, longest: int = LARGEST) -> Tensor:
    """A photograph ``[3, H, W]`` as large as a figure shows it, its longer side in pixels given."""
    ratio = longest / max(image.shape[-2:])
    form = [max(1, round(side * ratio)) for side in image.shape[-2:]]
    return image if ratio >= 1 else V.resize(Image(image), form, antialias=True).as_subclass(Tensor)


def side_by_side(image: Tensor, *, below: float = 0.0) -> tuple[Figure, Axes, Axes]:
    """A figure as wide as the page with a photograph on its left, as high as that needs.

    Args:
        image: ``[3, H, W]`` uint8.
        below: room for a key, in inches.
    """
    height, width = image.shape[-2:]
    high = min(max(HALF * height / width, LEAST), MOST)
    figure = Figure(figsize=(2 * HALF, high + below), layout="constrained")
    left, right = figure.subplots(1, 2)
    for ax in (left, right):
        ax.set_axis_off()
    left.imshow(image.permute(1, 2, 0).numpy())
    return figure, left, right
