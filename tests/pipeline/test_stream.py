"""Streams: the selected examples, each once, in the key's order, however they are fetched."""

from __future__ import annotations

import time

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from tensordict import TensorDict

from attent.pipeline.keyed import fold
from attent.pipeline.order import keyed_order
from attent.pipeline.source import ExampleError
from attent.pipeline.stream import IndexBatches, Loading, Stream, num_batches
from tests.pipeline.test_source import Faulty

LOADINGS = {
    "in the thread": Loading(),
    "prefetched": Loading(prefetch=2),
    "two threads": Loading(workers=2),
    "two processes": Loading(workers=2, processes=True),
}
every_loading = pytest.mark.parametrize("loading", LOADINGS.values(), ids=LOADINGS)


class SlowAtFirst(Faulty):
    """The batch with example 0 takes longest: workers would deliver it last."""

    def fetch(self, index: torch.Tensor) -> TensorDict:
        if 0 in index:
            time.sleep(0.05)
        return super().fetch(index)


# --- order


def test_the_order_is_a_permutation_of_the_selected():
    mask = torch.arange(200) % 3 == 0
    order = keyed_order(mask, fold(0, "order", 0))
    assert order.dtype == torch.int64
    assert order.sort().values.tolist() == list(range(0, 200, 3))


def test_the_order_is_a_function_of_the_key():
    mask = torch.ones(100, dtype=torch.bool)
    first, same, other = (keyed_order(mask, fold(0, "order", p)) for p in (0, 0, 1))
    assert torch.equal(first, same)
    assert not torch.equal(first, other)
    assert not torch.equal(first, torch.arange(100))


def test_an_empty_selection_has_an_empty_order():
    assert keyed_order(torch.zeros(5, dtype=torch.bool), 0).tolist() == []


# --- batches of indices


def batches(index: torch.Tensor, batch_size: int, offset: int = 0) -> list[list[int]]:
    return [batch.tolist() for batch in IndexBatches(index, batch_size, offset)]


def test_the_last_batch_may_be_smaller():
    assert batches(torch.arange(8), 3) == [[0, 1, 2], [3, 4, 5], [6, 7]]
    assert batches(torch.arange(6), 3) == [[0, 1, 2], [3, 4, 5]]
    assert batches(torch.arange(2), 3) == [[0, 1]]


def test_a_single_one_left_goes_with_the_batch_before_it():
    """Batch statistics of one example are undefined: BatchNorm refuses it."""
    assert batches(torch.arange(7), 3) == [[0, 1, 2], [3, 4, 5, 6]]
    assert batches(torch.arange(1), 3) == [[0]]
    assert batches(torch.arange(3), 1) == [[0], [1], [2]]


@given(examples=st.integers(0, 60), batch_size=st.integers(1, 12))
def test_the_number_of_batches(examples, batch_size):
    cut = batches(torch.arange(examples), batch_size)
    assert num_batches(examples, batch_size) == len(cut)
    assert [i for batch in cut for i in batch] == list(range(examples))
    assert batch_size == 1 or examples == 1 or all(len(batch) > 1 for batch in cut)


@pytest.mark.parametrize(("offset", "expected"), [(3, [[3, 4, 5, 6]]), (5, [[5, 6]]), (7, [])])
def test_an_offset_passes_over(offset, expected):
    assert batches(torch.arange(7), 3, offset) == expected


def test_index_batches_go_on_from_their_state():
    node = IndexBatches(torch.arange(7), 2, offset=1)
    assert next(node).tolist() == [1, 2]
    state = node.state_dict()
    rest = [batch.tolist() for batch in node]
    assert rest == [[3, 4], [5, 6]]
    node.reset(state)
    assert [batch.tolist() for batch in node] == rest
    node.reset()
    assert next(node).tolist() == [1, 2]


# --- streams


@every_loading
def test_a_stream_delivers_the_selected_in_order_each_once(loading):
    order = keyed_order(torch.arange(25) % 2 == 0, fold(0, "order", 0))  # 13 of 25
    delivered = list(Stream(Faulty(25), order, 4, loading=loading))
    assert [len(batch) for batch in delivered] == [4, 4, 5]
    assert torch.equal(torch.cat([batch["index"] for batch in delivered]), order)
    assert torch.equal(torch.cat([batch["x"] for batch in delivered]), 10 * order)


@every_loading
def test_a_resumed_stream_goes_on_where_the_other_stopped(loading):
    order = keyed_order(torch.ones(20, dtype=torch.bool), fold(0, "order", 0))
    resumed = Stream(Faulty(20), order, 4, offset=8, loading=loading)
    assert [b["index"].tolist() for b in resumed] == [b.tolist() for b in order[8:].split(4)]


@every_loading
def test_the_order_does_not_depend_on_who_is_fastest(loading):
    stream = Stream(SlowAtFirst(12), torch.arange(12), 2, loading=loading)
    assert torch.cat([batch["index"] for batch in stream]).tolist() == list(range(12))


@every_loading
def test_a_stream_ends_once_and_for_all(loading):
    stream = Stream(Faulty(4), torch.arange(4), 2, loading=loading)
    assert len(list(stream)) == 2
    assert list(stream) == []


@every_loading
def test_an_example_that_fails_is_the_readers_error(loading):
    stream = Stream(Faulty(12, bad=(5,)), torch.arange(12), 2, loading=loading)
    assert next(stream)["index"].tolist() == [0, 1]
    assert next(stream)["index"].tolist() == [2, 3]
    with pytest.raises(ExampleError, match=r"example 5 \(photos/5.jpg\) cannot be fetched: OSErr"):
        next(stream)


class Marked(Faulty):
    """Augments: each example carries the key it was changed under."""

    def fetch_augmented(self, index: torch.Tensor, keys: torch.Tensor) -> TensorDict:
        return super().fetch(index).set("key", keys)


@every_loading
def test_a_source_that_augments_is_given_a_key_for_each_example(loading):
    order = torch.tensor([3, 1, 4, 0, 2])
    marked = list(Stream(Marked(5), order, 2, loading=loading, keys=lambda index: 10 * index))
    assert torch.cat([batch["key"] for batch in marked]).tolist() == [30, 10, 40, 0, 20]
    assert all("key" not in batch for batch in Stream(Marked(5), order, 2, loading=loading))


def test_the_culprit_is_found_among_augmented_examples_too():
    stream = Stream(Marked(5, bad=(4,)), torch.arange(5), 8, keys=lambda index: 10 * index)
    with pytest.raises(ExampleError, match=r"example 4 \(photos/4.jpg\) cannot be fetched: OSErr"):
        next(stream)


@pytest.mark.parametrize("options", [{"workers": -1}, {"prefetch": -2}])
def test_loading_is_not_negative(options):
    numbers = f"{options.get('workers', 0)} and {options.get('prefetch', 0)}"
    with pytest.raises(ValueError, match=f"workers and prefetch are at least 0, got {numbers}"):
        Loading(**options)


@pytest.mark.parametrize("timeout", [0, -1.0, float("inf"), float("nan")])
def test_a_timeout_is_some_seconds(timeout):
    with pytest.raises(ValueError, match=f"above 0 seconds, or None for never; got {timeout}"):
        Loading(timeout=timeout)


def test_batches_hold_something():
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        IndexBatches(torch.arange(3), 0)
