"""The select stage: from scores to the mask in force."""

from __future__ import annotations

import torch
from tensordict import TensorDict
from torch import Tensor

from attent.pipeline.keyed import fold
from attent.pipeline.keys import key_name, number, place, tensor
from attent.pipeline.rules import Rule
from attent.pipeline.stage import Stage
from attent.pipeline.threshold import CHUNK


def select(rule: Rule, *, signal: str = "loss", name: str = "select") -> Stage:
    """Choose the examples to train on: ``plan/ratio`` of them, by a rule.

    At a ratio of 1 everything is selected and neither rule nor scores are asked.

    Args:
        rule: see `attent.pipeline.rules`.
        signal: which scores the rule sees.
        name: of the stage.

    Writes ``mask``, ``weight``, ``plan/size`` (how many were chosen) and clears
    ``plan/select_due``.

    Raises:
        ValueError: a score that is NaN or infinite, or was never measured (the first such example
            is named); a rule that returns a mask of another shape, or an empty one.
    """

    def apply(state: TensorDict) -> TensorDict:
        ratio = float(tensor(state, "plan", "ratio"))
        mask, weight = tensor(state, "mask"), tensor(state, "weight")
        scores = tensor(state, "scores", signal) if rule.uses_scores else weight.fill_(0)
        if ratio < 1:
            if rule.uses_scores:
                check_scores(scores, tensor(state, "scores", "step"), signal)
            key = fold(number(state, "seed"), name, number(state, "clock", "passes"))
            chosen, rescaled = rule.choose(scores, ratio, key)
            _check_choice(rule, chosen, rescaled, len(mask))
        else:
            chosen, rescaled = torch.ones_like(mask), None
        place(state, "mask", chosen)
        place(state, "weight", weight.fill_(1) if rescaled is None else rescaled)
        place(state, ("plan", "size"), chosen.count_nonzero().to("cpu"))
        place(state, ("plan", "select_due"), torch.tensor(False))
        return state

    writes = {"mask", "weight", ("plan", "size"), ("plan", "select_due")}
    reads = {"seed", ("clock", "passes"), ("plan", "ratio")}
    if rule.uses_scores:
        reads |= {("scores", signal), ("scores", "step")}
    return Stage(name=name, reads=reads, writes=writes, apply=apply, note=rule.name)


def check_scores(scores: Tensor, steps: Tensor, signal: str) -> None:
    """Refuse scores a rule could not order: not finite, or never measured.

    Args:
        scores: ``[N]`` float32.
        steps: ``[N]`` int32, -1 for never.
        signal: named in the message.

    Raises:
        ValueError: names the first such example.
    """
    entry = key_name(("scores", signal))
    for start in range(0, len(scores), CHUNK):
        part = scores[start : start + CHUNK]
        for bad, why in (
            (steps[start : start + CHUNK] < 0, "was never measured"),
            (~torch.isfinite(part), "is not finite"),
        ):
            if bool(bad.any()):
                first = int(bad.nonzero()[0])
                value = f" ({float(part[first])})" if why == "is not finite" else ""
                raise ValueError(
                    f"{entry} of example {start + first} {why}{value}: an order of the examples "
                    "needs a finite score for each"
                )


def _check_choice(rule: Rule, mask: Tensor, weight: Tensor | None, num_examples: int) -> None:
    if mask.shape != (num_examples,) or mask.dtype != torch.bool:
        raise ValueError(
            f"rule {rule.name!r} returned a {mask.dtype} mask of {list(mask.shape)}; it must be "
            f"bool of [{num_examples}]"
        )
    if not bool(mask.any()):
        raise ValueError(f"rule {rule.name!r} selected no example")
    if weight is not None and (weight.shape != mask.shape or weight.dtype != torch.float32):
        raise ValueError(
            f"rule {rule.name!r} returned {weight.dtype} weights of {list(weight.shape)}; they "
            f"must be float32 of [{num_examples}]"
        )
    if weight is not None:
        # A step divides by the sum of its batch's weights.
        bad = mask & ~((weight > 0) & torch.isfinite(weight))
        if bool(bad.any()):
            first = int(bad.nonzero()[0])
            raise ValueError(
                f"rule {rule.name!r} gave a weight of {float(weight[first])} to the selected "
                f"example {first}; it must be above 0 and finite"
            )
