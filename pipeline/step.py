"""One optimiser step's forward and backward: what fills the parameters' gradients."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from attent.pipeline.ghost.training import ObservedNorms, Watch
from attent.pipeline.keyed import seed_global
from attent.pipeline.processes import Processes, is_sharded, processes
from attent.pipeline.score import check_finite
from attent.pipeline.source import Source
from attent.pipeline.task import Task, trainable
from attent.pipeline.telling import Teller, Telling

_TOLD = ("failed", "loss", "moved")
"""What processes tell each other of a step."""


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
    """What a step has shown of its examples.

    Attributes:
        index: ``[b]``, the examples of this process.
        losses: ``[b]``.
        norms: of their gradients, ``[b]``; None where they are not asked for.
        mean: loss of the whole batch, of all processes.
    """

    index: Tensor
    losses: Tensor
    norms: Tensor | None
    mean: float


def _joined(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)


@dataclass(frozen=True)
class Draw:
    """A batch to be trained on, before it is read.

    Attributes:
        read: reads this process's examples of it, ``[b]``.
        weight: ``[B]``, of all of its examples, on the model's device.
        keys: ``[B]``, of their views.
        dropout: the key of whatever the model itself draws.
    """

    read: Callable[[], TensorDict]
    weight: Tensor
    keys: Tensor
    dropout: int


class Compute:
    """Forward and backward of one batch: fills the parameters' gradients.

    Args:
        task: what is learned.
        source: the training examples, asked where a bad one is kept.
        step: how.
        norms: whether the norms of the examples' gradients are asked for.
        wrap: a `Telling` of the model -> the same, averaging its gradients over several processes;
            None for torch's DistributedDataParallel.
    """

    def __init__(
        self,
        task: Task,
        source: Source,
        step: Step,
        *,
        norms: bool,
        wrap: Callable[[nn.Module], nn.Module] | None = None,
    ) -> None:
        self.task = task
        self.norms = ObservedNorms(task) if norms else None
        self.source = source
        self.step = step
        self.wrap = wrap or DistributedDataParallel
        self.device = next(iter(trainable(task.model).values())).device

    @functools.cached_property
    def model(self) -> Callable[..., Any]:
        """What is called: the task's model, compiled and over several processes if need be."""
        return self.teller or self._compiled(self.task.model)

    @functools.cached_property
    def teller(self) -> Teller | None:
        """The model over several processes; None where it is not wrapped for them."""
        if processes().alone or self.averages:
            return None
        telling = Telling(self.task.model, len(_TOLD))
        wrapped = self.wrap(telling)
        if isinstance(wrapped, DistributedDataParallel):
            wrapped.broadcast_buffers = False  # in every forward, and it would not wait for others
        return Teller(telling, wrapped, self._compiled(wrapped))

    def _compiled(self, model: nn.Module) -> nn.Module:
        return torch.compile(model) if self.step.compile else model  # type: ignore[return-value]

    def prepare(self) -> None:
        """Wrap and compile the model, once."""
        self.model  # noqa: B018 - made when it is first asked for

    @functools.cached_property
    def together(self) -> bool:
        """Whether no process can call the model unless all do."""
        return not processes().alone and is_sharded(self.task.model)

    @functools.cached_property
    def averages(self) -> bool:
        """Whether gradients are averaged over processes here, and not on their way by a wrapper.

        A wrapper waits for autograd to reach every parameter. Where norms are observed it does not
        (`attent.pipeline.ghost.training` fuses); and models in parts are no longer to be wrapped.
        """
        return self.norms is not None or is_sharded(self.task.model)

    def gradients(self, draw: Draw, params: dict[str, nn.Parameter], buffers: list[Tensor]) -> Seen:
        """Fills the gradients; what was seen of the examples on the way.

        Args:
            draw: the batch.
            params: the trainable parameters, the module's own.
            buffers: of the module; put back where the step fails.

        An example that cannot be read and a loss that is not finite raise before any update, in
        every process.
        """
        world, size = processes(), len(draw.weight)
        kept = _Buffers(buffers)
        try:
            seen = self._gradients(draw, params, world, kept)
        except Exception:
            self.task.model.zero_grad(set_to_none=True)
            kept.restore()
            raise
        if not world.takes_part(size):
            nothing = slice(0, 0)
            norms = None if seen.norms is None else seen.norms[nothing]
            seen = replace(
                seen, index=seen.index[nothing], losses=seen.losses[nothing], norms=norms
            )
        return seen

    def _gradients(
        self, draw: Draw, params: dict[str, nn.Parameter], world: Processes, kept: _Buffers
    ) -> Seen:
        size, counts = len(draw.weight), world.takes_part(len(draw.weight))
        # Wrapped models average over processes what is to be added up.
        done = _Forwarded(draw.weight.sum() / world.count)
        weight = world.part(draw.weight) * counts
        bad = _error_of(lambda: done.read(self._ready(draw, world)))
        if self.together:  # none may wait in a forward for one that has nothing to forward
            world.agree(bad)
        if bad is None:
            bad = _error_of(
                lambda: self._forward(done, weight, params, max(1, size // world.count))
            )
        if bad is not None and not world.alone:
            done.failed(None if self.teller is None else self.teller.absent())
        moved = not world.alone and kept.moved()
        # A part of the mean, since a sum may be more than float32 holds.
        mean, moved = self._backward(done, world, bad, done.summed * counts / size, moved)
        if moved:
            # Statistics of a batch are of each process's part of it: those of the main one hold.
            world.broadcast(kept.buffers)
        if self.averages:
            world.average_gradients(list(params.values()))
        return done.seen(mean)

    def _backward(
        self,
        done: _Forwarded,
        world: Processes,
        bad: ValueError | None,
        mean: float,
        moved: bool,
    ) -> list[float]:
        """Make the backward that is left, and agree on how it went: loss, whether buffers moved.

        Args:
            done: of this process.
            world: all of them.
            bad: what this one has met.
            mean: its part of the mean loss.
            moved: whether its buffers did.

        Raises:
            AgreedError: some process has met a bad example.
        """
        teller = self.teller
        if teller is not None:  # also where nobody hears it, since a wrapper may wait for it
            done.tell(teller.tell(float(bad is not None), mean, moved))
        if teller is not None and teller.rides:
            done.backward()
            failed, *agreed = teller.told(world.count)
            if failed:
                world.stop(bad)
            return agreed
        # What they tell each other is on its way while each makes its backward.
        awaited = world.agreeing(bad, mean, moved)
        told = awaited() if self.together else None
        done.backward()
        if teller is not None:
            teller.told(world.count)
        return told or awaited()

    def _forward(
        self,
        done: _Forwarded,
        weight: Tensor,
        params: dict[str, nn.Parameter],
        at_most: int,
    ) -> None:
        """Forward the batch in parts; the backward of the last of them is left to be made.

        It is the last part alone whose gradients are averaged: a wrapper knows by its forward.
        """
        left = len(done.batch)
        for part, part_weight in self._parts(done.batch, weight, at_most):
            left -= len(part)
            done.backward()
            sharing = _unshared(self.teller) if left else contextlib.nullcontext()
            with sharing, self._watch(params, part) as watch, self._precision():
                output = self.task.forward(self.model, part)
                loss = self.task.losses(output, part)
            done.forwarded(loss, part_weight, watch)
            # One wait for the device: the sum says whether there is anything to look for.
            part_sum = float(loss.detach().sum(dtype=torch.float32))
            if not math.isfinite(part_sum):
                check_finite(loss.detach(), part["index"], self.source, "training loss")
                part_sum = float(loss.detach().cpu().double().sum())  # finite ones, but huge
            done.summed += part_sum

    def _ready(self, draw: Draw, world: Processes) -> TensorDict:
        """The examples of this process as the model is to see them."""
        batch, keys = draw.read(), world.part(draw.keys)
        if self.device.type != "cpu":
            batch = batch.to(self.device, non_blocking=True)
            keys = keys.to(self.device)
        seed_global(draw.dropout, self.device)
        return self.task.view(batch, keys, training=True)

    def _parts(
        self, batch: TensorDict, weight: Tensor, at_most: int
    ) -> Iterator[tuple[TensorDict, Tensor]]:
        """What is forwarded at once: even parts, so that none is of one example beside three."""
        count = min(self.step.accumulate, at_most)
        if count == 1:
            yield batch, weight
            return
        sizes = [len(part) for part in torch.arange(len(weight)).tensor_split(count)]
        yield from zip(batch.split(sizes), weight.split(sizes), strict=True)

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


class _Buffers:
    """A model's buffers, which a forward in training may move (batch statistics), as they were."""

    def __init__(self, buffers: list[Tensor]) -> None:
        self.buffers = buffers
        self._before = [buffer.clone() for buffer in buffers]

    def moved(self) -> bool:
        """Whether any is no longer what it was."""
        pairs = zip(self.buffers, self._before, strict=True)
        return any(not torch.equal(buffer, before) for buffer, before in pairs)

    def restore(self) -> None:
        """A step that failed has moved nothing."""
        for buffer, before in zip(self.buffers, self._before, strict=True):
            buffer.copy_(before)


class _Forwarded:
    """What a step has forwarded so far, and the backward that is still to be made of it.

    Args:
        total: what the sum of weighted losses is divided by.
    """

    def __init__(self, total: Tensor) -> None:
        self.total = total
        self.batch: TensorDict = TensorDict({})
        self.summed = 0.0
        self._losses: list[Tensor] = []
        self._norms: list[Tensor] = []
        self._left: tuple[Tensor, Watch | None, Tensor] | None = None

    def read(self, batch: TensorDict) -> None:
        self.batch = batch

    def forwarded(self, loss: Tensor, weight: Tensor, watch: Watch | None) -> None:
        """Take in the losses and the weights of some examples, ``[b]``."""
        self._losses.append(loss.detach())
        self._left = (weight * loss).sum() / self.total, watch, weight

    def failed(self, nothing: Tensor | None) -> None:
        """Make another backward than that of the examples, or none."""
        self._left = None if nothing is None else (nothing, None, nothing)

    def tell(self, nothing: Tensor) -> None:
        """Tell the others something with the backward that is left."""
        assert self._left is not None
        loss, watch, weight = self._left
        self._left = loss + nothing, watch, weight

    def backward(self) -> None:
        """Make the backward that is left."""
        if self._left is not None:
            (loss, watch, weight), self._left = self._left, None
            loss.backward()
            if watch is not None:
                self._norms.append(watch.norms(weight / self.total))

    def seen(self, mean: float) -> Seen:
        norms = _joined(self._norms) if self._norms else None
        return Seen(self.batch["index"], _joined(self._losses), norms, mean)


def _error_of(act: Callable[[], None]) -> ValueError | None:
    """The bad input that something meets."""
    try:
        act()
    except ValueError as error:
        return error
    return None


def _unshared(teller: Teller | None) -> contextlib.AbstractContextManager:
    """The gradients of what is done here are added up in this process alone, for the time being."""
    model = None if teller is None else teller.wrapped
    return getattr(model, "no_sync", contextlib.nullcontext)()
