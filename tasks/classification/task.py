"""Image classification: one of K classes for each image.

Shapes: B images in a batch, C channels, S pixels a side, K classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassAccuracy

from attent.pipeline.keyed import uniform


@dataclass(frozen=True, kw_only=True)
class Augment:
    """Random changes of the training images, drawn from each example's key.

    Attributes:
        shift: largest translation, in pixels, of either sign in either direction; zero-filled.
        flip: probability of a horizontal flip.
    """

    shift: int = 0
    flip: float = 0.0

    def __post_init__(self) -> None:
        if self.shift < 0:
            raise ValueError(f"shift is at least 0 pixels, got {self.shift}")
        if not 0 <= self.flip <= 1:
            raise ValueError(f"flip is a probability in [0, 1], got {self.flip}")

    def __call__(self, images: Tensor, keys: Tensor) -> Tensor:
        """Augmented images, ``[B, C, S, S]``; each a function of its own key."""
        if self.flip:
            flipped = uniform(keys, 0) < self.flip
            images = torch.where(flipped[:, None, None, None], images.flip(-1), images)
        if self.shift:
            images = self._translate(images, keys)
        return images

    def _translate(self, images: Tensor, keys: Tensor) -> Tensor:
        size = 2 * self.shift + 1
        dy = (uniform(keys, 1) * size).long()
        dx = (uniform(keys, 2) * size).long()
        height, width = images.shape[-2:]
        padded = F.pad(images, [self.shift] * 4)
        rows = dy[:, None] + torch.arange(height, device=images.device)
        columns = dx[:, None] + torch.arange(width, device=images.device)
        batch = torch.arange(len(images), device=images.device)
        picked = padded[batch[:, None, None], :, rows[:, :, None], columns[:, None, :]]
        return picked.permute(0, 3, 1, 2)


class Classification:
    """The task of naming an image's class.

    Args:
        model: images ``[B, C, S, S]`` -> logits ``[B, K]``.
        label_smoothing: share of the target spread over all classes, in [0, 1).
        augment: of training images; none by default.

    A batch holds ``image`` ``[B, C, S, S]`` float32 and ``label`` ``[B]`` int64. Metrics:
    ``accuracy`` (top-1, share of examples) and ``loss`` (cross-entropy without smoothing, nats).
    """

    name = "classification"

    def __init__(
        self,
        model: nn.Module,
        num_classes: int,
        *,
        label_smoothing: float = 0.0,
        augment: Augment | None = None,
    ) -> None:
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"label_smoothing is in [0, 1), got {label_smoothing}")
        self.model = model
        self.num_classes = num_classes
        self.label_smoothing = label_smoothing
        self.augment = augment

    def view(self, batch: TensorDict, keys: Tensor, *, training: bool) -> TensorDict:
        """Augmented in training, as it is otherwise."""
        if training and self.augment is not None:
            batch = batch.copy()
            batch["image"] = self.augment(batch["image"], keys)
        return batch

    def forward(self, model: Any, batch: TensorDict) -> Tensor:
        """Logits, ``[B, K]``."""
        return model(batch["image"])

    def losses(self, output: Tensor, batch: TensorDict) -> Tensor:
        """Cross-entropy of each image in nats, ``[B]``."""
        return F.cross_entropy(
            output.float(), batch["label"], reduction="none", label_smoothing=self.label_smoothing
        )

    def metrics(self) -> dict[str, Any]:
        """Fresh ``accuracy`` and ``loss``."""
        accuracy = MulticlassAccuracy(self.num_classes, average="micro")
        return {"accuracy": accuracy, "loss": MeanMetric()}

    def update(self, metrics: Mapping[str, Any], output: Tensor, batch: TensorDict) -> None:
        """Take a batch into the metrics."""
        logits, labels = output.float().cpu(), batch["label"].cpu()
        metrics["accuracy"].update(logits, labels)
        metrics["loss"].update(F.cross_entropy(logits, labels, reduction="none"))
