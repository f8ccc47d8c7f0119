"""Examples of different lengths: batches of similar ones, and nobody trained on more or less."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from tensordict import TensorDict
from torch import Tensor

from attent.pipeline import (
    Loading,
    TensorSource,
    adamw,
    assert_stage_laws,
    attent_complex,
    attent_simple,
    evaluate,
    fit,
    fixed_interval,
    fold,
    initial_state,
    initialize,
    run,
    score,
    soft,
    train,
)
from attent.pipeline.keyed import generator
from attent.pipeline.keys import differences
from attent.pipeline.order import bucketed_order, longest_first
from attent.pipeline.step import Step
from attent.pipeline.stream import IndexBatches
from tests.tiny import TinyTask, tiny_source


def lengths_of(count: int) -> Tensor:
    """Log-normal, as texts are, 10 to 500."""
    return (4.5 + 0.8 * torch.randn(count, generator=generator(3))).exp().clamp(10, 500).long()


def padding(order: Tensor, lengths: Tensor, batch_size: int) -> float:
    """The share of a pass's tokens that is padding."""
    batches = list(IndexBatches(order, batch_size))
    slots = sum(int(lengths[batch].max()) * len(batch) for batch in batches)
    return 1 - int(lengths[order].sum()) / slots


class Texts(TensorSource):
    """The tiny examples with lengths, and a note of the batches that were asked for."""

    def __init__(self, count: int = 20) -> None:
        super().__init__(tiny_source(count).fields)
        self.lengths = lengths_of(count)
        self.asked: list[list[int]] = []

    def fetch(self, index: Tensor) -> TensorDict:
        self.asked.append(index.tolist())
        return super().fetch(index)


@given(st.lists(st.booleans(), max_size=60), st.integers(1, 9), st.integers(0, 99))
def test_each_selected_example_is_there_once(selected, batch_size, key):
    mask = torch.tensor(selected, dtype=torch.bool)
    order = bucketed_order(mask, key, lengths_of(len(mask)), batch_size)
    assert order.sort().values.tolist() == mask.nonzero().flatten().tolist()
    assert torch.equal(order, bucketed_order(mask, key, lengths_of(len(mask)), batch_size))


@pytest.mark.parametrize("batch_size", [4, 16, 32])
@pytest.mark.parametrize("count", [5000, 3501, 1217])
def test_padding_is_a_few_percent_of_what_it_was(count, batch_size):
    lengths, mask = lengths_of(count), torch.ones(count, dtype=torch.bool)
    order = bucketed_order(mask, fold(0, "order", 1), lengths, batch_size)
    drawn = torch.randperm(count, generator=generator(0))
    share = padding(order, lengths, batch_size)
    assert share < 0.06
    assert share < padding(drawn, lengths, batch_size) / 8


def test_passes_differ_in_order_and_in_company():
    lengths, mask = lengths_of(2000), torch.ones(2000, dtype=torch.bool)
    first, second = (bucketed_order(mask, fold(0, "order", p), lengths, 8) for p in (0, 1))
    assert not torch.equal(first, second)
    company = [{frozenset(batch.tolist()) for batch in order.split(8)} for order in (first, second)]
    assert len(company[0] & company[1]) < 5


def test_no_length_comes_early_or_late():
    """Correlation of place and length over a hundred passes: nought but for chance (0.002)."""
    lengths, mask = lengths_of(1000), torch.ones(1000, dtype=torch.bool)
    found = []
    for p in range(100):
        order = bucketed_order(mask, fold(1, "order", p), lengths, 8)
        pair = torch.stack([torch.arange(1000.0), lengths[order].log()])
        found.append(torch.corrcoef(pair)[0, 1])
    assert abs(float(torch.stack(found).mean())) < 0.03


def test_every_example_is_as_often_in_the_smaller_batch_and_anywhere_in_its_batch():
    """The smaller batch weighs more on each of its examples; a budget cuts the last one short."""
    count, batch_size, passes = 42, 8, 4000  # the smaller one holds 2 of 42
    mask, lengths = torch.ones(count, dtype=torch.bool), torch.arange(count)
    small, first = torch.zeros(count), torch.zeros(count)
    for p in range(passes):
        order = bucketed_order(mask, fold(0, "order", p), lengths, batch_size)
        small[order[-2:]] += 1
        first[order[:-2:batch_size]] += 1
    expected = 2 * passes / 41  # of 41 places that two neighbours may have; half for both ends
    assert small[[0, -1]].tolist() == pytest.approx([expected / 2] * 2, rel=0.35)
    assert small[1:-1].tolist() == pytest.approx([expected] * 40, rel=0.35)
    assert float(first.min()) > 0.6 * float(first.mean())
    assert float(first.max()) < 1.4 * float(first.mean())


def test_all_of_one_length_are_as_random_as_without():
    mask = torch.ones(1000, dtype=torch.bool)
    seen = {
        tuple(bucketed_order(mask, k, torch.full((1000,), 7), 8)[:8].tolist()) for k in range(9)
    }
    assert len(seen) == 9


# --- the stages


def simple(task, source, **options):
    trainer = train(
        task, source, optimizer=adamw(0.05), step=Step(batch_size=6), observe=True, **options
    )
    return attent_simple(source, train=trainer, epochs=3, ratio=0.7)


def final(steps: int, workers: int = 0):
    task, source = TinyTask(dropout=0.2, noise=0.1), Texts(61)
    tick = simple(task, source, steps=steps, loading=Loading(workers=workers))
    return fit(tick, initial_state(task, source, seed=2))


@pytest.mark.parametrize("workers", [0, 2])
def test_where_ticks_begin_and_end_changes_no_bit(workers):
    reference = final(1)
    assert int(reference["clock", "seen"]) == 183
    for steps in (7, 50):
        assert differences(reference, final(steps, workers)) == []


def test_a_resumed_run_goes_on_with_the_same_batches():
    task, source = TinyTask(dropout=0.2, noise=0.1), Texts(61)
    tick = simple(task, source, steps=4)
    state = initialize(tick, initial_state(task, source, seed=2))
    for _ in range(4):
        state = run(tick, state)
    assert 0 < int(state["clock", "offset"]) < 61
    fresh_task, fresh_source = TinyTask(dropout=0.2, noise=0.1), Texts(61)
    resumed = fit(simple(fresh_task, fresh_source, steps=4), state)
    assert differences(final(1), resumed) == []


def test_a_pass_is_in_batches_of_similar_length_each_example_once():
    task, source = TinyTask(), Texts(61)
    fit(simple(task, source, steps=3), initial_state(task, source, seed=2))
    first = source.asked[:10]
    assert sorted(i for batch in first for i in batch) == list(range(61))
    spread = [
        int(source.lengths[b].max() - source.lengths[b].min()) for b in map(torch.tensor, first)
    ]
    drawn = torch.randperm(61, generator=generator(0)).split(6)
    apart = [int(source.lengths[b].max() - source.lengths[b].min()) for b in drawn]
    assert sorted(spread)[5] < sorted(apart)[5] / 4


def test_a_source_whose_batches_are_packed_is_drawn_as_if_it_had_no_lengths():
    task, source, bare = TinyTask(), Texts(61), Texts(61)
    source.bucketed, bare.lengths = False, None
    for some in (source, bare):
        fit(simple(task, some), initial_state(TinyTask(), some, seed=2))
    assert source.asked == bare.asked


def test_a_train_stage_with_lengths_keeps_the_laws():
    task, source = TinyTask(dropout=0.3, noise=0.3), Texts(20)
    stage = train(task, source, optimizer=adamw(0.05), step=Step(batch_size=4), steps=3)
    state = initialize(stage, initial_state(task, source, seed=5))
    state["plan", "budget"] = torch.tensor(60)
    assert_stage_laws(stage, state)


def test_scoring_and_evaluation_go_by_length_and_give_what_they_gave():
    task, texts, plain = TinyTask(), Texts(20), tiny_source(20)
    results = []
    for source in (texts, plain):
        stage = score(task, source, batch_size=6, examples_per_tick=6)
        state = initialize(stage, initial_state(task, source, seed=5))
        state["plan", "score_due"] = torch.tensor(True)
        while bool(state["plan", "score_due"]):
            state = run(stage, state)
        measure = evaluate(task, source, batch_size=6)
        results.append(run(measure, initialize(measure, state)))
    assert torch.allclose(results[0]["scores", "loss"], results[1]["scores", "loss"])
    assert float(results[0]["metrics", "val_loss"]) == pytest.approx(
        float(results[1]["metrics", "val_loss"])
    )
    read = [int(texts.lengths[i]) for batch in texts.asked for i in batch]
    assert read == 2 * sorted(texts.lengths.tolist(), reverse=True)


def test_scoring_in_parts_scores_each_once():
    task, source = TinyTask(), Texts(40)
    tick = attent_complex(
        task, source, epochs=12, cycles=2, rule=soft(), interval=fixed_interval(2),
        train=train(task, source, optimizer=adamw(0.05), step=Step(batch_size=8)),
        score_per_tick=8, score_batch_size=8,
    )  # fmt: skip
    state = fit(tick, initial_state(task, source))
    assert bool((state["scores", "step"] >= 0).all())


def test_without_lengths_examples_are_read_as_they_come():
    assert longest_first(tiny_source(5)) == range(5)


def test_lengths_that_are_none_are_refused():
    source = Texts(20)
    source.lengths = torch.rand(20)
    with pytest.raises(ValueError, match=r"Texts\.lengths are torch\.float32 \[20\]; .* of \[20\]"):
        longest_first(source)
    source.lengths = torch.ones(19, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"lengths are torch\.int64 \[19\]"):
        train(TinyTask(), source, optimizer=adamw(0.05), step=Step(batch_size=4))
