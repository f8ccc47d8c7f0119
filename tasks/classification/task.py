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
from torchvision.transforms import v2

from attent.pipeline.keyed import all_global_generators, fold, uniform


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


@dataclass(frozen=True, kw_only=True)
class Mixing:
    """Training images mixed with another of their batch, and their targets with them.

    One of the two for each batch, half the time each where both are on, by torchvision: mixup
    (Zhang et al., ICLR 2018) adds the images, CutMix (Yun et al., ICCV 2019) puts a rectangle of
    one into the other. The share is drawn from Beta(alpha, alpha), one for the batch.

    Attributes:
        mixup: alpha of mixup; 0 for none.
        cutmix: alpha of CutMix; 0 for none.
        num_classes: K.
    """

    mixup: float = 0.0
    cutmix: float = 0.0
    num_classes: int

    def __post_init__(self) -> None:
        for name in ("mixup", "cutmix"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"{name} is at least 0, got {getattr(self, name)}")

    def __call__(self, images: Tensor, labels: Tensor, key: int) -> tuple[Tensor, Tensor]:
        """Images ``[B, C, S, S]`` and labels ``[B]`` -> images and targets ``[B, K]``."""
        ways: list[v2.Transform] = []
        if self.mixup:
            ways.append(v2.MixUp(alpha=float(self.mixup), num_classes=self.num_classes))
        if self.cutmix:
            ways.append(v2.CutMix(alpha=float(self.cutmix), num_classes=self.num_classes))
        if not ways:
            return images, F.one_hot(labels, self.num_classes).to(images.dtype)
        with all_global_generators(key):
            return v2.RandomChoice(ways)(images, labels)


class Classification:
    """The task of naming an image's class.

    Args:
        model: images ``[B, C, S, S]`` -> logits ``[B, K]``, or ``{"cls": logits}`` as a `MultiViT`
            with a head of that name gives.
        label_smoothing: share of the target spread over all classes, in [0, 1).
        augment: of training images; none by default.
        mixing: of training images with one another; none by default. An example's observed loss is
            then that of the mixture.
        prior: logarithms of the classes' shares in training, ``[K]``, added to the logits in the
            loss and nowhere else: logit adjustment (Menon et al., ICLR 2021, their tau 1). The
            logits learned are then those of classes that are equally frequent.

    A batch holds ``image`` ``[B, C, S, S]`` float32 and ``label`` ``[B]`` int64. Metrics:
    ``accuracy`` (top-1, share of examples), ``top5`` where there are more than five classes, and
    ``loss`` (cross-entropy without smoothing, nats).
    """

    name = "classification"

    def __init__(
        self,
        model: nn.Module,
        num_classes: int,
        *,
        label_smoothing: float = 0.0,
        augment: Augment | None = None,
        mixing: Mixing | None = None,
        prior: Tensor | None = None,
    ) -> None:
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"label_smoothing is in [0, 1), got {label_smoothing}")
        if prior is not None and tuple(prior.shape) != (num_classes,):
            raise ValueError(f"prior is [{num_classes}], one for each class, got {[*prior.shape]}")
        if prior is not None and not bool(prior.isfinite().all()):
            raise ValueError(f"prior must be finite, got {prior.tolist()}: is a class never there?")
        self.model = model
        self.num_classes = num_classes
        self.label_smoothing = label_smoothing
        self.augment = augment
        self.mixing = mixing
        self.prior = None if prior is None else prior.float()

    def view(self, batch: TensorDict, keys: Tensor, *, training: bool) -> TensorDict:
        """Augmented and mixed in training (``target`` ``[B, K]``), as it is otherwise.

        How a batch is mixed is drawn from the key of its first example, which no other batch of the
        run has: an example is once in a pass, and keys differ from pass to pass.
        """
        if training and self.augment is not None:
            batch = batch.copy()
            batch["image"] = self.augment(batch["image"], keys)
        if training and self.mixing is not None:
            batch = batch.copy()
            key = fold(int(keys[0]), "mixing")
            batch["image"], batch["target"] = self.mixing(batch["image"], batch["label"], key)
        return batch

    def forward(self, model: Any, batch: TensorDict) -> Tensor:
        """Logits, ``[B, K]``."""
        output = model(batch["image"])
        return output["cls"] if isinstance(output, dict) else output

    def losses(self, output: Tensor, batch: TensorDict) -> Tensor:
        """Cross-entropy of each image in nats, ``[B]``."""
        target = batch["target"] if "target" in batch else batch["label"]
        logits = output.float()
        if self.prior is not None:
            logits = logits + self.prior.to(logits.device)
        return F.cross_entropy(
            logits, target, reduction="none", label_smoothing=self.label_smoothing
        )

    def metrics(self) -> dict[str, Any]:
        """Fresh ``accuracy``, ``top5`` and ``loss``."""
        found: dict[str, Any] = {"accuracy": MulticlassAccuracy(self.num_classes, average="micro")}
        if self.num_classes > 5:
            found["top5"] = MulticlassAccuracy(self.num_classes, average="micro", top_k=5)
        return found | {"loss": MeanMetric()}

    def update(self, metrics: Mapping[str, Any], output: Tensor, batch: TensorDict) -> None:
        """Take a batch into the metrics."""
        logits, labels = output.float().cpu(), batch["label"].cpu()
        for name in metrics.keys() - {"loss"}:
            metrics[name].update(logits, labels)
        metrics["loss"].update(F.cross_entropy(logits, labels, reduction="none"))
