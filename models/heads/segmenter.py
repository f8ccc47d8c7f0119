"""The mask transformer of Segmenter (Strudel et al., ICCV 2021, section 3.2).

Shapes: B examples, T main modalities of n = h x w tokens, D channels of the encoder, E of the head,
K classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.nn import functional as F

from attent.models.heads.dense import DenseHead, as_maps, upsample
from attent.models.multimae.outputs import LayerNorm, Layout


class SegmenterHead(DenseHead):
    """Tokens and a learned embedding of each class attend to each other, then are compared.

    What a token says of a class is the product of both, each projected and of unit length; then
    LayerNorm over the classes, and upsampling.

    Args:
        num_channels: K.
        dim: D.
        main_tasks: the modalities whose tokens are read.
        embed_dim: E; None for D.
        num_blocks: of them.
        num_heads: of every attention; None for one per 64 channels.
        mlp_ratio: hidden channels of a block, in E.

    Raises:
        ValueError: fewer than two classes, between which there is no norm; E is not a multiple of
            ``num_heads``.
    """

    def __init__(
        self,
        num_channels: int,
        *,
        dim: int = 768,
        main_tasks: Sequence[str] = ("rgb",),
        embed_dim: int | None = None,
        num_blocks: int = 2,
        num_heads: int | None = None,
        mlp_ratio: float = 4.0,
    ) -> None:
        super().__init__(num_channels, dim, main_tasks)
        if num_channels < 2:
            raise ValueError("segmenter norms scores over the classes: it needs at least two")
        embed_dim = dim if embed_dim is None else embed_dim
        num_heads = max(1, embed_dim // 64) if num_heads is None else num_heads
        if embed_dim % num_heads:
            raise ValueError(f"embed_dim {embed_dim} is not a multiple of num_heads {num_heads}")
        self.embed = nn.Linear(self.in_dim, embed_dim)
        self.class_emb = nn.Parameter(torch.zeros(1, num_channels, embed_dim))
        nn.init.trunc_normal_(self.class_emb, std=0.02)
        self.blocks = nn.Sequential(
            *(
                Block(embed_dim, num_heads, mlp_ratio, qkv_bias=True, norm_layer=LayerNorm)
                for _ in range(num_blocks)
            )
        )
        self.norm = LayerNorm(embed_dim)
        self.of_tokens = nn.Linear(embed_dim, embed_dim, bias=False)
        self.of_classes = nn.Linear(embed_dim, embed_dim, bias=False)
        self.class_norm = LayerNorm(num_channels)

    def forward(self, tokens: Tensor, layout: Layout) -> Tensor:
        """Tokens ``[B, L + G, D]`` -> ``[B, K, H, W]``."""
        tokens = self.embed(self.main_tokens(tokens, layout))
        classes = self.class_emb.expand(len(tokens), -1, -1)
        mixed = self.norm(self.blocks(torch.cat([tokens, classes], dim=1)))
        tokens, classes = mixed[:, : -self.num_channels], mixed[:, -self.num_channels :]
        tokens = F.normalize(self.of_tokens(tokens), dim=-1)
        classes = F.normalize(self.of_classes(classes), dim=-1)
        scores = self.class_norm(tokens @ classes.transpose(1, 2))
        return upsample(as_maps(scores, self.grid(layout)), layout.image)
