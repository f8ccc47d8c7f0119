"""RHO-loss by hand; a column beside a source; a data set as a stream of candidates."""

from __future__ import annotations

import copy
import itertools
import pickle

import pytest
import torch
from tensordict import TensorDict

from attent.pipeline import (
    DatasetSource,
    ExampleError,
    Step,
    TensorSource,
    Window,
    attent_online,
    fit,
    full,
    initial_state,
    initialize,
    plan_of,
    run,
)
from attent.pipeline.candidates import AHEAD, WithColumn, reducible_loss, shuffled
from attent.pipeline.keys import differences
from attent.pipeline.published import percentile
from attent.pipeline.source import augments, blocks_of, fetch_batch, lengths_of
from tests.tiny import TinyTask, tiny_source, tiny_train


class Told(TinyTask):
    """Remembers which examples it was trained on, batch by batch."""

    def __init__(self, **options):
        super().__init__(**options)
        self.trained: list[list[int]] = []

    def view(self, batch, keys, *, training):
        if training:
            self.trained.append(batch["example"].tolist())
        return super().view(batch, keys, training=training)


class Kept(TensorSource):
    """A source with all that one may have."""

    lengths = torch.tensor([3, 1, 2])
    blocks = torch.tensor([0, 2, 3])
    window = 5
    bucketed = False
    classes = ("a", "b")

    def locate(self, index: int) -> str:
        return f"row {index}"

    def fetch_augmented(self, index, keys) -> TensorDict:
        batch = self.fetch(index)
        return batch.set("x", batch["x"] + keys.float())


THREE = {"x": torch.tensor([1.0, 2.0, 3.0])}


def candidates(num_examples: int = 200) -> WithColumn:
    """A regression whose held-out losses are drawn, and that knows its examples."""
    noise = torch.rand(num_examples, generator=torch.Generator().manual_seed(3)) * 5
    source = WithColumn(tiny_source(num_examples), "holdout_loss", noise)
    return WithColumn(source, "example", torch.arange(num_examples))


def losses_of(source, weight: torch.Tensor) -> torch.Tensor:
    """Of a task of this weight and no bias, [N]."""
    batch = source.fetch(torch.arange(len(source)))
    return (batch["x"] @ weight - batch["y"]).square()


FIRST = torch.tensor([0.1, 0.2, 0.3])
"""The weight that a task begins with."""


def online(task, source, *, size=64, **options):
    held = Window(shuffled(source, 5), size)
    train = tiny_train(task, held, step=Step(batch_size=32), steps=1)
    return attent_online(task, held, train=train, ratio=0.5, **options), held


def test_reducible_loss_by_hand():
    task = TinyTask()
    batch = TensorDict(
        {
            "x": torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 10.0]]),
            "y": torch.tensor([1.1, 1.0]),
            "known": torch.tensor([0.25, 5.0]),
        },
        batch_size=[2],
    )
    params = {n: p.detach() for n, p in task.model.named_parameters() if p.requires_grad}
    signal = reducible_loss("known")
    found = signal.measure(task, params, dict(task.model.named_buffers()), batch, None)
    # (0.1 - 1.1)^2 - 0.25 and (3 - 1)^2 - 5.
    assert found.tolist() == pytest.approx([0.75, -1.0])
    assert (signal.name, signal.backward) == ("reducible_loss", False)


@pytest.mark.parametrize(
    ("given", "what"), [({}, "has none"), ({"holdout_loss": torch.zeros(2, 1)}, r"has \[2, 1\]")]
)
def test_a_batch_without_the_column(given, what):
    batch = TensorDict({"x": torch.zeros(2, 3), **given}, batch_size=[2])
    message = rf"needs the entry 'holdout_loss' of \[2\] in a batch; this one {what}: give the"
    with pytest.raises(ValueError, match=message):
        reducible_loss().measure(TinyTask(), {}, {}, batch, None)


def test_a_column_beside_a_source():
    source = WithColumn(Kept(THREE), "holdout_loss", torch.tensor([0.1, 0.2, 0.3]))
    assert len(source) == 3
    index = torch.tensor([2, 0])
    batch = fetch_batch(source, index)
    assert batch["x"].tolist() == [3, 1]
    assert batch["holdout_loss"].tolist() == pytest.approx([0.3, 0.1])
    assert augments(source)
    batch = fetch_batch(source, index, torch.tensor([10, 20]))
    assert batch["x"].tolist() == [13, 21]
    assert batch["holdout_loss"].tolist() == pytest.approx([0.3, 0.1])
    lengths, blocks = lengths_of(source), blocks_of(source)
    assert lengths is not None
    assert blocks is not None
    assert lengths.tolist() == [3, 1, 2]
    assert blocks.tolist() == [0, 2, 3]
    assert (source.window, source.bucketed, source.classes) == (5, False, ("a", "b"))
    assert source.locate(1) == "row 1"


def test_a_column_adds_nothing_else():
    source = WithColumn(TensorSource(THREE), "holdout_loss", torch.zeros(3))
    assert not augments(source)
    assert lengths_of(source) is None
    assert blocks_of(source) is None
    with pytest.raises(AttributeError, match="nothing"):
        source.nothing  # noqa: B018


def test_a_column_is_copied_to_workers():
    source = WithColumn(Kept(THREE), "holdout_loss", torch.tensor([0.1, 0.2, 0.3]))
    for twin in (pickle.loads(pickle.dumps(source)), copy.deepcopy(source)):
        assert twin.fetch(torch.tensor([1]))["holdout_loss"].tolist() == pytest.approx([0.2])
        assert augments(twin)
        assert twin.locate(2) == "row 2"


def test_columns_that_are_none():
    source = Kept(THREE)
    with pytest.raises(ValueError, match=r"the column 'a' is \[2\]; the source has 3 examples"):
        WithColumn(source, "a", torch.zeros(2))
    with pytest.raises(ValueError, match=r"the column 'a' of example 1 \(row 1\) is nan"):
        WithColumn(source, "a", torch.tensor([0.0, float("nan"), 0.0]))
    with pytest.raises(ValueError, match="the source has an entry 'x' of its own: take another"):
        WithColumn(source, "x", torch.zeros(3)).fetch(torch.tensor([0]))


def test_every_pass_of_a_stream_has_its_order():
    n = AHEAD + 10  # a pass is two reads
    source = TensorSource({"p": torch.arange(n)})
    stream = shuffled(source, 1)
    found = [int(item["p"]) for item in itertools.islice(stream(0), 3 * n)]
    passes = [found[:n], found[n : 2 * n], found[2 * n :]]
    assert all(sorted(one) == list(range(n)) for one in passes)
    assert passes[0] != passes[1] != passes[2] != passes[0]
    # From anywhere, and with another seed in another order.
    for start in (1, AHEAD, n - 1, n, 2 * n + 3):
        again = [int(item["p"]) for item in itertools.islice(stream(start), n)]
        assert again[: 3 * n - start] == found[start : start + n]
    other = [int(item["p"]) for item in itertools.islice(shuffled(source, 2)(0), n)]
    assert other != passes[0]


def test_a_bad_example_of_a_stream_is_named():
    class Rotten:
        def __len__(self):
            return 10

        def __getitem__(self, index):
            if index == 4:
                raise OSError("rotten")
            return {"p": index}

    stream = shuffled(DatasetSource(Rotten()), 1)
    order = shuffled(TensorSource({"p": torch.arange(10)}), 1)(0)
    good = [int(item["p"]) for item in itertools.islice(order, 10)].index(4)
    assert good > 0
    items = iter(stream(0))
    # Those before it come, though they are read together; then it is named, with its position.
    assert len(list(itertools.islice(items, good))) == good
    with pytest.raises(ExampleError, match="example 4 cannot be fetched: OSError: rotten"):
        next(items)
    held = Window(stream, good + 1)
    assert held.reader.locate(good) == f"position {good} of the stream: example 4"
    message = f"the example at position {good} of the stream: example 4 cannot be read"
    with pytest.raises(ExampleError, match=message):
        held.hold(torch.arange(good + 1))


def test_sources_that_make_no_stream():
    with pytest.raises(ValueError, match="a source of no examples makes no stream"):
        shuffled(TensorSource({"p": torch.zeros(0)}), 0)
    texts = Kept(THREE)
    texts.bucketed = True
    with pytest.raises(
        ValueError, match="those of Kept are of lengths from 1 to 3, which a window"
    ):
        shuffled(texts, 0)
    # Packed, they are of any lengths.
    assert float(next(iter(shuffled(Kept(THREE), 0)(0)))["x"]) in (1, 2, 3)


def test_rho_trains_on_the_largest_reducible_losses():
    task, source = Told(), candidates()
    first = losses_of(source, FIRST) - source.fetch(torch.arange(200))["holdout_loss"]
    graph, held = online(task, source, examples=96, signal=reducible_loss())
    state = fit(graph, initial_state(task, held))
    # Three windows of 64, of each 32 in one step; 200 examples hold them without a repeat.
    assert [len(batch) for batch in task.trained] == [32, 32, 32]
    assert int(state["clock", "step"]) == 3
    assert int(state["ledger", "forwarded"]) == 3 * 64 + 96
    assert int(state["ledger", "backwarded"]) == 96
    order = [int(item["example"]) for item in itertools.islice(shuffled(source, 5)(0), 192)]
    # The first window is scored by the weights the task began with.
    window = torch.tensor(order[:64])
    expected = window[first[window].topk(32).indices]
    assert sorted(task.trained[0]) == sorted(expected.tolist())
    # It is not what the loss alone would have taken.
    by_loss = window[losses_of(source, FIRST)[window].topk(32).indices]
    assert sorted(by_loss.tolist()) != sorted(expected.tolist())
    for number, batch in enumerate(task.trained):
        assert set(batch) <= set(order[64 * number : 64 * (number + 1)])


def test_selective_backprop_draws_from_each_batch_of_candidates():
    task, source = Told(), candidates(96)
    graph, held = online(task, source, examples=32 * 60, rule=percentile())
    state = fit(graph, initial_state(task, held))
    assert [len(batch) for batch in task.trained] == [32] * 60
    assert int(state["window", "next"]) == 60 * 64  # forty passes over the 96
    # At ratio 0.5 the power is 1. Of those of the window above its median loss, by the weights the
    # task began with, most are taken: of 64 at percentiles p the odds are p, 3/4 against 1/4.
    order = [int(item["example"]) for item in itertools.islice(shuffled(source, 5)(0), 64)]
    losses = losses_of(source, FIRST)[torch.tensor(order)]
    high = {order[i] for i in losses.topk(32).indices.tolist()}
    share = len(high & set(task.trained[0])) / 32
    assert 0.5 < share < 1.0
    # It has learned: y is the sum of x, but for noise of variance 0.01.
    assert float(losses_of(source, state["params", "linear.weight"][0]).mean()) < 0.05
    assert plan_of(graph).cost == 3 * 32 * 60 + 60 * 64


def test_a_run_goes_on_where_another_stood():
    def fresh():
        task = TinyTask(dropout=0.2, noise=0.3)
        graph, held = online(task, candidates(), examples=32 * 8, signal=reducible_loss())
        return graph, initialize(graph, initial_state(task, held))

    whole = fit(*fresh())
    graph, state = fresh()
    for _ in range(5):  # into the second pass over the 200
        state = run(graph, state)
    assert 0 < int(state["clock", "seen"]) < 32 * 8
    other, _ = fresh()
    assert differences(whole, fit(other, state)) == []


def test_a_column_trains_as_the_source_does():
    """Plain training of the source with a column and without it are the same."""
    ends = []
    for wrap in (False, True):
        task, source = TinyTask(), tiny_source()
        data = WithColumn(source, "holdout_loss", torch.zeros(20)) if wrap else source
        graph = full(data, train=tiny_train(task, data), epochs=2)
        ends.append(fit(graph, initial_state(task, data)))
    assert differences(*ends) == []
