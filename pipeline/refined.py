"""Rules made of rules: the easiest, all but the highest, within groups, with some at random.

Each is a `Rule` for `select`. What they cost is said beside scoring, in passes over N scores; the
arithmetic is the engine's, in forwards of one example: training on it is 3, a loss is 1.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from attent.pipeline.keyed import fold, generator
from attent.pipeline.rules import Rule, random
from attent.pipeline.threshold import CHUNK, count, top_k_mask

Quota = Literal["proportional", "equal"]


def easy() -> Rule:
    """The k examples with the smallest scores; equal ones in the key's order.

    **What.** Self-paced learning as its implementations have it: the easiest k by loss, more of
    them from cycle to cycle (`attent.pipeline.schedules.geometric` or `incremental`). The paper
    takes those below a threshold that grows; k says the same by number.

    **Cost.** One scoring each time it is asked; there is no gain from repeating what is learned
    but the examples left out.

    **When it pays.** Wrong labels, broken examples: they have the highest losses, and come last or,
    where the ratio ends below 1, never.

    **When it fails.** Hard examples that are right, and rare classes, are starved just as noise is;
    what has a small loss has little left to teach. End at a ratio of 1 unless noise is the reason.

    References:
        Kumar, Packer, Koller: Self-Paced Learning for Latent Variable Models. NeurIPS 2010.
    """

    def choose(scores: Tensor, ratio: float, key: int) -> tuple[Tensor, None]:
        return top_k_mask(-scores, count(ratio, len(scores)), key), None

    return Rule(name="easy", choose=choose)


def trimmed(rule: Rule, top: float) -> Rule:
    """A rule that is never shown the highest scores, which are suspected to be noise.

    **What.** The ``floor(top * N)`` highest scores are set aside; the rule chooses of the rest so
    many that they are ``count(ratio, N)``, the ratio's share of *all*. Where the rest is no more
    than that (a ratio above 1 - top), it is all chosen, and the rule is not asked: fewer are then
    trained on than the ratio says. At a ratio of 1 `select` takes everything and asks no rule, so a
    full pass has the noise in it.

    **Cost.** One more pass over the scores, and a copy of them.

    **When it pays.** A share of wrong labels that is known, roughly, and scores by which they stand
    out: not before the model knows the easy examples.

    **When it fails.** On clean data the highest scores are the hardest examples, and whole rare
    classes are among them: use it `within` the classes then. With ``top`` below the noise, what is
    left of it still leads.

    Args:
        rule: chooses of the rest.
        top: the share set aside, in (0, 1).

    Raises:
        ValueError: a share out of range.

    References:
        Shen, Sanghavi: Learning with Bad Training Data via Iterative Trimmed Loss Minimization.
        ICML 2019. Paul, Ganguli, Dziugaite: Deep Learning on a Data Diet. NeurIPS 2021, which
        leaves out the highest scores too where labels are noisy.
    """
    if not 0 < top < 1:
        raise ValueError(f"trimmed: top is a share in (0, 1), got {top}")

    def choose(scores: Tensor, ratio: float, key: int) -> tuple[Tensor, Tensor | None]:
        wanted, aside = count(ratio, len(scores)), int(top * len(scores) + 1e-6)
        if aside == 0:
            return rule.choose(scores, ratio, key)
        left = ~top_k_mask(scores, aside, fold(key, "trimmed"))
        if wanted >= len(scores) - aside:
            return left, None
        # The share of the rest, not rounded: `count` finds the same whole number again.
        share = wanted / (len(scores) - aside)
        chosen, weight = rule.choose(scores.masked_select(left), share, key)
        if weight is not None:
            weight = torch.ones_like(scores).masked_scatter_(left, weight)
        return left.clone().masked_scatter_(left, chosen), weight

    name = f"{rule.name} without the top {top:g}"
    return Rule(name=name, choose=choose, redraws=rule.redraws)


def within(groups: Tensor, rule: Rule, quota: Quota = "proportional") -> Rule:
    """A rule that chooses within each group alone: class by class, stratum by stratum.

    **What.** Of G groups, each has a quota; they sum to ``count(ratio, N)`` exactly, and the rule
    is run on each group's scores with its quota as the ratio.

    - ``proportional``: ``ratio`` of each group, rounded down; what is missing goes to the groups
      with the largest remainders.
    - ``equal``: the same number of each, without repeats. A group that is smaller than that is
      taken whole, and what it cannot fill is shared among the others.

    Which of several groups in the same position get the odd one, the key decides.

    **Cost.** One sort of the groups when it is made, 8 bytes an example for the order, and the rule
    once a group: in time the number of groups, not only N.

    **When it pays.** Scores that differ between classes more than within them: without groups, the
    highest losses are those of a few classes. ``equal`` counters imbalance as class-balanced
    sampling does, with the rule's choice of whom.

    **When it fails.** ``equal`` trains on another class prior than the data's: probabilities are
    off until they are corrected for it, and small groups come in every selection, so that they are
    seen most often. Noise in the labels is noise in the groups. With more groups than k, some have
    none.

    Args:
        groups: ``[N]`` integers of any values, one of each example: its class.
        rule: chooses within a group; one that asks for no ratio has no quota.
        quota: ``proportional`` or ``equal``.

    Raises:
        ValueError: groups that are not whole numbers of ``[N]``, an unknown quota; in ``choose``,
            scores of another number of examples.

    References:
        Kang et al.: Decoupling Representation and Classifier for Long-Tailed Recognition. ICLR
        2020 (class-balanced sampling). Zheng et al.: Coverage-centric Coreset Selection for High
        Pruning Rates. ICLR 2023 (equal quotas that small strata pass on).
    """
    if groups.ndim != 1 or len(groups) == 0 or _not_whole(groups):
        raise ValueError(
            f"groups are whole numbers of [N], one of each example, not {groups.dtype} "
            f"{list(groups.shape)}"
        )
    if quota not in ("proportional", "equal"):
        raise ValueError(f"quota is 'proportional' or 'equal', not {quota!r}")
    order = groups.argsort(stable=True)
    sizes = groups[order].unique_consecutive(return_counts=True)[1].cpu()
    share_out = _proportional if quota == "proportional" else _equal

    def choose(scores: Tensor, ratio: float, key: int) -> tuple[Tensor, Tensor | None]:
        if len(scores) != len(order):
            raise ValueError(
                f"rule {name!r} has groups of {len(order):,} examples and was given scores of "
                f"{len(scores):,}: it needs those of all, so put within(...) outermost"
            )
        draw = generator(fold(key, "odd ones"))
        quotas = share_out(sizes, count(ratio, len(scores)), draw)
        mask, weight, end = torch.zeros_like(scores, dtype=torch.bool), None, 0
        for group, (size, wanted) in enumerate(zip(sizes.tolist(), quotas.tolist(), strict=True)):
            members = order[end : (end := end + size)].to(scores.device)
            if wanted == 0:
                continue
            chosen, rescaled = rule.choose(
                scores[members], wanted / size, fold(key, "group", group)
            )
            mask[members] = chosen
            if rescaled is not None:
                weight = torch.ones_like(scores) if weight is None else weight
                weight[members] = rescaled
        return mask, weight

    name = f"{rule.name} within {len(sizes):,} groups ({quota})"
    return replace(rule, name=name, choose=choose)


def balanced(groups: Tensor) -> Rule:
    """As many random examples of each group, without repeats: class-balanced sampling, no scores.

    `within` with equal quotas and `random`; its card holds, and there is nothing to measure. What a
    rule of scores gains on imbalanced data is to be held against this.

    Args:
        groups: ``[N]`` integers, one of each example: its class.

    Raises:
        ValueError: groups that are not whole numbers of ``[N]``.
    """
    rule = within(groups, random(), "equal")
    return replace(rule, name=rule.name.replace("random", "balanced"))


def blended(rule: Rule, explore: float) -> Rule:
    """A rule for most of the k, and a share of them at random from what it leaves.

    **What.** Of ``k = count(ratio, N)``, ``floor(explore * k)`` are drawn uniformly from what the
    rule did not choose when it was asked for the others. They have weight 1.

    **Cost.** One more pass over N random numbers.

    **When it pays.** Scores that are only renewed where an example was trained on (``observe``):
    without it, what is left out once keeps its old score. Rules of the highest scores, which see
    one end of the data: a share at random keeps the rest from being forgotten.

    **When it fails.** The share is plain training on fewer examples, and gains what that gains. It
    takes no noise out of the rest.

    Args:
        rule: chooses the others.
        explore: the share at random, in (0, 1).

    Raises:
        ValueError: a share out of range.

    References:
        Sutton, Barto: Reinforcement Learning, section 2.2 (epsilon-greedy choice).
    """
    if not 0 < explore < 1:
        raise ValueError(f"blended: explore is a share in (0, 1), got {explore}")

    def choose(scores: Tensor, ratio: float, key: int) -> tuple[Tensor, Tensor | None]:
        wanted = count(ratio, len(scores))
        strangers = int(explore * wanted + 1e-6)
        mask, weight = rule.choose(scores, (wanted - strangers) / len(scores), key)
        # Of a rule that does not ask for the ratio, fewer may be left.
        strangers = min(strangers, len(scores) - int(mask.count_nonzero()))
        if strangers == 0:
            return mask, weight
        added = uniformly(~mask, strangers, fold(key, "explore"))
        if weight is not None:
            weight = weight.masked_fill(added, 1.0)
        return added.logical_or_(mask), weight

    return replace(rule, name=f"{rule.name}, {explore:g} at random", choose=choose, redraws=True)


def uniformly(among: Tensor, k: int, key: int) -> Tensor:
    """A uniformly random k of the examples that are True.

    Args:
        among: ``[N]`` bool, at least k of them True.
        k: at least 1.
        key: of the draw.

    Returns:
        ``[N]`` bool with k True.
    """
    noise = torch.rand(len(among), generator=generator(key, among.device), device=among.device)
    for part, open_to in zip(noise.split(CHUNK), among.split(CHUNK), strict=True):
        part.masked_fill_(~open_to, -1.0)
    return top_k_mask(noise, k, key)


def _not_whole(groups: Tensor) -> bool:
    return groups.dtype == torch.bool or groups.is_floating_point() or groups.is_complex()


def _proportional(sizes: Tensor, k: int, draw: torch.Generator) -> Tensor:
    """Quotas ``[G]`` in proportion to the sizes, k in all, by the largest remainders."""
    total = int(sizes.sum())
    quotas, remainders = sizes * k // total, sizes * k % total
    shuffled = torch.randperm(len(sizes), generator=draw)
    order = shuffled[remainders[shuffled].argsort(descending=True, stable=True)]
    quotas[order[: k - int(quotas.sum())]] += 1
    return quotas


def _equal(sizes: Tensor, k: int, draw: torch.Generator) -> Tensor:
    """Quotas ``[G]`` as equal as the sizes allow, k in all."""
    low, high = 0, int(sizes.max())
    while low < high:  # the highest level that k fills for every group
        level = (low + high + 1) // 2
        low, high = (level, high) if int(sizes.clamp(max=level).sum()) <= k else (low, level - 1)
    quotas = sizes.clamp(max=low)
    larger = (sizes > low).nonzero().squeeze(1)
    larger = larger[torch.randperm(len(larger), generator=draw)]
    quotas[larger[: k - int(quotas.sum())]] += 1
    return quotas
