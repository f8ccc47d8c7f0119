"""Optimisers: torch.optim, bound to the state's storage.

The state holds the moments; a torch optimiser is made around them for each tick (under a
millisecond) and updates them in place.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from tensordict import TensorDict
from torch import Tensor, nn

from attent.pipeline.keys import find, leaves, place
from attent.pipeline.schedules import Schedule

Groups = list[dict[str, Any]]

Scales = Callable[[nn.Module], Mapping[str, float]]
"""A model -> multipliers of the learning rate by parameter name; 1 for those it leaves out."""


@dataclass(frozen=True, kw_only=True)
class Optimizer:
    """How parameters are updated.

    Attributes:
        name: shown to people.
        make: parameter groups -> a torch optimiser. At each step the groups' entry ``progress`` is
            the share of the budget that is spent.
        lr: learning rate over the budget spent.
        weight_decay: over the budget spent; see `decays`.
        scales: multipliers of the learning rate for some parameters (layer-wise decay).
    """

    name: str
    make: Callable[[Groups], torch.optim.Optimizer]
    lr: Schedule
    weight_decay: Schedule
    scales: Scales | None = None

    def scales_of(self, model: nn.Module) -> dict[str, float]:
        """The multipliers for a model.

        Raises:
            ValueError: one below 0, or of a parameter that the model has not.
        """
        if self.scales is None:
            return {}
        found = dict(self.scales(model))
        unknown = found.keys() - dict(model.named_parameters()).keys()
        if unknown:
            raise ValueError(f"scales name {min(unknown)!r}, which is no parameter of the model")
        for name, scale in found.items():
            if not 0 <= scale < math.inf:
                raise ValueError(f"the scale of {name} must be at least 0, got {scale}")
        return found


def adamw(
    lr: float | Schedule,
    *,
    weight_decay: float | Schedule = 0.05,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    fused: bool | None = None,
    scales: Scales | None = None,
) -> Optimizer:
    """AdamW (Loshchilov and Hutter, ICLR 2019), by torch.

    Args:
        lr: a rate above 0, or a function of the budget spent.
        weight_decay: at least 0, or a function of the budget spent.
        betas: decay of the first and second moment, in [0, 1).
        eps: added to the root of the second moment.
        fused: torch's one-kernel update; None lets torch choose.
        scales: multipliers of the learning rate by parameter; decay is scaled with it.
    """
    return Optimizer(
        name="adamw",
        make=lambda groups: torch.optim.AdamW(groups, lr=0.0, betas=betas, eps=eps, fused=fused),
        lr=_schedule("lr", lr),
        weight_decay=_schedule("weight_decay", weight_decay),
        scales=scales,
    )


def sgd(
    lr: float | Schedule,
    *,
    momentum: float = 0.9,
    weight_decay: float | Schedule = 0.0,
    nesterov: bool = False,
    dampening: float = 0.0,
    scales: Scales | None = None,
) -> Optimizer:
    """Stochastic gradient descent with momentum, by torch; arguments as of `adamw`.

    Raises:
        ValueError: dampening other than 0: torch starts the momentum at the undampened first
            gradient, which moments allocated beforehand as zeros would not.
    """
    if dampening:
        raise ValueError(
            f"dampening must be 0, got {dampening}: zero-started momentum would differ"
        )
    return Optimizer(
        name="sgd",
        make=lambda groups: torch.optim.SGD(groups, lr=0.0, momentum=momentum, nesterov=nesterov),
        lr=_schedule("lr", lr),
        weight_decay=_schedule("weight_decay", weight_decay),
        scales=scales,
    )


def _schedule(name: str, value: float | Schedule) -> Schedule:
    if callable(value):
        return value
    if value < 0:
        raise ValueError(f"{name} must be at least 0, got {value}")
    return lambda progress: value


def decays(model: nn.Module) -> Callable[[str, Tensor], bool]:
    """(name, parameter) -> whether weight decay applies to that parameter of a model.

    To matrices and filters, not to norms, biases and scales, nor to what the model names itself:
    ``model.no_weight_decay()`` is a set of names (timm's convention; tokens, position embeddings).
    """
    excepted: Any = getattr(model, "no_weight_decay", None)
    names = frozenset() if excepted is None else frozenset(excepted())

    def applies(name: str, parameter: Tensor) -> bool:
        return parameter.ndim > 1 and not name.endswith("bias") and name not in names

    return applies


def moments(optimizer: Optimizer, params: Mapping[str, Tensor]) -> TensorDict:
    """The optimiser's state before its first step, ``<param>/<moment>``, all zeros.

    What an optimiser keeps is not listed here but seen: one step on a stand-in for each parameter
    shows names, shapes and dtypes.

    Raises:
        ValueError: it keeps something other than tensors.
    """
    held = TensorDict({}, batch_size=[])
    for name, parameter in params.items():
        stand_in = torch.zeros_like(parameter, requires_grad=True)
        stand_in.grad = torch.zeros_like(parameter)
        trial = optimizer.make([{"params": [stand_in]}])
        trial.step()
        for moment, value in trial.state[stand_in].items():
            if isinstance(value, Tensor):
                place(held, (name, moment), torch.zeros_like(value))
            elif value is not None:
                raise ValueError(
                    f"optimiser {optimizer.name!r} keeps {moment!r} as {type(value).__name__}; "
                    "a state holds tensors only"
                )
    return held


@dataclass(frozen=True, kw_only=True)
class Bound:
    """What the updates of a tick are made of: an optimiser, and what of a state it updates.

    Attributes:
        optimizer: what to make.
        params: name -> the module's parameter, bound to the state's storage.
        held: ``optim`` of the state, as from `moments`.
        decay: (name, parameter) -> whether weight decay applies.
        scales: multipliers of the learning rate by name; 1 for those left out.
        clip: largest Euclidean norm of the gradient; None for no clipping.
    """

    optimizer: Optimizer
    params: Mapping[str, nn.Parameter]
    held: TensorDict
    decay: Callable[[str, Tensor], bool]
    scales: Mapping[str, float] = field(default_factory=dict)
    clip: float | None = None

    def make(self, params: Mapping[str, nn.Parameter] | None = None) -> torch.optim.Optimizer:
        """A torch optimiser, its groups those that differ in decay or scale.

        Args:
            params: what it updates, by the same names; None for the parameters themselves.
        """
        groups: dict[tuple[bool, float], list[nn.Parameter]] = {}
        for name, parameter in self.params.items():
            kind = self.decay(name, parameter), self.scales.get(name, 1.0)
            groups.setdefault(kind, []).append(params[name] if params else parameter)
        return self.optimizer.make(
            [
                {"params": members, "decays": decayed, "scale": scale}
                for (decayed, scale), members in sorted(groups.items(), key=lambda g: g[0])
            ]
        )

    def set_rates(self, groups: Groups, progress: float) -> float:
        """Enter the rates of a step into an optimiser's groups; returns the one before scales.

        Args:
            groups: as from `make`.
            progress: share of the budget spent when the step is done, in [0, 1].
        """
        rate = self.optimizer.lr(progress)
        decay = self.optimizer.weight_decay(progress)
        for group in groups:
            group["lr"] = rate * group["scale"]
            group["progress"] = progress  # for optimisers that go by it
            group["weight_decay"] = decay if group["decays"] else 0.0
        return rate


class Updates(Protocol):
    """Who makes a tick's updates, within a ``with`` block that all processes enter and leave.

    When it is left, weights and moments are in the state; weights are after every step.
    """

    def __enter__(self) -> Updates: ...

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None: ...

    def step(self, progress: float) -> float:
        """Update the parameters by their gradients, which are cleared; returns the learning rate.

        Args:
            progress: share of the budget spent when this step is done, in [0, 1].
        """
        ...


class BoundOptimizer:
    """A torch optimiser whose parameters and moments are the state's own tensors."""

    def __init__(self, bound: Bound) -> None:
        self.bound = bound
        self.torch = bound.make()
        self._held: list[tuple[dict[str, Any], str, Tensor]] = []
        for name, parameter in bound.params.items():
            entry = find(bound.held, name)
            if isinstance(entry, TensorDict):
                for (moment,), value in leaves(entry):
                    moments_of = self.torch.state[parameter]
                    moments_of[moment] = value
                    self._held.append((moments_of, moment, value))

    def step(self, progress: float) -> float:
        """See `Updates`; the learning rate before scales."""
        if self.bound.clip is not None:
            nn.utils.clip_grad_norm_(list(self.bound.params.values()), self.bound.clip)
        rate = self.bound.set_rates(self.torch.param_groups, progress)
        self.torch.step()
        self.torch.zero_grad(set_to_none=True)
        return rate

    def __enter__(self) -> BoundOptimizer:
        return self

    def __exit__(self, kind: type[BaseException] | None = None, *rest: object) -> None:
        """Bring home moments that the optimiser has replaced instead of updated."""
        for moments_of, moment, value in self._held:
            if moments_of[moment] is not value:
                value.copy_(moments_of[moment])
                moments_of[moment] = value
