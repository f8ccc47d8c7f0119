"""The ConvNeXt head (MultiMAE, appendix on fine-tuning; Liu et al., ConvNeXt, CVPR 2022).

Shapes: B examples, T main modalities of h x w tokens, D channels, C outputs, s x s predictions a
token.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from timm.models.convnext import ConvNeXtBlock
from torch import Tensor, nn

from attent.models.heads.dense import DenseHead, upsample
from attent.models.multimae.outputs import Layout


class ConvNeXtHead(DenseHead):
    """Each token becomes s x s points of a map; ConvNeXt blocks, a 1 x 1 convolution, upsampling.

    A block is a 7 x 7 depthwise convolution, LayerNorm and an MLP of 4 times the channels, added to
    its input without layer scale or stochastic depth.

    Args:
        num_channels: C.
        dim: D.
        main_tasks: the modalities whose tokens are read.
        embed_dim: channels that a token is projected to, s x s times those of the blocks; None for
            8 D, the 6144 of the published head.
        preds_per_patch: s x s.
        num_blocks: of them.

    Raises:
        ValueError: ``preds_per_patch`` is not a square, ``embed_dim`` not a multiple of it.
    """

    def __init__(
        self,
        num_channels: int,
        *,
        dim: int = 768,
        main_tasks: Sequence[str] = ("rgb",),
        embed_dim: int | None = None,
        preds_per_patch: int = 16,
        num_blocks: int = 4,
    ) -> None:
        super().__init__(num_channels, dim, main_tasks)
        embed_dim = 8 * dim if embed_dim is None else embed_dim
        if preds_per_patch < 1 or math.isqrt(preds_per_patch) ** 2 != preds_per_patch:
            raise ValueError(f"preds_per_patch is a square number, got {preds_per_patch}")
        if embed_dim < 1 or embed_dim % preds_per_patch:
            raise ValueError(
                f"embed_dim {embed_dim} is not a multiple of preds_per_patch {preds_per_patch}"
            )
        self.side = math.isqrt(preds_per_patch)
        width = embed_dim // preds_per_patch
        self.embed = nn.Linear(self.in_dim, embed_dim)
        self.blocks = nn.Sequential(
            *(ConvNeXtBlock(width, ls_init_value=None) for _ in range(num_blocks))
        )
        self.head = nn.Conv2d(width, num_channels, 1)

    def forward(self, tokens: Tensor, layout: Layout) -> Tensor:
        """Tokens ``[B, L + G, D]`` -> ``[B, C, H, W]``."""
        points = self.embed(self.main_tokens(tokens, layout)).unflatten(1, self.grid(layout))
        points = points.unflatten(-1, (self.side, self.side, -1))
        maps = points.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)
        return upsample(self.head(self.blocks(maps)), layout.image)
