"""Selection rules, by hand and by frequency; keys are fixed, so every frequency is too."""

import itertools

import pytest
import torch

from attent.pipeline import generator, hard, random, rules, soft
from tests.pipeline.choosing import assert_takes_29, masks

RULES = [hard(), random(), soft(0.5), soft(2.0, "sigmoid")]

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_every_rule(rule):
    scores = torch.randn(100, generator=generator(2))
    mask = assert_takes_29(rule, scores)
    # `redraws` tells a plan whether another key is another choice.
    assert rule.redraws == (not torch.equal(mask, rule.choose(scores, 0.29, 12)[0]))


def test_hard_is_the_largest():
    scores = torch.tensor([0.3, -1.0, 0.9, 0.1, 0.5])
    # floor(0.6 * 5) = 3: 0.9, 0.5, 0.3.
    assert hard().choose(scores, 0.6, 0)[0].tolist() == [True, False, True, False, True]


def test_random_ignores_scores():
    rule, scores = random(), torch.arange(50.0)
    assert not rule.uses_scores
    for key in range(5):
        same = rule.choose(-scores, 0.5, key)[0]
        assert torch.equal(rule.choose(scores, 0.5, key)[0], same)


def test_random_is_uniform():
    taken = masks(random(), torch.arange(8.0), 0.25, 2000).sum(0)
    # 2000 * 2/8 = 500, standard deviation sqrt(2000 * 1/4 * 3/4) = 19.4; five are 97.
    assert (taken - 500).abs().max() < 97


def test_temperature_matters():
    scores = torch.randn(200, generator=generator(3))
    cold, warm, hot = (soft(t).choose(scores, 0.25, 7)[0] for t in (0.01, 1.0, 100.0))
    for a, b in itertools.combinations([cold, warm, hot], 2):
        assert int((a ^ b).sum()) >= 10


def test_from_hard_to_random_by_temperature():
    # Steps of 0.3: at T = 0.01 they are 30 beside Gumbel noise of standard deviation 1.3; at
    # T = 100 all of them together are 0.027.
    scores = torch.arange(10) * 0.3
    best = hard().choose(scores, 0.3, 0)[0]
    cold, warm, hot = (masks(soft(t), scores, 0.3, 1000) for t in (0.01, 1.0, 100.0))
    assert bool((cold == best).all())
    # At T = 1 the larger are likelier, yet all of them are drawn.
    taken = warm.sum(0)
    assert 0 < taken[0] < taken[5] < taken[9] < 1000
    # At T = 100 each is drawn 1000 * 3/10 = 300 times, standard deviation sqrt(1000 * .3 * .7)
    # = 14.5; five are 72. The tilt of at most 1.4 % adds less than 5.
    assert (hot.sum(0) - 300).abs().max() < 77


@pytest.mark.parametrize("temperature", [0.5, 2.0])
@pytest.mark.parametrize("normalization", ["softmax", "sigmoid"])
def test_soft_draws_one_with_its_probability(normalization, temperature):
    scores = torch.tensor([-1.0, 0.5, 1.0])
    p = torch.softmax(scores, 0) if normalization == "softmax" else torch.sigmoid(scores)
    expected = p ** (1 / temperature) / (p ** (1 / temperature)).sum() * 1500
    taken = masks(soft(temperature, normalization), scores, 1 / 3, 1500).sum(0)
    # Chi-square of 2 degrees of freedom: above 18.4 with probability exp(-18.4 / 2) = 1e-4.
    assert ((taken - expected) ** 2 / expected).sum() < 18.4


def test_soft_draws_two_without_replacement():
    scores = torch.log(torch.tensor([1.0, 2.0, 5.0]))  # p = 1/8, 2/8, 5/8
    taken = masks(soft(1.0), scores, 2 / 3, 1500)
    left_out = (~taken).sum(0)
    # The pair {i, j} is drawn as i then j or j then i: p_i p_j / (1 - p_i) + p_j p_i / (1 - p_j).
    #   {1, 2}: 2/64 * (8/7 + 8/6) = 0.077381;  {0, 2}: 5/64 * (8/7 + 8/3) = 0.297619
    #   {1, 2} of the others: 10/64 * (8/6 + 8/3) = 0.625
    expected = 1500 * torch.tensor([0.625, 0.297619, 0.077381])
    assert ((left_out - expected) ** 2 / expected).sum() < 18.4


def test_softmax_is_invariant_to_a_shift():
    scores = torch.randint(0, 64, (100,), generator=generator(4)) / 16  # exact after the shift
    rule = soft(0.7)
    for key in range(5):
        same = rule.choose(scores + 1000, 0.3, key)[0]
        assert torch.equal(rule.choose(scores, 0.3, key)[0], same)


def test_sigmoid_saturates():
    # sigmoid(20) and sigmoid(40) are both 1 in float32: the choice between them is even, where
    # softmax would take the second with certainty (odds e^20).
    scores = torch.tensor([20.0, 40.0])
    taken = int(masks(soft(1.0, "sigmoid"), scores, 0.5, 400)[:, 1].sum())
    assert abs(taken - 200) < 50  # standard deviation sqrt(400 / 4) = 10
    assert bool(masks(soft(1.0), scores, 0.5, 400)[:, 1].all())


@pytest.mark.parametrize("scores", [[3e38, -3e38, 0.0], [1e-40, 0.0, -1e-40], [5.0, 5.0, 5.0]])
@pytest.mark.parametrize("temperature", [1e-30, 1.0, 1e30])
@pytest.mark.parametrize("normalization", ["softmax", "sigmoid"])
def test_soft_at_the_extremes(scores, temperature, normalization):
    rule = soft(temperature, normalization)
    for key in range(3):
        assert int(rule.choose(torch.tensor(scores), 2 / 3, key)[0].sum()) == 2


def test_a_temperature_below_float32_is_hard():
    # 1e-50 is 0 as a float32: dividing by it must not make 0 / 0 = NaN of the largest score.
    mask = soft(1e-50).choose(torch.tensor([1.0, 3.0, 2.0]), 1 / 3, 0)[0]
    assert mask.tolist() == [False, True, False]


def test_chunks_change_nothing(monkeypatch):
    scores = torch.randn(50, generator=generator(5))
    cases = [(soft(1.0), key) for key in range(3)] + [(soft(1.0, "sigmoid"), 0)]
    whole = [rule.choose(scores, 0.5, key)[0] for rule, key in cases]
    monkeypatch.setattr(rules, "CHUNK", 7)
    for (rule, key), mask in zip(cases, whole, strict=True):
        assert torch.equal(rule.choose(scores, 0.5, key)[0], mask)


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("inf"), float("nan")])
def test_bad_temperature(temperature):
    with pytest.raises(ValueError, match="temperature must be above 0 and finite, got"):
        soft(temperature)


def test_bad_normalization():
    with pytest.raises(ValueError, match="normalization is 'sigmoid' or 'softmax', not 'max'"):
        soft(normalization="max")  # type: ignore[arg-type]
