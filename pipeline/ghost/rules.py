"""What the gradient of a parameter is made of, for each function that models use them in.

A rule takes a function's arguments and gives, for each tensor argument that may be a parameter,
how its piece follows from the gradient of the output. The first dimension of output and data is
that of the examples.

A rule that cannot say gives None: then the module is mapped by vmap instead.

What is kept for the backward is kept detached: a tensor with its graph would keep the graph, whose
hooks keep what is kept here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import resolve_name

from attent.pipeline.ghost.pieces import Dense, Lookup, Outer, Piece, Rows

MakePiece = Callable[[Tensor], Piece]
Pieces = list[tuple[Any, MakePiece]]
Share = Callable[[Tensor], Rows]
"""The rows of a layer's input, ``[B, ..., n]`` as ``[B, T, n]``; the same for all that share it."""

Rule = Callable[..., Pieces | None]


def _flat(values: Tensor) -> Tensor:
    """``[B, ..., n]`` as ``[B, T, n]``."""
    return values.reshape(len(values), -1, values.shape[-1])


def _sum_to(grad: Tensor, shape: torch.Size) -> Tensor:
    """Undo broadcasting in all dimensions but that of the examples, ``[B, *shape]``."""
    size = len(grad)
    # A parameter that has the dimension of the examples itself has it as 1.
    padded = (1,) * (grad.ndim - len(shape)) + tuple(shape)
    over = [i for i in range(1, grad.ndim) if padded[i] == 1 and grad.shape[i] != 1]
    if over:
        grad = grad.sum(over, keepdim=True)
    return grad.reshape(size, *shape)


def _bias(grad: Tensor) -> Dense:
    return Dense(grad.sum(tuple(range(1, grad.ndim - 1))) if grad.ndim > 2 else grad)


def linear(
    share: Share, input: Tensor, weight: Tensor, bias: Tensor | None = None
) -> Pieces | None:
    """``F.linear``: input ``[B, ..., n]``, weight ``[m, n]``."""
    if weight.ndim != 2:
        return None
    rows = share(input)
    shape = weight.shape
    return [
        (weight, lambda grad: Outer(Rows(_flat(grad)), rows, shape)),
        (bias, _bias),
    ]


def matmul(share: Share, input: Tensor, other: Tensor) -> Pieces | None:
    """``input @ other``: input ``[B, ..., m]``, other ``[m, n]``."""
    if other.ndim != 2 or input.ndim < 2:
        return None
    rows, shape = share(input), other.shape
    return [(other, lambda grad: Outer(rows, Rows(_flat(grad)), shape))]


def conv2d(
    share: Share,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Pieces | None:
    """``F.conv2d`` without groups, as the linear map of its unfolded input."""
    if groups != 1 or isinstance(padding, str) or input.ndim != 4:
        return None
    shape, kept = weight.shape, input.detach()

    def piece(grad: Tensor) -> Outer:
        columns = F.unfold(kept, tuple(shape[2:]), dilation, padding, stride)
        return Outer(Rows(grad.flatten(2).transpose(1, 2)), Rows(columns.transpose(1, 2)), shape)

    return [(weight, piece), (bias, lambda grad: Dense(grad.sum((2, 3))))]


def embedding(
    share: Share,
    input: Tensor,
    weight: Tensor,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Pieces | None:
    """``F.embedding``: input ``[B, ...]`` of indices; the row ``padding_idx`` has no gradient."""
    if max_norm is not None or scale_grad_by_freq:  # the table, or the gradient, is not the loss's
        return None
    index, shape = input.reshape(len(input), -1), weight.shape

    def piece(grad: Tensor) -> Lookup:
        values = _flat(grad).reshape(*index.shape, -1)
        if padding_idx is not None:
            row = padding_idx % shape[0]
            values = values.masked_fill((index == row)[:, :, None], 0)
        return Lookup(index, Rows(values), shape)

    return [(weight, piece)]


def layer_norm(
    share: Share,
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Pieces:
    """``F.layer_norm``."""
    shape, kept = torch.Size(normalized_shape), input.detach()

    def scale(grad: Tensor) -> Dense:
        return Dense(_sum_to(grad * F.layer_norm(kept, list(shape), eps=eps), shape))

    return [(weight, scale), (bias, lambda grad: Dense(_sum_to(grad, shape)))]


def rms_norm(
    share: Share,
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    eps: float | None = None,
) -> Pieces:
    """``F.rms_norm``."""
    shape, kept = torch.Size(normalized_shape), input.detach()

    def scale(grad: Tensor) -> Dense:
        return Dense(_sum_to(grad * F.rms_norm(kept, list(shape), eps=eps), shape))

    return [(weight, scale)]


def group_norm(
    share: Share,
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Pieces:
    """``F.group_norm``: input ``[B, C, ...]``."""
    kept = input.detach()
    return [
        (weight, lambda grad: _by_channel(grad * F.group_norm(kept, num_groups, eps=eps))),
        (bias, _by_channel),
    ]


def batch_norm(
    share: Share,
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Pieces:
    """``F.batch_norm`` in eval mode: input ``[B, C, ...]``.

    Raises:
        ValueError: in training mode an example's loss depends on the others in the batch.
    """
    if training or running_mean is None or running_var is None:
        raise ValueError(
            "BatchNorm with the statistics of the batch has no gradient per example: the loss of "
            "each depends on the others; score in eval mode, or use LayerNorm or GroupNorm"
        )
    mean, scale = running_mean.clone(), torch.rsqrt(running_var + eps)
    sides, kept = (-1,) + (1,) * (input.ndim - 2), input.detach()

    def piece(grad: Tensor) -> Dense:
        return _by_channel(grad * ((kept - mean.view(sides)) * scale.view(sides)))

    return [(weight, piece), (bias, _by_channel)]


def _by_channel(grad: Tensor) -> Dense:
    """Sum ``[B, C, ...]`` over all but examples and channels."""
    return Dense(grad.sum(tuple(range(2, grad.ndim))) if grad.ndim > 2 else grad)


def add(share: Share, input: Any, other: Any, *, alpha: float = 1) -> Pieces:
    """``input + alpha * other``, either of them a parameter."""
    first, second = _shape(input), _shape(other)
    return [
        (input, lambda grad: Dense(_sum_to(grad, first))),
        (other, lambda grad: Dense(_sum_to(alpha * grad, second))),
    ]


def sub(share: Share, input: Any, other: Any, *, alpha: float = 1) -> Pieces:
    """``input - alpha * other``."""
    return add(share, input, other, alpha=-alpha)


def mul(share: Share, input: Any, other: Any) -> Pieces:
    """``input * other``."""
    a, b = _kept(input), _kept(other)
    return [
        (input, lambda grad: Dense(_sum_to(grad * b, _shape(a)))),
        (other, lambda grad: Dense(_sum_to(grad * a, _shape(b)))),
    ]


def div(share: Share, input: Any, other: Any, *, rounding_mode: Any = None) -> Pieces | None:
    """``input / other``."""
    if rounding_mode is not None:
        return None
    a, b = _kept(input), _kept(other)
    return [
        (input, lambda grad: Dense(_sum_to(grad / b, _shape(a)))),
        (other, lambda grad: Dense(_sum_to(-grad * a / (b * b), _shape(b)))),
    ]


def where(share: Share, condition: Tensor, input: Any, other: Any) -> Pieces:
    """``torch.where(condition, input, other)``: a mask token put where the mask is."""
    first, second = _shape(input), _shape(other)
    return [
        (input, lambda grad: Dense(_sum_to(grad * condition, first))),
        (other, lambda grad: Dense(_sum_to(grad * ~condition, second))),
    ]


def expand(share: Share, input: Tensor, *sizes: Any, size: Any = None) -> Pieces:
    """``input.expand(B, ...)``: a class token given to every example."""
    shape = input.shape
    return [(input, lambda grad: Dense(_sum_to(grad, shape)))]


def _kept(value: Any) -> Any:
    return value.detach() if isinstance(value, Tensor) else value


def _shape(value: Any) -> torch.Size:
    return value.shape if isinstance(value, Tensor) else torch.Size()


def repeat(share: Share, input: Tensor, *repeats: Any) -> Pieces | None:
    """``input.repeat(B, ...)`` where the first dimension of the input is 1."""
    counts = repeats[0] if len(repeats) == 1 and not isinstance(repeats[0], int) else repeats
    lead = len(counts) - input.ndim
    shape = input.shape
    padded = (1,) * lead + tuple(shape)
    if padded[0] != 1:
        return None

    def piece(grad: Tensor) -> Dense:
        split = [len(grad)]
        for count, width in zip(counts[1:], padded[1:], strict=True):
            split += [count, width]
        folded = grad.reshape(split)
        over = tuple(range(1, len(split), 2))
        folded = folded.sum(over) if over else folded
        return Dense(folded.reshape(len(grad), *shape))

    return [(input, piece)]


RULES: dict[Any, Rule] = {
    F.linear: linear,
    torch.matmul: matmul, torch.Tensor.matmul: matmul, torch.Tensor.__matmul__: matmul,
    torch.conv2d: conv2d, F.conv2d: conv2d,
    F.embedding: embedding,
    F.layer_norm: layer_norm, F.rms_norm: rms_norm, F.group_norm: group_norm,
    F.batch_norm: batch_norm,
    torch.add: add, torch.Tensor.add: add, torch.Tensor.add_: add, torch.Tensor.__iadd__: add,
    torch.sub: sub, torch.Tensor.sub: sub,
    torch.mul: mul, torch.Tensor.mul: mul, torch.multiply: mul, torch.Tensor.multiply: mul,
    torch.div: div, torch.Tensor.div: div, torch.true_divide: div,
    torch.where: where,
    torch.Tensor.expand: expand, torch.Tensor.expand_as: expand, torch.broadcast_to: expand,
    torch.Tensor.repeat: repeat,
}  # fmt: skip
"""Function -> rule."""

PRODUCTS = frozenset(
    resolve_name(function) for function, rule in RULES.items() if rule in (linear, matmul, conv2d)
)
"""Names of the functions that are matrix products."""
