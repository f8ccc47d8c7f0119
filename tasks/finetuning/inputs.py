"""What dense tasks encode: depth maps of which some pixels are unknown.

Shapes: B images, H x W pixels.
"""

from __future__ import annotations

import torch
from tensordict import TensorDict
from torch import Tensor


def encoded(batch: TensorDict) -> TensorDict:
    """The batch with its input ``depth`` standardised, by its valid pixels where they are given."""
    if "depth" not in batch:
        return batch
    batch = batch.copy()
    depth = batch["depth"]
    valid = batch["depth_valid"] if "depth_valid" in batch else torch.ones_like(depth).bool()
    batch["depth"] = standardized_where(depth, valid)
    return batch


def standardized_where(depth: Tensor, valid: Tensor) -> Tensor:
    """Each depth map by the truncated mean and deviation of its valid pixels; 0 elsewhere.

    Of an image's n valid pixels in order, those from ``int(0.1 n)`` to ``int(0.9 n)`` give mean and
    unbiased variance; ``(x - mean) / sqrt(variance + 1e-6)`` (MultiMAE, fine-tuning). With fewer
    than three such pixels the map is 0.

    Args:
        depth: ``[B, 1, H, W]``, any unit.
        valid: ``[B, 1, H, W]`` bool.
    """
    values = depth.flatten(1).double().masked_fill(~valid.flatten(1), torch.inf).sort(dim=1).values
    count = valid.flatten(1).sum(dim=1, keepdim=True)
    place = torch.arange(values.shape[1], device=values.device)
    middle = (place >= (0.1 * count).long()) & (place < (0.9 * count).long())
    number = middle.sum(dim=1, keepdim=True)
    kept = torch.where(middle, values, torch.zeros_like(values))
    mean = kept.sum(dim=1, keepdim=True) / number.clamp(min=1)
    spread = torch.where(middle, values - mean, torch.zeros_like(values)).square()
    deviation = (spread.sum(dim=1, keepdim=True) / (number - 1).clamp(min=1) + 1e-6).sqrt()
    shape = (-1, *([1] * (depth.ndim - 1)))
    known = valid & (number >= 2).reshape(shape)
    standard = (depth - mean.reshape(shape).to(depth.dtype)) / deviation.reshape(shape).to(
        depth.dtype
    )
    return torch.where(known, standard, torch.zeros_like(depth))
