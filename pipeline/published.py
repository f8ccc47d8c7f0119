"""Published ways to select that are a draw or a fixed score, each in a few lines.

Selective-Backprop is `percentile`, Cyclical Curriculum is `inverse`. Others need no rule of their
own:

- **RS2**, repeated random sampling (Okanovic et al., ICLR 2024): a new random subset for each pass.
  Its form with replacement, where an example may come again before all were seen, is `random` with
  a plan that selects before every pass. Its form without, where subsets are taken from a shuffled
  data set until that is used up, trains on the same examples in the same kind of order as plain
  training does: it *is* plain training (`full`) on a shorter budget, and the line to beat.
- **EL2N** (Paul et al., NeurIPS 2021), the norm of softmax minus the answer, early in training: of
  a cross-entropy it is the signal ``output_grad_norm``. **GraNd** (same paper), the norm of the
  gradient: the signal ``grad_norm``. Both are averaged over some ten short runs (`averaged`), given
  to a state as fixed scores (`known_scores`) and selected from by `hard`, once; where labels are
  noisy by ``trimmed(hard(), top)``. Cost: the short runs, ten of ten epochs are a hundred epochs,
  which only later runs on the same data pay back. They fail where few examples are kept (random is
  better at small ratios), with wrong labels, and for classes that are all easy; what GraNd
  says at initialisation is disputed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from tensordict import TensorDict
from torch import Tensor

from attent.pipeline.keyed import fold, generator
from attent.pipeline.keys import containers, number, place, tensor
from attent.pipeline.rescaled import refuse_negative
from attent.pipeline.rules import Rule
from attent.pipeline.threshold import CHUNK, count, top_k_mask


def percentile(power: float | None = None) -> Rule:
    """Selective-Backprop: a random k, likelier the higher their scores stand among the others.

    **What.** The example that has n scores below its own and e equal to it (itself among them) is
    at the percentile ``(n + e / 2) / N``. Examples are drawn one after another, without
    replacement, with probabilities in proportion to ``percentile ** power``; the power is
    ``1 / ratio - 1`` as in Composer, or a fixed one as in the paper. Only the order of the scores
    counts. Published, the N are a batch of candidates: `attent_online` over a window of them
    (`attent.pipeline.candidates.shuffled` makes the stream). Composer has it active from a half to
    nine tenths of training, alternating with plain steps.

    **Cost.** A forward of each candidate beside training: 1 + 3 r against 3, which pays below
    r = 2/3; at r = 0.5 it saves 17 % of the active part, 6 to 8 % of a run in Composer's card. On
    scores that training has observed, none. One sort of the N, 16 bytes an example.

    **When it pays.** Data of which much is learned early, once it is learned: not from the start.

    **When it fails.** Noise and imbalance, as all rules of the highest scores, if more mildly. From
    the first step on of an untrained model it lost 6 to 8 points at half of the budget in this
    project's pilot. Nothing is rescaled.

    Args:
        power: above 0; by default ``1 / ratio - 1``.

    Raises:
        ValueError: a power that is not above 0 and finite.

    References:
        Jiang et al.: Accelerating Deep Learning by Focusing on the Biggest Losers. 2019
        (arXiv:1910.00762).
    """
    if power is not None and not (power > 0 and math.isfinite(power)):
        raise ValueError(f"percentile: power must be above 0 and finite, got {power}")

    def choose(scores: Tensor, ratio: float, key: int) -> tuple[Tensor, None]:
        exponent = 1 / ratio - 1 if power is None else power
        ranked = scores.sort().values

        def log_odds(part: Tensor) -> Tensor:
            below = torch.searchsorted(ranked, part)
            twice = below + torch.searchsorted(ranked, part, right=True)
            return (twice.double() / (2 * len(ranked))).log_().mul_(exponent).float()

        return race(scores, log_odds, count(ratio, len(scores)), key), None

    name = "percentile" if power is None else f"percentile(power {power:g})"
    return Rule(name=name, choose=choose, redraws=True)


def inverse() -> Rule:
    """Cyclical Curriculum's draw: a random k, likelier the smaller their scores.

    **What.** Drawn one after another, without replacement, with probabilities in proportion to
    ``1 / score``. A score of 0 counts as the smallest float32 that is not subnormal, so that those
    examples come first, each as likely as another (published, it gave probabilities of NaN).
    Published with sizes that go up and down (`attent.pipeline.schedules.cyclic`) and the losses of
    a finished plain run, given by `known_scores`.

    **Cost.** That plain run. It was published for accuracy at equal training, not for speed.

    **When it pays.** As any order of easy before hard: where the hardest are noise.

    **When it fails.** Late losses span many powers of ten, and then this is `easy` but for few: the
    hard ones are hardly drawn, rare classes among them. Fixed scores say what a finished model
    found hard, not this one.

    Raises:
        ValueError: in ``choose``, a score below 0.

    References:
        Kesgin, Amasyali: Cyclical Curriculum Learning. IEEE TNNLS 2023 (arXiv:2202.05531).
    """
    least = torch.finfo(torch.float32).tiny

    def choose(scores: Tensor, ratio: float, key: int) -> tuple[Tensor, None]:
        refuse_negative(scores, "inverse")
        k = count(ratio, len(scores))
        return race(scores, lambda part: part.clamp(min=least).log_().neg_(), k, key), None

    return Rule(name="inverse", choose=choose, redraws=True)


def race(scores: Tensor, log_odds: Callable[[Tensor], Tensor], k: int, key: int) -> Tensor:
    """Draw k examples one after another, without replacement, with given odds.

    Each example arrives after an exponential time of its odds as the rate; the first k are those
    drawn (Efraimidis and Spirakis, 2006). Compared by logarithm, which is Gumbel top-k.

    Args:
        scores: ``[N]`` float32.
        log_odds: some of the scores -> the logarithms of their odds, float32 of the same shape.
        k: 1 <= k <= N.
        key: of the draw.

    Returns:
        ``[N]`` bool with k True.
    """
    noise = torch.empty_like(scores)
    noise.exponential_(generator=generator(fold(key, "race"), scores.device))
    for part, noisy in zip(scores.split(CHUNK), noise.split(CHUNK), strict=True):
        noisy.clamp_min_(1e-30).log_().neg_().add_(log_odds(part))
    return top_k_mask(noise, k, key)


def averaged(scores: Sequence[Tensor]) -> Tensor:
    """The mean of each example's scores over several runs, as EL2N and GraNd are published.

    Args:
        scores: ``[N]`` each, of the same examples in the same order.

    Returns:
        ``[N]`` float32.

    Raises:
        ValueError: no scores, or of different numbers of examples.
    """
    shapes = [list(each.shape) for each in scores]
    if not shapes or any(shape != shapes[0] for shape in shapes) or len(shapes[0]) != 1:
        raise ValueError(f"averaged needs scores of [N] each, of one N; got {shapes or 'none'}")
    total = torch.zeros_like(scores[0], dtype=torch.float64)
    for each in scores:
        total += each.to(total.device)
    return total.div_(len(scores)).float()


def known_scores(state: TensorDict, name: str, values: Tensor) -> TensorDict:
    """A state that holds given scores, so that ``select(rule, signal=name)`` needs no scoring.

    They count as measured at the state's present step, and stay as they are: nothing renews them
    but a stage that writes that name. ``scores/step`` is shared by all signals: another signal's
    entry that was never measured would pass for measured too. A window forgets them, whose slots
    are other examples each time. To resume a run, give them to the fresh state as before.

    Args:
        state: of N examples; it is left as it is.
        name: the entry below ``scores``.
        values: ``[N]``, finite.

    Returns:
        A new state that shares every other tensor.

    Raises:
        ValueError: another number of examples, or a value that is NaN or infinite.
    """
    steps = tensor(state, "scores", "step")
    if values.shape != steps.shape:
        raise ValueError(
            f"scores {name!r} are {list(values.shape)}; the state is of {len(steps):,} examples"
        )
    given = values.to(steps.device, torch.float32, copy=True)
    bad = ~torch.isfinite(given)
    if bool(bad.any()):
        first = int(bad.nonzero()[0])
        raise ValueError(f"scores {name!r}: that of example {first} is {float(given[first])}")
    fresh = containers(state)
    place(fresh, ("scores", name), given)
    place(fresh, ("scores", "step"), torch.full_like(steps, number(state, "clock", "step")))
    return fresh
