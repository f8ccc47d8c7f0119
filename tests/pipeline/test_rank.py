"""Scores made of other scores, by hand."""

import pytest
import torch

from attent.pipeline import aged, hard, initialize, rank, reducible, run, select


@pytest.fixture
def state(bare):
    """Example i of ten has loss i / 10, seen at step 10 i of 90."""
    bare["scores", "step"] = (10 * torch.arange(10)).int()
    bare["clock", "step"] = torch.tensor(90)
    bare["plan", "ratio"] = torch.tensor(0.2, dtype=torch.float64)
    return bare


def test_a_function_of_the_state(state):
    stage = rank(
        "small", lambda s: -s["scores", "loss"], reads={("scores", "loss")}, num_examples=10
    )
    after = run(stage, initialize(stage, state))
    assert torch.equal(after["scores", "small"], -state["scores", "loss"])
    chosen = run(select(hard(), signal="small"), after)
    assert chosen["mask"].nonzero().squeeze(1).tolist() == [0, 1]


def test_a_function_sees_what_it_reads_alone(state):
    stage = rank("x", lambda s: s["scores", "loss"], reads={("clock", "step")}, num_examples=10)
    with pytest.raises(KeyError):
        run(stage, initialize(stage, state))


def test_another_shape_is_refused(state):
    stage = rank("x", lambda s: torch.zeros(3), reads={("clock", "step")}, num_examples=10)
    with pytest.raises(ValueError, match=r"rank 'x' returned scores of \[3\].*\[10\]"):
        run(stage, initialize(stage, state))


def test_reducible_is_what_the_other_model_can_explain(state):
    other = torch.full((10,), 0.25)
    other[9] = 2.0  # nobody can learn it: noise
    stage = reducible(other)
    after = run(stage, initialize(stage, state))
    assert after["scores", "reducible"][:9].tolist() == pytest.approx(
        [i / 10 - 0.25 for i in range(9)]
    )
    chosen = run(select(hard(), signal="reducible"), after)
    assert chosen["mask"].nonzero().squeeze(1).tolist() == [7, 8]


def test_what_was_not_looked_at_for_long_counts_more(state):
    stage = aged(10, bonus=2.0)
    after = run(stage, initialize(stage, state))
    # i / 10 * (1 + 2 (90 - 10 i) / 90): 0.4 * (1 + 100 / 90) = 0.844 leads 0.9 * 1 = 0.9 not yet.
    expected = [i / 10 * (1 + 2 * (90 - 10 * i) / 90) for i in range(10)]
    assert after["scores", "aged"].tolist() == pytest.approx(expected)
    assert torch.equal(
        run(aged(10, bonus=0.0), initialize(aged(10, bonus=0.0), state))["scores", "aged"],
        state["scores", "loss"],
    )
    with pytest.raises(ValueError, match="at least 0"):
        aged(10, bonus=-1)
