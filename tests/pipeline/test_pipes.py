"""The masked stream as a datapipe: every selected example once, whoever reads it."""

from __future__ import annotations

import itertools
import threading

import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset, IterDataPipe

from attent.pipeline import ExampleError, TensorSource, fold, selected_pipe
from attent.pipeline.order import keyed_order

MASK = torch.tensor([1, 0, 1, 1, 1, 0, 1, 1, 1, 1, 0, 1]).bool()
SELECTED = [0, 2, 3, 4, 6, 7, 8, 9, 11]


class Held(TensorSource):
    """Cannot be pickled, as an open file cannot; remembers what was asked for."""

    def __init__(self):
        super().__init__({"x": 10 * torch.arange(12), "pair": torch.arange(24).reshape(12, 2)})
        self.lock = threading.Lock()
        self.asked = []

    def fetch(self, index):
        self.asked += index.tolist()
        return super().fetch(index)


def test_one_by_one_in_the_keys_order_and_nothing_else_is_fetched():
    source = Held()
    pipe = selected_pipe(source, MASK, key=7)
    assert isinstance(pipe, IterDataPipe)
    assert isinstance(pipe, IterableDataset)
    assert len(pipe) == 9
    items = list(pipe)
    assert [int(item["index"]) for item in items] == keyed_order(MASK, 7)[:].tolist()
    assert all(int(item["x"]) == 10 * int(item["index"]) for item in items)
    assert items[0]["pair"].shape == (2,)
    assert sorted(source.asked) == SELECTED
    other = [int(item["index"]) for item in selected_pipe(source, MASK, key=fold(0, "epoch", 1))]
    assert sorted(other) == SELECTED
    assert other != [int(item["index"]) for item in items]


def test_the_mask_is_copied():
    mask = MASK.clone()
    pipe = selected_pipe(Held(), mask, key=7)
    mask.fill_(False)
    assert len(list(pipe)) == 9


@pytest.mark.parametrize("workers", [0, 1, 2])
@pytest.mark.parametrize("batched", [False, True])
def test_a_data_loader_with_workers_gives_each_example_once(workers, batched):
    pipe = selected_pipe(Held(), MASK, key=7, batch_size=2 if batched else None)
    loader = DataLoader(pipe, batch_size=None if batched else 2, num_workers=workers)
    for _ in range(2):
        batches = list(loader)
        assert sorted(int(i) for batch in batches for i in batch["index"]) == SELECTED
        assert all(torch.equal(batch["x"], 10 * batch["index"]) for batch in batches)
        # 9 in one share are 5 batches of 2; in two, 4 and 5 are 2 and 3.
        assert len(batches) == 5


def test_behind_other_pipes_and_below_other_data_sets():
    mapped = selected_pipe(Held(), MASK, key=7).map(_index)
    assert sorted(DataLoader(mapped, batch_size=None, num_workers=2)) == SELECTED

    class Wrapped(IterableDataset):
        def __init__(self, pipe):
            self.inside = [pipe]

        def __iter__(self):
            return map(_index, self.inside[0])

    wrapped = Wrapped(selected_pipe(Held(), MASK, key=7))
    assert sorted(DataLoader(wrapped, batch_size=None, num_workers=2)) == SELECTED
    twice = selected_pipe(Held(), MASK, key=7).sharding_filter()
    with pytest.raises(RuntimeError, match="Sharding twice on a single pipeline"):
        list(DataLoader(twice, batch_size=None, num_workers=2))


def _index(item):
    return int(item["index"])


def test_shares_of_any_number_of_ranks_are_a_partition():
    for count in (1, 2, 4, 9, 11):
        found = []
        for rank in range(count):
            pipe = selected_pipe(Held(), MASK, key=7)
            pipe.apply_sharding(count, rank)
            own = [_index(item) for item in pipe]
            assert len(pipe) == len(own)
            assert abs(len(own) - 9 / count) < 1
            found += own
        assert found == keyed_order(MASK, 7)[:].tolist()


def test_blocks_are_read_as_training_reads_them():
    class Blocks(Held):
        blocks = torch.tensor([0, 4, 8, 12])
        window = 1

    read = [_index(item) // 4 for item in selected_pipe(Blocks(), MASK, key=7)]
    assert sum(a != b for a, b in itertools.pairwise(read)) == 2  # one after another


def test_an_example_that_cannot_be_read_is_named():
    class Faulty(Held):
        def fetch(self, index):
            if 6 in index.tolist():
                raise OSError("truncated")
            return super().fetch(index)

    with pytest.raises(ExampleError, match="example 6 cannot be fetched: OSError: truncated"):
        list(selected_pipe(Faulty(), MASK, key=7))


@pytest.mark.parametrize(
    ("mask", "size", "message"),
    [
        (MASK[:5], None, r"torch.bool \[5\]; it must be bool of \[12\]"),
        (MASK.int(), None, r"torch.int32 \[12\]; it must be bool"),
        (torch.zeros(12, dtype=torch.bool), None, "selects no example"),
        (MASK, 0, "at least 1, or None, got 0"),
    ],
)
def test_mistakes_are_named(mask, size, message):
    with pytest.raises(ValueError, match=message):
        selected_pipe(Held(), mask, key=1, batch_size=size)
