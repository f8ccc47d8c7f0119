"""The backward of a forward that was listened to, and the proof that its norms are right."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor, nn

from attent.pipeline.ghost.mapped import Call, account
from attent.pipeline.ghost.tape import GhostError, Tape
from attent.pipeline.task import in_eval_mode

Losses = Callable[[Mapping[str, Tensor], TensorDict], Tensor]
"""(parameters, batch) -> the loss of each example, ``[B]``."""

TOLERANCE = {False: 1e-3, True: 1e-2}
"""How far a squared norm may be from that of the plain gradient, as a share of the whole; wider in
half precision, whose own error is below it. TF32 is not half."""


def pull(
    losses: Tensor, tape: Tape, calls: list[Call], batched: Mapping[tuple[str, int], bool]
) -> None:
    """The backward of a forward that a tape has listened to.

    Raises:
        GhostError: what the forward has kept is gone.
    """
    # An input that is differentiated of itself begins a graph too; hooks are on ways to what is
    # asked for alone.
    try:
        torch.autograd.grad(losses.sum(), [tape.anchor, *_leaves(losses)], allow_unused=True)
    except (GhostError, torch.OutOfMemoryError):
        raise
    except RuntimeError as error:
        raise GhostError(
            "the backward of this forward fails: an activation is changed in place after its use, "
            "or a part is computed again for the backward (gradient checkpointing: switch it off "
            f"for scoring): {error}"
        ) from error
    account(calls, tape, batched)
    tape.finish()


def _leaves(losses: Tensor) -> list[Tensor]:
    found = [getattr(node, "variable", None) for node in graph_nodes(losses)]
    return [variable for variable in found if variable is not None]


def graph_nodes(losses: Tensor, through: Callable[[Any], bool] = lambda node: True) -> Iterator:
    """The nodes of a graph on the ways back from the losses, each once.

    Args:
        losses: where the ways begin.
        through: whether they go on behind a node.
    """
    seen, waiting = set(), [losses.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        yield node
        if through(node):
            waiting += [parent for parent, _ in node.next_functions]


def check_independent(
    model: nn.Module,
    losses: Losses,
    params: Mapping[str, Tensor],
    batch: TensorDict,
    tolerance: float,
) -> None:
    """Hold examples of a batch against the same alone; without dropout, which would differ."""
    with in_eval_mode(model):
        together = losses(params, batch)
        for i, loss in enumerate(together):
            alone = plain_squares(losses(params, batch[i : i + 1])[0], params)
            squares = {name: torch.tensor([s]) for name, s in plain_squares(loss, params).items()}
            check_squares(squares, [alone], tolerance)


def plain_squares(loss: Tensor, params: Mapping[str, Tensor]) -> dict[str, float]:
    """The squared norm of one loss's gradient by every parameter."""
    tensors = list(params.values())
    try:
        grads = torch.autograd.grad(loss, tensors, retain_graph=True, allow_unused=True)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise GhostError(
            f"plain gradients cannot be had either (an activation changed in place?): {error}"
        ) from error
    return {
        name: 0.0 if grad is None else float(grad.float().square().sum())
        for name, grad in zip(params, grads, strict=True)
    }


_DEPENDENT = (
    "{} are not those of plain gradients: the examples of a batch are not independent (a batch "
    "statistic, a loss over pairs), or an activation is changed in place; use vmap_grad_norm, or "
    "score with another signal"
)


def check_squares(
    squares: Mapping[str, Tensor], plain: list[dict[str, float]], tolerance: float
) -> None:
    """Hold squared norms by every parameter, ``[B]`` each, against those of each example.

    Raises:
        GhostError: some differ; it names the parameters.
    """
    for i, expected in enumerate(plain):
        whole = sum(expected.values())
        wrong = [
            name
            for name, square in expected.items()
            if abs(float(squares[name][i] if name in squares else 0.0) - square) > tolerance * whole
        ]
        if wrong:
            named = ", ".join(wrong[:4]) + (f" and {len(wrong) - 4} more" if wrong[4:] else "")
            raise GhostError(_DEPENDENT.format(f"the norms of the gradients by {named}"))
