"""Linear heads: of a whole picture, and of its pixels.

Shapes: B examples, L tokens of all modalities, G global ones, D channels, C outputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

from torch import Tensor, nn

from attent.models.heads.dense import DenseHead, as_maps, upsample
from attent.models.multimae.outputs import LayerNorm, Layout

Pool = Literal["mean", "last"]


class LinearHead(nn.Module):
    """One token made of all, LayerNorm, a linear layer.

    The linear layer starts Xavier uniform, its bias zero, as the published one does: the truncated
    normal that is meant for it is overwritten by the model.

    Args:
        dim: D.
        num_outputs: C.
        pool: ``mean`` of all tokens, the global ones too; or the ``last``, which is a global one if
            there are any.

    Raises:
        ValueError: another ``pool``; no outputs.
    """

    def __init__(self, dim: int, num_outputs: int, pool: Pool = "mean") -> None:
        super().__init__()
        if pool not in get_args(Pool):
            raise ValueError(f"pool is one of {', '.join(get_args(Pool))}, got {pool!r}")
        if num_outputs < 1:
            raise ValueError(f"a head has at least one output, got {num_outputs}")
        self.pool = pool
        self.norm = LayerNorm(dim)
        self.head = nn.Linear(dim, num_outputs)
        nn.init.xavier_uniform_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, tokens: Tensor, layout: Layout | None = None) -> Tensor:
        """Tokens ``[B, L + G, D]`` -> ``[B, C]``."""
        pooled = tokens.mean(dim=1) if self.pool == "mean" else tokens[:, -1]
        return self.head(self.norm(pooled))


class LinearMap(DenseHead):
    """A linear layer of each token, upsampled (Strudel et al., Segmenter, ICCV 2021, section 3.2).

    Args:
        num_channels: C.
        dim: D.
        main_tasks: the modalities whose tokens are read.
    """

    def __init__(
        self, num_channels: int, *, dim: int = 768, main_tasks: Sequence[str] = ("rgb",)
    ) -> None:
        super().__init__(num_channels, dim, main_tasks)
        self.head = nn.Linear(self.in_dim, num_channels)

    def forward(self, tokens: Tensor, layout: Layout) -> Tensor:
        """Tokens ``[B, L + G, D]`` -> ``[B, C, H, W]``."""
        maps = as_maps(self.head(self.main_tokens(tokens, layout)), self.grid(layout))
        return upsample(maps, layout.image)
