"""Rules made of rules, by hand and by frequency; keys are fixed, so every frequency is too."""

import itertools
from collections import Counter

import pytest
import torch

from attent.pipeline import count, generator, hard, random, refined, run, select
from attent.pipeline.refined import balanced, blended, easy, trimmed, within
from attent.pipeline.rules import Rule
from attent.pipeline.task import bare_state
from tests.pipeline.choosing import assert_takes_29

NINE = torch.tensor([0.3, -1.0, 0.9, 0.1, 0.5, 0.8, 0.2, 0.7, 0.6])
CLASSES = torch.tensor([7, 7, 7, 7, 7, 7, -2, -2, 4])  # six, two, one

pytestmark = pytest.mark.usefixtures("one_thread")


def chosen(rule, scores, ratio, key=0) -> list[int]:
    return rule.choose(scores, ratio, key)[0].nonzero().squeeze(1).tolist()


def doubled() -> Rule:
    """`hard`, with ten times the score as the weight of what it chooses."""

    def choose(scores, ratio, key):
        mask = hard().choose(scores, ratio, key)[0]
        return mask, torch.where(mask, 10 * scores, 1.0)

    return Rule(name="doubled", choose=choose)


GROUPS = torch.arange(100) % 7
RULES = [
    easy(),
    trimmed(hard(), 0.1),
    trimmed(random(), 0.1),
    within(GROUPS, random()),
    within(GROUPS, random(), "equal"),
    balanced(GROUPS),
    blended(hard(), 0.3),
    blended(random(), 0.3),
]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_every_rule(rule):
    scores = torch.randn(100, generator=generator(2))
    mask = assert_takes_29(rule, scores)
    assert rule.redraws == (not torch.equal(mask, rule.choose(scores, 0.29, 12)[0]))


def test_easy_is_the_smallest():
    # floor(1/3 * 9) = 3: -1.0, 0.1, 0.2.
    assert chosen(easy(), NINE, 1 / 3) == [1, 3, 6]


def test_trimmed_never_takes_the_highest():
    # floor(0.25 * 9) = 2 are set aside, 0.9 and 0.8; of all 9, 4 are wanted: 0.7 0.6 0.5 0.3.
    assert chosen(trimmed(hard(), 0.25), NINE, 0.5) == [0, 4, 7, 8]
    # Seven are left: a ratio of 0.8 wants 7, which is all of them.
    left = [0, 1, 3, 4, 6, 7, 8]
    assert chosen(trimmed(hard(), 0.25), NINE, 0.8) == left
    assert chosen(trimmed(easy(), 0.25), NINE, 1.0) == left
    # floor(0.1 * 9) = 0: the rule itself.
    assert chosen(trimmed(hard(), 0.1), NINE, 0.2) == [2]


def test_trimmed_hands_on_weights():
    mask, weight = trimmed(doubled(), 0.25).choose(NINE, 0.3, 0)
    assert mask.nonzero().squeeze(1).tolist() == [7, 8]
    assert weight is not None
    assert weight.tolist() == pytest.approx([1, 1, 1, 1, 1, 1, 1, 7, 6])


def test_trimmed_asks_for_scores_whatever_the_rule():
    assert not random().uses_scores
    assert trimmed(random(), 0.1).uses_scores
    # 8 of the 9 are as likely as each other: 3 of 8, 0.9 never.
    taken = torch.stack([trimmed(random(), 0.15).choose(NINE, 0.34, key)[0] for key in range(1600)])
    assert int(taken[:, 2].sum()) == 0
    # 1600 * 3/8 = 600, standard deviation sqrt(1600 * 3/8 * 5/8) = 19.4; five are 97.
    others = taken.sum(0)[[0, 1, 3, 4, 5, 6, 7, 8]]
    assert (others - 600).abs().max() < 97


def test_within_in_proportion():
    # A third of 6, 2 and 1 is 2, 2/3, 1/3; three in all, so the 2/3 is rounded up.
    assert chosen(within(CLASSES, hard()), NINE, 1 / 3) == [2, 5, 7]
    # 4 of 9: 24/9 = 2 6/9, 8/9, 4/9. Down: 2, 0, 0; two more by 8/9 and 6/9: 3, 1, 0.
    assert chosen(within(CLASSES, hard()), NINE, 0.45) == [2, 4, 5, 7]
    # 5 of 9: 3 3/9, 1 1/9, 5/9: 3, 1, 1.
    assert chosen(within(CLASSES, easy()), NINE, 0.56) == [0, 1, 3, 6, 8]


def test_equal_remainders_are_the_keys():
    # One of four groups of one: 1/4 each. 2000/4 = 500, sd 19.4; five are 97.
    rule = within(torch.arange(4), hard())
    taken = Counter(chosen(rule, torch.arange(4.0), 0.25, key)[0] for key in range(2000))
    assert all(abs(taken[i] - 500) < 97 for i in range(4))


@pytest.mark.parametrize(
    ("k", "quotas"),
    [
        (3, (1, 1, 1)),
        (5, (2, 2, 1)),  # the one cannot fill its 5/3, nor the two more than 2
        (7, (4, 2, 1)),
        (9, (6, 2, 1)),
    ],
)
def test_equal_quotas_without_repeats(k, quotas):
    rule = within(CLASSES, hard(), "equal")
    found = chosen(rule, NINE, k / 9)
    of = {7: [2, 5, 4, 0, 3, 1], -2: [7, 6], 4: [8]}  # each class, the highest first
    expected = [of[c][:q] for c, q in zip([7, -2, 4], quotas, strict=True)]
    assert found == sorted(itertools.chain(*expected))


def test_the_odd_ones_of_equal_quotas_are_the_keys():
    # 4 over groups of 6, 2, 1: one each, and the fourth to the six or the two, evenly.
    rule = within(CLASSES, hard(), "equal")
    draws = [chosen(rule, NINE, 4 / 9, key) for key in range(900)]
    sixes = sum(draw[1] < 6 for draw in draws)
    assert abs(sixes - 450) < 75  # standard deviation sqrt(900 / 4) = 15


@pytest.mark.parametrize("quota", ["proportional", "equal"])
@pytest.mark.parametrize("ratio", [0.001, 0.137, 0.29, 0.5, 0.93, 0.9999])
def test_quotas_sum_to_k(quota, ratio):
    groups = (torch.rand(5000, generator=generator(3)) ** 3 * 40).long()
    scores = torch.randn(5000, generator=generator(4))
    mask, _ = within(groups, hard(), quota).choose(scores, ratio, 5)
    assert int(mask.sum()) == count(ratio, 5000)
    of_each, sizes = groups[mask].bincount(minlength=40), groups.bincount(minlength=40)
    if quota == "proportional":
        assert ((of_each - sizes * ratio).abs() < 1.001).all()
    else:  # whole, or as many as the others but for one
        part = of_each[of_each < sizes]
        assert int(part.max() - part.min()) <= 1
        assert (of_each[of_each == sizes] <= int(part.max())).all()
    # In each group the highest.
    for group in range(40):
        inside = groups == group
        if 0 < of_each[group] < sizes[group]:
            assert scores[inside & mask].min() > scores[inside & ~mask].max()


def test_within_hands_on_weights():
    mask, weight = within(CLASSES, doubled(), "equal").choose(NINE, 1 / 3, 0)
    assert mask.nonzero().squeeze(1).tolist() == [2, 7, 8]
    assert weight is not None
    assert weight.tolist() == pytest.approx([1, 1, 9, 1, 1, 1, 1, 7, 6])


def test_balanced_needs_no_scores():
    rule = balanced(CLASSES)
    assert not rule.uses_scores
    assert "balanced" in rule.name
    # 4 as 2 of six, 1 of two, 1 of one, or 1, 2, 1, evenly: 1.5/6 = 1/4 of each of the six, and
    # 1.5/2 = 3/4 of each of the two. 2000/4 = 500, sd 19.4.
    taken = torch.stack([rule.choose(torch.zeros(9), 4 / 9, key)[0] for key in range(2000)]).sum(0)
    expected = torch.tensor([500] * 6 + [1500] * 2 + [2000])
    assert (taken - expected).abs().max() < 97
    assert int(taken[8]) == 2000


def test_groups_of_others_are_refused():
    message = "has groups of 9 examples and was given scores of 8: .* put within.* outermost"
    with pytest.raises(ValueError, match=message):
        trimmed(within(CLASSES, hard()), 0.15).choose(NINE, 0.5, 0)
    # The other way round it goes: of the six the highest is set aside, of two and one none.
    rule = within(CLASSES, trimmed(hard(), 0.2))
    assert chosen(rule, NINE, 1 / 3) == [4, 5, 7]


def test_blended_takes_a_share_at_random():
    # 4 of 9, floor(0.5 * 4) = 2 at random from the 7 that are not the highest two.
    taken = torch.stack([blended(hard(), 0.5).choose(NINE, 0.45, key)[0] for key in range(1400)])
    assert (taken.sum(1) == 4).all()
    assert taken[:, [2, 5]].all()
    # 1400 * 2/7 = 400, standard deviation sqrt(1400 * 2/7 * 5/7) = 16.9; five are 85.
    rest = taken.sum(0)[[0, 1, 3, 4, 6, 7, 8]]
    assert (rest - 400).abs().max() < 85
    # floor(0.2 * 4) = 0: the rule itself, whatever the key.
    assert chosen(blended(hard(), 0.2), NINE, 0.45, 3) == [2, 5, 7, 8]


def test_blended_keeps_weights_and_gives_ones():
    mask, weight = blended(doubled(), 0.5).choose(NINE, 0.45, 0)
    assert weight is not None
    assert int(mask.sum()) == 4
    assert weight[mask].sort().values.tolist() == pytest.approx([1, 1, 8, 9])


def test_blended_with_a_rule_that_takes_nearly_all():
    def greedy(scores, ratio, key):
        return scores > -0.5, None

    # It leaves one of 9; of the two wanted at random there is one.
    rule = blended(Rule(name="greedy", choose=greedy), 0.5)
    assert chosen(rule, NINE, 0.45) == list(range(9))
    everything = Rule(name="all", choose=lambda s, r, k: (torch.ones_like(s).bool(), None))
    assert chosen(blended(everything, 0.5), NINE, 0.45) == list(range(9))


def test_blended_asks_for_scores_as_the_rule_does():
    assert blended(hard(), 0.5).uses_scores
    assert not blended(random(), 0.5).uses_scores


def test_chunks_change_nothing(monkeypatch):
    scores = torch.randn(50, generator=generator(5))
    whole = [blended(hard(), 0.5).choose(scores, 0.5, key)[0] for key in range(3)]
    monkeypatch.setattr(refined, "CHUNK", 7)
    for key, mask in enumerate(whole):
        assert torch.equal(blended(hard(), 0.5).choose(scores, 0.5, key)[0], mask)


def test_selected_by_the_stage():
    state = bare_state(9)
    state["plan", "ratio"] = torch.tensor(1 / 3, dtype=torch.float64)
    state["scores", "loss"] = NINE.clone()
    state["scores", "step"] = torch.zeros(9, dtype=torch.int32)
    after = run(select(within(CLASSES, doubled(), "equal")), state)
    assert after["mask"].nonzero().squeeze(1).tolist() == [2, 7, 8]
    assert after["weight"].tolist() == pytest.approx([1, 1, 9, 1, 1, 1, 1, 7, 6])
    assert int(after["plan", "size"]) == 3


@pytest.mark.parametrize("share", [0.0, 1.0, -0.1, float("nan")])
def test_shares_out_of_range(share):
    with pytest.raises(ValueError, match=r"trimmed: top is a share in \(0, 1\), got"):
        trimmed(hard(), share)
    with pytest.raises(ValueError, match=r"blended: explore is a share in \(0, 1\), got"):
        blended(hard(), share)


@pytest.mark.parametrize(
    "groups", [torch.zeros(3), torch.zeros(3, 2).long(), torch.zeros(0).long(), torch.ones(3) > 0]
)
def test_groups_that_are_none(groups):
    with pytest.raises(ValueError, match="groups are whole numbers of"):
        within(groups, hard())


def test_a_quota_there_is_not():
    with pytest.raises(ValueError, match="quota is 'proportional' or 'equal', not 'even'"):
        within(CLASSES, hard(), "even")  # type: ignore[arg-type]
