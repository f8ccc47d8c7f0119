"""Heads as they are described, one example, token and pixel at a time, to hold the heads against.

Maps are ``[C, h, w]``; tokens are lists of vectors; nothing is batched.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from attent.models.multimae.outputs import Layout
from tests.models.slow_multimae import Slow

Weights = dict[str, Tensor]
Grid = tuple[int, int]


def beside(tokens: Tensor, layout: Layout, main_tasks: tuple[str, ...]) -> list[Tensor]:
    """For each place, the tokens that the main modalities have there, end to end."""
    starts, start = {}, 0
    for name, (rows, columns) in layout.grids.items():
        starts[name] = start
        start += rows * columns
    rows, columns = layout.grids[main_tasks[0]]
    return [
        torch.cat([tokens[starts[name] + place] for name in main_tasks])
        for place in range(rows * columns)
    ]


def laid_out(vectors: list[Tensor], grid: Grid) -> Tensor:
    maps = torch.zeros(len(vectors[0]), *grid, dtype=vectors[0].dtype)
    for place, vector in enumerate(vectors):
        maps[:, place // grid[1], place % grid[1]] = vector
    return maps


def pixels(maps: Tensor) -> list[Tensor]:
    return [maps[:, r, c] for r in range(maps.shape[1]) for c in range(maps.shape[2])]


def convolved(
    weights: Weights,
    name: str,
    maps: Tensor,
    *,
    stride: int = 1,
    bias: bool = True,
    depthwise: bool = False,
) -> Tensor:
    """Zeros around, half the kernel wide."""
    kernel = weights[f"{name}.weight"]
    side = kernel.shape[-1]
    pad = side // 2
    rows, columns = ((n + 2 * pad - side) // stride + 1 for n in maps.shape[1:])
    out = torch.zeros(len(kernel), rows, columns, dtype=maps.dtype)
    for r in range(rows):
        for c in range(columns):
            for i in range(side):
                for j in range(side):
                    y, x = r * stride + i - pad, c * stride + j - pad
                    if not (0 <= y < maps.shape[1] and 0 <= x < maps.shape[2]):
                        continue
                    seen = maps[:, y, x]
                    taps = kernel[:, :, i, j]
                    out[:, r, c] += taps[:, 0] * seen if depthwise else taps @ seen
            if bias:
                out[:, r, c] += weights[f"{name}.bias"]
    return out


def spread(weights: Weights, name: str, maps: Tensor) -> Tensor:
    """A transposed convolution whose kernel is its stride: each point becomes a square."""
    kernel = weights[f"{name}.weight"]
    side = kernel.shape[-1]
    rows, columns = maps.shape[1] * side, maps.shape[2] * side
    out = torch.zeros(kernel.shape[1], rows, columns, dtype=maps.dtype)
    for y in range(rows):
        for x in range(columns):
            taps = kernel[:, :, y % side, x % side]
            out[:, y, x] = maps[:, y // side, x // side] @ taps + weights[f"{name}.bias"]
    return out


def bilinear(maps: Tensor, size: Grid, *, align_corners: bool = False) -> Tensor:
    def sources(old: int, new: int) -> list[tuple[int, int, float]]:
        found = []
        for n in range(new):
            if align_corners:
                at = n * (old - 1) / (new - 1) if new > 1 else 0.0
            else:
                at = min(max((n + 0.5) * old / new - 0.5, 0.0), old - 1)
            low = min(math.floor(at), old - 1)
            found.append((low, min(low + 1, old - 1), at - low))
        return found

    out = torch.zeros(len(maps), *size, dtype=maps.dtype)
    for r, (up, down, below) in enumerate(sources(maps.shape[1], size[0])):
        for c, (left, right, beyond) in enumerate(sources(maps.shape[2], size[1])):
            upper = (1 - beyond) * maps[:, up, left] + beyond * maps[:, up, right]
            lower = (1 - beyond) * maps[:, down, left] + beyond * maps[:, down, right]
            out[:, r, c] = (1 - below) * upper + below * lower
    return out


def linear_map(weights: Weights, tokens: Tensor, layout: Layout, main: tuple[str, ...]) -> Tensor:
    slow = Slow(weights, patch=0, heads=0)
    scores = [slow.linear("head", x) for x in beside(tokens, layout, main)]
    return bilinear(laid_out(scores, layout.grids[main[0]]), layout.image)


def convnext(
    weights: Weights, tokens: Tensor, layout: Layout, main: tuple[str, ...], side: int
) -> Tensor:
    slow = Slow(weights, patch=0, heads=0)
    grid = layout.grids[main[0]]
    width = len(weights["blocks.0.conv_dw.bias"])
    maps = torch.zeros(width, grid[0] * side, grid[1] * side, dtype=tokens.dtype)
    for place, token in enumerate(beside(tokens, layout, main)):
        made = slow.linear("embed", token)
        up, left = place // grid[1] * side, place % grid[1] * side
        for p in range(side * side):
            maps[:, up + p // side, left + p % side] = made[p * width : (p + 1) * width]
    for n in range(slow.count("blocks.")):
        mixed = convolved(weights, f"blocks.{n}.conv_dw", maps, depthwise=True)
        hidden = [
            slow.mlp(f"blocks.{n}.mlp", slow.norm(f"blocks.{n}.norm", x)) for x in pixels(mixed)
        ]
        maps = maps + laid_out(hidden, (maps.shape[1], maps.shape[2]))
    return bilinear(convolved(weights, "head", maps), layout.image)


def segmenter(
    weights: Weights, tokens: Tensor, layout: Layout, main: tuple[str, ...], heads: int
) -> Tensor:
    slow = Slow(weights, patch=0, heads=0)
    mixed = [slow.linear("embed", x) for x in beside(tokens, layout, main)]
    number = len(mixed)
    mixed = mixed + list(weights["class_emb"][0])
    for n in range(slow.count("blocks.")):
        mixed = slow.block(f"blocks.{n}", mixed, heads)
    mixed = [slow.norm("norm", x) for x in mixed]
    places = [weights["of_tokens.weight"] @ x for x in mixed[:number]]
    classes = [weights["of_classes.weight"] @ x for x in mixed[number:]]
    cosines = [
        torch.stack([x @ y / math.sqrt(float(x @ x) * float(y @ y)) for y in classes])
        for x in places
    ]
    scores = [slow.norm("class_norm", x) for x in cosines]
    return bilinear(laid_out(scores, layout.grids[main[0]]), layout.image)


def dpt(weights: Weights, layers: list[Tensor], layout: Layout, main: tuple[str, ...]) -> Tensor:
    levels = []
    for n, tokens in enumerate(layers):
        maps = laid_out(beside(tokens, layout, main), layout.grids[main[0]])
        maps = convolved(weights, f"levels.{n}.0", maps)
        if n < 2:
            maps = spread(weights, f"levels.{n}.1", maps)
        if n == 3:
            maps = convolved(weights, f"levels.{n}.1", maps, stride=2)
        levels.append(convolved(weights, f"levels.{n}.2", maps, bias=False))

    def unit(name: str, maps: Tensor) -> Tensor:
        hidden = convolved(weights, f"{name}.conv1", maps.clamp(min=0))
        return maps + convolved(weights, f"{name}.conv2", hidden.clamp(min=0))

    maps = levels[3]
    for n in (3, 2, 1, 0):
        if n < 3:
            maps = maps + unit(f"fusions.{n}.skip", levels[n])
        maps = unit(f"fusions.{n}.unit", maps)
        # Twice the size, but for a grid that is odd: the size of what it is to be added to.
        size = tuple(levels[n - 1].shape[1:]) if n else tuple(2 * s for s in maps.shape[1:])
        maps = convolved(weights, f"fusions.{n}.out", bilinear(maps, size, align_corners=True))
    if "end.conv.weight" in weights:
        hidden = convolved(weights, "end.conv", maps, bias=False).clamp(min=0)
        scores = convolved(weights, "end.out", hidden)
        return bilinear(scores, layout.image, align_corners=True)
    maps = convolved(weights, "end.conv1", maps)
    maps = bilinear(maps, layout.image, align_corners=True)
    return convolved(weights, "end.out", convolved(weights, "end.conv2", maps).clamp(min=0))
