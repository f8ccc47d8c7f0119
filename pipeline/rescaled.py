"""Rules that weigh what they choose, and one that says how much to choose.

**The normaliser.** A step's loss is ``sum(w * loss) / sum(w)`` over its batch. So a factor common
to all weights changes nothing, and the size of a step stays that of a mean: with weights of
1 / probability its expectation is about that of the mean over all N examples (about, because the
sum below is random too), and the *sum* of the gradients of a pass is smaller, as fewer steps are
made. The learning rate is a function of the budget spent, and needs no correction.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from attent.pipeline.keyed import fold, generator
from attent.pipeline.permutation import Permutation
from attent.pipeline.refined import uniformly
from attent.pipeline.rules import Rule
from attent.pipeline.threshold import CHUNK, count


def infobatch(keep: float = 0.5) -> Rule:
    """Everything at or above the mean score, and a share of the rest that stands for all of it.

    **What.** With m the mean score: each example of ``s >= m`` with weight 1; of the n below,
    ``floor(keep * n)`` drawn uniformly, with weight ``1 / keep``. The ratio is not asked: how many
    are above the mean decides. `select` asks no rule at a ratio of 1, which is how the last passes
    are made on everything with weight 1, as published (the last eighth of them).

    **Cost.** With scores that training observes, none. The published scores are those of the
    training passes, of which each example keeps its last.

    **When it pays.** A skewed loss, few examples far above the mean and many below: with ``keep``
    0.5 and 70 % below, 35 % of a pass is saved. By expectation the gradient is that of the whole.

    **When it fails.** Wrong labels are above the mean and all stay. The floor makes small groups
    light: of 3 examples one stands for two. Fewer steps are made, at a gradient of more variance:
    the learning rate has to follow the budget.

    Args:
        keep: share kept of what is below the mean, in (0, 1].

    Raises:
        ValueError: a share out of range.

    References:
        Qin et al.: InfoBatch: Lossless Training Speed Up by Unbiased Dynamic Data Pruning. ICLR
        2024.
    """
    _check_share("infobatch: keep", keep)

    def choose(scores: Tensor, ratio: float, key: int) -> tuple[Tensor, Tensor]:
        mean = sum(float(part.sum()) for _, part in _doubles(scores)) / len(scores)
        below = torch.empty_like(scores, dtype=torch.bool)
        for start, part in _doubles(scores):  # in float64: the mean is no float32
            torch.lt(part, mean, out=below[start : start + len(part)])
        mask, weight = ~below, torch.ones_like(scores)
        drawn = int(keep * int(below.count_nonzero()) + 1e-6)
        if drawn:
            mask.logical_or_(uniformly(below, drawn, fold(key, "infobatch")))
        return mask, weight.masked_fill_(below, 1 / keep)

    return Rule(name=f"infobatch({keep:g})", choose=choose, redraws=True)


def importance(floor: float = 0.1) -> Rule:
    """A random k, each with a probability in proportion to its score, weighted by its inverse.

    **What.** Scores below ``floor`` times their mean are taken for that. Example i is chosen with
    probability ``p_i = min(1, c * s_i)``, c such that they sum to ``k = count(ratio, N)``, and has
    weight ``(k / N) / p_i``: 1 on average, at most ``(1 + floor) / floor``. The k are drawn by
    systematic sampling over a keyed random order: as many as k, each with its probability exactly.
    The weighted sum over the chosen is then k / N of the sum over all, in expectation; a step
    divides by the sum of its weights (see the head of this file).

    **Cost.** That of the scores. With the norm of the gradient (3 forwards) it is the choice of
    least variance; with a loss (1) or `output_grad_norm` (1) an approximation of it.

    **When it pays.** Gradients of very different norms, and noise in them that holds training back.
    It is milder than the rules of the highest scores: nothing is left out for good.

    **When it fails.** Late, or with norms that are much alike, there is no variance to gain. It
    chooses wrong labels as often as any rule of the highest scores, though with small weights. Old
    scores keep it unbiased as long as they are of all examples, and make its variance larger.

    Args:
        floor: in (0, 1]: the least score counted, in means.

    Raises:
        ValueError: a floor out of range; in ``choose``, a score below 0.

    References:
        Alain et al.: Variance Reduction in SGD by Distributed Importance Sampling. 2015
        (arXiv:1511.06481). Katharopoulos, Fleuret: Not All Samples Are Created Equal: Deep Learning
        with Importance Sampling. ICML 2018. Hartley, Rao: Sampling with Unequal Probabilities and
        without Replacement. Ann. Math. Stat. 33(2), 1962.
    """
    _check_share("importance: floor", floor)

    def choose(scores: Tensor, ratio: float, key: int) -> tuple[Tensor, Tensor | None]:
        refuse_negative(scores, name)
        k = count(ratio, len(scores))
        if k == len(scores):
            return torch.ones_like(scores, dtype=torch.bool), None
        mean = sum(float(part.sum()) for _, part in _doubles(scores)) / len(scores)
        least = floor * mean if mean > 0 else 1.0  # all zero: as likely as each other
        scale = _scale(scores, least, k)
        weight = torch.empty_like(scores)
        for start, part in _doubles(scores):
            odds = _odds(part, least, scale)
            weight[start : start + len(part)] = (k / len(scores) / odds).float()
        return _systematic(scores, least, scale, k, key), weight

    name = f"importance(floor {floor:g})"
    return Rule(name=name, choose=choose, redraws=True)


def concentrated(rule: Rule, smallest: float, largest: float) -> Rule:
    """A rule at a ratio that the scores decide: small where a few examples have most of the score.

    **What.** The participation ratio ``(sum s)^2 / (N * sum s^2)`` is the share of the examples
    that the scores are spread over: 1 where all are equal, m / N where m are equal and the others
    0. Clamped to [smallest, largest] it is the rule's ratio. The plan's own ratio is not asked; but
    at a ratio of 1 `select` takes everything.

    **Cost.** One more pass over the scores.

    **When it pays.** Runs whose losses become concentrated at a time that nobody knows before: a
    schedule has to guess it.

    **When it fails.** Wrong labels concentrate the scores, and make the choice small and full of
    them: use it in `trimmed`. What a run costs is no longer known before; its budget holds, in
    examples, but not how many passes that makes. The ratio says how many examples share the score,
    not how many are needed.

    Args:
        rule: chooses.
        smallest: the least ratio, in (0, 1].
        largest: the greatest, in [smallest, 1].

    Raises:
        ValueError: a ratio out of range, or a largest below the smallest; in ``choose``, a score
            below 0.

    References:
        Kish: Survey Sampling, 1965 (the effective number of a weighted sample).
    """
    _check_share("concentrated: smallest", smallest)
    _check_share("concentrated: largest", largest)
    if largest < smallest:
        raise ValueError(f"concentrated: largest ({largest}) is below smallest ({smallest})")

    def choose(scores: Tensor, ratio: float, key: int) -> tuple[Tensor, Tensor | None]:
        refuse_negative(scores, name)
        share = min(max(participation(scores), smallest), largest)
        return rule.choose(scores, share, key)

    name = f"{rule.name} at {smallest:g} to {largest:g} by concentration"
    return replace(rule, name=name, choose=choose, uses_scores=True)


def participation(scores: Tensor) -> float:
    """The share of the examples that scores are spread over: ``(sum s)^2 / (N * sum s^2)``.

    Args:
        scores: ``[N]``, none below 0.

    Returns:
        From 1 / N, one example has all, to 1, all have the same; 1 where all are 0.
    """
    total = squares = 0.0
    for _, part in _doubles(scores):
        total += float(part.sum())
        squares += float(part.square().sum())
    return total * total / (len(scores) * squares) if squares else 1.0


def refuse_negative(scores: Tensor, rule: str) -> None:
    """Refuse scores that no probability can be in proportion to.

    Args:
        scores: ``[N]``.
        rule: named in the message.

    Raises:
        ValueError: one is below 0.
    """
    if float(scores.min()) < 0:
        at = int(scores.argmin())
        raise ValueError(
            f"rule {rule!r} needs scores of at least 0, and that of example {at} is "
            f"{float(scores[at]):g}: take a loss or a norm, or a rule that goes by their order"
        )


def _doubles(scores: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Where each chunk begins, and its scores in float64."""
    for start in range(0, len(scores), CHUNK):
        yield start, scores[start : start + CHUNK].double()


def _odds(part: Tensor, least: float, scale: float) -> Tensor:
    """Probabilities of some examples, float64."""
    return (part.clamp(min=least) * scale).clamp_(max=1.0)


def _scale(scores: Tensor, least: float, k: int) -> float:
    """The c of ``sum(min(1, c * s)) = k``, for k < N.

    The sum is concave in c: Newton's steps from the left never pass the solution, and they end when
    no further example reaches 1.
    """
    capped, scale = -1, 0.0
    while True:
        reached, rest = 0, 0.0
        for _, part in _doubles(scores):
            raised = part.clamp_(min=least)
            below = raised * scale < 1
            reached += len(part) - int(below.count_nonzero())
            rest += float(raised[below].sum())
        if reached <= capped or reached >= k:
            return scale
        capped, scale = reached, (k - reached) / rest


def _systematic(scores: Tensor, least: float, scale: float, k: int, key: int) -> Tensor:
    """Those k examples in whose stretch of [0, k], laid out in random order, a point u + i lies.

    An example's stretch is as long as its probability, so it holds a point with that probability,
    and none two.
    """
    order = Permutation(len(scores), fold(key, "order"))
    first = float(torch.rand((), generator=generator(fold(key, "start")), dtype=torch.float64))
    mask = torch.zeros_like(scores, dtype=torch.bool)
    end, passed = 0.0, 0
    for start in range(0, len(scores), CHUNK):
        stop = min(start + CHUNK, len(scores))
        index = order(torch.arange(start, stop, device=scores.device))
        ends = _odds(scores[index].double(), least, scale).cumsum_(0).add_(end)
        end = float(ends[-1])
        if stop == len(scores):
            ends[-1] = k  # but for what was lost in rounding
        points = (ends - first).ceil_().clamp_(0, k).long()  # that lie before each end
        before = torch.cat([points.new_tensor([passed]), points[:-1]])
        passed = int(points[-1])
        mask[index[points > before]] = True
    return mask


def _check_share(what: str, share: float) -> None:
    if not 0 < share <= 1:
        raise ValueError(f"{what} is a share in (0, 1], got {share}")
