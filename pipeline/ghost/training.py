"""Gradient norms observed in the training step, beside the ordinary gradient.

Where an example's gradient is formed on the way to its norm, the batch's gradient is the sum of
what is there: autograd is not asked for it as well ("fused").
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from tensordict import TensorDict
from torch import Tensor, nn

from attent.pipeline.ghost.coverage import Coverage
from attent.pipeline.ghost.mapped import Call, account, mapping
from attent.pipeline.ghost.norms import coverage_of
from attent.pipeline.ghost.tape import GhostError, Tape
from attent.pipeline.ghost.uses import DERIVED
from attent.pipeline.task import Task
from attent.pipeline.vmapping import not_checkpointing


@dataclass
class Watch:
    """One forward that is listened to, and its backward."""

    tape: Tape
    calls: list[Call]
    coverage: Coverage
    params: Mapping[str, nn.Parameter]

    def norms(self, coefficients: Tensor) -> Tensor:
        """The norm of each example's own gradient, ``[B]``, after the backward.

        Completes the parameters' gradients; call it whether or not the norms are wanted.

        Args:
            coefficients: ``[B]``, what each example's loss was multiplied by; where it is 0 there
                is no gradient to be seen, and the norm is NaN.
        """
        account(self.calls, self.tape, self.coverage.batched)
        self.tape.finish()
        for name, total in self.tape.sums.items():
            p = self.params[name]
            total = total.to(p.dtype)
            p.grad = total if p.grad is None else p.grad.add_(total)
        scale = coefficients.abs().float()
        return torch.where(scale > 0, self.tape.norms().float() / scale, torch.nan)


class ObservedNorms:
    """Watches the training forwards of a task.

    Args:
        task: its model is run in training mode, dropout included: the norm is of the gradient that
            is trained on.
    """

    def __init__(self, task: Task) -> None:
        self.task = task

    @contextmanager
    def watch(
        self,
        params: Mapping[str, nn.Parameter],
        batch: TensorDict,
    ) -> Iterator[Watch]:
        """Listen to the forward in this block.

        Args:
            params: the trainable parameters of the task's model, the module's own.
            batch: ``[B]``, in its view.

        Raises:
            GhostError: the norms cannot be had for this model in training.
        """
        coverage = self._coverage(params, batch)
        derived = {name for use in coverage.uses if use.kind == DERIVED for name in use.names}
        summed = (coverage.formed - coverage.mapped_names) | derived
        tape = Tape(
            params,
            len(batch),
            known=coverage.uses,
            trained=frozenset(params) - summed,
            summed=summed,
            either=coverage.products - coverage.mapped_names - derived,
            mapped=coverage.mapped_names,
        )
        listening = mapping(self.task.model, tape, coverage.mapped)
        with not_checkpointing(self.task.model), listening as calls, tape:
            yield Watch(tape, calls, coverage, params)

    def _coverage(self, params: Mapping[str, nn.Parameter], batch: TensorDict) -> Coverage:
        model = self.task.model
        buffers = dict(model.named_buffers())
        coverage = coverage_of(self.task, dict(params), buffers, batch)
        for path in coverage.mapped:
            for module in model.get_submodule(path).modules():
                if isinstance(module, nn.Dropout) and module.p > 0:
                    raise GhostError(
                        f"module {path!r} is mapped by vmap and has dropout, which would draw "
                        "another mask: set it to 0, or score in a pass of its own"
                    )
        return coverage
