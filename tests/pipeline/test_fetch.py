"""Examples that cannot be read: another stands in for each, and each is listed."""

from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict

from attent.pipeline import (
    ExampleError,
    Loading,
    attent_complex,
    constant,
    fit,
    fixed_interval,
    hard,
    initial_state,
    score,
)
from attent.pipeline import run as run_stage
from attent.pipeline.fetch import fetch_readable, stand_in
from attent.pipeline.keys import number
from attent.pipeline.skipped import SkippedList
from attent.pipeline.source import TensorSource
from attent.pipeline.stage import initialize
from attent.pipeline.stream import Stream
from tests.pipeline.faults import Augmenting, Rows
from tests.tiny import TinyTask, tiny_source, tiny_train

KINDS = {
    "in the thread": {},
    "prefetched": {"prefetch": 2},
    "threads": {"workers": 2},
    "processes": {"workers": 2, "processes": True},
}
every_kind = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
REASON = "OSError: cannot be decoded"


class Counting(Rows):
    """Remembers what it was asked for."""

    def __init__(self, *args, **options) -> None:
        super().__init__(*args, **options)
        self.asked: list[list[int]] = []

    def fetch(self, index: torch.Tensor) -> TensorDict:
        self.asked.append(index.tolist())
        return super().fetch(index)


def unreadable(*index: int) -> dict[int, str]:
    return dict.fromkeys(index, "raises")


# --- one batch


def data_of(index: int, num_examples: int, bad: tuple[int, ...]) -> int:
    """What is read of an example, or of its stand-in."""
    found = stand_in(index, num_examples, bad)
    assert found is not None
    assert found not in bad
    return 10 * found


def test_another_stands_in_and_the_index_stays():
    source, known = Rows(9, unreadable(7, 3)), {}
    fetched = fetch_readable(source, torch.tensor([0, 7, 5, 3]), None, known)
    assert fetched.batch["index"].tolist() == [0, 7, 5, 3]
    seven, three = (data_of(i, 9, (3, 7)) for i in (7, 3))
    assert fetched.batch["x"].tolist() == [0, seven, 50, three]
    assert fetched.skipped == known == {7: REASON, 3: REASON}


def test_it_is_the_same_in_any_company_and_whatever_is_known():
    bad = (1, 2, 5, 8)
    source = Rows(9, unreadable(*bad))
    expected = [data_of(i, 9, bad) for i in bad]
    one, known = torch.tensor(bad), {}
    assert fetch_readable(source, one, None, known).batch["x"].tolist() == expected
    assert set(known) == set(bad)
    for i, x in zip(bad, expected, strict=True):
        for batch in ([i], [0, i, 4], [i, i, 6]):
            found = fetch_readable(source, torch.tensor(batch), None, {}).batch["x"].tolist()
            assert found[batch.index(i)] == x


def test_a_stand_in_is_augmented_under_the_key_it_was_asked_for_with():
    source = Augmenting(9, unreadable(4))
    index = torch.tensor([3, 4, 5])
    fetched = fetch_readable(source, index, 100 + index, {})
    assert fetched.batch["key"].tolist() == [103, 104, 105]


def test_what_is_known_is_not_tried_again():
    source, known = Counting(9, unreadable(1)), {}
    other = data_of(1, 9, (1,)) // 10
    fetch_readable(source, torch.tensor([0, 1, 2]), None, known)
    # The batch; each alone; the batch with the stand-in.
    assert source.asked == [[0, 1, 2], [0], [1], [2], [0, other, 2]]
    source.asked.clear()
    again = fetch_readable(source, torch.tensor([1, 4]), None, known)
    assert source.asked == [[other, 4]]
    assert again.skipped == {}


def test_where_no_stand_in_can_be_read_it_is_an_error():
    source, known = Rows(9, unreadable(*range(9))), {}
    message = (
        r"example 2 \(shard-0.tar, row 2\) cannot be read, nor can any of the 16 examples that "
        rf"might stand in for it: {REASON}"
    )
    for _ in range(2):  # found, then known
        with pytest.raises(ExampleError, match=message):
            fetch_readable(source, torch.tensor([2, 1]), None, known)


class Unlike(TensorSource):
    def fetch(self, index: torch.Tensor) -> TensorDict:
        if len(index) > 1:
            raise ValueError("unlike each other")
        return super().fetch(index)


def test_examples_that_do_not_go_together_are_not_passed_over():
    with pytest.raises(ExampleError, match="cannot be fetched together, though each can alone"):
        fetch_readable(Unlike({"x": torch.arange(3)}), torch.arange(3), None, {})


# --- streams


@every_kind
def test_each_is_listed_once_whoever_meets_it_and_however_often(kind):
    source, skipped = Rows(24, unreadable(5, 6, 22)), SkippedList()
    loading = Loading(skipped=skipped, **kind)
    expected = 10 * torch.arange(24)
    expected[[5, 6, 22]] = torch.tensor([data_of(i, 24, (5, 6, 22)) for i in (5, 6, 22)])
    for _ in range(3):
        batches = list(Stream(source, range(24), 4, loading=loading))
        assert torch.cat([b["index"] for b in batches]).tolist() == list(range(24))
        assert torch.equal(torch.cat([b["x"] for b in batches]), expected)
        assert sorted((entry.index, entry.place, entry.reason) for entry in skipped) == [
            (5, "example 5 (shard-0.tar, row 5)", REASON),
            (6, "example 6 (shard-0.tar, row 6)", REASON),
            (22, "example 22 (shard-2.tar, row 2)", REASON),
        ]
    assert len(skipped) == 3


@every_kind
def test_sources_are_kept_apart(kind):
    """What one cannot read another of the same loading may."""
    bad, good, skipped = Rows(8, unreadable(5)), Rows(8), SkippedList()
    for source in (bad, good):
        batches = list(Stream(source, range(8), 4, loading=Loading(skipped=skipped, **kind)))
    assert batches[1]["x"].tolist() == [40, 50, 60, 70]  # of the last, which is good
    assert [entry.source for entry in skipped] == [bad]
    assert (skipped.of(bad), skipped.of(good)) == ({5: REASON}, {})


@every_kind
def test_without_a_list_it_is_an_error(kind):
    stream = Stream(Rows(8, unreadable(5)), range(8), 4, loading=Loading(**kind))
    next(stream)
    with pytest.raises(ExampleError, match=r"example 5 .* cannot be fetched"):
        next(stream)


# --- scored, selected and trained on


BAD = (2, 3, 17)


def faulty(bad: tuple[int, ...] = BAD) -> Rows:
    return Rows(20, unreadable(*bad), fields=tiny_source(20).fields)


@every_kind
def test_the_score_of_one_is_its_stand_ins(kind):
    task, source = TinyTask(), faulty()
    stage = score(task, source, batch_size=5, loading=Loading(skipped=SkippedList(), **kind))
    state = initialize(stage, initial_state(task, source, seed=0))
    scores = run_stage(stage, state)["scores", "loss"]
    assert bool((scores >= 0).all())
    others = [data_of(i, 20, BAD) // 10 for i in BAD]
    # To the last bits: they are not in the same batch.
    torch.testing.assert_close(scores[list(BAD)], scores[others], rtol=1e-6, atol=1e-7)
    readable = [i for i in range(20) if i not in BAD]
    assert scores[readable].unique().numel() == len(readable)


def finished(kind, bad=BAD):
    task, source, skipped = TinyTask(dropout=0.5), faulty(bad), SkippedList()
    loading = Loading(skipped=skipped, **kind)
    stage = tiny_train(task, source, steps=2, loading=loading)
    tick = attent_complex(
        task, source, train=stage, epochs=4, ratio=constant(0.5), interval=fixed_interval(1),
        cycles=2, rule=hard(), score_batch_size=5, loading=loading,
    )  # fmt: skip
    return fit(tick, initial_state(task, source, seed=1)), skipped


@every_kind
def test_a_run_goes_to_its_planned_end(kind):
    """Score, select and train, twice, then full passes: each example's place is kept."""
    state, skipped = finished(kind)
    assert number(state, "clock", "seen") == number(state, "plan", "budget") == 4 * 20
    assert sorted(entry.index for entry in skipped) == list(BAD)
    reference, _ = finished({})
    assert all(torch.equal(a, b) for a, b in zip(_leaves(state), _leaves(reference), strict=True))


def test_where_all_can_be_read_passing_over_changes_nothing():
    state, skipped = finished({}, bad=())
    task, source = TinyTask(dropout=0.5), faulty(())
    tick = attent_complex(
        task, source, train=tiny_train(task, source, steps=2), epochs=4, ratio=constant(0.5),
        interval=fixed_interval(1), cycles=2, rule=hard(), score_batch_size=5,
    )  # fmt: skip
    reference = fit(tick, initial_state(task, source, seed=1))
    assert len(skipped) == 0
    assert all(torch.equal(a, b) for a, b in zip(_leaves(state), _leaves(reference), strict=True))


def _leaves(state: TensorDict) -> list[torch.Tensor]:
    state = state.exclude(("metrics",))
    return [value for _, value in sorted(state.items(True, True), key=lambda pair: str(pair[0]))]
