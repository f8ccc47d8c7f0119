"""What heads of one value a pixel share: tokens of the main modalities -> maps -> pictures.

Shapes: B examples, T main modalities of h x w tokens each, D channels of the encoder, C channels of
the output, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, cat, nn
from torch.nn import functional as F

from attent.models.multimae.outputs import Layout


class DenseHead(nn.Module):
    """A head that predicts C channels for each pixel.

    Attributes:
        encoder_layers: the blocks whose tokens it is given, from 0; None for those of the last.
        main_tasks: the modalities whose tokens it reads.
        in_dim: T D.

    Raises:
        ValueError: no channels; no main modality, or one named twice.
    """

    encoder_layers: tuple[int, ...] | None = None

    def __init__(self, num_channels: int, dim: int, main_tasks: Sequence[str]) -> None:
        super().__init__()
        if num_channels < 1:
            raise ValueError(f"a head has at least one channel, got {num_channels}")
        self.num_channels, self.main_tasks = num_channels, tuple(main_tasks)
        if not main_tasks or len(set(main_tasks)) < len(main_tasks):
            raise ValueError(
                f"main_tasks names each modality whose tokens are read once, got "
                f"{', '.join(main_tasks) or 'none'}"
            )
        self.in_dim = len(self.main_tasks) * dim

    def main_tokens(self, tokens: Tensor, layout: Layout) -> Tensor:
        """The main modalities' tokens beside each other, ``[B, h w, T D]``.

        Raises:
            ValueError: a main modality is not among the pictures, or their grids differ.
        """
        for name in self.main_tasks:
            if name not in layout.grids:
                raise ValueError(
                    f"the head reads tokens of {name}; the pictures are {', '.join(layout.grids)}"
                )
        if len({layout.grids[name] for name in self.main_tasks}) > 1:
            said = ", ".join(f"{name} {layout.grids[name]}" for name in self.main_tasks)
            raise ValueError(f"the head reads modalities of different grids: {said}")
        return cat([tokens[:, layout.span(name)] for name in self.main_tasks], dim=-1)

    def grid(self, layout: Layout) -> tuple[int, int]:
        """(h, w): rows and columns of the main modalities' tokens."""
        return layout.grids[self.main_tasks[0]]


def as_maps(tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    """``[B, h * w, D]``, row by row, -> ``[B, D, h, w]``."""
    return tokens.transpose(1, 2).unflatten(2, grid)


def upsample(maps: Tensor, size: tuple[int, int], *, align_corners: bool = False) -> Tensor:
    """``[B, C, h, w]`` -> ``[B, C, H, W]``, bilinear."""
    return F.interpolate(maps, size=size, mode="bilinear", align_corners=align_corners)
