"""Streams read by position: on, back, from the middle, to the end and anew."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from tensordict import TensorDict
from torch.utils.data import DataLoader, IterableDataset
from torchdata.nodes import IterableWrapper

from attent.pipeline import ExampleError, StreamEnded
from attent.pipeline.reader import Reader
from tests.streams import Again, Pipe, begin


class Set(IterableDataset):
    def __iter__(self):
        return begin(0)


def positions(examples):
    return [int(example["p"]) for example in examples]


STREAMS = {
    "callable": lambda: begin,
    "iterable": Again,
    "datapipe": Pipe,
    "node": lambda: IterableWrapper(Again()),
    "data loader": lambda: DataLoader(Set(), batch_size=None),
}


@pytest.mark.parametrize("name", STREAMS)
def test_it_reads_on_goes_back_and_passes_over(name):
    reader = Reader(STREAMS[name]())
    assert positions(reader.read([0, 1, 2])) == [0, 1, 2]
    assert positions(reader.read([3, 7])) == [3, 7]
    assert positions(reader.read([8])) == [8]
    assert positions(reader.read([2, 5])) == [2, 5]
    assert positions(Reader(STREAMS[name]()).read([20, 22])) == [20, 22]


def test_a_callable_begins_where_it_is_asked_to_and_an_iterable_is_read_forward():
    asked = []

    def stream(start):
        asked.append(start)
        return begin(start)

    reader = Reader(stream)
    reader.read([500, 501])
    reader.read([502, 504])
    assert asked == [500]
    again = Again()
    Reader(again).read([500])
    assert again.read == 501


def test_a_generator_is_read_on_only():
    reader = Reader(begin(0))
    assert positions(reader.read([3, 4])) == [3, 4]
    with pytest.raises(ValueError, match=r"read up to position 5 .* again from 2: a generator"):
        reader.read([2])
    with pytest.raises(ValueError, match="a generator is read once: give a callable"):
        Reader(begin(0), restart=True)


def test_what_is_not_a_stream_is_refused():
    with pytest.raises(ValueError, match=r"a stream is an iterable of examples or .* not a int"):
        Reader(5)  # type: ignore[arg-type]


def test_examples_given_back_are_read_again_without_going_back():
    again = Again()
    reader = Reader(again)
    first = reader.read([0, 1, 2, 3])
    reader.give_back({2: first[2], 3: first[3]})
    second = reader.read([2, 3, 4])
    assert second[0] is first[2]
    assert second[1] is first[3]
    assert positions(second) == [2, 3, 4]
    assert again.read == 5
    assert positions(reader.read([2])) == [2]  # once only
    assert again.read == 8


@pytest.mark.parametrize("stream", [Again(5), Pipe(5), lambda start: begin(start, 5)])
def test_the_end_is_an_error_unless_it_begins_anew(stream):
    with pytest.raises(StreamEnded, match="ended after 5 examples") as caught:
        Reader(stream).read(range(7))
    assert caught.value.length == 5
    reader = Reader(stream, restart=True)
    assert positions(reader.read(range(4, 12))) == [4, 0, 1, 2, 3, 4, 0, 1]
    assert (reader.length, reader.known_length(11), reader.known_length(4)) == (5, 5, 0)
    # Where the length is known nothing need be read to be found: 13 is 3 of the third round.
    later = Reader(stream, restart=True)
    later.length = 5
    assert positions(later.read([13, 16])) == [3, 1]


def test_a_stream_that_changes_its_length_cannot_begin_anew():
    lengths = iter([5, 5, 4])

    class Shrinking:
        def __iter__(self):
            return begin(0, next(lengths))

    reader = Reader(Shrinking(), restart=True)
    with pytest.raises(StreamEnded, match="after 4 examples, but had 5 the first time"):
        reader.read(range(20))
    with pytest.raises(StreamEnded, match="ended after 0 examples"):
        Reader([], restart=True).read([0])


def test_an_example_that_cannot_be_read_is_named_by_its_position():
    class Files:
        def __call__(self, start):
            for position in range(start, 10):
                if position == 3:
                    raise OSError("truncated")
                yield {"p": position}

        def locate(self, position):
            return f"part-{position}.tar"

    reader = Reader(Files())
    expected = r"position 3 of the stream: part-3.tar cannot be read: OSError: truncated"
    with pytest.raises(ExampleError, match=expected):
        reader.read(range(5))
    assert positions(reader.read([4])) == [4]  # begun again behind it
    broken = Reader(iter(Files()(2)))
    for _ in range(2):  # not a stream that ended
        with pytest.raises(ValueError, match=r"read once|truncated"):
            broken.read([0, 1])


def test_tensordicts_become_dictionaries():
    stream = [TensorDict({"x": torch.ones(2), "inner": {"y": torch.tensor(1)}})]
    (item,) = Reader(stream).read([0])
    assert isinstance(item, dict)
    assert isinstance(item["inner"], dict)


@pytest.mark.parametrize(
    ("item", "names", "message"),
    [
        ((1, 2, 3), ("x", "y"), r"that are named \(x, y\), not a tuple of 3 parts"),
        ([1], (), r"that are named \(none\), not a list of 1 parts"),
        (torch.ones(2), ("x", "y"), "not a Tensor"),
    ],
)
def test_an_example_is_a_dictionary_or_becomes_one(item, names, message):
    reader = Reader([(1, 2), item] if names else [{}, item], names=names)
    assert reader.read([0]) == [dict(zip(names, (1, 2), strict=False))]
    with pytest.raises(ExampleError, match=rf"position 1 of the stream cannot.*{message}"):
        reader.read([1])


def global_random_state():
    numpy_state = np.random.get_state(legacy=True)  # noqa: NPY002
    return (
        torch.random.get_rng_state().tolist(),
        random.getstate(),
        [str(part) for part in numpy_state],
    )


def test_shuffling_pipes_and_loaders_shuffle_the_same_way_and_leave_the_generators_alone():
    def shuffled():
        return Pipe(30).shuffle(buffer_size=10)

    before = global_random_state()
    first = positions(Reader(shuffled()).read(range(30)))
    torch.manual_seed(5)
    after = global_random_state()
    assert positions(Reader(shuffled()).read(range(30))) == first != sorted(first)
    assert before != after == global_random_state()
    Reader(DataLoader(Set(), batch_size=None)).read([0])
    assert after == global_random_state()
