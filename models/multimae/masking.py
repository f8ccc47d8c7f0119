"""Which tokens a masked autoencoder sees (Bachmann et al., MultiMAE, ECCV 2022, section 3.2).

Exactly N tokens of an example are visible. How they are shared out among the modalities is drawn
from a Dirichlet distribution, which of a modality's tokens they are uniformly. Everything is a
function of uniform numbers that the caller draws, from a generator or from keys.

Shapes: B examples, T modalities, L tokens of all modalities, N visible ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from numbers import Real
from typing import Any

import torch
from scipy.special import gammaincinv
from torch import Tensor

LEFT_OUT = 1e-5
"""Added to every concentration where a subset of the modalities is drawn: those left out."""


@dataclass(frozen=True)
class TokenOrder:
    """The tokens of each example, visible ones first.

    Attributes:
        order: ``[B, L]`` int64, a permutation of the tokens of each example.
        num_visible: N; the first N of the order are encoded.
    """

    order: Tensor
    num_visible: int

    @property
    def keep(self) -> Tensor:
        """Which tokens are visible, ``[B, N]`` int64, in the order in which they are encoded."""
        return self.order[:, : self.num_visible]

    @cached_property
    def restore(self) -> Tensor:
        """At which place of the order each token stands, ``[B, L]`` int64: the inverse."""
        places = torch.arange(self.order.shape[1], device=self.order.device)
        return torch.zeros_like(self.order).scatter(1, self.order, places.expand_as(self.order))

    @cached_property
    def masked(self) -> Tensor:
        """``[B, L]`` bool, True for tokens that are not seen."""
        return self.restore >= self.num_visible


def num_draws(sizes: Sequence[int]) -> int:
    """How many uniform numbers `draw_order` needs for an example of these numbers of tokens."""
    return 1 + 2 * len(sizes) + 2 * sum(sizes)


def draw_order(
    noise: Tensor,
    sizes: Sequence[int],
    num_visible: int,
    *,
    alphas: float | Sequence[float] = 1.0,
    sample_tasks_uniformly: bool = False,
) -> TokenOrder:
    """Draw which tokens are visible.

    1. The modalities' shares are ``p ~ Dirichlet(alphas)``; with ``sample_tasks_uniformly`` one of
       the ``2 ** T - 1`` subsets of modalities is drawn first, each as likely, and the others'
       concentration is all but zero.
    2. A modality shows ``round(p * N)`` of its tokens (half to even), or all it has.
    3. That need not be N in all: of visible tokens too many, uniformly random ones are masked; of
       too few, uniformly random masked ones are shown. (Without the random choice, as in the
       published AtteNT, the first tokens of a picture are shown far too often.)

    Args:
        noise: ``[B, num_draws(sizes)]`` float64, uniform in [0, 1).
        sizes: tokens of each modality, T of them, summing to L.
        num_visible: N, from 1 to L.
        alphas: concentration of each modality, or one for all; above 0.
        sample_tasks_uniformly: see 1.

    Raises:
        ValueError: N or a concentration out of range.
    """
    num_tasks, num_tokens = len(sizes), sum(sizes)
    if not 1 <= num_visible <= num_tokens:
        raise ValueError(f"num_encoded_tokens is from 1 to {num_tokens}, got {num_visible}")
    widths = (1, num_tasks, num_tasks, num_tokens, num_tokens)
    subset, gamma, boost, shuffle, repair = noise.split(widths, dim=1)
    concentration = concentrations(alphas, num_tasks).to(noise.device).expand(len(noise), -1)
    if sample_tasks_uniformly:
        chosen = 1 + (subset * (2**num_tasks - 1)).long()
        taken = (chosen >> torch.arange(num_tasks, device=noise.device)) & 1
        concentration = concentration * taken + LEFT_OUT
    shares = dirichlet(gamma, boost, concentration)
    wanted = (shares * num_visible).round()
    parts = [
        part.argsort(dim=1).argsort(dim=1) >= wanted[:, t : t + 1]
        for t, part in enumerate(shuffle.split(tuple(sizes), dim=1))
    ]
    masked = torch.cat(parts, dim=1)
    return TokenOrder((masked + repair).argsort(dim=1, stable=True), num_visible)


def concentrations(alphas: float | Sequence[float], num_tasks: int) -> Tensor:
    """``[T]`` float64.

    Raises:
        ValueError: not one for each modality, or not above 0.
    """
    given: Any = alphas  # NumPy's numbers are Real, not float
    values = [float(given)] * num_tasks if isinstance(given, Real) else list(given)
    if len(values) != num_tasks:
        raise ValueError(f"alphas are one number or {num_tasks}, one a modality; got {values}")
    if not all(0 < value < float("inf") for value in values):
        raise ValueError(f"alphas must be above 0, got {alphas}")
    return torch.tensor(values, dtype=torch.float64)


def dirichlet(gamma: Tensor, boost: Tensor, concentration: Tensor) -> Tensor:
    """Shares that sum to 1, ``[B, T]``, from two uniform numbers each.

    Gamma variables by the inverse of their distribution function, normalised. That of a small
    concentration underflows, so that of one more is taken and scaled by ``U ** (1 / a)``, in
    logarithms: exact for every concentration above 0.

    Args:
        gamma: ``[B, T]`` float64 in [0, 1).
        boost: ``[B, T]`` float64 in [0, 1).
        concentration: ``[B, T]`` float64, above 0.
    """
    smallest = 2.0**-54  # below every number but 0 that keys or torch draw
    above = gamma.clamp(min=smallest).cpu().numpy()
    quantile = gammaincinv((concentration + 1).cpu().numpy(), above)
    logs = torch.from_numpy(quantile).to(gamma.device).log()
    return torch.softmax(logs + boost.clamp(min=smallest).log() / concentration, dim=1)


def given_order(masks: Mapping[str, Tensor], num_visible: int | None = None) -> TokenOrder:
    """The order of masks that somebody gives.

    Args:
        masks: modality -> ``[B, n]``, 0 or False for visible tokens, 1 or True for masked ones.
        num_visible: N; None takes the masks'.

    Raises:
        ValueError: examples of unequal numbers of visible tokens, or not N of them. (The published
            code adds up the whole batch, and is right for batches of one only.)
    """
    masked = torch.cat([mask.flatten(1).bool() for mask in masks.values()], dim=1)
    visible = (~masked).sum(dim=1)
    first = int(visible[0])
    if not bool((visible == first).all()):
        raise ValueError(
            f"masks must leave equally many tokens visible in every example; they leave "
            f"{int(visible.min())} to {int(visible.max())}"
        )
    if num_visible is not None and first != num_visible:
        raise ValueError(f"masks leave {first} tokens visible, num_encoded_tokens is {num_visible}")
    if not first:
        raise ValueError("masks leave no token visible")
    return TokenOrder(masked.to(torch.uint8).argsort(dim=1, stable=True), first)


def all_visible(batch: int, num_tokens: int, device: torch.device | str = "cpu") -> TokenOrder:
    """Nothing masked, the tokens in their own order."""
    return TokenOrder(torch.arange(num_tokens, device=device).expand(batch, -1), num_tokens)


def pick(tokens: Tensor, index: Tensor) -> Tensor:
    """Tokens ``[B, n, D]`` at ``index`` ``[B, m]`` -> ``[B, m, D]``."""
    return tokens.gather(1, index.unsqueeze(-1).expand(-1, -1, tokens.shape[-1]))
