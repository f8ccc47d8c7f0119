"""Input adapters: a modality's picture -> tokens (MultiMAE, section 3.1).

Shapes: B examples, C channels, H x W pixels of the modality's own grid, patches of P x P of them,
n = (H / P) (W / P) tokens of D channels.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from attent.models.multimae.positions import as_tokens, fixed_positions, resample


class InputAdapter(nn.Module):
    """What both kinds of adapter share: a grid, a fixed position embedding, a projection.

    Attributes:
        stride: pixels of the picture to one of this modality's grid.
        patch_size: P, on the modality's own grid.
        pos_emb: ``[1, D, h, w]``, frozen.
        proj: the projection of patches.
    """

    mode: str
    proj: nn.Conv2d

    def __init__(self, dim: int, *, patch_size: int, stride: int, image_size: int) -> None:
        super().__init__()
        self.dim = dim
        self.stride = stride
        self.patch_size = own_patch(patch_size, stride)
        self.pos_emb = fixed_positions(grid_side(image_size, self.patch_size, stride), dim)

    def grid(self, picture: Tensor) -> tuple[int, int]:
        """(rows, columns) of tokens.

        Raises:
            ValueError: the picture is not a whole number of patches.
        """
        height, width = picture.shape[-2:]
        if height % self.patch_size or width % self.patch_size:
            raise ValueError(
                f"{height} x {width} is not a whole number of patches of {self.patch_size}"
            )
        return height // self.patch_size, width // self.patch_size

    def finish(self, maps: Tensor) -> Tensor:
        """Projected patches ``[B, D, h, w]`` -> tokens ``[B, n, D]`` with their positions."""
        positions = resample(self.pos_emb, (maps.shape[-2], maps.shape[-1]), self.mode)
        return as_tokens(maps + positions)


class PatchedInput(InputAdapter):
    """Linear patches of a picture with channels (rgb, depth).

    Args:
        num_channels: C.
        dim: D.
        patch_size: of the whole picture, in pixels.
        stride: pixels of the picture to one of this modality.
        image_size: side of the pictures for which the position embedding is made.
    """

    mode = "bicubic"

    def __init__(
        self,
        num_channels: int,
        dim: int,
        *,
        patch_size: int,
        stride: int = 1,
        image_size: int = 224,
    ) -> None:
        super().__init__(dim, patch_size=patch_size, stride=stride, image_size=image_size)
        self.proj = nn.Conv2d(num_channels, dim, self.patch_size, self.patch_size)

    def forward(self, picture: Tensor) -> Tensor:
        """``[B, C, H, W]`` -> ``[B, n, D]``."""
        self.grid(picture)
        return self.finish(self.proj(picture))


class SemsegInput(InputAdapter):
    """Patches of a map of classes: each class has a vector, patches of vectors are projected.

    Args:
        num_classes: K.
        dim: D.
        patch_size: of the whole picture, in pixels.
        stride: pixels of the picture to one of the map.
        image_size: side of the pictures for which the position embedding is made.
        dim_class: channels of a class's vector.
        interpolate_class_emb: make the vectors' map smaller (bilinear) instead of projecting whole
            patches.
        padding_class: add a row for a class ``num_classes`` that stands for nothing known. Its
            vector starts like the others': the published initialisation overwrites the zeros that
            a padding row is meant to have, and a row that is trained need not be zero.
    """

    mode = "bilinear"

    def __init__(
        self,
        num_classes: int,
        dim: int,
        *,
        patch_size: int,
        stride: int = 4,
        image_size: int = 224,
        dim_class: int = 64,
        interpolate_class_emb: bool = False,
        padding_class: bool = False,
    ) -> None:
        super().__init__(dim, patch_size=patch_size, stride=stride, image_size=image_size)
        self.class_emb = nn.Embedding(num_classes + padding_class, dim_class)
        nn.init.trunc_normal_(self.class_emb.weight, std=0.02)
        self.interpolate = interpolate_class_emb
        side = 1 if interpolate_class_emb else self.patch_size
        self.proj = nn.Conv2d(dim_class, dim, side, side)

    def forward(self, classes: Tensor) -> Tensor:
        """``[B, H, W]`` integers -> ``[B, n, D]``."""
        grid = self.grid(classes)
        maps = self.class_emb(classes).permute(0, 3, 1, 2)
        if self.interpolate:
            maps = F.interpolate(maps, size=grid, mode="bilinear", align_corners=False)
        return self.finish(self.proj(maps))


def own_patch(patch_size: int, stride: int) -> int:
    """P on a modality's own grid."""
    return max(1, patch_size // stride)


def grid_side(image_size: int, own_patch_size: int, stride: int) -> int:
    """Tokens along a side of a picture of ``image_size`` pixels."""
    return max(1, image_size // (own_patch_size * stride))
