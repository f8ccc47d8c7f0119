"""Gradient norms of a batch in scoring: exact, by ghost norms.

Shapes: B examples in a batch, T positions.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor

from attent.pipeline.ghost.coverage import Coverage, head_names, survey
from attent.pipeline.ghost.mapped import mapping
from attent.pipeline.ghost.proof import Losses, pull
from attent.pipeline.ghost.tape import Tape
from attent.pipeline.keyed import global_generators
from attent.pipeline.task import Task, functional_losses
from attent.pipeline.vmapping import not_checkpointing

_found: dict[int, dict[tuple, Any]] = {}
"""By the identity of a task, as long as it lives: a data class need not be hashable."""


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
    return _norms(task, params, params, buffers, batch, coverage, None)


def last_layer_norms(
    task: Task,
    params: Mapping[str, Tensor],
    buffers: Mapping[str, Tensor],
    batch: TensorDict,
    chunk: int | None = None,
) -> Tensor:
    """The norm of each example's gradient by the parameters of the head, ``[B]``.

    The head is the last matrix product on the way to the loss (or several, side by side), whether
    it is trained or not (with LoRA it is not); of a table that is also the head, its use as the
    head alone. Nothing before it is differentiated: the price is that of a forward.

    Raises:
        GhostError: the head cannot be told, or its gradient is not that of plain gradients.
    """
    names, coverage = _head_of(task, params, buffers, batch)
    everything = _with_frozen(task, params)
    head = {name: everything[name] for name in names}
    return _norms(task, params, head, buffers, batch, coverage, coverage.heads)


def head_of(
    task: Task, params: Mapping[str, Tensor], buffers: Mapping[str, Tensor], batch: TensorDict
) -> list[str]:
    """The names of the parameters that `last_layer_norms` takes for the head.

    Raises:
        GhostError: the head cannot be told.
    """
    return _head_of(task, params, buffers, batch)[0]


def _norms(
    task: Task,
    params: Mapping[str, Tensor],
    wanted: Mapping[str, Tensor],
    buffers: Mapping[str, Tensor],
    batch: TensorDict,
    coverage: Coverage,
    only: frozenset[int] | None,
) -> Tensor:
    tape = Tape(wanted, len(batch), known=coverage.uses, only=only, mapped=coverage.mapped_names)
    listening = mapping(task.model, tape, coverage.mapped, listen=only is None)
    with torch.enable_grad(), not_checkpointing(task.model), listening as calls, tape:
        losses = _losses(task, params, buffers)(wanted, batch)
    pull(losses, tape, calls, coverage.batched)
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
    known, key = _kept(task), ("all", *_circumstances(task, batch), *params)
    if key not in known:
        known[key] = _surveyed(task, params, params, buffers, batch)
    return known[key]


def _head_of(
    task: Task, params: Mapping[str, Tensor], buffers: Mapping[str, Tensor], batch: TensorDict
) -> tuple[list[str], Coverage]:
    """The names of the head's parameters, and how its norms are computed."""
    known, key = _kept(task), ("head", *_circumstances(task, batch), *params)
    if key not in known:
        everything = _with_frozen(task, params)
        with torch.enable_grad(), _undone(task, params):
            losses = _losses(task, params, _clones(buffers))
            names = head_names(losses, everything, batch)
        wanted = {name: everything[name] for name in names}
        known[key] = names, _surveyed(task, params, wanted, buffers, batch)
    return known[key]


def _surveyed(
    task: Task,
    params: Mapping[str, Tensor],
    wanted: Mapping[str, Tensor],
    buffers: Mapping[str, Tensor],
    batch: TensorDict,
) -> Coverage:
    leaves = {name: p.detach().clone().requires_grad_() for name, p in wanted.items()}
    with torch.enable_grad(), _undone(task, params):
        losses = _losses(task, params, _clones(buffers))
        return survey(task.model, losses, leaves, batch)


def _with_frozen(task: Task, params: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state's parameters, and the model's own that are not trained."""
    own = {name: p.detach() for name, p in task.model.named_parameters() if name not in params}
    return own | dict(params)


def _clones(buffers: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: buffer.clone() for name, buffer in buffers.items()}


@contextmanager
def _undone(task: Task, params: Mapping[str, Tensor]) -> Iterator[None]:
    """A survey may draw (dropout in training); nobody else's draws change for that."""
    with global_generators(next(iter(params.values())).device), not_checkpointing(task.model):
        yield


def _circumstances(task: Task, batch: TensorDict) -> tuple[Any, ...]:
    """What another survey is made for: whether examples are independent, one cannot tell."""
    return id(task.model), task.model.training, len(batch) > 1


def _kept(task: Task) -> dict[tuple, Any]:
    """What has been found out about a task."""
    if id(task) not in _found:
        try:
            weakref.finalize(task, _found.pop, id(task), None)
        except TypeError:  # it cannot be watched (slots), so nothing is kept
            return {}
        _found[id(task)] = {}
    return _found[id(task)]


def _losses(task: Task, params: Mapping[str, Tensor], buffers: Mapping[str, Tensor]) -> Losses:
    """The losses as a function of some of the parameters, the others being as they are."""

    def losses(given: Mapping[str, Tensor], batch: TensorDict) -> Tensor:
        return functional_losses(task, {**params, **given}, buffers, batch)

    return losses
