"""The loss of each token, a chunk of tokens at a time: no more logits are held than of a chunk.

Shapes: n tokens, D features, V words.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

LOGITS = 2**22
"""Held at once by default: 16 MiB in float32."""


def tokens_of_chunk(num_words: int) -> int:
    """How many tokens' logits are held at once."""
    return max(1, LOGITS // num_words)


def token_losses(hidden: Tensor, weight: Tensor, target: Tensor, *, chunk: int) -> Tensor:
    """Cross-entropy of each token in nats under the logits ``hidden @ weight.T``, ``[n]`` float32.

    Where the head is frozen, gradients by what goes into it are formed on the way (they are the
    logits' gradients times ``weight``; Hsu et al., Liger Kernel, arXiv:2410.10989): its logits are
    computed once. Where it is trained they are computed once more in the backward, since what each
    loss will be multiplied by is not known before.

    Args:
        hidden: ``[n, D]``.
        weight: ``[V, D]``.
        target: ``[n]`` int64.
        chunk: tokens whose logits are held at once.
    """
    keep = torch.is_grad_enabled() and hidden.requires_grad and not weight.requires_grad
    return _TokenLosses.apply(hidden, weight, target, chunk, keep)  # type: ignore[no-any-return]


def token_losses_of(
    logits_of: Callable[[Tensor], Tensor], hidden: Tensor, target: Tensor, *, chunk: int
) -> Tensor:
    """`token_losses` under any head, by checkpoints: logits are computed again in the backward."""

    def losses(hidden: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(logits_of(hidden).float(), target, reduction="none")

    parts = [
        checkpoint(losses, h, t, use_reentrant=False) if torch.is_grad_enabled() else losses(h, t)
        for h, t in zip(hidden.split(chunk), target.split(chunk), strict=True)
    ]
    return torch.cat(parts)  # type: ignore[arg-type]


def token_errors(
    logits_of: Callable[[Tensor], Tensor], hidden: Tensor, target: Tensor, *, chunk: int
) -> Tensor:
    """The square of the gradient of each token's loss by its logits, ``[n]`` float32.

    ``|| softmax(z) - onehot(y) ||^2 = sum p^2 - 2 p_y + 1``.
    """
    with torch.no_grad():
        return torch.cat(
            [
                _error(logits_of(h).float().softmax(dim=-1), t)
                for h, t in zip(hidden.split(chunk), target.split(chunk), strict=True)
            ]
        )


def _error(shares: Tensor, target: Tensor) -> Tensor:
    right = shares.gather(1, target[:, None])[:, 0]
    # (1 - p_y)^2 and the others' squares: p_y near 1 is not lost in a difference.
    others = shares.scatter(1, target[:, None], 0.0)
    return others.square().sum(dim=1) + (1 - right).square()


class _TokenLosses(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, target: Tensor, chunk: int, keep: bool
    ) -> Tensor:
        losses = torch.empty(len(hidden), dtype=torch.float32, device=hidden.device)
        grads = torch.empty_like(hidden) if keep else None
        for start in range(0, len(hidden), chunk):
            at = slice(start, start + chunk)
            logits = F.linear(hidden[at], weight).float()
            right = target[at, None]
            total = logits.logsumexp(dim=1, keepdim=True)
            losses[at] = (total - logits.gather(1, right))[:, 0]
            if grads is not None:
                grads[at] = torch.mm(_logit_grads(logits, total, right).to(weight.dtype), weight)
        kind = hidden.device.type
        ctx.autocast = kind, torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind)
        ctx.chunk, ctx.kept = chunk, keep
        ctx.save_for_backward(*((grads,) if grads is not None else (hidden, weight, target)))
        return losses

    @staticmethod
    @once_differentiable
    def backward(  # type: ignore[override]
        ctx: Any, upstream: Tensor
    ) -> tuple[Tensor | None, ...]:
        if ctx.kept:
            (grads,) = ctx.saved_tensors
            return (grads * upstream[:, None]).to(grads.dtype), None, None, None, None
        hidden, weight, target = ctx.saved_tensors
        by_hidden = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        by_weight = torch.zeros_like(weight) if ctx.needs_input_grad[1] else None
        kind, dtype, enabled = ctx.autocast
        with torch.autocast(kind, dtype, enabled):
            for start in range(0, len(hidden), ctx.chunk):
                at = slice(start, start + ctx.chunk)
                logits = F.linear(hidden[at], weight).float()
                total = logits.logsumexp(dim=1, keepdim=True)
                grads = _logit_grads(logits, total, target[at, None])
                grads = grads.mul_(upstream[at, None]).to(weight.dtype)
                if by_hidden is not None:
                    by_hidden[at] = torch.mm(grads, weight)
                if by_weight is not None:
                    by_weight += torch.mm(grads.T, hidden[at])
        return by_hidden, by_weight, None, None, None


def _logit_grads(logits: Tensor, total: Tensor, right: Tensor) -> Tensor:
    """``softmax(z) - onehot(y)``, in the place of the logits."""
    grads = logits.sub_(total).exp_()
    ones = torch.full_like(right, -1, dtype=grads.dtype)
    return grads.scatter_add_(1, right, ones)


def plain_token_losses(logits: Tensor, labels: Tensor, ignored: int) -> Tensor:
    """Cross-entropy of each token, 0 where there is no label; all logits at once.

    Args:
        logits: ``[B, T, V]``.
        labels: ``[B, T]``.
        ignored: the label of tokens that are passed over.

    Returns:
        ``[B, T]`` float32.
    """
    return F.cross_entropy(
        logits.float().flatten(0, 1), labels.flatten(), reduction="none", ignore_index=ignored
    ).unflatten(0, labels.shape)


def is_plain(head: nn.Module) -> bool:
    """Whether a head is one matrix, without a bias or an adapter."""
    return type(head) is nn.Linear and head.bias is None
