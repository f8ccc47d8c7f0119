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

from attent.pipeline.keys import KeyLike, ensure, number, place, tensor
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


def patient(
    num_examples: int, *, patience: int, above: float = 1.0, signal: str = "relative_loss"
) -> Stage:
    """``scores/patient``: an observed score, or 0 once it was looked at in vain too often.

    **What.** An example was looked at in vain where its score is above ``above`` and no lower than
    at the look before. Such looks are counted until one finds it at ``above`` or below; from the
    ``patience``-th on its score is 0, so that it is chosen at random if at all, until then. It is
    the patience of early stopping, of one example.

    **Cost.** Three numbers an example; no forward.

    **When it pays.** Wrong labels: their losses stay high however often they are trained on. With
    one label of digits in ten wrong, `attent_adaptive` is worse than plain training without it, and
    no worse with a patience of 4 (docs/proof.md).

    **When it fails.** What is learned slowly is given up as well: on digits with a long tail what
    `attent_adaptive` gains is lost with it, and on scenes, which are harder, it is worse than plain
    training even where classes are balanced and labels right (docs/proof.md).

    Args:
        num_examples: N.
        patience: looks in vain, at least 1.
        above: a score that is high; of ``relative_loss``, 1 is the running training loss.
        signal: observed scores, at least 0.

    Raises:
        ValueError: a patience below 1; in the stage, a score below 0.
    """
    if patience < 1:
        raise ValueError(f"patience is at least 1, got {patience}")

    def apply(state: TensorDict) -> TensorDict:
        scores, step = tensor(state, "scores", signal), tensor(state, "scores", "step")
        refuse_negative(scores, "patient")
        vain, before = tensor(state, "scores", "vain"), tensor(state, "scores", "before")
        counted = vain + (scores >= before).to(vain.dtype)
        counted = torch.where(scores > above, counted, torch.zeros_like(vain))
        vain = torch.where(step > tensor(state, "scores", "counted"), counted, vain)
        place(state, ("scores", "patient"), torch.where(vain < patience, scores, 0.0))
        place(state, ("scores", "vain"), vain)
        place(state, ("scores", "before"), scores.clone())
        place(state, ("scores", "counted"), step.clone())
        return state

    def init(state: TensorDict) -> TensorDict:
        ensure_scores(state, "patient", num_examples)
        ensure(state, ("scores", "vain"), torch.zeros(num_examples, dtype=torch.int32))
        ensure(state, ("scores", "before"), torch.full((num_examples,), torch.inf))
        ensure(state, ("scores", "counted"), torch.full((num_examples,), -1, dtype=torch.int32))
        return state

    kept = {("scores", name) for name in ("vain", "before", "counted")}
    return Stage(
        name="rank by patient",
        reads={("scores", signal), ("scores", "step"), *kept},
        writes={("scores", "patient"), *kept},
        apply=apply,
        init=init,
        provides={("scores", "patient"), *kept},
    )
