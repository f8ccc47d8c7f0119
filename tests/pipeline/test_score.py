"""The score stage: what a score is a property of, and how scoring is interrupted."""

from __future__ import annotations

import pytest
import torch

from attent.pipeline import (
    SIGNALS,
    ExampleError,
    Loading,
    Signal,
    TensorSource,
    generator,
    initial_state,
    initialize,
    run,
    score,
    uniform,
)
from attent.pipeline.keys import differences, key_name
from attent.pipeline.score import Frozen
from attent.pipeline.source import fetch_batch
from attent.tasks.classification import Classification
from tests.pipeline.test_signals import CLASSES, small_vit
from tests.tiny import TinyTask, tiny_source

WEIGHTS = torch.tensor([0.1, 0.2, 0.3])


class KeyedTask(TinyTask):
    """Its view masks inputs by the key, in scoring too, as a masked autoencoder does."""

    def view(self, batch, keys, *, training):
        batch = batch.copy()
        shown = torch.stack([uniform(keys, draw) for draw in range(3)], 1) < 0.5
        batch["x"] = batch["x"] * shown
        return batch


class Located(TensorSource):
    def locate(self, index: int) -> str:
        return f"row {index} of x.csv"


def ready(stage, task, source, *, due=True, step=17):
    """A state on which scoring is due, after 17 optimiser steps."""
    state = initialize(stage, initial_state(task, source, seed=5))
    state["plan", "score_due"] = torch.tensor(due)
    state["clock", "step"] = torch.tensor(step)
    return state


def scored(task, source, signal="loss", **options):
    stage = score(task, source, signal, **options)
    return run(stage, ready(stage, task, source))


def residuals(source) -> torch.Tensor:
    return source.fields["x"] @ WEIGHTS - source.fields["y"]


def hand(source, signal: str) -> torch.Tensor:
    """r^2, 2 |r| sqrt(|x|^2 + 1), 2 |r|: see test_signals.py."""
    r, x = residuals(source), source.fields["x"]
    gradient = 2 * r.abs() * (x.norm(dim=1) ** 2 + 1).sqrt()
    return {
        "loss": r**2,
        "grad_norm": gradient,
        "vmap_grad_norm": gradient,
        "looped_grad_norm": gradient,
        "last_layer": gradient,  # it is the only one
        "output_grad_norm": 2 * r.abs(),
    }[signal]


@pytest.mark.parametrize("signal", list(SIGNALS))
@pytest.mark.parametrize("options", [{}, {"batch_size": 7}, {"batch_size": 1, "chunk": None}])
def test_scores_by_hand(source, signal, options):
    # Augmentation, dropout, and a module left in training mode have no part in a score.
    task = TinyTask(dropout=0.5, noise=3.0)
    task.model.train()
    after = scored(task, source, signal, **options)
    torch.testing.assert_close(after["scores", signal], hand(source, signal))
    assert after["scores", "step"].tolist() == [17] * 20
    assert after["scores", "step"].dtype == torch.int32


@pytest.mark.parametrize(("signal", "backwards"), [("loss", 0), ("grad_norm", 20)])
def test_what_it_writes(task, source, signal, backwards):
    stage = score(task, source, signal, batch_size=6)
    state = ready(stage, task, source)
    state["ledger", "forwarded"] = torch.tensor(100)
    state["ledger", "backwarded"] = torch.tensor(10)
    after = run(stage, state)
    assert not bool(after["plan", "score_due"])
    assert bool(after["plan", "select_due"])
    assert int(after["clock", "cursor"]) == 0
    assert int(after["ledger", "forwarded"]) == 120
    assert int(after["ledger", "backwarded"]) == 10 + backwards
    changed = {key_name(key) for key in differences(state, after)}
    assert changed <= {
        f"scores/{signal}", "scores/step", "plan/score_due", "plan/select_due",
        "ledger/forwarded", "ledger/backwarded",
    }  # fmt: skip


@pytest.mark.parametrize("signal", list(SIGNALS))
@pytest.mark.parametrize("make", [TinyTask, KeyedTask], ids=["plain", "keyed view"])
def test_the_same_weights_give_the_same_bits(source, make, signal):
    # Published, masks and crops were drawn anew: Spearman 0.05 between two passes.
    stage = score(make(), source, signal, batch_size=6)
    state = ready(stage, make(), source)
    first = run(stage, state)["scores", signal]
    torch.manual_seed(123)  # not drawn from
    state["clock", "passes"] = torch.tensor(9)
    state["clock", "step"] = torch.tensor(99)
    assert torch.equal(run(stage, state)["scores", signal], first)
    assert first.std() > 0.1


def test_a_keyed_view_is_of_the_seed_and_the_example(source):
    task = KeyedTask()
    stage = score(task, source)
    state = ready(stage, task, source)
    first = run(stage, state)["scores", "loss"]
    state["seed"] = torch.tensor(6)
    assert not torch.equal(run(stage, state)["scores", "loss"], first)
    x, y = torch.ones(50, 3), torch.ones(50)
    losses = scored(task, TensorSource({"x": x, "y": y}))["scores", "loss"]
    # Equal examples under their own masks: f is the sum of some of 0.1, 0.2, 0.3, of 7 values.
    assert len(losses.unique()) > 3


@pytest.mark.parametrize("signal", list(SIGNALS))
def test_the_company_does_not_matter(source, signal):
    task = KeyedTask()
    whole = scored(task, source, signal)
    for batch_size in (1, 3, 20):
        other = scored(task, source, signal, batch_size=batch_size)
        torch.testing.assert_close(other["scores", signal], whole["scores", signal])
    # Any batch, in any order.
    index = torch.tensor([13, 2, 19, 7])
    measured = Frozen(task, whole).measure(SIGNALS[signal], fetch_batch(source, index), 32)
    torch.testing.assert_close(measured, whole["scores", signal][index])


def test_the_company_does_not_matter_to_a_transformer():
    draw = generator(3)
    source = TensorSource(
        {
            "image": torch.randn(12, 1, 16, 16, generator=draw),
            "label": torch.randint(0, CLASSES, (12,), generator=draw),
        }
    )
    task = Classification(small_vit(drop_path_rate=0.5, proj_drop_rate=0.5), CLASSES)
    task.model.train()
    whole = scored(task, source, "grad_norm")
    small = scored(task, source, "grad_norm", batch_size=5, chunk=2)
    torch.testing.assert_close(
        small["scores", "grad_norm"], whole["scores", "grad_norm"], rtol=1e-5, atol=1e-6
    )


def test_the_states_weights_count_not_the_modules(task, source):
    stage = score(task, source)
    state = ready(stage, task, source)
    with torch.no_grad():
        task.model.linear.weight.fill_(100.0)
    torch.testing.assert_close(run(stage, state)["scores", "loss"], hand(source, "loss"))


@pytest.mark.parametrize("signal", list(SIGNALS))
def test_scoring_in_parts(source, signal):
    task = KeyedTask()
    stage = score(task, source, signal, batch_size=4, examples_per_tick=7)
    state = ready(stage, task, source)
    cursors, flags, forwards = [], [], []
    for _ in range(3):
        state = run(stage, state)
        cursors.append(int(state["clock", "cursor"]))
        flags.append((bool(state["plan", "score_due"]), bool(state["plan", "select_due"])))
        forwards.append(int(state["ledger", "forwarded"]))
        if cursors == [8]:
            assert state["scores", "step"].tolist() == [17] * 8 + [-1] * 12
    # 7 examples are two batches of 4; after 16 the rest is 4.
    assert cursors == [8, 16, 0]
    assert flags == [(True, False), (True, False), (False, True)]
    assert forwards == [8, 16, 20]
    whole = scored(task, source, signal, batch_size=4)
    assert differences(state, whole) == []


def test_parts_that_end_with_the_data(task, source):
    after = scored(task, source, batch_size=10, examples_per_tick=20)
    assert int(after["clock", "cursor"]) == 0
    assert bool(after["plan", "select_due"])


@pytest.mark.parametrize("loading", [Loading(workers=2), Loading(prefetch=2)])
def test_workers_change_nothing(task, source, loading):
    plain = scored(task, source, batch_size=3)
    assert differences(scored(task, source, batch_size=3, loading=loading), plain) == []


def test_your_own_signal(task, source):
    own = Signal(name="size", measure=lambda task, p, b, batch, chunk: batch["x"].norm(dim=1))
    after = scored(task, source, own)
    torch.testing.assert_close(after["scores", "size"], source.fields["x"].norm(dim=1))


def broken(value: float, rows=(13,), kind=TensorSource) -> TensorSource:
    good = tiny_source()
    y = good.fields["y"].clone()
    y[list(rows)] = value
    return kind({"x": good.fields["x"], "y": y})


@pytest.mark.parametrize("signal", list(SIGNALS))
@pytest.mark.parametrize("batch_size", [4, 20])
def test_a_score_of_nan_names_the_example(task, signal, batch_size):
    with pytest.raises(ExampleError, match=f"^{signal} of example 13 is nan; look at that"):
        scored(task, broken(float("nan")), signal, batch_size=batch_size)


def test_an_infinite_score_says_where_the_example_is(task):
    message = r"loss of example 13 \(row 13 of x.csv\) is inf; look at that example"
    with pytest.raises(ExampleError, match=message):
        scored(task, broken(1e30, kind=Located))  # 1e60 is above float32


def test_several_bad_scores_are_counted(task):
    message = r"example 13 is nan \(2 such examples in this batch\)"
    with pytest.raises(ExampleError, match=message):
        scored(task, broken(float("nan"), rows=(13, 15)), batch_size=4)  # 12 to 15


def test_unknown_signal(task, source):
    with pytest.raises(ValueError, match="no signal 'los'; there are loss, grad_norm"):
        score(task, source, "los")


@pytest.mark.parametrize("options", [{"batch_size": 0}, {"examples_per_tick": 0}])
def test_sizes_below_one(task, source, options):
    with pytest.raises(ValueError, match=f"{next(iter(options))} is at least 1, got 0"):
        score(task, source, **options)


def test_a_chunk_below_one(task, source):
    with pytest.raises(ValueError, match="chunk"):
        score(task, source, "grad_norm", chunk=0)
