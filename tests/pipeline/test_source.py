"""Sources: a batch by index, and an error that names the example."""

from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict

from attent.pipeline.source import (
    DatasetSource,
    ExampleError,
    TensorSource,
    blocks_of,
    describe_example,
    fetch_batch,
    reading,
    watched,
)
from tests.tiny import tiny_source


class Faulty(TensorSource):
    """Examples 0, 10, 20, ... of which some cannot be read; each says where it is kept."""

    def __init__(self, num_examples: int, bad: tuple[int, ...] = ()) -> None:
        super().__init__({"x": 10 * torch.arange(num_examples)})
        self.bad = set(bad)

    def fetch(self, index: torch.Tensor) -> TensorDict:
        if self.bad & set(index.tolist()):
            raise OSError("cannot be decoded")
        return super().fetch(index)

    def locate(self, index: int) -> str:
        return f"photos/{index}.jpg"


def test_tensors_by_index_in_the_order_asked():
    source = TensorSource({"x": torch.tensor([[0, 1], [2, 3], [4, 5]]), "y": torch.arange(3)})
    assert len(source) == 3
    batch = source.fetch(torch.tensor([2, 0, 2]))
    assert batch.batch_size == (3,)
    assert batch["x"].tolist() == [[4, 5], [0, 1], [4, 5]]
    assert batch["y"].tolist() == [2, 0, 2]


@pytest.mark.parametrize(
    ("fields", "got"),
    [({}, "no fields"), ({"x": torch.ones(3), "y": torch.ones(4)}, "{'x': 3, 'y': 4}")],
)
def test_fields_share_one_length(fields, got):
    with pytest.raises(ValueError, match=f"fields must share one length; got {got}"):
        TensorSource(fields)


@pytest.mark.parametrize(
    "item",
    [
        lambda i: (torch.full((2,), i), i % 2),
        lambda i: [torch.full((2,), i), i % 2],
        lambda i: {"image": torch.full((2,), i), "label": i % 2},
    ],
    ids=["tuple", "list", "dictionary"],
)
def test_a_dataset_of_items(item):
    source = DatasetSource([item(i) for i in range(4)])
    assert len(source) == 4
    batch = source.fetch(torch.tensor([3, 0]))
    assert batch.batch_size == (2,)
    assert batch["image"].tolist() == [[3, 3], [0, 0]]
    assert batch["label"].tolist() == [1, 0]


def test_the_parts_of_a_tuple_are_named():
    source = DatasetSource([(torch.ones(1), 2, 3.0)], names=("x", "y", "z"))
    assert sorted(source.fetch(torch.tensor([0])).keys()) == ["x", "y", "z"]


@pytest.mark.parametrize(
    ("item", "got"),
    [
        ((torch.ones(1),), "tuple of 1"),
        (torch.ones(3), "Tensor"),
        (torch.ones(()), "Tensor"),
        (5, "int"),
    ],
)
def test_an_item_is_a_dictionary_or_a_tuple(item, got):
    message = rf"a dictionary or a tuple of 2 parts \('image', 'label'\), not {got}"
    with pytest.raises(ValueError, match=message):
        DatasetSource([item]).fetch(torch.tensor([0]))


def test_a_batch_carries_the_indices():
    batch = fetch_batch(Faulty(5), torch.tensor([4, 1]))
    assert batch["index"].tolist() == [4, 1]
    assert batch["x"].tolist() == [40, 10]


def test_an_example_that_fails_is_found_and_named():
    with pytest.raises(ExampleError) as caught:
        fetch_batch(Faulty(9, bad=(3, 7)), torch.tensor([0, 7, 5, 3]))
    assert str(caught.value) == (
        "example 7 (photos/7.jpg) cannot be fetched: OSError: cannot be decoded"
    )
    assert isinstance(caught.value.__cause__, OSError)


def test_a_source_need_not_locate():
    assert describe_example(TensorSource({"x": torch.ones(2)}), 1) == "example 1"


def test_items_that_do_not_go_together():
    """Each can be fetched alone; their shapes differ."""
    source = DatasetSource([(torch.ones(1), 0), (torch.ones(2), 0)])
    with pytest.raises(ExampleError, match=r"a batch of 2 examples \(\[1, 0\]\.\.\.\) cannot be f"):
        fetch_batch(source, torch.tensor([1, 0]))


def test_a_batch_has_the_size_asked_for():
    class Short(TensorSource):
        def fetch(self, index: torch.Tensor) -> TensorDict:
            return super().fetch(index[1:])

    with pytest.raises(ValueError, match=r"Short.fetch returned a batch of size \[1\] for 2 ind"):
        fetch_batch(Short({"x": torch.ones(3)}), torch.tensor([0, 1]))


@pytest.mark.parametrize("bounds", [[0, 4], [0, 2, 2, 6], [1, 6], [0.0, 6.0]])
def test_blocks_that_are_none_are_refused(bounds):
    source = tiny_source(6)
    source.blocks = torch.tensor(bounds)
    with pytest.raises(ValueError, match="rising from 0 to 6"):
        blocks_of(source)


def test_blocks_are_the_sources_own_or_none():
    source = tiny_source(6)
    assert blocks_of(source) is None
    source.blocks = torch.tensor([0, 2, 6])
    assert blocks_of(source).tolist() == [0, 2, 6]


def test_what_is_being_read_is_told_to_who_watches():
    seen = []
    reading(1)
    watched(seen.append)
    reading(2)
    watched(None)
    reading(3)
    assert seen == [2]
