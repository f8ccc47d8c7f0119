"""One optimiser step's forward and backward: what fills the parameters' gradients."""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass

import torch
from tensordict import TensorDict
from torch import Tensor, nn

from attent.pipeline.ghost.training import ObservedNorms, Watch
from attent.pipeline.keyed import seed_global
from attent.pipeline.score import check_finite
from attent.pipeline.source import Source
from attent.pipeline.task import Task, trainable


@dataclass(frozen=True, kw_only=True)
class Step:
    """How one optimiser step is made.

    Attributes:
        batch_size: examples in a step; the last of a pass may have fewer.
        accumulate: parts the batch is cut into, one forward and backward each; the step is that of
            the whole batch, in the memory of a part.
        clip: largest Euclidean norm of the gradient; None for no clipping.
        bfloat16: forward under bfloat16 autocast; weights and losses stay float32.
        compile: run the model through ``torch.compile``.
    """

    batch_size: int = 32
    accumulate: int = 1
    clip: float | None = None
    bfloat16: bool = False
    compile: bool = False

    def __post_init__(self) -> None:
        if self.batch_size < 1 or self.accumulate < 1:
            raise ValueError(
                f"batch_size and accumulate are at least 1, got {self.batch_size} and "
                f"{self.accumulate}"
            )
        if self.accumulate > self.batch_size:
            raise ValueError(
                f"a batch of {self.batch_size} cannot be cut into {self.accumulate} parts"
            )
        if self.clip is not None and not self.clip > 0:
            raise ValueError(f"clip must be above 0, got {self.clip}")


@dataclass(frozen=True)
class Seen:
    """Of the examples of a step: losses and gradient norms, ``[B]``, and the mean loss."""

    losses: Tensor
    norms: Tensor | None
    mean: float


def _joined(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)


class Compute:
    """Forward and backward of one batch: fills the parameters' gradients."""

    def __init__(self, task: Task, source: Source, step: Step, *, norms: bool) -> None:
        self.task = task
        self.norms = ObservedNorms(task) if norms else None
        self.source = source
        self.step = step
        self.device = next(iter(trainable(task.model).values())).device
        self.model = torch.compile(task.model) if step.compile else task.model

    def gradients(
        self,
        dropout: int,
        batch: TensorDict,
        keys: Tensor,
        weight: Tensor,
        params: dict[str, nn.Parameter],
        buffers: list[Tensor],
    ) -> Seen:
        """Fills the gradients; what was seen of the examples on the way.

        Args:
            dropout: the key of whatever the model itself draws.
            batch: ``[B]``, as the source gave it.
            keys: ``[B]``, of its view.
            weight: ``[B]``.
            params: the trainable parameters, the module's own.
            buffers: of the module; put back where the step fails.

        A loss that is not finite raises before any update.
        """
        device = self.device
        seed_global(dropout, device)
        index = batch["index"]
        total = weight.sum()
        if device.type != "cpu":
            batch = batch.to(device, non_blocking=True)
            keys = keys.to(device)
        batch = self.task.view(batch, keys, training=True)
        if self.step.accumulate == 1:
            parts, weights = [batch], [weight]
        else:
            # Even parts, so that none is of one example while another has three.
            count = min(self.step.accumulate, len(index))
            sizes = [len(part) for part in torch.arange(len(index)).tensor_split(count)]
            parts, weights = batch.split(sizes), weight.split(sizes)
        losses, norms, summed = [], [], 0.0
        # A forward in training mode may move buffers (batch statistics); a failed step must not.
        kept = [(buffer, buffer.clone()) for buffer in buffers]
        try:
            for part, part_weight in zip(parts, weights, strict=True):
                with self._watch(params, part) as watch, self._precision():
                    output = self.task.forward(self.model, part)
                    loss = self.task.losses(output, part)
                # One wait for the device: the sum says whether there is anything to look for.
                part_sum = float(loss.detach().sum(dtype=torch.float32))
                if not math.isfinite(part_sum):
                    check_finite(loss.detach(), part["index"], self.source, "training loss")
                    part_sum = float(loss.detach().cpu().double().sum())  # finite ones, but huge
                summed += part_sum
                ((part_weight * loss).sum() / total).backward()
                losses.append(loss.detach())
                if watch is not None:
                    norms.append(watch.norms(part_weight / total))
        except Exception:
            self.task.model.zero_grad(set_to_none=True)
            for buffer, before in kept:
                buffer.copy_(before)
            raise
        return Seen(_joined(losses), _joined(norms) if norms else None, summed / len(index))

    def _watch(
        self, params: dict[str, nn.Parameter], part: TensorDict
    ) -> contextlib.AbstractContextManager[Watch | None]:
        if self.norms is None:
            return contextlib.nullcontext()
        return self.norms.watch(params, part)

    def _precision(self) -> contextlib.AbstractContextManager:
        if self.step.bfloat16:
            return torch.autocast(self.device.type, torch.bfloat16)
        return contextlib.nullcontext()
