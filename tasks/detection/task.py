"""Detection and instance segmentation by Mask R-CNN (He et al., ICCV 2017).

Shapes: B pictures of S x S pixels, M places for objects in each, K classes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor, nn
from torch.utils._pytree import register_dataclass
from torchmetrics import MeanMetric
from torchmetrics.detection import MeanAveragePrecision

from attent.models.detection import Assigned, MaskRCNN, Objects, Predictions
from attent.pipeline.keyed import all_global_generators
from attent.tasks.detection.losses import PARTS, part_losses

PRECISIONS = {
    "box_map": "bbox_map",
    "box_map_50": "bbox_map_50",
    "mask_map": "segm_map",
    "mask_map_50": "segm_map_50",
}
"""Metric -> torchmetrics' name of it."""


@dataclass(frozen=True)
class Output:
    """What the model makes of a batch.

    Attributes:
        predictions: what the losses are functions of.
        assigned: what they are held against; constants.
        detect: -> each picture's detections. They are made when they are asked for: a score needs
            none.
    """

    predictions: Predictions
    assigned: Assigned
    detect: Callable[[], list[Objects]]


register_dataclass(Output)


class Detection:
    """The task of finding objects: their boxes, classes and masks.

    A batch holds ``rgb`` ``[B, 3, S, S]`` float32, normalised; ``boxes`` ``[B, M, 4]`` float32
    (left, top, right, bottom in pixels), ``labels`` ``[B, M]`` int64 from 1 to K, 0 for a place
    without an object; ``masks`` ``[B, M, S, S]`` bool or uint8; perhaps ``crowd`` ``[B, M]`` bool:
    crowds are not learned from, and a detection of one counts neither for nor against.

    The loss of a picture is the sum of its five; see `attent.tasks.detection.losses`. The anchors
    and regions in it are drawn from the picture's own key, so that it is a property of weights and
    example, in scoring as in training. (To rounding: a region on the edge of being
    suppressed may be kept in one batch and not in another.)

    Args:
        model: finds them.

    Metrics: ``loss`` and its parts; ``box_map``, ``box_map_50``, ``mask_map`` and ``mask_map_50``,
    COCO's average precisions in [0, 1] at the pictures' size S (-1 where there is no object).
    """

    name = "detection"

    def __init__(self, model: MaskRCNN) -> None:
        self.model: nn.Module = model
        self.num_classes = model.num_classes

    def view(self, batch: TensorDict, keys: Tensor, *, training: bool) -> TensorDict:
        """The batch with each picture's ``key``, of which anchors and regions are drawn.

        Crops and flips are the source's, made where the whole picture is.

        Raises:
            ValueError: a label that is no class; names the example.
        """
        labels = batch["labels"]
        wrong = (labels < 0) | (labels > self.num_classes)
        if bool(wrong.any()):
            row, place = wrong.nonzero()[0].tolist()
            raise ValueError(
                f"example {int(batch['index'][row])} has an object of label "
                f"{int(labels[row, place])}; labels are 1 to {self.num_classes}, 0 for none"
            )
        return batch.copy().set("key", keys)

    def forward(self, model: Any, batch: TensorDict) -> Output:
        """The predictions in the anchors and regions that are drawn for each picture."""
        keys = batch["key"].tolist()

        def seeded(place: int) -> contextlib.AbstractContextManager[None]:
            return all_global_generators(keys[place])

        predictions, assigned, encoded = model(
            batch["rgb"], self.objects(batch, crowds=False), seeded=seeded
        )
        return Output(predictions, assigned, lambda: model(encoded=encoded))

    def losses(self, output: Output, batch: TensorDict) -> Tensor:
        """The sum of each picture's five losses, ``[B]``."""
        return self.part_losses(output).sum(dim=1)

    def part_losses(self, output: Output) -> Tensor:
        """Each picture's losses, ``[B, 5]``, in the order of `PARTS`."""
        return part_losses(output.predictions, output.assigned)

    def metrics(self) -> dict[str, Any]:
        """A fresh mean for each loss, and one metric of precision with several figures."""
        # Each of several processes measures everything (see `Figure`), so there is nothing to add.
        precision = MeanAveragePrecision(iou_type=("bbox", "segm"), sync_on_compute=False)
        precision.warn_on_many_detections = False  # max_detections is the user's choice
        means = {name: MeanMetric() for name in ("loss", *PARTS)}
        return means | {name: Figure(precision, entry) for name, entry in PRECISIONS.items()}

    def update(self, metrics: Mapping[str, Any], output: Output, batch: TensorDict) -> None:
        """Take a batch into the metrics."""
        losses = self.part_losses(output).cpu()
        metrics["loss"].update(losses.sum(dim=1))
        for name, values in zip(PARTS, losses.T, strict=True):
            metrics[name].update(values)
        found = [_on_cpu(one) for one in output.detect()]
        # All figures are of one metric: it sees each batch once.
        metrics["box_map"].update(found, [_on_cpu(one) for one in self.objects(batch)])

    def objects(self, batch: TensorDict, *, crowds: bool = True) -> list[Objects]:
        """The objects of each picture, without the empty places; ``iscrowd`` says which are crowds.

        Args:
            batch: as above.
            crowds: False leaves them out.
        """
        labels, crowd = batch["labels"], batch.get("crowd", None)
        crowd = torch.zeros_like(labels, dtype=torch.bool) if crowd is None else crowd.bool()
        kept = (labels > 0) & (crowds | ~crowd)
        return [
            {
                "boxes": batch["boxes"][i, keep],
                "labels": labels[i, keep],
                "masks": batch["masks"][i, keep],
                "iscrowd": crowd[i, keep].to(torch.int64),
            }
            for i, keep in enumerate(kept)
        ]


class Figure:
    """One figure of a metric that has several."""

    def __init__(self, metric: MeanAveragePrecision, entry: str) -> None:
        self.metric, self.entry = metric, entry

    def update(self, *args: Any) -> None:
        """Take a batch into the metric, and so into all its figures."""
        self.metric.update(*args)

    def compute(self) -> Tensor:
        """The figure; the metric is computed once for all of them."""
        return self.metric.compute()[self.entry]


def _on_cpu(objects: Objects) -> Objects:
    return {
        name: (value.bool() if name == "masks" else value).cpu() for name, value in objects.items()
    }
