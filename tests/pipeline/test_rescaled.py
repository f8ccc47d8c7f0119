"""Rules with weights, by hand and by frequency; keys are fixed, so every frequency is too."""

import pytest
import torch

from attent.pipeline import generator, hard, random, rescaled, run, select
from attent.pipeline.refined import trimmed, within
from attent.pipeline.rescaled import concentrated, importance, infobatch, participation
from attent.pipeline.task import bare_state
from tests.pipeline.choosing import masks

pytestmark = pytest.mark.usefixtures("one_thread")


def weighed(rule, scores, ratio, key=0) -> tuple[torch.Tensor, torch.Tensor]:
    mask, weight = rule.choose(scores, ratio, key)
    assert weight is not None
    assert weight.dtype == torch.float32
    return mask, weight


def weights(rule, scores, ratio) -> list[float]:
    return weighed(rule, scores, ratio)[1].tolist()


RULES = [infobatch(), importance(), concentrated(hard(), 0.1, 0.5), concentrated(random(), 0.1, 1)]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_every_rule(rule):
    scores = torch.rand(100, generator=generator(2))
    before = scores.clone()
    mask, weight = rule.choose(scores, 0.29, 11)
    assert (mask.dtype, mask.shape) == (torch.bool, (100,))
    assert torch.equal(scores, before)
    again, same = rule.choose(scores, 0.29, 11)
    assert torch.equal(mask, again)
    assert (weight is None) == (same is None)
    assert weight is None or (torch.equal(weight, same) and bool((weight > 0).all()))
    assert rule.redraws == (not torch.equal(mask, rule.choose(scores, 0.29, 12)[0]))
    assert rule.uses_scores


# Of mean 16 / 8 = 2: above or at it 2, 6 and 3; five below.
EIGHT = torch.tensor([1.0, 2.0, 0.5, 6.0, 1.5, 1.0, 3.0, 1.0])
AT_LEAST_MEAN, BELOW = [1, 3, 6], [0, 2, 4, 5, 7]


def test_infobatch_by_hand():
    # floor(0.5 * 5) = 2 of the five, with weight 2.
    for ratio in (0.1, 0.9):  # not asked
        taken = masks(infobatch(), EIGHT, ratio, 1500)
        assert taken[:, AT_LEAST_MEAN].all()
        assert (taken[:, BELOW].sum(1) == 2).all()
        # 1500 * 2/5 = 600, standard deviation sqrt(1500 * 2/5 * 3/5) = 19; five are 95.
        assert (taken[:, BELOW].sum(0) - 600).abs().max() < 95
    assert weights(infobatch(), EIGHT, 0.5) == [2, 1, 2, 1, 2, 2, 1, 2]
    # floor(0.2 * 5) = 1, with weight 5, and floor(0.1 * 5) = 0.
    assert masks(infobatch(0.2), EIGHT, 0.5, 5).sum(1).tolist() == [4] * 5
    assert weights(infobatch(0.2), EIGHT, 0.5) == [5, 1, 5, 1, 5, 5, 1, 5]
    assert masks(infobatch(0.1), EIGHT, 0.5, 1)[0].nonzero().squeeze(1).tolist() == AT_LEAST_MEAN


def test_infobatch_of_equal_scores_is_everything():
    for score in (0.0, 0.1, -3.7, 1e30):
        mask, weight = infobatch().choose(torch.full((1000,), score), 0.5, 0)
        assert bool(mask.all())
        assert bool((weight == 1).all())


def test_the_mean_is_not_rounded_to_float32():
    # The mean is 1 + 2^-24, which float32 rounds to 1: then 1 would be at the mean, and kept.
    scores = torch.tensor([1.0, 1 + 2**-23])
    assert infobatch().choose(scores, 0.5, 0)[0].tolist() == [False, True]


def test_infobatch_keeps_the_mean_of_what_it_stands_for():
    scores = torch.rand(1000, generator=generator(3))
    below = scores < scores.double().mean()
    values = torch.randn(1000, generator=generator(4)).double()
    mask, weight = weighed(infobatch(0.25), scores, 0.5, 5)
    n = int(below.sum())
    assert int((mask & below).sum()) == int(0.25 * n)
    estimate = (weight * values)[mask & below].sum()
    # A quarter of n at weight 4: standard deviation 4 * sqrt(n / 4 * 3 / 4) * sd = sqrt(3 n) * 1.
    assert (estimate - values[below].sum()).abs() < 4 * (3 * n) ** 0.5


def test_importance_by_hand():
    # k = 2; c = 2 / 16 makes 10 more than 1; then c = 1 / 6: 1/6, 1/3, 1/2, 1.
    scores, rule = torch.tensor([1.0, 2.0, 3.0, 10.0]), importance(0.01)
    taken = masks(rule, scores, 0.5, 1800)
    assert (taken.sum(1) == 2).all()
    # Of 1800: 300, 600, 900, all; standard deviations at most sqrt(1800 / 4) = 21.2; five are 106.
    assert (taken.sum(0) - torch.tensor([300, 600, 900, 1800])).abs().max() < 106
    assert int(taken[:, 3].sum()) == 1800
    # (k / N) / p = 0.5 / p.
    assert weights(rule, scores, 0.5) == pytest.approx([3, 1.5, 1, 0.5])


def test_importance_caps_one_after_another():
    # k = 3; c = 3 / 39 caps the 30; c = 2 / 9 caps the 6 too; c = 1 / 3: 1/3, 2/3, 1, 1.
    scores = torch.tensor([6.0, 1.0, 30.0, 2.0])
    assert weights(importance(0.01), scores, 0.75) == pytest.approx([0.75, 2.25, 0.75, 1.125])
    taken = masks(importance(0.01), scores, 0.75, 900)
    assert taken[:, [0, 2]].all()
    # 300 of 900, standard deviation sqrt(900 * 2/9) = 14.1; five are 71.
    assert abs(int(taken[:, 1].sum()) - 300) < 71
    assert (taken[:, 1] ^ taken[:, 3]).all()


def test_importance_has_a_floor():
    # Mean 1, so the zeros count as 0.5; k = 2: c = 2 / 5.5 caps the 4, then 1 / 1.5: 1/3 each.
    scores = torch.tensor([0.0, 0.0, 0.0, 4.0])
    assert weights(importance(0.5), scores, 0.5) == pytest.approx([1.5, 1.5, 1.5, 0.5])
    # All zero: 1/2 each.
    assert weights(importance(), torch.zeros(4), 0.5) == [1, 1, 1, 1]
    assert int(importance().choose(torch.zeros(4), 0.5, 0)[0].sum()) == 2


@pytest.mark.parametrize("ratio", [0.01, 0.3, 0.77, 0.999])
@pytest.mark.parametrize("shape", ["uniform", "heavy", "equal", "extreme"])
def test_importance_takes_k_and_bounds_weights(ratio, shape):
    u = torch.rand(5000, generator=generator(6))
    scores = {
        "uniform": u,
        "heavy": (1 - u) ** -2,
        "equal": torch.ones(5000),
        "extreme": torch.where(u < 0.01, 3e38, 1e-40),
    }[shape]
    for key in range(3):
        mask, weight = weighed(importance(0.1), scores, ratio, key)
        assert int(mask.sum()) == int(5000 * ratio + 1e-6)
        odds = mask.double().mean() / weight.double()
        assert float(odds.sum()) == pytest.approx(5000 * ratio, rel=1e-4)
        assert float(weight.max()) <= 1.1 / 0.1 * (1 + 1e-6)


def test_importance_is_unbiased():
    scores = torch.rand(50, generator=generator(7))
    values = scores * 3 + torch.rand(50, generator=generator(8))
    sums = []
    for key in range(600):
        mask, weight = weighed(importance(), scores, 0.2, key)
        sums.append(float((weight * values)[mask].sum()))
    drawn = torch.tensor(sums).double()
    # A fifth of the sum over all, within five standard errors.
    error = float(drawn.mean()) - 0.2 * float(values.sum())
    assert abs(error) < 5 * float(drawn.std()) / 600**0.5
    # The order in which stretches are laid out is another for each key: neighbours come together.
    taken = masks(importance(), torch.ones(4), 0.5, 300)
    assert len({tuple(row.tolist()) for row in taken}) == 6


def test_importance_of_all_is_all():
    mask, weight = importance().choose(torch.tensor([1.0, 2.0]), 1.0, 0)
    assert mask.tolist() == [True, True]
    assert weight is None


def test_participation_by_hand():
    assert participation(torch.ones(5)) == 1
    assert participation(torch.tensor([0.0, 4.0, 0.0, 0.0])) == 0.25
    assert participation(torch.tensor([2.0, 2.0, 0.0, 0.0])) == 0.5
    assert participation(torch.tensor([3.0, 1.0, 0.0, 0.0])) == 16 / (4 * 10)
    assert participation(torch.zeros(3)) == 1
    assert participation(torch.tensor([3e38, 0.0])) == 0.5  # its square is no float32


def test_concentrated_chooses_by_concentration():
    scores = torch.tensor([3.0, 1.0, 0.0, 0.0]).repeat(5)  # 0.4 of 20 is 8
    for ratio in (0.1, 0.9):  # not asked
        assert int(concentrated(hard(), 0.2, 0.8).choose(scores, ratio, 0)[0].sum()) == 8
    assert int(concentrated(hard(), 0.5, 0.8).choose(scores, 0.1, 0)[0].sum()) == 10
    assert int(concentrated(hard(), 0.1, 0.3).choose(scores, 0.9, 0)[0].sum()) == 6
    assert bool(concentrated(hard(), 0.1, 1.0).choose(torch.ones(20), 0.5, 0)[0].all())


def test_concentrated_needs_scores_whatever_the_rule():
    assert concentrated(random(), 0.1, 0.5).uses_scores


def test_with_rules_made_of_rules():
    # Within each class its own mean: 1 and 2 of [1, 2, 0.5, 6], ...; floor(0.5 * 3) = 1 of 3 below.
    classes = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1])
    mask, weight = weighed(within(classes, infobatch()), EIGHT, 0.5)
    # Means 9.5 / 4 = 2.375 and 6.5 / 4 = 1.625: above are 6 and 3.
    assert mask[[3, 6]].all()
    assert mask.view(2, 4).sum(1).tolist() == [2, 2]
    assert weight.tolist() == [2, 2, 2, 1, 2, 2, 1, 2]
    # Without the highest, 6, the mean is 10 / 7: 2, 1.5 and 3 are above it; 4 below, of which 2.
    mask, weight = weighed(trimmed(infobatch(), 0.125), EIGHT, 0.5)
    assert mask[[1, 4, 6]].all()
    assert not mask[3]
    assert int(mask.sum()) == 5
    assert weight.tolist() == [2, 1, 2, 1, 1, 2, 1, 2]


@pytest.mark.parametrize("rule", [infobatch(), importance(), concentrated(random(), 0.1, 0.5)])
def test_chunks_change_nothing(monkeypatch, rule):
    scores = torch.randint(0, 64, (50,), generator=generator(5)) / 16.0  # sums are exact
    whole = [rule.choose(scores, 0.5, key) for key in range(3)]
    monkeypatch.setattr(rescaled, "CHUNK", 7)
    for key, (mask, weight) in enumerate(whole):
        again, same = rule.choose(scores, 0.5, key)
        assert torch.equal(again, mask)
        assert (weight is None) == (same is None)
        if weight is not None and same is not None:
            assert torch.equal(weight, same)


def test_selected_by_the_stage():
    state = bare_state(4)
    state["plan", "ratio"] = torch.tensor(0.5, dtype=torch.float64)
    state["scores", "loss"] = torch.tensor([1.0, 2.0, 3.0, 10.0])
    state["scores", "step"] = torch.zeros(4, dtype=torch.int32)
    after = run(select(importance(0.01)), state)
    assert after["weight"].tolist() == pytest.approx([3, 1.5, 1, 0.5])
    assert int(after["plan", "size"]) == 2
    # At a ratio of 1 no rule is asked: everything, with weight 1.
    state["plan", "ratio"] = torch.tensor(1.0, dtype=torch.float64)
    after = run(select(infobatch()), state)
    assert after["mask"].tolist() == [True] * 4
    assert after["weight"].tolist() == [1] * 4


@pytest.mark.parametrize("share", [0.0, 1.5, -0.1, float("nan")])
def test_shares_out_of_range(share):
    with pytest.raises(ValueError, match=r"infobatch: keep is a share in \(0, 1\], got"):
        infobatch(share)
    with pytest.raises(ValueError, match=r"importance: floor is a share in \(0, 1\], got"):
        importance(share)
    with pytest.raises(ValueError, match=r"concentrated: smallest is a share in \(0, 1\], got"):
        concentrated(hard(), share, 0.5)
    with pytest.raises(ValueError, match=r"concentrated: largest is a share in \(0, 1\], got"):
        concentrated(hard(), 0.5, share)


def test_ratios_the_wrong_way_round():
    with pytest.raises(
        ValueError, match=r"concentrated: largest \(0.2\) is below smallest \(0.5\)"
    ):
        concentrated(hard(), 0.5, 0.2)


@pytest.mark.parametrize("rule", [importance(), concentrated(hard(), 0.1, 0.5)])
def test_scores_below_zero_are_refused(rule):
    with pytest.raises(ValueError, match="needs scores of at least 0, and that of example 1 is -2"):
        rule.choose(torch.tensor([1.0, -2.0, 3.0]), 0.5, 0)
