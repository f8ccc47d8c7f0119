"""Numbers that processes add up on the way, as their gradients are averaged.

A message of its own is a wait for the slowest at every step, and on the CPU threads that compute
must make room for it. The gradient of a parameter that is there for nothing else is part of the
message that is sent anyway.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from attent.pipeline.task import trainable


class Telling(nn.Module):
    """A model beside numbers whose gradients are what is told.

    What it returns is the model's output and the numbers, both of which the loss must depend on:
    `DistributedDataParallel` waits for all parameters, and finds those that are not used by what is
    returned.

    Args:
        model: has trainable parameters. The numbers are of their dtype, but at least float32: sums
            are as exact as that.
        count: of the numbers.
    """

    def __init__(self, model: nn.Module, count: int) -> None:
        super().__init__()
        self.model = model
        like = next(iter(trainable(model).values()))
        dtype = torch.promote_types(like.dtype, torch.float32)
        self.told = nn.Parameter(torch.zeros(count, dtype=dtype, device=like.device))
        self.absent = False

    def forward(self, *args: Any, **options: Any) -> tuple[Any, Tensor]:
        """The model's output, and the numbers; in place of it a zero where it is absent."""
        output = self._nothing() if self.absent else self.model(*args, **options)
        return output, self.told * 1

    def _nothing(self) -> Tensor:
        """A zero that depends on every parameter: gradients of zeros, for which others wait."""
        return torch.stack([p.sum() for p in trainable(self.model).values()]).sum() * 0


class Teller:
    """Calls a model over several processes, and tells the others numbers with its gradients.

    Args:
        telling: the model.
        wrapped: the same, in what averages its gradients over processes.
        called: the wrapped model, or what it was compiled to.
    """

    def __init__(self, telling: Telling, wrapped: nn.Module, called: nn.Module) -> None:
        self.telling, self.wrapped, self.called = telling, wrapped, called
        self._numbers: Tensor | None = None

    @property
    def rides(self) -> bool:
        """Whether what is told goes with the gradients: where it is known who averages them."""
        return any(isinstance(m, DistributedDataParallel) for m in self.wrapped.modules())

    def __call__(self, *args: Any, **options: Any) -> Any:
        """The model's output."""
        output, self._numbers = self.called(*args, **options)
        return output

    def absent(self) -> Tensor:
        """A zero to make a backward of in place of a loss, where this process has none.

        The others are about to wait for its gradients, in the wrapper, which must be entered by a
        forward to give any.
        """
        self.telling.absent = True
        try:
            nothing, self._numbers = self.wrapped()
        finally:
            self.telling.absent = False
        return nothing

    def tell(self, *values: float) -> Tensor:
        """A zero to be added to the loss, whose backward tells the others these numbers."""
        assert self._numbers is not None
        numbers, self._numbers = self._numbers, None
        return (numbers * numbers.new_tensor(values)).sum()

    def told(self, processes: int) -> list[float]:
        """What all have told together, after the backward; where that does not ride, one's own.

        Args:
            processes: how many there are; their gradients were averaged.
        """
        found = self.telling.told.grad
        assert found is not None
        self.telling.told.grad = None
        return (found.double() * processes).tolist()
