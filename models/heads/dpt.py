"""The head of dense prediction transformers (Ranftl et al., DPT, ICCV 2021).

Shapes: B examples, T main modalities of h x w tokens, D channels of the encoder, F of the fusion, C
outputs, H x W pixels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, get_args

from torch import Tensor, nn

from attent.models.heads.dense import DenseHead, as_maps, upsample
from attent.models.multimae.outputs import Layout

Kind = Literal["regression", "segmentation"]
NUM_LEVELS = 4
"""Resolutions: 4, 2, 1 and 1/2 times the grid of tokens, of ever deeper blocks."""


class ResidualUnit(nn.Module):
    """``x + conv(relu(conv(relu(x))))``."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(dim, dim, 3, padding=1)
        self.conv2 = nn.Conv2d(dim, dim, 3, padding=1)

    def forward(self, maps: Tensor) -> Tensor:
        """``[B, F, h, w]`` -> the same."""
        return maps + self.conv2(self.conv1(maps.relu()).relu())


class Fusion(nn.Module):
    """What deeper blocks gave joins a level of this one, and is upsampled.

    Args:
        dim: F.
        joins: False for the deepest, which nothing is joined to.
    """

    def __init__(self, dim: int, *, joins: bool) -> None:
        super().__init__()
        self.skip = ResidualUnit(dim) if joins else None
        self.unit = ResidualUnit(dim)
        self.out = nn.Conv2d(dim, dim, 1)

    def forward(self, maps: Tensor, level: Tensor | None, size: tuple[int, int]) -> Tensor:
        """``[B, F, h, w]`` twice -> ``[B, F, *size]``."""
        if self.skip is not None:
            assert level is not None
            maps = maps + self.skip(level)
        # The published order is the other; the two commute, and this one is cheaper.
        return upsample(self.out(self.unit(maps)), size, align_corners=True)


class DPTHead(DenseHead):
    """Tokens of four blocks as maps of four resolutions, fused from the deepest on.

    The published head has 1,180,160 parameters more (F = 256): a residual unit of the deepest
    fusion, for a map that does not exist. Sizes follow the picture, so that the last upsampling is
    by 2 for patches of 16 pixels and none for those of 8; an odd grid is allowed.

    Args:
        num_channels: C.
        kind: the end: ``regression``, unbounded; ``segmentation``, with dropout.
        dim: D.
        depth: blocks of the encoder.
        main_tasks: the modalities whose tokens are read.
        layers: the four blocks, from 0; None for evenly spaced ones (2, 5, 8, 11 of 12).
        widths: channels of the four levels before fusion; None for D / 8, D / 4, D / 2, D.
        features: F, even; None for D / 3, at most the published 256.
        dropout: of the end of ``segmentation``.

    Raises:
        ValueError: another ``kind``; not four layers or widths; F is odd.
    """

    def __init__(
        self,
        num_channels: int,
        *,
        kind: Kind = "regression",
        dim: int = 768,
        depth: int = 12,
        main_tasks: Sequence[str] = ("rgb",),
        layers: Sequence[int] | None = None,
        widths: Sequence[int] | None = None,
        features: int | None = None,
        dropout: float = 0.1,
    ) -> None:
        super().__init__(num_channels, dim, main_tasks)
        layers = spaced(depth) if layers is None else tuple(layers)
        widths = tuple(max(1, dim // n) for n in (8, 4, 2, 1)) if widths is None else tuple(widths)
        features = min(256, dim // 6 * 2) if features is None else features
        for name, given in (("layers", layers), ("widths", widths)):
            if len(given) != NUM_LEVELS:
                raise ValueError(f"dpt has {NUM_LEVELS} {name}, got {len(given)}")
        if features < 2 or features % 2:
            raise ValueError(f"features is a multiple of 2, got {features}")
        self.encoder_layers = tuple(layers)
        self.levels = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(self.in_dim, width, 1),
                resampling,
                nn.Conv2d(width, features, 3, padding=1, bias=False),
            )
            for width, resampling in zip(widths, _resamplings(widths), strict=True)
        )
        deepest = NUM_LEVELS - 1
        self.fusions = nn.ModuleList(
            Fusion(features, joins=level != deepest) for level in range(NUM_LEVELS)
        )
        self.end = _end(kind, features, num_channels, dropout)

    def forward(self, tokens: Sequence[Tensor], layout: Layout) -> Tensor:
        """Tokens ``[B, L + G, D]`` of the four blocks -> ``[B, C, H, W]``."""
        levels = [
            level(as_maps(self.main_tokens(own, layout), self.grid(layout)))
            for level, own in zip(self.levels, tokens, strict=True)
        ]
        rows, columns = levels[0].shape[-2:]
        sizes = [(2 * rows, 2 * columns)] + [(x.shape[-2], x.shape[-1]) for x in levels[:-1]]
        maps = levels[-1]
        for n in reversed(range(NUM_LEVELS)):
            maps = self.fusions[n](maps, levels[n], sizes[n])
        return self.end(maps, layout.image)


class RegressionEnd(nn.Module):
    """Half the channels, upsampling, and two layers more; unbounded."""

    def __init__(self, features: int, num_channels: int, hidden: int = 32) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(features, features // 2, 3, padding=1)
        self.conv2 = nn.Conv2d(features // 2, hidden, 3, padding=1)
        self.out = nn.Conv2d(hidden, num_channels, 1)

    def forward(self, maps: Tensor, size: tuple[int, int]) -> Tensor:
        """``[B, F, h, w]`` -> ``[B, C, *size]``."""
        maps = upsample(self.conv1(maps), size, align_corners=True)
        return self.out(self.conv2(maps).relu())


class SegmentationEnd(nn.Module):
    """A layer, dropout, scores of the classes, upsampling."""

    def __init__(self, features: int, num_channels: int, dropout: float) -> None:
        super().__init__()
        self.conv = nn.Conv2d(features, features, 3, padding=1, bias=False)
        self.dropout = nn.Dropout(dropout)
        self.out = nn.Conv2d(features, num_channels, 1)

    def forward(self, maps: Tensor, size: tuple[int, int]) -> Tensor:
        """``[B, F, h, w]`` -> ``[B, C, *size]``."""
        scores = self.out(self.dropout(self.conv(maps).relu()))
        return upsample(scores, size, align_corners=True)


def spaced(depth: int, number: int = NUM_LEVELS) -> tuple[int, ...]:
    """The last blocks of ``number`` equal parts of an encoder."""
    return tuple(math.ceil(part * depth / number) - 1 for part in range(1, number + 1))


def _resamplings(widths: Sequence[int]) -> list[nn.Module]:
    """To 4, 2, 1 and 1/2 times the grid."""
    first, second, _, last = widths
    return [
        nn.ConvTranspose2d(first, first, 4, 4),
        nn.ConvTranspose2d(second, second, 2, 2),
        nn.Identity(),
        nn.Conv2d(last, last, 3, 2, 1),
    ]


def _end(kind: str, features: int, num_channels: int, dropout: float) -> nn.Module:
    if kind not in get_args(Kind):
        raise ValueError(f"kind is one of {', '.join(get_args(Kind))}, got {kind!r}")
    if kind == "regression":
        return RegressionEnd(features, num_channels)
    return SegmentationEnd(features, num_channels, dropout)
