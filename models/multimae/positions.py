"""Fixed two-dimensional sine-cosine position embeddings (Vaswani et al., 2017, in two dimensions).

Shapes: D channels, h rows and w columns of tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

TEMPERATURE = 10_000.0


def sincos_2d(height: int, width: int, dim: int) -> Tensor:
    """``[1, D, h, w]``: the first half of the channels varies along rows, the second along columns.

    With d = D / 4 and ``w_k = 10000 ** (-k / d)`` for k = 0 .. d - 1, the channels of row r and
    column c are ``sin(r w), cos(r w), sin(c w), cos(c w)``.

    Raises:
        ValueError: D is not a multiple of 4.
    """
    if dim % 4:
        raise ValueError(f"a position embedding needs channels in multiples of 4, got {dim}")
    frequency = TEMPERATURE ** -(torch.arange(dim // 4, dtype=torch.float64) / (dim // 4))
    rows = (frequency[:, None] * torch.arange(height, dtype=torch.float64))[:, :, None]
    columns = (frequency[:, None] * torch.arange(width, dtype=torch.float64))[:, None, :]
    parts = (rows.sin(), rows.cos(), columns.sin(), columns.cos())
    return torch.cat([part.expand(-1, height, width) for part in parts]).float().unsqueeze(0)


def fixed_positions(side: int, dim: int) -> nn.Parameter:
    """The embedding of a square grid, frozen: kept with the weights, never trained.

    A grid that is not square is reached by resampling a square one: the published code scrambles
    the order of one that is built directly.
    """
    return nn.Parameter(sincos_2d(side, side, dim), requires_grad=False)


def resample(positions: Tensor, grid: tuple[int, int], mode: str) -> Tensor:
    """``[1, D, h, w]`` at another grid.

    Args:
        positions: ``[1, D, h', w']``.
        grid: (h, w).
        mode: ``bicubic`` or ``bilinear``; corners are not aligned.
    """
    if tuple(positions.shape[-2:]) == tuple(grid):
        return positions
    return F.interpolate(positions, size=grid, mode=mode, align_corners=False)


def as_tokens(maps: Tensor) -> Tensor:
    """``[B, D, h, w]`` -> ``[B, h * w, D]``, row by row."""
    return maps.flatten(2).transpose(1, 2)
