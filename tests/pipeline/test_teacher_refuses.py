"""What Teacher is given: data sets, options, losses, loaders, states; and what it refuses."""

from __future__ import annotations

import itertools
import math
import pickle

import pytest
import torch
from torch.utils.data import BatchSampler, DataLoader, SequentialSampler

from attent.pipeline import (
    Teacher,
    aged,
    constant,
    full_plan,
    in_tokens,
    incremental,
    online_plan,
    simple_plan,
    soft,
)
from tests.pipeline.test_teacher import N, short, walk


class Rows(torch.utils.data.Dataset):
    """With what loaders ask for to read several at once."""

    classes = ("a", "b")

    def __init__(self, size: int) -> None:
        self.size, self.calls = size, 0

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> int:
        return index * 10

    def __getitems__(self, indices: list[int]) -> list[int]:
        self.calls += 1
        return [index * 10 for index in indices]


def test_a_data_set_with_its_index():
    rows = Rows(N)
    indexed = pickle.loads(pickle.dumps(short().with_index(rows)))
    assert (len(indexed), indexed[3], indexed.classes) == (N, (3, 30), ("a", "b"))
    assert not hasattr(indexed, "missing")
    assert not hasattr(short().with_index(range(N)), "__getitems__")
    teacher = short()
    assert walk(teacher, loader=DataLoader(
        teacher.with_index(rows), batch_sampler=teacher.batches(16)
    )) == walk(short())  # fmt: skip
    assert rows.calls == int(teacher.state["clock", "step"])


class Endless(torch.utils.data.IterableDataset):
    def __iter__(self):
        return itertools.count()


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        (Rows(N - 1), "Rows has 202 examples, but the teacher was made for 203"),
        (Endless(), "Endless is iterable: .* needs __getitem__ and __len__"),
        (iter([1]), "list_iterator is iterable"),
    ],
)
def test_data_sets_that_cannot_be(dataset, message):
    with pytest.raises(ValueError, match=message):
        short().with_index(dataset)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"budget": None}, "budget is the number of examples to train on"),
        ({"budget": 2.5 * N}, "a whole number of at least 1 .*, got 507.5"),
        ({"budget": math.inf}, "got inf"),
        ({"budget": N}, "the plan does not fit"),
        ({"signal": "grad_norm"}, "of loss, relative_loss, loss_drop, or .* not 'grad_norm'"),
        ({"rank": aged(N, bonus=1.0)}, "'rank by aged' does not write scores/loss"),
        ({"first": 0}, "first epochs: at least 1, got 0"),
        ({"plan": full_plan(N, 1)}, "a plan has its own budget"),
        ({"plan": full_plan(9, 1), "budget": None, "ratio": None}, "is of 9 examples, not 203"),
        (
            {"plan": simple_plan(N, 4, score=True), "budget": None, "ratio": None},
            "'attent_simple' has scorings",
        ),
        (
            {"plan": in_tokens(full_plan(N, 1), 1, torch.ones(N)), "budget": None, "ratio": None},
            "budget in tokens",
        ),
        (
            {"plan": online_plan(N, 1, ratio=0.5), "budget": None, "ratio": None},
            "windows of a stream",
        ),
    ],
)
def test_options_that_cannot_be(options, message):
    with pytest.raises(ValueError, match=message):
        short(**options)


def test_no_examples_and_no_such_batches():
    with pytest.raises(ValueError, match="must be examples to select from, got 0"):
        Teacher(0, budget=1)
    for size in (0, N + 1, 16.5):
        with pytest.raises(ValueError, match=f"batch_size is in 1 to 203, got {size}"):
            short().batches(size)


def test_what_cannot_be_observed():
    """Nothing of it is taken in: the same batch, told well, is observed afterwards."""
    teacher = short()
    with pytest.raises(ValueError, match="nothing is given out"):
        teacher.observe([1, 2], torch.ones(2))
    own = next(teacher.begin(16).batches())
    good, low = torch.ones(16), min(own)
    bad = torch.where(torch.tensor(own) == low, math.nan, 1.0)
    for index, losses, message in (
        (own, good[:15], r"for each of 16 examples .* of \[15\]"),
        (own, good.mean(), r"reduction='none'"),
        (own, torch.ones(16, dtype=torch.int64), "got torch.int64"),
        (own, [1.0] * 16, r"reduction='none'\), got list"),
        ([own], good[None], r"a vector of examples' numbers, got torch.int64 of \[1, 16\]"),
        (torch.rand(16), good, "got torch.float32"),
        ([], good[:0], "a vector of examples' numbers"),
        (own, bad, rf"the loss of example {low} is not finite \(nan\)"),
        ([*own[:15], N], good, "example 203 is none of the 203"),
        ([*own[:15], -1], good, "example -1 is none of the 203"),
        ([*own[:15], own[0]], good, f"example {own[0]} is there twice"),
        (torch.tensor(own).to(torch.complex64), good, "got torch.complex64"),
    ):
        with pytest.raises(ValueError, match=message):
            teacher.observe(index, losses)
    teacher.observe(own, good)
    assert int(teacher.state["clock", "seen"]) == 16
    with pytest.raises(ValueError, match=f"example {own[0]} was observed in this pass already"):
        teacher.observe(own, good)
    teacher.begin(16)
    with pytest.raises(ValueError, match=f"example {own[0]} was observed in this pass already"):
        teacher.observe(own, good)


def test_what_no_example_is_has_no_weight():
    for index in ([0, -1], torch.tensor([N])):
        with pytest.raises(ValueError, match=rf"example {index[-1]} is none of the 203"):
            short().weights(index)


def test_what_is_not_selected_cannot_be_observed():
    teacher = short()
    walk(teacher, stop=14)
    left = int((~teacher.state["mask"]).nonzero()[0])
    with pytest.raises(ValueError, match=f"example {left} is not in this pass: it is not selected"):
        teacher.observe([left], torch.ones(1))


def test_a_pass_that_was_not_observed():
    teacher = short()
    loader = DataLoader(teacher.with_index(range(N)), batch_sampler=teacher.batches(16))
    with pytest.raises(ValueError, match=r"13 batches has ended and none .* teacher.observe"):
        list(teacher.loop(loader))
    seen = []

    def all_but_one():
        for at, (index, _) in enumerate(teacher.loop(loader)):
            seen.append(index.tolist())
            if at != 5:
                teacher.observe(index, torch.ones(len(index)))

    with pytest.raises(ValueError, match="13 batches has ended and 1 were not") as failed:
        all_but_one()
    assert f"first such example is {seen[5][0]}:" in str(failed.value)
    # It goes on with that batch, also where what came after it was observed.
    assert next(iter(teacher.loop(loader)))[0].tolist() == seen[5]


def test_what_reads_ahead_of_the_loop():
    """A batch further on than training, as those do that move batches to a device beforehand."""

    def ahead(batches):
        last = next(batches)
        for batch in batches:
            yield last
            last = batch
        yield last

    teacher, data = short(), torch.arange(N) * 10
    loader = DataLoader(teacher.with_index(data), batch_sampler=teacher.batches(16))
    told = (teacher.observe(i, torch.ones(len(i))) for i, _ in ahead(iter(teacher.loop(loader))))
    with pytest.raises(ValueError, match=r"1 were not .* belongs around the loader, not around"):
        sum(told)

    class Ahead:
        def __iter__(self):
            return ahead(iter(loader))

    assert sum(map(len, walk(teacher, loader=Ahead()))) == 4 * N - 12 * 16


def test_loaders_that_are_not_of_this_teacher():
    teacher, other = short(), short()
    data = teacher.with_index(range(N))
    for sampler in (other.batches(16), BatchSampler(SequentialSampler(data), 16, False)):
        with pytest.raises(ValueError, match=r"make it with batch_sampler=teacher.batches"):
            teacher.loop(DataLoader(data, batch_sampler=sampler))
    with pytest.raises(ValueError, match=r"does not read teacher.batches"):
        next(it for it in teacher.loop([1, 2]) if it == 3)
    again = iter(DataLoader(data, batch_sampler=teacher.batches(16)))
    told = (teacher.observe(index, torch.ones(len(index))) for index, _ in teacher.loop(again))
    with pytest.raises(ValueError, match="has begun no other pass"):
        sum(told)
    teacher = short()
    with pytest.raises(ValueError, match="no batches yet"):
        len(teacher.loop([1, 2]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seed": 5}, "differs in seed: seed is 4 there and 5 here"),
        ({"rule": soft()}, "differs in rule: rule is hard there"),
        ({"budget": 5 * N}, "differs in budget, plan: budget is 812 there and 1015 here"),
        ({"ratio": constant(0.4)}, "plan is ratio 0.3 there and ratio 0.4 in phase 2 here"),
        (
            {"ratio": incremental(0.3, 0.5)},
            r"ratio 0.3 to 0.3 .* 0.3 to 0.5 in phase 2",
        ),
        ({"first": 2}, "plan is passes 1 there and passes 2 in phase 1 here"),
        (
            {"plan": full_plan(N, 4), "budget": None, "ratio": None},
            "is attent_paced there and full",
        ),
        ({"signal": "loss_drop"}, "differs in signal"),
        ({"signal": "aged", "rank": aged(N, bonus=1.0)}, "differs in signal, rank"),
    ],
)
def test_a_state_of_another_teacher_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        short(**options).load_state_dict(short().state_dict())


def test_what_is_no_state_at_all_is_refused():
    with pytest.raises(ValueError, match="no state of a teacher: it holds 'model'"):
        short().load_state_dict({"model": {}})
    saved = short().state_dict()
    del saved["state"]["clock/step"]
    with pytest.raises(ValueError, match="differ in entry 'clock/step'"):
        short().load_state_dict(saved)


def test_a_state_is_a_copy():
    teacher = short()
    for copy in (teacher.state["mask"], teacher.state_dict()["state"]["mask"], teacher.scores):
        copy.zero_()
    assert bool(teacher.state["mask"].all())
    saved = teacher.state_dict()
    walk(teacher, stop=20)
    assert int(saved["state"]["clock/seen"]) == 0
    assert teacher.ratio == 0.3
    assert teacher.passes == 2  # after 13 + 4 + 3 batches
