"""Published rules, by hand and by frequency; keys are fixed, so every frequency is too."""

import pytest
import torch

from attent.pipeline import bare_state, generator, hard, published, random, run, select
from attent.pipeline.keys import differences
from attent.pipeline.published import averaged, inverse, known_scores, percentile
from attent.pipeline.refined import trimmed, within
from tests.pipeline.choosing import assert_takes_29, masks

pytestmark = pytest.mark.usefixtures("one_thread")


def times(rule, scores, ratio, keys) -> torch.Tensor:
    """How often each example is taken, [N]."""
    return masks(rule, scores, ratio, keys).sum(0)


def agree(found, shares) -> None:
    """Of three counts; above 18.4 with probability exp(-18.4 / 2) = 1e-4."""
    expected = torch.tensor(shares, dtype=torch.float64)
    expected = expected / expected.sum() * found.sum()
    assert ((found - expected) ** 2 / expected).sum() < 18.4


RULES = [percentile(), percentile(3.0), inverse()]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_every_rule(rule):
    scores = torch.rand(100, generator=generator(2))
    mask = assert_takes_29(rule, scores)
    assert rule.redraws
    assert not torch.equal(mask, rule.choose(scores, 0.29, 12)[0])
    assert rule.uses_scores
    assert bool(rule.choose(scores, 1.0, 0)[0].all())


def test_percentile_draws_one_with_its_probability():
    # Percentiles 1/6, 3/6, 5/6; a third is kept, so the power is 2: 1, 9, 25 of 35.
    agree(times(percentile(), torch.tensor([0.1, 7.0, 0.3]), 1 / 3, 1500), [1, 25, 9])
    # Only the order counts, also of negative scores.
    agree(times(percentile(), torch.tensor([-9.0, 7e30, -8.9]), 1 / 3, 1500), [1, 25, 9])
    # A fixed power of 1: 1, 3, 5 of 9.
    agree(times(percentile(1.0), torch.tensor([0.1, 7.0, 0.3]), 1 / 3, 1500), [1, 5, 3])


def test_equal_scores_are_at_one_percentile():
    # (0 + 2 / 2) / 3 = 1/3 for the two, (2 + 1 / 2) / 3 = 5/6; squared 4, 4, 25 of 36.
    agree(times(percentile(), torch.tensor([2.0, 2.0, 3.0]), 1 / 3, 1500), [4, 4, 25])
    agree(times(percentile(), torch.zeros(3), 1 / 3, 1500), [1, 1, 1])


def test_percentile_draws_two_without_replacement():
    # Two thirds are kept, so the power is 1/2: odds of 1, sqrt 3, sqrt 5.
    odds = [1, 3**0.5, 5**0.5]
    p = [o / sum(odds) for o in odds]
    # {i, j} is drawn as i then j or j then i: p_i p_j / (1 - p_i) + p_j p_i / (1 - p_j).
    left_out = []
    for out in range(3):
        i, j = (a for a in range(3) if a != out)
        left_out.append(p[i] * p[j] * (1 / (1 - p[i]) + 1 / (1 - p[j])))
    assert sum(left_out) == pytest.approx(1)
    agree(1500 - times(percentile(), torch.tensor([0.1, 0.2, 0.3]), 2 / 3, 1500), left_out)


def test_inverse_draws_one_with_its_probability():
    # 1, 1/2, 1/4: 4, 2, 1 of 7.
    agree(times(inverse(), torch.tensor([1.0, 2.0, 4.0]), 1 / 3, 1500), [4, 2, 1])


def test_inverse_of_zero_comes_first():
    # Two of zero and two others: both of them, whatever the key; of one, each as often.
    scores = torch.tensor([0.0, 1.0, 0.0, 1e-3])
    assert times(inverse(), scores, 0.5, 300).tolist() == [300, 0, 300, 0]
    first = times(inverse(), scores, 0.25, 400)
    assert first[1] == first[3] == 0
    assert abs(int(first[0]) - 200) < 50  # standard deviation sqrt(400 / 4) = 10


def test_scores_below_zero_are_refused():
    with pytest.raises(ValueError, match="rule 'inverse' needs scores of at least 0, and that of"):
        inverse().choose(torch.tensor([1.0, -2.0]), 0.5, 0)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_chunks_change_nothing(monkeypatch, rule):
    scores = torch.rand(50, generator=generator(5))
    whole = [rule.choose(scores, 0.5, key)[0] for key in range(3)]
    monkeypatch.setattr(published, "CHUNK", 7)
    for key, mask in enumerate(whole):
        assert torch.equal(rule.choose(scores, 0.5, key)[0], mask)


def test_within_and_trimmed():
    scores = torch.rand(100, generator=generator(6))
    mask, _ = within(torch.arange(100) % 4, trimmed(percentile(), 0.2)).choose(scores, 0.4, 1)
    assert mask.view(25, 4).sum(0).tolist() == [10] * 4
    for group in range(4):
        own = scores.view(25, 4)[:, group]
        assert not mask.view(25, 4)[:, group][own.topk(5).indices].any()


def test_random_in_each_pass_is_rs2_with_replacement():
    # Of 4, two in each of two passes: with replacement both passes agree once in 6 = C(4, 2).
    same = sum(
        torch.equal(*(random().choose(torch.zeros(4), 0.5, key)[0] for key in pair))
        for pair in zip(range(0, 1200, 2), range(1, 1200, 2), strict=True)
    )
    assert abs(same - 100) < 46  # standard deviation sqrt(600 * 5/36) = 9.1; five are 46


def test_averaged_by_hand():
    found = averaged([torch.tensor([1.0, 5.0]), torch.tensor([2.0, 7.0]), torch.tensor([6.0, 0.0])])
    assert found.tolist() == [3, 4]
    assert found.dtype == torch.float32
    assert averaged([torch.tensor([1, 2])]).tolist() == [1, 2]


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        ([], "got none"),
        ([torch.zeros(2), torch.zeros(3)], r"got \[\[2\], \[3\]\]"),
        ([torch.zeros(2, 1)], r"got \[\[2, 1\]\]"),
    ],
)
def test_averaged_of_others(scores, message):
    with pytest.raises(ValueError, match=f"averaged needs scores of .* of one N; {message}"):
        averaged(scores)


def test_known_scores_are_selected_from():
    state = bare_state(4)
    state["plan", "ratio"] = torch.tensor(0.5, dtype=torch.float64)
    state["clock", "step"] = torch.tensor(3)
    values = torch.tensor([0.1, 0.4, 0.2, 0.3], dtype=torch.float64)
    known = known_scores(state, "el2n", values)
    after = run(select(hard(), signal="el2n"), known)
    assert after["mask"].tolist() == [False, True, False, True]
    assert known["scores", "step"].tolist() == [3] * 4
    # The state that was given is as it was, and what the new one holds is its own.
    assert state["scores", "step"].tolist() == [-1] * 4
    assert sorted(differences(state, known)) == [("scores", "el2n"), ("scores", "step")]
    values.zero_()
    assert known["scores", "el2n"].tolist() == pytest.approx([0.1, 0.4, 0.2, 0.3])


def test_known_scores_that_are_none():
    with pytest.raises(ValueError, match=r"scores 'el2n' are \[3\]; the state is of 4 examples"):
        known_scores(bare_state(4), "el2n", torch.zeros(3))
    with pytest.raises(ValueError, match="scores 'el2n': that of example 1 is nan"):
        known_scores(bare_state(2), "el2n", torch.tensor([0.0, float("nan")]))


@pytest.mark.parametrize("power", [0.0, -1.0, float("inf"), float("nan")])
def test_powers_out_of_range(power):
    with pytest.raises(ValueError, match="percentile: power must be above 0 and finite, got"):
        percentile(power)
