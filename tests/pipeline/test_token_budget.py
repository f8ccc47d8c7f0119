"""A budget in tokens: counted by hand, ended with the example that reaches it, resumed exactly."""

from __future__ import annotations

import itertools

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from attent.pipeline import (
    Plan,
    PlanError,
    TensorSource,
    adamw,
    attent_complex,
    attent_simple,
    complex_plan,
    constant,
    evaluate,
    fit,
    fixed_interval,
    full,
    full_plan,
    in_tokens,
    initial_state,
    initialize,
    random,
    run,
    score,
    simple_plan,
    spent,
    train,
)
from attent.pipeline.keys import differences
from attent.pipeline.observers import Observer, saving, summary
from attent.pipeline.passes import Room
from attent.pipeline.step import Step
from attent.pipeline.task import bare_state
from tests.tiny import TinyTask, tiny_source

LENGTHS = torch.arange(1, 21)  # 210 tokens in 20 examples


class Texts(TensorSource):
    """The tiny examples, the i-th of ``i + 1`` tokens."""

    def __init__(self) -> None:
        super().__init__(tiny_source(20).fields)
        self.lengths = LENGTHS
        self.asked: list[int] = []

    def fetch(self, index: Tensor):
        self.asked += index.tolist()
        return super().fetch(index)


class States(Observer):
    def __init__(self) -> None:
        self.states: list = []

    def tick(self, state) -> None:
        self.states.append(state.clone())


def trainer(task, source, **options):
    options.setdefault("steps", 1)
    return train(task, source, optimizer=adamw(0.05), step=Step(batch_size=4), **options)


def plain(task, source, epochs=2.5, **options):
    stage = trainer(task, source, **options)
    return full(source, train=stage, epochs=epochs, accounting="tokens")


# --- the plan


def test_the_same_phases_under_another_budget_by_hand():
    plan = in_tokens(simple_plan(20, 3, ratio=0.5), 3, LENGTHS)
    assert (plan.budget, plan.pass_tokens, plan.unit, plan.pass_units) == (630, 210, "tokens", 210)
    assert plan.phases == simple_plan(20, 3, ratio=0.5).phases  # the last is open already
    assert plan.examples == 60  # of mean length
    assert [examples for _, examples in plan.spans()] == [20, 40]
    assert plan.cost == 180


def test_a_plan_whose_last_phase_is_counted_goes_on_with_everything():
    counted = complex_plan(
        20, 4, ratio=constant(0.5), interval=fixed_interval(2), cycles=1, first=1
    )
    assert counted.phases[-1].passes > 0
    plan = in_tokens(counted, 4, LENGTHS)
    assert plan.phases[:-1] == counted.phases
    assert (plan.phases[-1].passes, plan.phases[-1].size, plan.phases[-1].cycle) == (0, 20, 0)


@pytest.mark.parametrize(
    ("lengths", "said"),
    [(None, "needs a source that has lengths"), (LENGTHS - 1, "lengths of at least 1")],
)
def test_what_has_no_lengths_has_no_budget_in_tokens(lengths, said):
    with pytest.raises(PlanError, match=said):
        in_tokens(full_plan(20, 1), 1, lengths)


def test_recipes_refuse_a_source_without_lengths():
    task, source = TinyTask(), tiny_source(20)
    with pytest.raises(PlanError, match="needs a source that has lengths"):
        full(source, train=trainer(task, source), epochs=1, accounting="tokens")


# --- training


@given(
    st.permutations(range(8)),
    st.lists(st.integers(1, 30), min_size=8, max_size=8),
    st.integers(1, 200),
    st.integers(0, 7),
)
def test_a_pass_ends_with_the_example_that_reaches_the_budget(order, lengths, budget, offset):
    sizes, before = torch.tensor(lengths), sum(lengths[i] for i in order[:offset])
    if before >= budget:
        return
    room = Room(offset=offset, end=8, spent=before, budget=budget, pause=0, lengths=sizes).cut(
        torch.tensor(order)
    )
    total, expected = 0, 8
    for place, i in enumerate(order, start=1):
        total += lengths[i]
        if total >= budget:
            expected = place
            break
    assert room.end == expected


@settings(max_examples=25, deadline=None)
@given(st.floats(0.05, 3.2), st.integers(0, 5))
def test_the_run_ends_with_the_example_that_reaches_the_budget(epochs, seed):
    task, source = TinyTask(), Texts()
    state = fit(plain(task, source, epochs, steps=50), initial_state(task, source, seed=seed))
    budget = round(epochs * 210)
    trained = LENGTHS[torch.tensor(source.asked)]
    assert int(state["clock", "tokens"]) == int(trained.sum()) == spent(state)
    assert int(state["clock", "seen"]) == len(trained)
    assert budget <= int(trained.sum()) < budget + 20
    whole = 20 * (len(trained) // 20)
    assert sorted(source.asked[:whole]) == sorted(list(range(20)) * (whole // 20))


def test_where_ticks_begin_and_end_changes_no_bit():
    def final(steps):
        task, source = TinyTask(dropout=0.2, noise=0.1), Texts()
        tick = plain(task, source, steps=steps)
        return fit(tick, initial_state(task, source, seed=2))

    reference = final(1)
    assert int(reference["clock", "seen"]) % 20 != 0  # the last pass is cut
    for steps in (3, 50):
        assert differences(reference, final(steps)) == []


@pytest.mark.parametrize("ticks", [2, 9, 13])
def test_a_resumed_run_ends_where_the_whole_one_does(ticks):
    def fresh():
        task, source = TinyTask(dropout=0.2, noise=0.1), Texts()
        return plain(task, source), initial_state(task, source, seed=2)

    tick, state = fresh()
    whole = fit(tick, state)
    tick, state = fresh()
    state = initialize(tick, state)
    for _ in range(ticks):
        state = run(tick, state)
    resumed, _ = fresh()
    assert differences(whole, fit(resumed, state)) == []


def test_the_learning_rate_is_of_the_tokens_spent():
    task, source = TinyTask(), Texts()
    seen = States()
    stage = train(task, source, optimizer=adamw(lambda p: 1 - p), step=Step(batch_size=4), steps=1)
    tick = full(source, train=stage, epochs=2, accounting="tokens")
    fit(tick, initial_state(task, source), observers=[seen])
    rates = [float(state["metrics", "lr"]) for state in seen.states]
    expected = [1 - min(1, int(s["clock", "tokens"]) / 420) for s in seen.states]
    assert rates == pytest.approx(expected)
    assert expected[0] != pytest.approx(1 - 4 / 40)  # which is what examples would say


def test_evaluations_are_due_after_so_many_tokens():
    task, source = TinyTask(), Texts()
    seen = States()
    tick = full(
        source,
        train=trainer(task, source),
        epochs=3,
        accounting="tokens",
        evaluate=evaluate(task, tiny_source(6)),
        eval_every=0.5,
    )
    fit(tick, initial_state(task, source), observers=[seen])
    steps = {int(s["metrics", "val_step"]) for s in seen.states} - {-1}
    at = [int(s["clock", "tokens"]) for s in seen.states if int(s["clock", "step"]) in steps]
    assert len(at) == 6
    for due, tokens in zip(range(105, 631, 105), at, strict=True):
        assert due <= tokens < due + 4 * 20


# --- the ledger


def test_tokens_are_in_the_ledger_scoring_included():
    task, source = TinyTask(), Texts()
    tick = attent_complex(
        task,
        source,
        train=trainer(task, source),
        epochs=4,
        ratio=constant(0.5),
        interval=fixed_interval(2),
        cycles=1,
        signal="grad_norm",
        score_per_tick=7,
        accounting="tokens",
    )
    state = fit(tick, initial_state(task, source))
    trained = int(state["clock", "tokens"])
    assert 840 <= trained < 860
    assert int(state["ledger", "forwarded_tokens"]) == trained + 210
    assert int(state["ledger", "backwarded_tokens"]) == trained + 210
    assert int(state["ledger", "forwarded"]) == int(state["clock", "seen"]) + 20


def test_a_loss_is_forwarded_alone():
    task, source = TinyTask(), Texts()
    stage = score(task, source, "loss", batch_size=3)
    state = run(stage, initialize(stage, initial_state(task, source)))
    assert int(state["ledger", "forwarded_tokens"]) == 210
    assert int(state["ledger", "backwarded_tokens"]) == 0


def test_what_is_saved_is_counted_in_tokens():
    state = bare_state(20)
    state["plan", "pass_tokens"] = torch.tensor(210)
    state["clock", "passes"] = torch.tensor(2)
    state["ledger", "forwarded_tokens"] = state["ledger", "backwarded_tokens"] = torch.tensor(315)
    state["ledger", "forwarded"] = state["ledger", "backwarded"] = torch.tensor(40)
    assert saving(state) == pytest.approx(0.25)  # 315 of 420
    assert summary(state)["tokens"] == 0


def test_a_state_of_another_unit_is_refused():
    task, source = TinyTask(), Texts()
    state = initialize(plain(task, source, 2), initial_state(task, source))
    other = full(source, train=trainer(task, source), epochs=21)
    with pytest.raises(ValueError, match="a plan of 420 tokens, this one is of 420 examples"):
        initialize(other, state)


def test_a_train_stage_whose_source_has_no_lengths_says_so():
    task, source, bare = TinyTask(), Texts(), tiny_source(20)
    state = initialize(plain(task, source), initial_state(task, source))
    with pytest.raises(ValueError, match="in tokens, but the source that is trained on has no"):
        run(trainer(task, bare), state)


# --- AtteNTSimple's ways of scoring


def simple(task, source, **options):
    observe = options.pop("observe", True)
    stage = trainer(task, source, observe=observe)
    return attent_simple(source, train=stage, epochs=4, ratio=0.35, **options)


def masks_of(tick, task, source):
    seen = States()
    state = fit(tick, initial_state(task, source), observers=[seen])
    passes = {int(s["clock", "passes"]): s["mask"] for s in seen.states if s["clock", "offset"] > 0}
    return state, [frozenset(m.nonzero().flatten().tolist()) for m in passes.values()], seen.states


def test_a_fresh_scoring_after_the_first_epoch():
    task, source = TinyTask(), Texts()
    stage = score(task, source, "output_grad_norm", batch_size=6)
    tick = simple(task, source, observe=False, score=stage, signal="output_grad_norm")
    state, masks, states = masks_of(tick, task, source)
    first = next(s for s in states if int(s["clock", "seen"]) == 20)
    own = run(stage, initialize(stage, first))["scores", "output_grad_norm"]
    assert masks[1] == frozenset(own.topk(7).indices.tolist())
    assert len(set(masks[1:])) == 1
    assert int(state["ledger", "forwarded"]) == 80 + 20


def test_selecting_anew_goes_by_what_was_observed_last():
    task, source = TinyTask(), Texts()
    state, masks, states = masks_of(simple(task, source, reselect=True), task, source)
    assert len(set(masks[1:])) > 1
    assert int(state["ledger", "forwarded"]) == 80
    ends = [s for a, s in itertools.pairwise(states) if s["clock", "passes"] > a["clock", "passes"]]
    scores = ends[1]["scores", "loss"]  # after the first pass over a subset
    assert masks[2] == frozenset(scores.topk(7).indices.tolist())


def test_without_it_the_subset_stays():
    task, source = TinyTask(), Texts()
    _, masks, _ = masks_of(simple(task, source), task, source)
    assert len(set(masks[1:])) == 1


def test_random_selection_draws_before_every_pass_and_observes_nothing():
    task, source = TinyTask(), Texts()
    tick = simple(task, source, observe=False, rule=random())
    _, masks, _ = masks_of(tick, task, source)
    assert len(set(masks[1:])) == len(masks[1:])


def test_ways_that_contradict_each_other():
    task, source = TinyTask(), Texts()
    stage = score(task, source)
    with pytest.raises(ValueError, match="reselect goes by what training observes"):
        simple(task, source, score=stage, reselect=True)
    with pytest.raises(ValueError, match="does not observe grad_norm"):
        simple(task, source, signal="grad_norm")


def test_a_plan_is_a_value():
    plan = in_tokens(full_plan(20, 2), 2, LENGTHS)
    assert plan == Plan(
        name="full",
        num_examples=20,
        phases=full_plan(20, 2).phases,
        budget=420,
        pass_tokens=210,
    )
