"""Scores that training steps show by themselves, recorded as they are seen.

Shapes: N examples in the data set, n of them seen.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from tensordict import TensorDict
from torch import Tensor

from attent.pipeline.keys import tensor

ObservedSignal = Literal["loss", "relative_loss", "loss_drop", "grad_norm"]
Observe = bool | ObservedSignal | Sequence[ObservedSignal]

NEEDS: dict[str, tuple[str, ...]] = {
    "loss": ("loss",),
    "relative_loss": ("relative_loss",),
    "loss_drop": ("loss", "loss_drop"),
    "grad_norm": ("loss", "grad_norm"),
}
"""A signal that training can show -> what is recorded for it."""

SMALLEST = 1e-12
"""Below it, the running loss counts as this."""

AVERAGE = 0.98
"""Decay of the running training loss, per optimiser step."""


def running_loss(average: float, loss: float) -> float:
    """The running training loss after a step: that of the first one, then a moving average.

    Args:
        average: before it; NaN where there was no step yet.
        loss: mean of the step's batch.
    """
    return loss if math.isnan(average) else average + (1 - AVERAGE) * (loss - average)


def observed_signals(observe: Observe) -> tuple[str, ...]:
    """What is recorded where this is asked for.

    Raises:
        ValueError: names of signals that training does not show.
    """
    if isinstance(observe, bool):
        observe = ("loss",) if observe else ()
    asked = (observe,) if isinstance(observe, str) else tuple(observe)
    unknown = [name for name in asked if name not in NEEDS]
    if unknown:
        raise ValueError(
            f"observe is True, False, or of {', '.join(NEEDS)}; not {', '.join(map(repr, unknown))}"
        )
    found = dict.fromkeys(entry for name in asked for entry in NEEDS[name])
    return tuple(name for name in NEEDS if name in found)


class Observed:
    """The scores of a state, written where examples are seen.

    - ``loss``: the loss.
    - ``relative_loss``: the loss as a multiple of the running training loss at that step
      (``metrics/train_loss``): losses seen early, when all were high, do not lead those seen late.
    - ``loss_drop``: the loss at the look before less this one; 0 at the first look.
    - ``grad_norm``: the norm of the gradient.

    Args:
        state: its scores are written.
        signals: from `observed_signals`; none of them for nothing.
    """

    def __init__(self, state: TensorDict, signals: tuple[str, ...]) -> None:
        self._scores = {signal: tensor(state, "scores", signal) for signal in signals}
        self._stamps = tensor(state, "scores", "step") if signals else None

    def __bool__(self) -> bool:
        return self._stamps is not None

    @property
    def norms(self) -> bool:
        """Whether norms are recorded."""
        return "grad_norm" in self._scores

    def record(
        self,
        index: Tensor,
        step: int | Tensor,
        losses: Tensor,
        norms: Tensor | None,
        level: float | Tensor,
    ) -> None:
        """Write what was seen of some examples.

        Args:
            index: ``[n]``, the examples.
            step: after which; one, or one each.
            losses: ``[n]``.
            norms: ``[n]``; NaN for an example of weight 0, which shows no gradient: its score stays
                what it was.
            level: the running training loss at that step; one, or one each.
        """
        if self._stamps is None:
            return
        if "loss_drop" in self._scores:  # before the loss, which it is held against
            self._write("loss_drop", index, self._drop(index, losses))
        self._write("loss", index, losses)
        if "relative_loss" in self._scores:
            self._write("relative_loss", index, _relative(losses, level))
        if norms is not None:
            self._write("grad_norm", index, norms)
        self._stamps[index] = step if isinstance(step, int) else step.to(self._stamps.dtype)

    def _write(self, signal: str, index: Tensor, measured: Tensor) -> None:
        scores = self._scores.get(signal)
        if scores is not None:
            measured = measured.to(scores.device, scores.dtype)
            scores[index] = torch.where(measured.isnan(), scores[index], measured)

    def _drop(self, index: Tensor, losses: Tensor) -> Tensor:
        assert self._stamps is not None
        last = self._scores["loss"][index]
        drop = last - losses.to(last.device, last.dtype)
        return torch.where(self._stamps[index] < 0, torch.zeros_like(drop), drop)


def _relative(losses: Tensor, level: float | Tensor) -> Tensor:
    if isinstance(level, Tensor):
        return losses / level.to(losses.device, losses.dtype).clamp_min(SMALLEST)
    return losses / max(level, SMALLEST)
