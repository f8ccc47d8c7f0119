"""Several processes that train one model: what each of them does, and what they tell each other.

Every process holds the whole state. What is trained on and what is scored is shared out; what is
selected each works out for itself, from the same scores under the same key. So a run does not know
how many processes carry it: the same stages, alone or together, choose the same examples and train
on the same batches, and weights differ only by the order in which gradients are added up.

Whoever starts the processes (accelerate, torchrun) sets up `torch.distributed`; where it is not set
up, there is one process, and nothing here costs anything.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn, TypeVar

import torch
import torch.distributed as dist
from tensordict import TensorDict
from torch import Tensor, nn
from torchdata.nodes import BaseNode, Mapper

from attent.pipeline.keys import leaves
from attent.pipeline.source import ExampleError

T = TypeVar("T")


class AgreedError(ExampleError):
    """Bad input that one process has met and all have stopped for; raised in each of them."""


@dataclass(frozen=True)
class Processes:
    """The processes of a run, as one of them sees them.

    Attributes:
        rank: of this one, from 0.
        count: how many there are.
    """

    rank: int = 0
    count: int = 1

    @property
    def main(self) -> bool:
        """Whether this is the one that writes and shows progress."""
        return self.rank == 0

    @property
    def alone(self) -> bool:
        """Whether there is no other."""
        return self.count == 1

    def part(self, batch: Tensor) -> Tensor:
        """The part of this process of something of ``[B]``; sizes differ by one at most.

        Of fewer than ``count`` some have none: they are given the first, to take every step with
        the others; `takes_part` says whether it counts.
        """
        own = batch.tensor_split(self.count)[self.rank] if self.count > 1 else batch
        return own if len(own) else batch[:1]

    def takes_part(self, size: int) -> bool:
        """Whether there is a part of ``size`` for this process."""
        return self.rank < size

    def parts(self, batches: BaseNode[Tensor]) -> BaseNode[Tensor]:
        """The part of this process of every batch: what training shares out."""
        return batches if self.alone else Mapper(batches, self.part)

    def dealt(self, batches: BaseNode[Tensor]) -> BaseNode[Tensor]:
        """Every ``count``-th batch, whole: what scoring shares out.

        A score may differ in its last bits with the company of its batch; of whole batches it does
        not depend on how many processes there are.
        """
        return batches if self.alone else Dealt(batches, self.rank, self.count)

    def agree(self, error: Exception | None, *values: float) -> list[float]:
        """Add up values of all processes; where one of them has met an error, raise it in all.

        Called by all of them at the same place.

        Args:
            error: what this one has met; None for nothing.
            values: to be added up.

        Raises:
            AgreedError: one of several processes has met an error; says which. A single process
                raises its own.
        """
        return self.agreeing(error, *values)()

    def agreeing(self, error: Exception | None, *values: float) -> Callable[[], list[float]]:
        """Begin to `agree`; what is returned waits for the others, and gives or raises the same.

        Between the two there may be anything that all processes do alike. A single one raises here.
        """
        if self.alone:
            if error is not None:
                raise error
            return lambda: list(values)
        sums = torch.tensor([float(error is not None), *values], dtype=torch.float64)
        sums = sums.to(sending_device())
        sent: Any = dist.all_reduce(sums, async_op=True)

        def agreed() -> list[float]:
            sent.wait()
            failed, *added = sums.tolist()
            if failed:
                self.stop(error)
            return added

        return agreed

    def stop(self, error: Exception | None) -> NoReturn:
        """Raise in all processes the error that some of them have met; called by all of them.

        Args:
            error: what this one has met; None for nothing.

        Raises:
            AgreedError: says which process it was.
        """
        told = self.gather_objects(None if error is None else str(error))
        first = next(i for i, text in enumerate(told) if text is not None)
        raise AgreedError(f"process {first} of {self.count}: {told[first]}") from error

    def gather(self, *columns: Tensor) -> list[Tensor]:
        """What all processes hold, in the order of their ranks; none need hold as much as another.

        Args:
            columns: ``[n]`` each, of the same length n in one process. Every one keeps its dtype:
                indices travel as int64.

        Returns:
            ``[sum of n]`` each.
        """
        if self.alone:
            return list(columns)
        device = sending_device()
        size = torch.tensor([len(columns[0])], device=device)
        sizes = [torch.zeros_like(size) for _ in range(self.count)]
        dist.all_gather(sizes, size)
        lengths = [int(n) for n in sizes]
        gathered = []
        for column in columns:
            padded = torch.zeros(max(lengths), dtype=column.dtype, device=device)
            padded[: len(column)] = column
            parts = [torch.empty_like(padded) for _ in range(self.count)]
            dist.all_gather(parts, padded)
            found = torch.cat([part[:n] for part, n in zip(parts, lengths, strict=True)])
            gathered.append(found.to(column.device))
        return gathered

    def gather_objects(self, value: T) -> list[T]:
        """What each process holds, in the order of their ranks; picklable."""
        if self.alone:
            return [value]
        found: list[Any] = [None] * self.count
        dist.all_gather_object(found, value)
        return found

    def on_main(self, make: Callable[[], T]) -> T:
        """What the main process makes, in all of them.

        Args:
            make: called in the main process alone; what it returns must be picklable.

        Raises:
            AgreedError: it raised a ValueError or an OSError; in one process alone, that error
                itself.
        """
        if self.alone:
            return make()
        made: Any = None
        error: ValueError | OSError | None = None
        if self.main:
            try:
                made = make()
            except (ValueError, OSError) as found:
                error = found
        told: list[Any] = [(made, None if error is None else str(error))]
        dist.broadcast_object_list(told, src=0, device=sending_device())
        made, text = told[0]
        if text is not None:
            raise AgreedError(text) from error
        return made

    def main_first(self, make: Callable[[], T]) -> T:
        """What every process makes for itself, the others when the main one is done.

        For what leaves something behind that others find, such as a cache of data.

        Raises:
            AgreedError: the main one's ValueError.
        """
        made: list[T] = []
        self.on_main(lambda: made.append(make()))
        return made[0] if made else make()

    def broadcast(self, tensors: Sequence[Tensor]) -> None:
        """Make tensors what they are in the main process, in place."""
        if self.alone:
            return
        device = sending_device()
        for value in tensors:
            there = value.detach().to(device).contiguous()
            dist.broadcast(there, src=0)
            if there.data_ptr() != value.data_ptr():
                value.detach().copy_(there)

    def broadcast_state(self, state: TensorDict) -> None:
        """Make a state what it is in the main process, in place."""
        # By name: entries made in the order of a set come in another order in each process.
        self.broadcast([value for _, value in sorted(leaves(state), key=lambda leaf: leaf[0])])

    def average_gradients(self, params: Sequence[nn.Parameter]) -> None:
        """Make the gradients of parameters their mean over all processes.

        Where a process has none it counts as zero; where nobody has one there is none afterwards.
        """
        if self.alone:
            return
        for dtype in dict.fromkeys(p.dtype for p in params):
            alike = [p for p in params if p.dtype == dtype]
            device = alike[0].device
            there = torch.tensor([p.grad is not None for p in alike], device=device).to(dtype)
            grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in alike]
            flat = torch.cat([there, *(g.reshape(-1) for g in grads)])
            dist.all_reduce(flat)
            there, *found = flat.split([len(alike), *(g.numel() for g in grads)])
            for p, total, count in zip(alike, found, there.tolist(), strict=True):
                p.grad = total.view_as(p).div(self.count) if count else None


class Dealt(BaseNode[Tensor]):
    """Every n-th batch, dealt out as cards are.

    Args:
        batches: all of them.
        rank: the first that is taken.
        count: n.
    """

    def __init__(self, batches: BaseNode[Tensor], rank: int, count: int) -> None:
        super().__init__()
        self.batches, self.rank, self.count = batches, rank, count
        self._at = 0

    def reset(self, initial_state: dict[str, Any] | None = None) -> None:
        """Go to the beginning, or to a state from `get_state`."""
        super().reset(initial_state)
        self.batches.reset(None if initial_state is None else initial_state["batches"])
        self._at = 0 if initial_state is None else initial_state["at"]

    def next(self) -> Tensor:
        """The next batch of this process."""
        while True:
            batch = next(self.batches)
            self._at += 1
            if (self._at - 1) % self.count == self.rank:
                return batch

    def get_state(self) -> dict[str, Any]:
        """Where it is."""
        return {"at": self._at, "batches": self.batches.state_dict()}


def processes() -> Processes:
    """The processes of this run; one, where `torch.distributed` is not set up."""
    if dist.is_available() and dist.is_initialized():
        return Processes(dist.get_rank(), dist.get_world_size())
    return Processes()


def is_sharded(model: nn.Module) -> bool:
    """Whether processes hold parts of a model's parameters (FSDP).

    All of them must then call the model as often as each other.
    """
    from torch.distributed.tensor import DTensor

    return any(isinstance(p, DTensor) for p in model.parameters())


def sending_device() -> torch.device:
    """Where tensors must be to be sent."""
    if dist.get_backend() == "nccl":
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")
