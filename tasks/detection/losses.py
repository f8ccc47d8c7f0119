"""The five losses of Mask R-CNN for each picture (Ren et al., NIPS 2015; He et al., ICCV 2017).

torchvision's, which it reduces over the batch, kept apart by picture: for a batch of one they are
the same.

Shapes: B pictures, A anchors, R regions drawn of which Q may hold an object, K classes.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from attent.models.detection import Assigned, Predictions

PARTS = (
    "loss_objectness",
    "loss_rpn_box_reg",
    "loss_classifier",
    "loss_box_reg",
    "loss_mask",
)
"""In the order of their columns, under torchvision's names."""

BETA = 1 / 9
"""Where the loss of a box turns from square to straight."""


def part_losses(predictions: Predictions, assigned: Assigned) -> Tensor:
    """The losses of each picture, ``[B, 5]``, in the order of `PARTS`.

    Each is a mean over what was drawn for the picture: cross-entropies (nats) of anchors, of
    regions and of mask pixels; smooth absolute errors of boxes, summed over objects and divided by
    all that was drawn. A picture in which no mask was drawn has no loss of masks: 0.
    """
    return torch.stack(
        [*_anchors(predictions, assigned), *_regions(predictions, assigned),
         _masks(predictions, assigned)],
        dim=1,
    )  # fmt: skip


def _anchors(predictions: Predictions, assigned: Assigned) -> tuple[Tensor, Tensor]:
    labels = assigned.anchor_labels
    drawn, held = labels >= 0, labels > 0
    wrong = F.binary_cross_entropy_with_logits(
        predictions.objectness, labels.clamp(min=0), reduction="none"
    )
    off = _off(predictions.anchor_deltas, assigned.anchor_targets)
    count = drawn.sum(dim=1)
    return _sum(wrong, drawn) / count, _sum(off, held) / count


def _regions(predictions: Predictions, assigned: Assigned) -> tuple[Tensor, Tensor]:
    labels = assigned.labels
    drawn, held = labels >= 0, labels > 0
    wrong = F.cross_entropy(
        predictions.class_logits.transpose(1, 2), labels.clamp(min=0), reduction="none"
    )
    # Each region's box is that of its own class.
    own = labels.clamp(min=0)[..., None, None].expand(-1, -1, 1, 4)
    off = _off(predictions.box_deltas.gather(2, own).squeeze(2), assigned.box_targets)
    count = drawn.sum(dim=1)
    return _sum(wrong, drawn) / count, _sum(off, held) / count


def _masks(predictions: Predictions, assigned: Assigned) -> Tensor:
    wrong = F.binary_cross_entropy_with_logits(
        predictions.mask_logits, assigned.mask_targets, reduction="none"
    ).mean(dim=(2, 3))
    held = assigned.has_mask
    return _sum(wrong, held) / held.sum(dim=1).clamp(min=1)


def _off(deltas: Tensor, targets: Tensor) -> Tensor:
    """Smooth absolute error of four numbers, summed."""
    return F.smooth_l1_loss(deltas, targets, beta=BETA, reduction="none").sum(dim=-1)


def _sum(values: Tensor, chosen: Tensor) -> Tensor:
    """Over the chosen of each row; what is not chosen may be anything, and has no gradient."""
    return torch.where(chosen, values, torch.zeros_like(values)).sum(dim=1)
