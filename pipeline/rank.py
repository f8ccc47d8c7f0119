"""The rank stage: scores made of other scores, before a selection.

What training has observed of an example is not always what it should be chosen by: the loss was
seen at weights long gone, part of it cannot be reduced, or nobody has looked for long.

Shapes: N examples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from tensordict import TensorDict
from torch import Tensor

from attent.pipeline.keys import KeyLike, number, place, tensor
from attent.pipeline.rescaled import refuse_negative
from attent.pipeline.stage import Stage
from attent.pipeline.task import ensure_scores


def rank(
    name: str,
    function: Callable[[TensorDict], Tensor],
    *,
    reads: Iterable[KeyLike],
    num_examples: int,
) -> Stage:
    """A stage that writes ``scores/<name>``, a function of other entries of the state.

    Args:
        name: of the scores.
        function: the state, of which it sees what it reads -> ``[N]`` float32.
        reads: entries.
        num_examples: N.

    Raises:
        ValueError: the function returns something of another shape.
    """

    def apply(state: TensorDict) -> TensorDict:
        scores = function(state)
        if scores.shape != (num_examples,):
            raise ValueError(
                f"rank {name!r} returned scores of {list(scores.shape)}; they must be "
                f"[{num_examples}]"
            )
        place(state, ("scores", name), scores.float())
        return state

    def init(state: TensorDict) -> TensorDict:
        ensure_scores(state, name, num_examples)
        return state

    return Stage(
        name=f"rank by {name}",
        reads=frozenset(reads),
        writes={("scores", name)},
        apply=apply,
        init=init,
        provides={("scores", name)},
    )


def reducible(holdout: Tensor, *, signal: str = "loss") -> Stage:
    """``scores/reducible``: an observed loss less that of a model trained on other examples.

    What remains is what this model can still learn; what no model can (noise) is not in it. The
    observed form of RHO-loss (Mindermann et al., ICML 2022), without a forward of candidates.

    Args:
        holdout: ``[N]``, the loss of each training example under a model that has not seen it.
        signal: the observed loss.
    """
    return rank(
        "reducible",
        lambda state: tensor(state, "scores", signal) - holdout.to(state["scores", signal].device),
        reads={("scores", signal)},
        num_examples=len(holdout),
    )


def aged(num_examples: int, *, bonus: float, signal: str = "loss") -> Stage:
    """``scores/aged``: scores that grow while nobody looks, so that none is left out for good.

    ``s * (1 + bonus * a)``, a being the age of a score in steps as a share of all steps made.

    Args:
        num_examples: N.
        bonus: at least 0.
        signal: observed scores, at least 0.

    Raises:
        ValueError: a bonus below 0; in the stage, a score below 0.
    """
    if not bonus >= 0:
        raise ValueError(f"a bonus is at least 0, got {bonus}")

    def function(state: TensorDict) -> Tensor:
        refuse_negative(tensor(state, "scores", signal), "aged")
        now = number(state, "clock", "step")
        age = (now - tensor(state, "scores", "step")).float() / max(1, now)
        return tensor(state, "scores", signal) * torch.add(1.0, age, alpha=bonus)

    return rank(
        "aged",
        function,
        reads={("scores", signal), ("scores", "step"), ("clock", "step")},
        num_examples=num_examples,
    )
