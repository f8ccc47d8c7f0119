"""What a `Teacher` is told: examples' numbers and their losses, as they are checked and noted.

Shapes: b examples in a call.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

INTEGERS = frozenset([torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8])
HUGE = torch.finfo(torch.float32).max


def refuse(index: Tensor, bad: Tensor, why: str) -> None:
    """Raise a ValueError that names the first of some examples, if there are any."""
    if bool(bad.any()):
        raise ValueError(f"example {int(index[bad][0])} {why}")


def check_range(index: Tensor, num_examples: int) -> None:
    """Refuse numbers that are no example's.

    Raises:
        ValueError: names the first.
    """
    refuse(index, (index < 0) | (index >= num_examples), f"is none of the {num_examples:,}")


def numbers_of(index: Tensor | Sequence[int]) -> Tensor:
    """Examples' numbers, ``[b]`` int64 on the CPU.

    Raises:
        ValueError: something else, or none.
    """
    # Not as_tensor alone: torch may be set to make tensors elsewhere.
    given = index if isinstance(index, Tensor) else torch.as_tensor(index, device="cpu")
    if given.ndim != 1 or given.dtype not in INTEGERS or not len(given):
        raise ValueError(
            f"index is a vector of examples' numbers, got {given.dtype} of {list(given.shape)}"
        )
    if given.is_cpu and given.dtype == torch.int64:
        return given
    return given.detach().cpu().long()


def losses_of(index: Tensor, losses: Tensor) -> tuple[Tensor, float]:
    """Losses as they are noted, ``[b]``, on the CPU; and their sum.

    Args:
        index: ``[b]``, the examples.
        losses: ``[b]``.

    Raises:
        ValueError: something else, or a loss that is not finite; the first such example is named.
    """
    known = isinstance(losses, Tensor)
    if not known or losses.shape != index.shape or not losses.is_floating_point():
        found = f"{losses.dtype} of {list(losses.shape)}" if known else type(losses).__name__
        raise ValueError(
            f"losses are one number for each of {len(index)} examples (reduction='none'), got "
            f"{found}"
        )
    measured = losses.detach()
    if not measured.is_cpu:
        measured = measured.cpu()
    total = total_of(measured)
    # Only where they are huge or not finite is there anything to look for.
    if not abs(total) <= HUGE:
        bad = ~torch.isfinite(measured.float())  # as scores are kept
        if bool(bad.any()):
            value, example = float(measured[bad][0]), int(index[bad][0])
            why = "not finite" if not math.isfinite(value) else "more than float32 holds"
            raise ValueError(f"the loss of example {example} is {why} ({value})")
    return measured, total


def total_of(losses: Tensor) -> float:
    """The sum of losses, as the pipeline sums those of a step; of huge ones, in 64 bits."""
    total = losses.sum(dtype=torch.float32).item()
    return total if math.isfinite(total) else losses.double().sum().item()
