"""Photographs as models see them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of ImageNet's training images, per channel, for pixels in [0, 1]."""


class Standardize:
    """Each channel by its mean and deviation.

    Args:
        mean: of each channel, for pixels in [0, 1].
        deviation: of each channel.
    """

    def __init__(self, mean: Sequence[float], deviation: Sequence[float]) -> None:
        # In bytes, not in [0, 1]: one pass over the pixels less.
        self._mean = 255 * torch.tensor(mean, dtype=torch.float32).reshape(-1, 1, 1)
        self._deviation = 255 * torch.tensor(deviation, dtype=torch.float32).reshape(-1, 1, 1)

    def __call__(self, pixels: Tensor) -> Tensor:
        """``[..., C, H, W]`` uint8 -> float32; what is float32 already is changed in place."""
        return pixels.to(torch.float32).sub_(self._mean).div_(self._deviation)
