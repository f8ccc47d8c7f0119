"""Pictures of objects: those that are there, and those that are found."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib.colors
import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont
from tensordict import TensorDict
from torch import Tensor
from torch.nn import functional as F
from torchvision.utils import draw_bounding_boxes, draw_segmentation_masks

from attent.models.detection import Objects
from attent.pipeline.score import Frozen
from attent.pipeline.source import fetch_batch
from attent.tasks.build import Run
from attent.tasks.command import Prediction
from attent.tasks.data.objects import Scene, batch_of
from attent.tasks.detection.task import Detection
from attent.tasks.finetuning.pictures import resized, shown, side_by_side
from attent.tasks.grid import colours, palette

SCENES = 6
"""Shown."""

LIKELY = 0.5
"""Detections of lower scores are not drawn."""

SIDE = 320
"""Of a picture as it is drawn, in pixels at least: lines and words have to fit."""

WIDE = 500
"""Longer side of a photograph on which objects are drawn, in pixels: those of half a figure."""

COVER = 0.45
"""How much of a mask's colour covers what is below."""


def thumbnails(batch: TensorDict) -> list[tuple[Tensor, str]]:
    """Each picture, and how many objects are in it."""
    counts = (batch["labels"] > 0).sum(dim=1).tolist()
    words = [f"{count} object{'' if count == 1 else 's'}" for count in counts]
    return list(zip(batch["rgb"], words, strict=True))


def objects(run: Run) -> list[tuple[str, Figure, str]]:
    """Of a few held-out pictures: the objects in them, and the likely ones of those found.

    Args:
        run: its state holds the weights that are shown.

    Returns:
        One figure for the report: its name, itself, and what it shows.
    """
    source: Any = run.held_out
    index = torch.arange(min(SCENES, len(source)))
    batch, found = _found(run, fetch_batch(source, index))
    pictures = torch.from_numpy(colours(batch["rgb"])).permute(0, 3, 1, 2)
    assert isinstance(run.task, Detection)
    truth = run.task.objects(batch)
    figure = Figure(figsize=(9, 2.4 * -(-len(index) // 2)), layout="constrained")
    axes = figure.subplots(-(-len(index) // 2), 4, squeeze=False)
    for ax in axes.flat:
        ax.set_axis_off()
    for i, (left, right) in enumerate(axes.reshape(-1, 2)[: len(index)]):
        left.imshow(drawing(pictures[i], truth[i], source.classes))
        right.imshow(drawing(pictures[i], _likely(found[i]), source.classes))
        if i < 2:
            left.set_title("labels", fontsize=8)
            right.set_title(f"found, score {LIKELY} and above", fontsize=8)
    words = "Held-out pictures: their objects, and what is found, with scores"
    return [("objects", figure, words)]


def predicted(run: Run, config: Any, image: Tensor) -> Prediction:
    """What a run finds in a photograph.

    Args:
        run: its state holds the weights.
        config: its options.
        image: ``[3, H, W]`` uint8.

    Returns:
        A figure, and of all that is found ``boxes`` ``[n, 4]`` (left, top, right, bottom in the
        photograph's own pixels), ``labels`` ``[n]`` from 1, ``scores`` ``[n]``, and ``masks``
        ``[n, h, w]`` bool at the size at which the model sees it.
    """
    source: Any = run.held_out
    view = source.view
    empty = torch.zeros(0)
    scene = Scene(
        image=image,
        boxes=empty.reshape(0, 4),
        labels=empty.long(),
        masks=torch.zeros(0, *image.shape[1:], dtype=torch.uint8),
        crowd=empty.bool(),
    )
    viewed = view(scene, None)
    height, width = viewed.size
    batch = batch_of([viewed], view.size).set("index", torch.zeros(1, dtype=torch.int64))
    (found,) = _found(run, batch)[1]
    found["masks"] = found["masks"][:, :height, :width]
    scale = torch.tensor([image.shape[2] / width, image.shape[1] / height]).repeat(2)
    found["boxes"] = found["boxes"] * scale
    likely = _likely(found)
    figure, _, right = side_by_side(shown(image))
    right.imshow(drawing(*_drawn(image, likely), source.classes))
    names = [source.classes[i - 1] for i in likely["labels"].tolist()]
    words = ", ".join(f"{name} {s:.0%}" for name, s in zip(names, likely["scores"], strict=True))
    arrays = {name: value.numpy() for name, value in found.items()}
    return Prediction(figure=figure, words=words or "nothing found", arrays=arrays)


def _drawn(image: Tensor, some: Objects) -> tuple[Tensor, Objects]:
    """A photograph as large as words on it can be read, in [0, 1], and its objects there."""
    small = shown(image, WIDE)
    height, width = small.shape[1:]
    scale = torch.tensor([width / image.shape[2], height / image.shape[1]]).repeat(2)
    masks = resized(some["masks"].byte(), height, width)
    return small.float() / 255, {**some, "boxes": some["boxes"] * scale, "masks": masks}


def drawing(picture: Tensor, some: Objects, classes: Sequence[str]) -> np.ndarray:
    """A picture with boxes, masks and names over it, ``[h, w, 3]`` uint8.

    Args:
        picture: ``[3, H, W]`` in [0, 1].
        some: its objects; with ``scores``, these are written beside the names.
        classes: names of the labels from 1 on.
    """
    scale = max(1, -(-SIDE // max(picture.shape[1:])))
    wide = F.interpolate(picture[None], scale_factor=scale)[0]
    drawn = (255 * wide).round().byte()
    if not len(some["labels"]):
        return drawn.permute(1, 2, 0).numpy()
    labels = (some["labels"] - 1).tolist()
    paint = palette(len(classes))
    shades: Any = [matplotlib.colors.to_hex(paint(i)) for i in labels]
    masks = some["masks"].bool().repeat_interleave(scale, 1).repeat_interleave(scale, 2)
    drawn = draw_segmentation_masks(drawn, masks, alpha=COVER, colors=shades)
    names = [str(classes[i]) for i in labels]
    if "scores" in some:
        names = [f"{name} {s:.2f}" for name, s in zip(names, some["scores"], strict=True)]
    boxes = some["boxes"] * scale
    drawn = draw_bounding_boxes(
        drawn,
        boxes,
        labels=names,
        colors=shades,
        width=2,
        font=findfont("DejaVu Sans"),
        font_size=12,
        label_colors="white",
        label_background_colors=shades,
        fill_labels=True,
    )
    return drawn.permute(1, 2, 0).numpy()


def _found(run: Run, batch: TensorDict) -> tuple[TensorDict, list[Objects]]:
    """A batch as the model sees it, and what is found in it; on the CPU."""
    assert isinstance(run.task, Detection)
    model = Frozen(run.task, run.state)
    ready = model.prepare(batch)
    with torch.no_grad():
        found: Any = model(ready["rgb"])
    return ready.cpu(), [{name: value.cpu() for name, value in one.items()} for one in found]


def _likely(found: Objects) -> Objects:
    kept = found["scores"] >= LIKELY
    return {name: value[kept] for name, value in found.items()}
