"""Maps of numbers: depth, and Taskonomy's other dense tasks.

Shapes: B images, C channels of the map, S pixels a side.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from tensordict import TensorDict
from torch import Tensor, nn
from torchmetrics import MeanMetric

from attent.tasks.finetuning.inputs import encoded

Error = Literal["berhu", "l1", "l2"]

NEAREST = 1e-3
"""Metres: nearer predictions are measured as this, so that their logarithm exists."""

DEPTH_METRICS = ("delta1", "delta2", "delta3", "rmse", "abs_rel", "log10")


class DenseRegression:
    """The task of predicting a number, or C of them, for each pixel.

    A batch holds what is encoded (see `attent.tasks.segmentation.Segmentation`), ``target`` ``[B,
    C, S, S]`` float32 and ``valid`` ``[B, 1, S, S]`` bool.

    Args:
        model: pictures by modality -> ``{"dense": map [B, C, S, S]}``.
        error: of a pixel: ``l1``; ``l2``, squared; ``berhu`` (Laina et al., 3DV 2016): ``|d|`` up
            c, ``(d^2 + c^2) / 2c`` beyond, with c a fifth of the image's largest error, at least
            1e-5. (The published code takes the batch's largest, so that a loss depends on the
            company.)
        mean: of the targets; what is predicted is ``(target - mean) / deviation``.
        deviation: of the targets.
        inputs: the modalities that are encoded.
        depth: the target is a depth in metres, with the metrics of depth.

    The loss of an image is its mean over valid pixels and channels, 0 where none is valid.

    Metrics: ``loss``; ``l1``, the mean absolute error in the target's unit; of depth also
    ``delta1`` to ``delta3`` (share of pixels with ``max(p / t, t / p) < 1.25^k``), ``rmse``
    (metres), ``abs_rel`` (``|p - t| / t``) and ``log10`` (mean ``|log10 p - log10 t|``; what the
    published code calls so is the root mean square of natural logarithms), all of each image's
    valid pixels, averaged over images.
    """

    name = "dense regression"

    def __init__(
        self,
        model: nn.Module,
        *,
        error: Error = "berhu",
        mean: float = 0.0,
        deviation: float = 1.0,
        inputs: Sequence[str] = ("rgb",),
        depth: bool = True,
    ) -> None:
        if error not in ("berhu", "l1", "l2"):
            raise ValueError(f"error is berhu, l1 or l2, not {error!r}")
        if not deviation > 0:
            raise ValueError(f"deviation must be above 0, got {deviation}")
        self.model = model
        self.error = error
        self.mean, self.deviation = mean, deviation
        self.inputs = tuple(inputs)
        self.depth = depth

    def view(self, batch: TensorDict, keys: Tensor, *, training: bool) -> TensorDict:
        """Depth that is encoded standardised; geometry and colours are the source's."""
        return encoded(batch)

    def forward(self, model: Any, batch: TensorDict) -> Tensor:
        """Standardised maps, ``[B, C, S, S]``."""
        return model({name: batch[name] for name in self.inputs})["dense"]

    def losses(self, output: Tensor, batch: TensorDict) -> Tensor:
        """The error of each image, ``[B]``, in deviations."""
        target = (batch["target"] - self.mean) / self.deviation
        valid = batch["valid"].expand_as(target)
        error = torch.where(valid, output.float() - target, torch.zeros_like(target)).abs()
        if self.error == "l2":
            error = error.square()
        if self.error == "berhu":
            bound = 0.2 * error.detach().flatten(1).amax(dim=1).clamp(min=5e-5)
            bound = bound.reshape(-1, 1, 1, 1)
            error = torch.where(
                error <= bound, error, (error.square() + bound.square()) / 2 / bound
            )
        return (error * valid).flatten(1).sum(dim=1) / valid.flatten(1).sum(dim=1).clamp(min=1)

    def targets(self, batch: TensorDict) -> Tensor:
        """Numbers that the loss of each image is the mean over, ``[B]``."""
        return batch["valid"].expand_as(batch["target"]).flatten(1).sum(dim=1)

    def metrics(self) -> dict[str, Any]:
        """Fresh means; see above."""
        names = ("loss", "l1", *(DEPTH_METRICS if self.depth else ()))
        return {name: MeanMetric() for name in names}

    def update(self, metrics: Mapping[str, Any], output: Tensor, batch: TensorDict) -> None:
        """Take a batch into the metrics; images without a valid pixel have no part."""
        known = batch["valid"].flatten(1).any(dim=1)
        if not bool(known.any()):
            return
        metrics["loss"].update(self.losses(output, batch)[known].cpu())
        predicted = self.predict(output)[known].cpu()
        target, valid = batch["target"][known].cpu(), batch["valid"][known].cpu()
        error = (predicted - target).abs()
        metrics["l1"].update(_mean(error, valid))
        if self.depth:
            for name, value in depth_figures(predicted, target, valid).items():
                metrics[name].update(value)

    def predict(self, output: Tensor) -> Tensor:
        """Maps in the target's unit, ``[B, C, S, S]``."""
        return output.float() * self.deviation + self.mean


def depth_figures(predicted: Tensor, target: Tensor, valid: Tensor) -> dict[str, Tensor]:
    """The metrics of depth of each image, ``[B]``.

    Args:
        predicted: ``[B, 1, S, S]`` metres.
        target: ``[B, 1, S, S]`` metres, above 0 where valid.
        valid: ``[B, 1, S, S]`` bool, at least one pixel of each image.
    """
    predicted = predicted.double().clamp(min=NEAREST)
    target = torch.where(valid, target, torch.ones_like(target)).double()
    ratio = torch.maximum(predicted / target, target / predicted)
    found = {f"delta{k}": _mean((ratio < 1.25**k).double(), valid) for k in (1, 2, 3)}
    found["rmse"] = _mean((predicted - target).square(), valid).sqrt()
    found["abs_rel"] = _mean((predicted - target).abs() / target, valid)
    found["log10"] = _mean((predicted.log10() - target.log10()).abs(), valid)
    return found


def _mean(values: Tensor, valid: Tensor) -> Tensor:
    """The mean of each image's valid pixels, ``[B]``."""
    valid = valid.expand_as(values)
    kept = torch.where(valid, values, torch.zeros_like(values))
    return kept.flatten(1).sum(dim=1) / valid.flatten(1).sum(dim=1)
