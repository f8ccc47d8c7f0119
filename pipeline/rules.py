"""Selection rules: (scores, ratio, key) -> (mask, weight).

A rule is a value; your own is a function of the same signature in a `Rule`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from attent.pipeline.keyed import fold, generator
from attent.pipeline.threshold import CHUNK, count, top_k_mask

Normalization = Literal["sigmoid", "softmax"]


@dataclass(frozen=True, kw_only=True)
class Rule:
    """How examples are chosen.

    Attributes:
        name: shown to people.
        choose: (scores ``[N]`` float32, ratio in (0, 1], key) -> (mask ``[N]`` bool, weight ``[N]``
            float32 or None for all ones). A function of its arguments alone.
        uses_scores: False if it never looks at them, so that none need be measured.
        redraws: True if another key gives another choice, so that a plan may select anew before
            every pass of an interval.
    """

    name: str
    choose: Callable[[Tensor, float, int], tuple[Tensor, Tensor | None]]
    uses_scores: bool = True
    redraws: bool = False


def hard() -> Rule:
    """The k examples with the largest scores; equal ones in the key's order."""

    def choose(scores: Tensor, ratio: float, key: int) -> tuple[Tensor, None]:
        return top_k_mask(scores, count(ratio, len(scores)), key), None

    return Rule(name="hard", choose=choose)


def random() -> Rule:
    """A uniformly random k examples: the rule to beat."""

    def choose(scores: Tensor, ratio: float, key: int) -> tuple[Tensor, None]:
        noise = torch.rand(
            len(scores), generator=generator(fold(key, "random"), scores.device),
            device=scores.device,
        )  # fmt: skip
        return top_k_mask(noise, count(ratio, len(scores)), key), None

    return Rule(name="random", choose=choose, uses_scores=False, redraws=True)


def soft(temperature: float = 1.0, normalization: Normalization = "softmax") -> Rule:
    """A random k examples, likelier the larger their scores: Gumbel top-k.

    The k largest of ``log p / temperature + g`` with p the sigmoid of the scores, or their softmax
    over the data set, and g standard Gumbel noise: sampling without replacement with probabilities
    proportional to ``p ** (1 / temperature)`` (Kool et al., ICML 2019). A low temperature is
    `hard`, a high one is `random`.

    Args:
        temperature: above 0.
        normalization: ``softmax`` or ``sigmoid``.

    Raises:
        ValueError: a temperature that is not above 0, an unknown normalization.
    """
    if not (temperature > 0 and math.isfinite(temperature)):
        raise ValueError(f"temperature must be above 0 and finite, got {temperature}")
    if normalization not in ("sigmoid", "softmax"):
        raise ValueError(f"normalization is 'sigmoid' or 'softmax', not {normalization!r}")

    def choose(scores: Tensor, ratio: float, key: int) -> tuple[Tensor, None]:
        draw = generator(fold(key, "gumbel"), scores.device)
        perturbed = torch.empty_like(scores)
        perturbed.exponential_(generator=draw)
        # The softmax's normaliser shifts every value alike; it is taken out so that float32 keeps
        # its precision for the differences, which alone decide.
        top = scores.max()
        for part, noisy in zip(scores.split(CHUNK), perturbed.split(CHUNK), strict=True):
            if normalization == "sigmoid":
                log_p = torch.nn.functional.logsigmoid(part)
            else:
                log_p = part - top
            gumbel = noisy.clamp_min_(1e-30).log_().neg_()
            gumbel.add_(log_p.div_(max(temperature, 1e-30)))  # below, float32 would divide by 0
        return top_k_mask(perturbed, count(ratio, len(scores)), key), None

    return Rule(name=f"soft({normalization}, T={temperature:g})", choose=choose, redraws=True)
