"""AdaLoRA's ranks: a budget of singular values, given to the matrices that need them.

Zhang et al., ICLR 2023, sections 3.2 and 3.3; by peft's allocator.

Shapes: r singular values of a matrix at first.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

TICKS = 10_000
"""What the whole budget of training is in peft's schedule of ranks, which counts steps."""

KEPT = ("sensitivity", "uncertainty")
"""Moving averages kept of each entry of an adapter: of its importance, and of how that varies."""


def rank_options(rank: int, initial: int, warmup: float, final: float) -> dict[str, Any]:
    """The schedule of ranks as peft's AdaLoraConfig takes it.

    Args:
        rank: mean rank of a matrix in the end.
        initial: rank of each at first.
        warmup: share of the budget in which all ranks stay.
        final: share of the budget, at its end, in which those that are left stay.

    Raises:
        ValueError: fewer ranks at first than in the end, or no time between.
    """
    if initial < rank:
        raise ValueError(f"an initial rank of {initial} is below the rank of {rank} in the end")
    if warmup < 0 or final < 0 or warmup + final >= 1:
        raise ValueError(
            f"ranks are given up between a warm-up of {warmup:g} and a final share of {final:g} of "
            "the budget: together they must be below 1"
        )
    return {
        "target_r": rank,
        "init_r": initial,
        "total_step": TICKS,
        "tinit": round(warmup * TICKS),
        "tfinal": round(final * TICKS),
    }


class RankAllocatingAdamW(torch.optim.AdamW):
    """AdamW that keeps factors orthogonal and, after its steps, gives up singular values.

    The penalty on factors that are not orthogonal (eq. 3 there) is of no example: its gradient is
    added to the parameters' here, so that losses and their gradients remain those of examples. As
    many singular values are given up as the schedule says by then.

    Everything it goes by is kept with the moments of each parameter, or seen from the parameters:
    it may be made anew at any step. The share of the budget that is spent is the entry
    ``progress`` of its parameter groups.

    Args:
        params: as of `torch.optim.AdamW`; the trainable parameters of the model, all of adapters.
        model: a model of peft with AdaLoRA adapters.
        every: steps from one allocation to the next.
        orthogonality: weight of the penalty, at least 0.
        options: of AdamW.
    """

    def __init__(
        self,
        params: Iterable[Any],
        model: nn.Module,
        *,
        every: int = 10,
        orthogonality: float = 0.0,
        **options: Any,
    ) -> None:
        super().__init__(params, **options)
        if every < 1:
            raise ValueError(f"ranks are allocated every 1 step or more, got {every}")
        self.model: Any = model
        self.every = every
        self.orthogonality = orthogonality
        own = {p for group in self.param_groups for p in group["params"]}
        # Those of the model that are updated here, under the allocator's names; on trial, none.
        self.adapters = {name: p for name, p in _inner(model).named_parameters() if p in own}
        self.factors = {
            name: p for name, p in self.adapters.items() if "lora_A." in name or "lora_B." in name
        }

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """A step of AdamW; then ranks are given up."""
        self._push_apart()
        before = {name: p == 0 for name, p in _singular(self.adapters).items()}
        loss = super().step(closure)
        for group in self.param_groups:
            for p in group["params"]:
                for entry in KEPT:
                    if entry not in self.state[p]:
                        self.state[p][entry] = torch.zeros_like(p)
        if self.adapters:
            self._give_up_ranks(before)
        return loss

    def _give_up_ranks(self, pruned: Mapping[str, Tensor]) -> None:
        """As many as are due; once all are, those given up stay so.

        Args:
            pruned: of each matrix, which of its singular values were 0 before the step.
        """
        allocator = self.model.base_model.rankallocator
        config = allocator.peft_config
        now = round(self.param_groups[0].get("progress", 0.0) * TICKS)
        settled = now > config.total_step - config.tfinal
        if settled and _left(pruned) <= allocator.target_bgt:
            for name, zeros in pruned.items():
                self.adapters[name].masked_fill_(zeros, 0.0)
            return
        self._lend(allocator)
        if not settled:  # take |w * dL/dw| of this step into the averages
            allocator.update_ipt(_inner(self.model))
            for name, p in self.adapters.items():
                self.state[p]["sensitivity"].copy_(allocator.exp_avg_ipt[name])
                self.state[p]["uncertainty"].copy_(allocator.exp_avg_unc[name])
        budget, _ = allocator.budget_schedule(now)
        if budget < allocator.init_bgt and (settled or self._steps % self.every == 0):
            allocator.mask_to_budget(_inner(self.model), budget)

    def _push_apart(self) -> None:
        """Add the penalty's gradient to the factors'."""
        if not self.factors or not self.orthogonality:
            return
        with torch.enable_grad():
            penalty = self.orthogonality * far_from_orthogonal(self.factors)
        found = torch.autograd.grad(penalty, list(self.factors.values()))
        for p, gradient in zip(self.factors.values(), found, strict=True):
            p.grad = gradient if p.grad is None else p.grad + gradient

    @property
    def _steps(self) -> int:
        return int(self.state[self.param_groups[0]["params"][0]]["step"])

    def _lend(self, allocator: Any) -> None:
        """Let the allocator go by the averages kept here, not by any of its own."""
        kept = {name: self.state[p] for name, p in self.adapters.items()}
        allocator.exp_avg_ipt = {name: state["sensitivity"] for name, state in kept.items()}
        allocator.exp_avg_unc = {name: state["uncertainty"] for name, state in kept.items()}
        allocator.ipt = dict(allocator.exp_avg_ipt)


def far_from_orthogonal(factors: Mapping[str, Tensor]) -> Tensor:
    """The mean over factors of ``|| P P^T - I ||``, over the rank's dimension.

    Args:
        factors: by name: ``lora_A`` ``[r, in]``, ``lora_B`` ``[out, r]``.
    """
    grams = [p @ p.T if "lora_A." in name else p.T @ p for name, p in factors.items()]
    apart = [torch.linalg.norm(g - torch.eye(len(g), device=g.device)) for g in grams]
    return torch.stack(apart).mean()


def singular_values(model: Any) -> dict[str, Tensor]:
    """The singular values of each adapted matrix by name, ``[r, 1]``; those given up are 0."""
    return _singular(dict(_inner(model).named_parameters()))


def _singular(adapters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: p for name, p in adapters.items() if "lora_E." in name}


def _left(pruned: Mapping[str, Tensor]) -> int:
    return sum(int((~zeros).sum()) for zeros in pruned.values())


def _inner(model: Any) -> Any:
    """The model that peft's allocator goes by: its names are of that one's parameters."""
    return model.base_model.model


def note_ranks(model: Any) -> None:
    """Write the ranks that are left into a model's configuration: only those are then saved.

    A matrix that has none left keeps one that is 0: peft takes one without any for a damaged one.
    """
    kept = {name: (p != 0).flatten().tolist() for name, p in singular_values(model).items()}
    for places in kept.values():
        places[0] = places[0] or not any(places)
    if not all(map(all, kept.values())):
        model.peft_config[model.active_adapter].rank_pattern = kept
