"""Losses of masked pre-training, one for each example and output (MultiMAE, section 3.4).

Shapes: B examples, C channels, H x W pixels of a picture, n = h w patches of P x P pixels, T
outputs.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

PixelLoss = Callable[[Tensor, Tensor], Tensor]
"""Prediction ``[B, C, H, W]`` and target -> ``[B, H, W]``."""


def squared_error(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean over channels of the squared error, ``[B, H, W]``."""
    return (prediction - target).square().mean(dim=1)


def absolute_error(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean over channels of the absolute error, ``[B, H, W]``."""
    return (prediction - target).abs().mean(dim=1)


def cross_entropy(prediction: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy of each pixel in nats, ``[B, H, W]``; target ``[B, H, W]`` int64."""
    return F.cross_entropy(prediction, target, reduction="none")


PIXEL_LOSSES: dict[str, PixelLoss] = {
    "rgb": squared_error,
    "norm_rgb": squared_error,
    "depth": absolute_error,
    "semseg": cross_entropy,
}
"""Of each output."""


def normalized_by_patch(pictures: Tensor, grid: tuple[int, int]) -> Tensor:
    """Pictures whose patches have mean 0 and variance 1, all channels of a patch jointly.

    ``(x - mean) / sqrt(variance + 1e-6)``, with the unbiased variance (He et al., Masked
    Autoencoders, CVPR 2022, section 3).

    Args:
        pictures: ``[B, C, H, W]``.
        grid: (h, w) patches.
    """
    height, width = pictures.shape[-2:]
    rows, columns = grid
    patches = pictures.unflatten(3, (columns, width // columns))
    patches = patches.unflatten(2, (rows, height // rows))  # [B, C, h, P, w, P]
    variance, mean = torch.var_mean(patches, dim=(1, 3, 5), keepdim=True, unbiased=True)
    return ((patches - mean) / (variance + 1e-6).sqrt()).flatten(4, 5).flatten(2, 3)


def patch_means(pixels: Tensor, grid: tuple[int, int]) -> Tensor:
    """``[B, H, W]`` -> ``[B, n]``: the mean of each patch."""
    rows, columns = grid
    height, width = pixels.shape[-2:]
    patches = pixels.reshape(len(pixels), rows, height // rows, columns, width // columns)
    return patches.mean(dim=(2, 4)).flatten(1)


def masked_loss(pixels: Tensor, masked: Tensor, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """The mean loss over the masked patches of each example.

    An example with nothing masked has no such loss. The published code drops it from the batch's
    mean (or, if no example has any, returns a loss without gradient); here it is marked.

    Args:
        pixels: ``[B, H, W]``, the loss of each pixel.
        masked: ``[B, n]`` bool.
        grid: (h, w) patches.

    Returns:
        ``[B]`` losses, 0 where there is none, and ``[B]`` bool, whether there is one.
    """
    weight = masked.to(pixels.dtype)
    count = weight.sum(dim=1)
    total = (patch_means(pixels, grid) * weight).sum(dim=1)
    return total / count.clamp(min=1), count > 0


def standardized_depth(depth: Tensor) -> Tensor:
    """Each depth map by its own truncated mean and deviation.

    Of all n pixels in order, those from ``int(0.1 n)`` to ``int(0.9 n)`` give mean and unbiased
    variance; ``(x - mean) / sqrt(variance + 1e-6)``. The map itself is not clipped.

    Args:
        depth: ``[B, 1, H, W]``, any unit.
    """
    values = depth.flatten(1).sort(dim=1).values
    count = values.shape[1]
    variance, mean = torch.var_mean(
        values[:, int(0.1 * count) : int(0.9 * count)], dim=1, unbiased=True
    )
    shape = (-1, *([1] * (depth.ndim - 1)))
    return (depth - mean.reshape(shape)) / (variance.reshape(shape) + 1e-6).sqrt()
