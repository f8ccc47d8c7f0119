"""Semantic segmentation: one of K classes for each pixel.

Shapes: B images, S pixels a side, K classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import MeanMetric
from torchmetrics.classification import (
    MulticlassAccuracy,
    MulticlassConfusionMatrix,
    MulticlassJaccardIndex,
)

from attent.tasks.finetuning.inputs import encoded

IGNORED = 255
"""The label of pixels that are neither learned from nor measured."""


class MeanClassAccuracy(MulticlassConfusionMatrix):
    """The mean over the classes that occur of the share of their pixels that is found."""

    def compute(self) -> Tensor:
        """A share; NaN before anything was seen."""
        matrix = self.confmat.double()
        return (matrix.diag() / matrix.sum(dim=1)).nanmean()


class Segmentation:
    """The task of naming each pixel's class.

    A batch holds what is encoded (``rgb`` ``[B, 3, S, S]`` float32, ``depth`` ``[B, 1, S, S]``
    with ``depth_valid``, ``semseg`` ``[B, S / 4, S / 4]``) and ``target`` ``[B, S, S]`` int64, 0 to
    K - 1 or 255 for pixels that are passed over.

    Args:
        model: pictures by modality -> ``{"semseg": logits [B, K, S, S]}``, such as a `MultiViT`
            with a head of that name.
        num_classes: K.
        inputs: the modalities that are encoded.

    The loss of an image is its mean over pixels that are not passed over, 0 where all are.

    Metrics: ``miou``, the mean over classes of intersection over union, of the whole data set and
    of the classes that occur in it or are predicted; ``pixel_accuracy``; ``mean_accuracy``, over
    the classes that occur; ``loss`` in nats, the mean over images.
    """

    name = "semantic segmentation"

    def __init__(
        self, model: nn.Module, num_classes: int, *, inputs: Sequence[str] = ("rgb",)
    ) -> None:
        self.model = model
        self.num_classes = num_classes
        self.inputs = tuple(inputs)

    def view(self, batch: TensorDict, keys: Tensor, *, training: bool) -> TensorDict:
        """Depth that is encoded standardised; geometry and colours are the source's."""
        return encoded(batch)

    def forward(self, model: Any, batch: TensorDict) -> Tensor:
        """Logits, ``[B, K, S, S]``."""
        return model({name: batch[name] for name in self.inputs})["semseg"]

    def losses(self, output: Tensor, batch: TensorDict) -> Tensor:
        """Mean cross-entropy over each image's pixels in nats, ``[B]``."""
        target = batch["target"]
        pixels = F.cross_entropy(
            output.float(), target, reduction="none", ignore_index=IGNORED
        ).flatten(1)
        return pixels.sum(dim=1) / (target != IGNORED).flatten(1).sum(dim=1).clamp(min=1)

    def targets(self, batch: TensorDict) -> Tensor:
        """Pixels that the loss of each image is the mean over, ``[B]``."""
        return (batch["target"] != IGNORED).flatten(1).sum(dim=1)

    def metrics(self) -> dict[str, Any]:
        """Fresh ones; see above."""
        options: dict[str, Any] = {"num_classes": self.num_classes, "ignore_index": IGNORED}
        return {
            "miou": MulticlassJaccardIndex(**options),
            "pixel_accuracy": MulticlassAccuracy(average="micro", **options),
            "mean_accuracy": MeanClassAccuracy(**options),
            "loss": MeanMetric(),
        }

    def update(self, metrics: Mapping[str, Any], output: Tensor, batch: TensorDict) -> None:
        """Take a batch into the metrics."""
        guesses, target = output.argmax(dim=1).cpu(), batch["target"].cpu()
        for name in ("miou", "pixel_accuracy", "mean_accuracy"):
            metrics[name].update(guesses, target)
        known = self.targets(batch) > 0
        if bool(known.any()):
            metrics["loss"].update(self.losses(output, batch)[known].cpu())

    def predict(self, output: Tensor) -> Tensor:
        """The likeliest class of each pixel, ``[B, S, S]`` int64."""
        return torch.argmax(output, dim=1)
