"""Scores made of other scores, by hand."""

import pytest
import torch
from tensordict import TensorDict

from attent.pipeline import (
    aged,
    bare_state,
    hard,
    initialize,
    patient,
    rank,
    reducible,
    run,
    select,
)


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


def of_four(losses: list[float]) -> TensorDict:
    """A state of four examples."""
    state = bare_state(4)
    state["scores", "loss"] = torch.tensor(losses)
    state["scores", "step"] = torch.zeros(4, dtype=torch.int32)
    return state


def test_what_stays_high_look_after_look_is_let_go_until_it_falls():
    """Four examples: learned, unlearnable, slowly learned, seldom looked at."""
    looks = [
        # losses as multiples of the running one, and whether each was looked at
        ([1.5, 3.0, 3.0, 3.0], [1, 1, 1, 1]),
        ([0.9, 3.1, 2.5, 3.0], [1, 1, 1, 0]),
        ([0.8, 3.0, 2.6, 3.0], [1, 1, 1, 0]),
        ([0.8, 3.0, 2.0, 3.0], [1, 1, 1, 0]),
        ([0.8, 3.2, 1.9, 3.0], [1, 1, 1, 1]),
        ([0.8, 1.0, 1.8, 3.0], [1, 1, 1, 1]),
    ]
    stage = patient(4, patience=2, signal="loss")
    state = initialize(stage, of_four(looks[0][0]))
    let_go = []
    for step, (losses, looked) in enumerate(looks):
        state["scores", "loss"] = torch.tensor(losses)
        seen = torch.tensor(looked).bool()
        state["scores", "step"] = torch.where(seen, step, state["scores", "step"])
        state = run(stage, state)
        let_go.append((state["scores", "patient"] == 0).nonzero().squeeze(1).tolist())
        kept = state["scores", "patient"] != 0
        assert torch.equal(state["scores", "patient"][kept], state["scores", "loss"][kept])
    # The second is no lower at its second and fourth look (3.0 after 3.1 is), the fourth at the
    # two that it had besides its first; the third once. One that is low is taken back.
    assert let_go == [[], [], [], [1], [1], [3]]
    assert state["scores", "vain"].tolist() == [0, 0, 1, 2]


def test_a_patience_of_nothing_and_scores_below_nothing_are_refused():
    with pytest.raises(ValueError, match="at least 1, got 0"):
        patient(4, patience=0)
    stage = patient(4, patience=1, signal="loss")
    with pytest.raises(ValueError, match="patient"):
        run(stage, initialize(stage, of_four([1.0, -1.0, 1.0, 1.0])))
