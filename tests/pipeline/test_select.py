"""The select stage: what it writes, and what it refuses."""

import importlib

import pytest
import torch

from attent.pipeline import Rule, hard, random, run, select, soft

# The package's attribute of this name is the function.
MODULE = importlib.import_module("attent.pipeline.select")


@pytest.fixture
def state(bare):
    """A selection of 0.3 of ten examples is due; example i has loss i / 10."""
    bare["plan", "ratio"] = torch.tensor(0.3, dtype=torch.float64)
    bare["plan", "select_due"] = torch.tensor(True)
    return bare


def custom(mask, weight=None, **options) -> Rule:
    return Rule(name="mine", choose=lambda scores, ratio, key: (mask, weight), **options)


def test_writes_the_choice(state):
    state["weight"] = torch.full((10,), 5.0)
    after = run(select(hard()), state)
    assert after["mask"].nonzero().squeeze(1).tolist() == [7, 8, 9]
    assert after["weight"].tolist() == [1.0] * 10  # weights of an earlier rule are gone
    assert int(after["plan", "size"]) == 3
    assert not bool(after["plan", "select_due"])


def test_another_signal(state):
    state["scores", "grad_norm"] = -state["scores", "loss"]
    after = run(select(hard(), signal="grad_norm"), state)
    assert after["mask"].nonzero().squeeze(1).tolist() == [0, 1, 2]


def test_ratio_one_asks_nobody(state):
    def refuse(scores, ratio, key):
        raise AssertionError("asked")

    state["plan", "ratio"] = torch.tensor(1.0, dtype=torch.float64)
    state["mask"] = torch.zeros(10, dtype=torch.bool)
    state["weight"] = torch.full((10,), 2.0)
    state["scores", "loss"] = torch.full((10,), torch.nan)
    state["scores", "step"] = torch.full((10,), -1, dtype=torch.int32)
    after = run(select(Rule(name="refuse", choose=refuse)), state)
    assert bool(after["mask"].all())
    assert after["weight"].tolist() == [1.0] * 10
    assert int(after["plan", "size"]) == 10
    assert not bool(after["plan", "select_due"])


def test_a_rule_without_scores_needs_none(state):
    del state["scores"]
    assert int(run(select(random()), state)["mask"].sum()) == 3


def test_the_key_is_seed_name_and_passes(state):
    rule = soft(10.0)
    first = run(select(rule), state)["mask"]
    assert torch.equal(run(select(rule), state)["mask"], first)

    def differs(stage, **changes):
        other = state.clone()
        for key, value in changes.items():
            path = {"seed": "seed", "passes": ("clock", "passes")}[key]
            other[path] = torch.tensor(value)
        return not torch.equal(run(stage, other)["mask"], first)

    # 120 subsets: a few of them, so that chance does not decide.
    assert any(differs(select(rule), passes=n) for n in (1, 2, 3))
    assert any(differs(select(rule), seed=n) for n in (11, 12, 13))
    assert any(differs(select(rule, name=n)) for n in ("a", "b", "c"))


def test_custom_weights(state):
    mask = torch.arange(10) % 2 == 0
    weight = torch.arange(10.0) + 1
    after = run(select(custom(mask, weight)), state)
    assert torch.equal(after["mask"], mask)
    assert torch.equal(after["weight"], weight)
    assert int(after["plan", "size"]) == 5  # what was chosen, whatever the ratio asked


def test_the_rule_sees_scores_ratio_and_key(state):
    seen = {}

    def choose(scores, ratio, key):
        seen.update(scores=scores.tolist(), ratio=ratio, key=key)
        return scores > 0.5, None

    run(select(Rule(name="mine", choose=choose)), state)
    assert seen["scores"] == pytest.approx([i / 10 for i in range(10)])
    assert seen["ratio"] == 0.3
    assert isinstance(seen["key"], int)


@pytest.mark.parametrize("chunk", [3, 100])
@pytest.mark.parametrize("bad", ["nan", "inf", "-inf"])
def test_scores_that_are_not_finite(state, bad, chunk, monkeypatch):
    monkeypatch.setattr(MODULE, "CHUNK", chunk)
    state["scores", "loss"][[4, 7]] = float(bad)
    with pytest.raises(ValueError, match=rf"scores/loss of example 4 is not finite \({bad}\)"):
        run(select(hard()), state)


@pytest.mark.parametrize("chunk", [3, 100])
def test_scores_never_measured(state, chunk, monkeypatch):
    monkeypatch.setattr(MODULE, "CHUNK", chunk)
    state["scores", "step"][[5, 8]] = -1
    with pytest.raises(ValueError, match="scores/loss of example 5 was never measured"):
        run(select(hard()), state)


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (torch.ones(9, dtype=torch.bool), r"returned a torch.bool mask of \[9\]; it must be bool"),
        (torch.ones(10, 1, dtype=torch.bool), r"mask of \[10, 1\]"),
        (torch.ones(10), r"returned a torch.float32 mask of \[10\]; it must be bool of \[10\]"),
        (torch.zeros(10, dtype=torch.bool), "rule 'mine' selected no example"),
    ],
)
def test_bad_masks(state, mask, message):
    with pytest.raises(ValueError, match=message):
        run(select(custom(mask)), state)


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        (torch.ones(9), r"returned torch.float32 weights of \[9\]; they must be float32 of \[10\]"),
        (torch.ones(10, dtype=torch.float64), r"returned torch.float64 weights of \[10\]"),
    ],
)
def test_bad_weights(state, weight, message):
    with pytest.raises(ValueError, match=message):
        run(select(custom(torch.ones(10, dtype=torch.bool), weight)), state)


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
def test_weights_that_are_no_weights(state, value):
    # The step divides by the sum of a batch's weights: where that is 0 or NaN, so is every
    # parameter after it, and no loss was bad.
    weight = torch.ones(10)
    weight[4] = value
    with pytest.raises(ValueError, match=r"weight.*example 4"):
        run(select(custom(torch.arange(10) == 4, weight)), state)


def test_weights_of_what_is_not_selected_are_free(state):
    weight = torch.full((10,), torch.nan)
    weight[4] = 2.0
    assert float(run(select(custom(torch.arange(10) == 4, weight)), state)["weight"][4]) == 2
