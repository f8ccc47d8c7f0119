"""How a world's examples are drawn: by class, with a tail, with wrong labels, with near copies.

Shapes: M examples of a pool, N of training, K classes, C channels, S pixels a side.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from attent.pipeline.keyed import fold, generator

from .world import shuffled


def by_class(labels: Tensor, num_classes: int, key: int) -> list[Tensor]:
    """The examples of each class, in an order drawn under a key.

    Args:
        labels: ``[M]`` int64.
        num_classes: K.
        key: of the draw.
    """
    return [
        shuffled((labels == c).nonzero().squeeze(1), fold(key, "class", c))
        for c in range(num_classes)
    ]


def parts_of(rows: list[Tensor], *counts: int) -> list[list[Tensor]]:
    """The first few of each class, the next few, and so on; then all that are left.

    Raises:
        ValueError: a class has not as many.
    """
    short = [c for c, of_class in enumerate(rows) if len(of_class) < sum(counts)]
    if short:
        raise ValueError(
            f"class {short[0]} has {len(rows[short[0]])} examples, of which {sum(counts)} are asked"
        )
    sizes = [[*counts, len(of_class) - sum(counts)] for of_class in rows]
    split = [of_class.split(size) for of_class, size in zip(rows, sizes, strict=True)]
    return [list(part) for part in zip(*split, strict=True)]


def long_tail(largest: int, ratio: int, num_classes: int, key: int) -> list[int]:
    """How many examples each class has: exponential from ``largest`` to ``largest / ratio``.

    The class of rank r (0 is the most frequent) has ``largest * ratio^(-r / (K - 1))``, rounded.
    Which class has which rank is drawn under the key.

    Raises:
        ValueError: the rarest class would not have a whole number, so that the ratio would be
            another.
    """
    if largest % ratio:
        raise ValueError(f"the largest class, {largest}, must be a multiple of the ratio {ratio}")
    ranks = torch.randperm(num_classes, generator=generator(key)).tolist()
    return [round(largest * ratio ** (-rank / (num_classes - 1))) for rank in ranks]


def wrong_labels(labels: Tensor, share: float, num_classes: int, key: int) -> Tensor:
    """Labels of which exactly a share (rounded) is another class, each of them as likely.

    Args:
        labels: ``[N]`` int64.
        share: in [0, 1].
        num_classes: K.
        key: of the draw.
    """
    chosen = shuffled(torch.arange(len(labels)), fold(key, "which"))[: round(share * len(labels))]
    drawn = generator(fold(key, "class"))
    others = 1 + torch.randint(num_classes - 1, (len(chosen),), generator=drawn)
    noisy = labels.clone()
    noisy[chosen] = (labels[chosen] + others) % num_classes
    return noisy


def repeated(originals: list[Tensor], counts: list[int]) -> tuple[Tensor, Tensor]:
    """So many examples of each class: its originals in turn, as often as it takes.

    Args:
        originals: of each class, rows in the pool.
        counts: examples wanted of each.

    Returns:
        Rows ``[N]``, and whether each is there a second time or more, ``[N]`` bool.
    """
    rows, copies = [], []
    for of_class, count in zip(originals, counts, strict=True):
        turn = torch.arange(count)
        rows.append(of_class[turn % len(of_class)])
        copies.append(turn >= len(of_class))
    return torch.cat(rows), torch.cat(copies)


def near_copies(
    images: Tensor,
    key: int,
    *,
    degrees: float,
    shift: float,
    noise: float = 0.0,
    brightness: float = 0.0,
) -> Tensor:
    """Images a little turned and moved, a little brighter or darker, with a little noise.

    Args:
        images: ``[B, C, S, S]`` float32 in [0, 1].
        key: of the draws.
        degrees: of turning, at most, to either side.
        shift: pixels moved, at most, either way in either direction.
        noise: its deviation.
        brightness: the pixels' factor is within so much of 1.

    Returns:
        The same shape, in [0, 1]. What comes in from outside is as the border.
    """
    drawn = generator(key)
    angle, dx, dy, factor = 2 * torch.rand(4, len(images), generator=drawn) - 1
    angle = angle * math.radians(degrees)
    step = 2 * shift / images.shape[-1]  # a picture is 2 wide in the coordinates of grids
    turned = torch.stack(
        [
            torch.stack([angle.cos(), -angle.sin(), step * dx], dim=1),
            torch.stack([angle.sin(), angle.cos(), step * dy], dim=1),
        ],
        dim=1,
    )
    grid = F.affine_grid(turned, list(images.shape), align_corners=False)
    moved = F.grid_sample(images, grid, padding_mode="border", align_corners=False)
    moved = moved * (1 + brightness * factor)[:, None, None, None]
    if noise:
        moved = moved + noise * torch.randn(moved.shape, generator=drawn)
    return moved.clamp(0, 1)
