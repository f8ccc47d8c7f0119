"""Gradient norms of a batch in scoring: exact, by ghost norms.

Shapes: B examples in a batch, T positions.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping

import torch
from tensordict import TensorDict
from torch import Tensor

from attent.pipeline.ghost.coverage import Coverage, Losses, survey
from attent.pipeline.ghost.mapped import account, mapping
from attent.pipeline.ghost.tape import GhostError, Tape
from attent.pipeline.keyed import global_generators
from attent.pipeline.task import Task, functional_model

_surveyed: weakref.WeakKeyDictionary[Task, dict[tuple, Coverage]] = weakref.WeakKeyDictionary()


def grad_norms(
    task: Task,
    params: Mapping[str, Tensor],
    buffers: Mapping[str, Tensor],
    batch: TensorDict,
    chunk: int | None = None,
) -> Tensor:
    """The Euclidean norm of each example's gradient by the trainable parameters, ``[B]``.

    ``s_i = || d loss_i / d params ||``, as `signals.vmap_grad_norms` defines it, from one batched
    forward and backward (Goodfellow, arXiv:1510.01799; Li et al., ICLR 2022, "ghost clipping").

    Raises:
        GhostError: the norms cannot be had this way; found out on the first batch, by comparison
            with plain gradients.
    """
    coverage = coverage_of(task, params, buffers, batch)
    return _norms(task, params, buffers, batch, coverage, None)


def last_layer_norms(
    task: Task,
    params: Mapping[str, Tensor],
    buffers: Mapping[str, Tensor],
    batch: TensorDict,
    chunk: int | None = None,
) -> Tensor:
    """The norm of each example's gradient by the parameters of the head, ``[B]``.

    The head is every use of parameters after which none comes on the way to the loss. Nothing
    before it is differentiated: the price is that of a forward.
    """
    coverage = coverage_of(task, params, buffers, batch)
    if not coverage.heads:
        raise GhostError("the model has no head that is covered; use grad_norm")
    return _norms(task, params, buffers, batch, coverage, coverage.heads)


def _norms(
    task: Task,
    params: Mapping[str, Tensor],
    buffers: Mapping[str, Tensor],
    batch: TensorDict,
    coverage: Coverage,
    only: frozenset[int] | None,
) -> Tensor:
    mapped = coverage.mapped if only is None else {}
    tape = Tape(params, len(batch), known=coverage.uses, only=only, mapped=coverage.mapped_names)
    with torch.enable_grad(), mapping(task.model, tape, mapped) as calls, tape:
        losses = _losses(task, buffers)(params, batch)
    torch.autograd.grad(losses.sum(), [tape.anchor], allow_unused=True)
    account(calls, tape, coverage.batched)
    tape.finish()
    return tape.norms().float()


def coverage_of(
    task: Task,
    params: Mapping[str, Tensor],
    buffers: Mapping[str, Tensor],
    batch: TensorDict,
) -> Coverage:
    """How the norms of a task are computed, from a survey of its first batch; kept.

    Raises:
        GhostError: they cannot be.
    """
    key = (task.model.training, tuple(params))
    known = _surveyed.setdefault(task, {})
    if key not in known:
        leaves = {name: p.detach().clone().requires_grad_() for name, p in params.items()}
        held = {name: b.clone() for name, b in buffers.items()}
        device = next(iter(params.values())).device
        with torch.enable_grad(), global_generators(device):
            known[key] = survey(task.model, _losses(task, held), leaves, batch)
    return known[key]


def _losses(task: Task, buffers: Mapping[str, Tensor]) -> Losses:
    def losses(params: Mapping[str, Tensor], batch: TensorDict) -> Tensor:
        model = functional_model(task.model, params, buffers)
        return task.losses(task.forward(model, batch), batch)

    return losses
