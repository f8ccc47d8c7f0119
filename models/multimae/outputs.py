"""The decoder of one modality: visible tokens -> its picture (MultiMAE, section 3.3).

Shapes: B examples, N visible tokens, G global ones, L tokens of all modalities, n of this one, D
channels of the decoder, C channels of the picture, patches of P x P on the modality's own grid.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from timm.layers.mlp import Mlp
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.nn import functional as F

from attent.models.multimae.inputs import grid_side, own_patch
from attent.models.multimae.masking import TokenOrder, pick
from attent.models.multimae.positions import as_tokens, fixed_positions, resample

LayerNorm: Any = partial(nn.LayerNorm, eps=1e-6)


@dataclass(frozen=True)
class Layout:
    """Where the tokens of each modality stand in the whole sequence.

    Attributes:
        image: (height, width) of the picture in pixels.
        grids: modality -> (rows, columns) of its tokens, in the order of the sequence.
        num_global: G, tokens after all of them.
    """

    image: tuple[int, int]
    grids: Mapping[str, tuple[int, int]]
    num_global: int

    @property
    def sizes(self) -> dict[str, int]:
        """Modality -> number of its tokens."""
        return {name: rows * columns for name, (rows, columns) in self.grids.items()}

    @property
    def num_tokens(self) -> int:
        """L: of all modalities, without the global ones."""
        return sum(self.sizes.values())

    def span(self, modality: str) -> slice:
        """Where a modality's tokens stand."""
        start = 0
        for name, size in self.sizes.items():
            if name == modality:
                return slice(start, start + size)
            start += size
        raise KeyError(modality)


class CrossAttention(nn.Module):
    """Attention of queries to a context, ``[B, n, D]`` and ``[B, m, D]`` -> ``[B, n, D]``."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q = nn.Linear(dim, dim)
        self.kv = nn.Linear(dim, 2 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, queries: Tensor, context: Tensor) -> Tensor:
        """Softmax attention scaled by the root of a head's channels."""
        q = self._heads(self.q(queries))
        k, v = (self._heads(part) for part in self.kv(context).chunk(2, dim=-1))
        mixed = F.scaled_dot_product_attention(q, k, v)
        return self.proj(mixed.transpose(1, 2).flatten(2))

    def _heads(self, tokens: Tensor) -> Tensor:
        return tokens.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)


class SpatialOutput(nn.Module):
    """Cross-attention from a picture's positions to the encoded tokens, blocks, and a projection.

    Args:
        num_channels: C.
        task: the modality whose tokens are the queries, and whose mask its loss has.
        context_tasks: the modalities that are told apart by a learned vector each.
        encoder_dim: channels of the encoder.
        patch_size: of the whole picture, in pixels.
        stride: pixels of the picture to one of this modality.
        image_size: side of the pictures for which the position embedding is made.
        dim: D.
        depth: blocks of self-attention after the cross-attention.
        num_heads: of every attention.
        mlp_ratio: hidden channels of a block, in D.
        use_task_queries: ask with the modality's own tokens where they are visible; False asks with
            position and modality alone.
        use_xattn: cross-attention to the other tokens; without it a modality is decoded from its
            own tokens alone.

    Raises:
        ValueError: no ``context_tasks``, where the published code fails for want of an attribute.
    """

    def __init__(
        self,
        num_channels: int,
        *,
        task: str,
        context_tasks: Sequence[str],
        encoder_dim: int,
        patch_size: int,
        stride: int = 1,
        image_size: int = 224,
        dim: int = 256,
        depth: int = 2,
        num_heads: int = 8,
        mlp_ratio: float = 4.0,
        use_task_queries: bool = True,
        use_xattn: bool = True,
    ) -> None:
        super().__init__()
        if not context_tasks:
            raise ValueError("context_tasks must name the modalities that are encoded")
        if dim % num_heads:
            raise ValueError(f"decoder_dim {dim} is not a multiple of {num_heads} heads")
        self.num_channels, self.task, self.stride = num_channels, task, stride
        self.patch_size = own_patch(patch_size, stride)
        self.use_task_queries, self.use_xattn = use_task_queries, use_xattn
        self.pos_emb = fixed_positions(grid_side(image_size, self.patch_size, stride), dim)
        self.task_embeddings = nn.ParameterDict(
            {name: nn.Parameter(torch.zeros(1, 1, dim)) for name in context_tasks}
        )
        for embedding in self.task_embeddings.values():
            nn.init.trunc_normal_(embedding, std=0.02)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.proj_context = nn.Linear(encoder_dim, dim)
        if use_xattn:
            self.query_norm, self.context_norm = LayerNorm(dim), LayerNorm(dim)
            self.decoder = CrossAttention(dim, num_heads)
            self.out_norm = LayerNorm(dim)
            self.mlp = Mlp(dim, int(dim * mlp_ratio))
        block = partial(Block, dim, num_heads, mlp_ratio, qkv_bias=True, norm_layer=LayerNorm)
        self.decoder_transformer = nn.Sequential(*(block() for _ in range(depth)))
        self.out_proj = nn.Linear(dim, num_channels * self.patch_size**2)

    def forward(self, tokens: Tensor, order: TokenOrder, layout: Layout) -> Tensor:
        """Encoded tokens ``[B, N + G, encoder_dim]`` -> picture ``[B, C, H / stride, W / stride]``.

        Args:
            tokens: the visible ones in their order, then the global ones.
            order: which they are.
            layout: of the whole sequence.
        """
        grid = self.grid(layout)
        tokens = self.proj_context(tokens)
        visible, others = tokens[:, : order.num_visible], tokens[:, order.num_visible :]
        places = {name: self._places(name, own) for name, own in layout.grids.items()}
        queries = self._queries(visible, order, layout, places, grid)
        if self.use_xattn:
            everywhere = torch.cat(list(places.values()), dim=1).expand(len(tokens), -1, -1)
            context = torch.cat([visible + pick(everywhere, order.keep), others], dim=1)
            # No residual from the queries here: what is known of a place is attended to.
            mixed = self.decoder(self.query_norm(queries), self.context_norm(context))
            queries = mixed + self.mlp(self.out_norm(mixed))
        patches = self.out_proj(self.decoder_transformer(queries))
        return self._unpatch(patches, grid)

    def grid(self, layout: Layout) -> tuple[int, int]:
        """(rows, columns) of this output's patches.

        Raises:
            ValueError: they are not those of the modality's own tokens.
        """
        side = self.patch_size * self.stride
        grid = layout.image[0] // side, layout.image[1] // side
        if layout.grids.get(self.task, grid) != grid:
            raise ValueError(f"{self.task} has {layout.grids[self.task]} tokens, its output {grid}")
        return grid

    def _places(self, modality: str, grid: tuple[int, int]) -> Tensor:
        """What is added to a modality's tokens, ``[1, n, D]``: where they are and whose."""
        places = as_tokens(resample(self.pos_emb, grid, "bilinear"))
        if modality in self.task_embeddings:
            places = places + self.task_embeddings[modality]
        return places

    def _queries(
        self,
        visible: Tensor,
        order: TokenOrder,
        layout: Layout,
        places: Mapping[str, Tensor],
        grid: tuple[int, int],
    ) -> Tensor:
        """``[B, n, D]``: the modality's tokens where they are visible, mask tokens elsewhere."""
        mask_token = self.mask_token.expand(len(visible), -1, -1)
        if not (self.use_task_queries and self.task in layout.grids):
            return mask_token + self._places(self.task, grid)
        # Only this modality's tokens are put back in their places; one mask token serves for all.
        own = order.restore[:, layout.span(self.task)].clamp(max=order.num_visible)
        return pick(torch.cat([visible, mask_token], dim=1), own) + places[self.task]

    def _unpatch(self, patches: Tensor, grid: tuple[int, int]) -> Tensor:
        """``[B, n, C P P]`` -> ``[B, C, H, W]``; channels first within a patch, unlike MAE."""
        side = self.patch_size
        maps = patches.unflatten(1, grid).unflatten(-1, (self.num_channels, side, side))
        return maps.permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)
