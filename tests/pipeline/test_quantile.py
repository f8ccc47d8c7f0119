"""The running quantile: its arithmetic, how it follows a drift, and what is trained on by it."""

from __future__ import annotations

import math

import pytest
import torch

from attent.pipeline import (
    ExampleError,
    Signal,
    StreamEnded,
    Window,
    above_quantile,
    attent_threshold,
    bare_state,
    fit,
    initial_state,
    initialize,
    refill,
    run,
    threshold_plan,
)
from attent.pipeline.keyed import generator
from attent.pipeline.observers import saving
from attent.pipeline.quantile import RECENT, Quantile
from tests.pipeline.test_fit import Recorder
from tests.streams import Again, begin, threshold
from tests.tiny import TinyTask, tiny_train


def test_the_arithmetic_by_hand():
    quantile = Quantile(0.25, 0.1, recent=range(8))
    # Above: fewer than 0.25 * 8 = 2 of 0..7 are as high.
    assert quantile.threshold == 6.0
    assert not quantile.above(6.0)
    assert quantile.level == pytest.approx(0.275)  # 0.25 + 0.1 * 0.25
    # Fewer than 0.275 * 9 = 2.475 of 0 1 2 3 4 5 6 6 7: those above the second 6 are.
    assert quantile.threshold == 6.0
    assert quantile.above(6.5)
    assert quantile.level == pytest.approx(0.2)  # 0.275 - 0.1 * 0.75
    assert list(quantile.recent) == [0, 1, 2, 3, 4, 5, 6, 7, 6, 6.5]
    assert Quantile(0.25, 0.1, level=-0.01, recent=range(8)).threshold == math.inf
    assert Quantile(0.25, 0.1, level=1.01, recent=range(8)).threshold == -math.inf
    assert Quantile(0.25, 0.1, level=1.0, recent=range(8)).threshold == 0.0
    assert Quantile(0.25, 0.1).threshold == math.inf  # nothing to compare with


def test_it_forgets_all_but_the_last():
    quantile = Quantile(0.5, 0.01)
    values = torch.rand(RECENT + 40, generator=generator(1)).tolist()
    for value in values:
        quantile.above(value)
    assert list(quantile.recent) == values[40:]
    assert quantile._ranked == sorted(values[40:])


DRIFTS = {
    "none": lambda p: 1.0,
    "up tenfold": lambda p: 10**p,
    "down tenfold": lambda p: 10**-p,
    "up and down a hundredfold, ten times": lambda p: 10 ** math.sin(20 * math.pi * p),
    "at once up": lambda p: 1.0 if p < 0.5 else 10.0,
    "at once down": lambda p: 1.0 if p < 0.5 else 0.1,
    "always up": lambda p: 1e6**p,
}


@pytest.mark.parametrize("ratio", [0.1, 0.3, 0.6])
@pytest.mark.parametrize("drift", DRIFTS)
def test_the_share_kept_follows_the_ratio_though_scores_drift(drift, ratio):
    total = 20_000
    noise = (0.5 * torch.randn(total, generator=generator(3))).exp().tolist()
    quantile, step = Quantile(ratio, 0.01), 0.01
    kept = [quantile.above(DRIFTS[drift](i / total) * noise[i]) for i in range(total)]
    share = torch.tensor(kept).float()
    # What is promised, from the first score on and from any other.
    assert abs(float(share.mean()) - ratio) < (1 + step) / (step * total)
    after = share[2000:]
    assert float(after.mean()) == pytest.approx(ratio, abs=0.01)
    if "once" not in drift and "hundredfold" not in drift:  # in every part of it, too
        assert max(abs(float(part.mean()) - ratio) for part in after.split(3000)) < 0.02


def test_of_equal_scores_their_share_is_kept_too():
    quantile = Quantile(0.3, 0.01)
    for level in (2.0, 7.0, 0.5, 0.0):  # all at another level at once
        kept = [quantile.above(level) for _ in range(3000)]
        assert sum(kept) / 3000 == pytest.approx(0.3, abs=0.04)


GIVEN = Signal(name="given", measure=lambda task, params, buffers, batch, chunk: batch["y"])


def scores(*values):
    """A stream of these, whose scores they are."""
    return [{"x": torch.ones(3), "y": torch.tensor(float(value))} for value in values]


def test_what_comes_into_the_window_by_hand():
    """At a share of a half, with a step too small to matter: kept if above the recent median."""
    task, held = TinyTask(), Window(scores(1, 5, 3, 2, 4, 0, 9, 2, 8, 1, 7, 5, 0, 0), 3)
    keep = above_quantile(task, ratio=0.5, signal=GIVEN, step=1e-9, batch_size=3)
    stage = refill(held, keep=keep)
    state = run(stage, initialize(stage, initial_state(task, held)))
    # Among n recent ones, fewer than n / 2 as high: 1 has none to be compared with; 5 is kept (0 of
    # 1), 3 (1 of 2) not, 2 (2 of 3) not, 4 is (1 of 4), 0 not, 9 is (0 of 6).
    assert state["window", "position"].tolist() == [1, 4, 6]
    assert held.fetch(torch.arange(3))["y"].tolist() == [5.0, 4.0, 9.0]
    # 1 5 3 | two are missing: min(3, 2 / 0.5) = 3: 2 4 0 | one: 1 / 0.5 = 2: 9 2, of which 2 is
    # given back.
    assert (int(state["window", "next"]), int(state["ledger", "forwarded"])) == (7, 8)
    assert int(state["ledger", "backwarded"]) == 0
    assert state["window", "recent"][:7].tolist() == [1, 5, 3, 2, 4, 0, 9]
    assert bool(state["window", "recent"][7:].isnan().all())
    assert float(state["window", "level"]) == pytest.approx(0.5)
    assert float(state["window", "threshold"]) == 3.0  # 4 of 7 are as high, of 4 only 3
    state["plan", "window_due"] = torch.tensor(True)
    state = run(stage, state)
    # 2 8 1 | two are missing: 7 5 0: all of 8, 7 and 5 are above the median so far.
    assert state["window", "position"].tolist() == [8, 10, 11]
    assert (int(state["window", "next"]), int(state["ledger", "forwarded"])) == (12, 8 + 6)
    state["plan", "window_due"] = torch.tensor(True)
    with pytest.raises(StreamEnded, match=r"after 14 examples: 2 windows of 3 were full"):
        run(stage, state)


def test_everything_kept_is_trained_on_once_and_the_ledger_counts_the_candidates():
    class Told(TinyTask):
        trained = ()

        def view(self, batch, keys, *, training):
            if training:
                self.trained += tuple(batch["p"].tolist())
            return super().view(batch, keys, training=training)

    again, task = Again(), Told()
    graph, _, held = threshold(again, size=16, examples=320, ratio=0.3, steps=50, task=task)
    seen = Recorder()
    state = fit(graph, initial_state(task, held), observers=[seen])
    kept = [p for s in seen.states for p in s["window", "position"].tolist()]
    assert kept == sorted(kept)  # the stream is never gone back over
    assert sorted(task.trained) == kept
    assert len(kept) == 320 == int(state["ledger", "backwarded"])
    looked_at = int(state["window", "next"])
    # Its loss falls a hundredfold meanwhile.
    assert abs(320 / looked_at - 0.3) < 1.01 / (0.01 * looked_at)
    scored = int(state["ledger", "forwarded"]) - 320
    # Those given back are scored twice; they are few, and are not read again.
    assert 1.0 <= scored / looked_at < 1.1
    assert again.read <= looked_at + 16
    assert saving(state) == pytest.approx(1 - (scored + 3 * 320) / (3 * looked_at))
    assert saving(state) > 0.25
    # In the middle of a window, against what stands for the part of it that was trained on.
    graph, task, held = threshold(begin, size=8, examples=8, steps=1)
    fit(graph, initial_state(task, held), observers=[seen])
    half = seen.states[-2]
    assert (int(half["clock", "seen"]), int(half["ledger", "backwarded"])) == (4, 4)
    cost = int(half["ledger", "forwarded"]) + 2 * 4
    assert saving(half) == pytest.approx(1 - cost / (3 * int(half["window", "next"]) / 2))


def test_scores_are_those_of_the_present_weights_in_a_view_fixed_by_the_position():
    """Another batch size reads the same: a score is a property of weights and position."""
    states = []
    for size in (3, 7, 64):
        graph, task, held = threshold(
            begin, task=TinyTask(noise=0.5), examples=8, score_batch_size=64
        )
        state = initialize(graph, initial_state(task, held))
        keep = above_quantile(task, batch_size=size, ratio=0.3)
        states.append(run(refill(held, keep=keep), state))
    for other in states[1:]:
        for entry in ("position", "next", "threshold", "level", "recent"):
            torch.testing.assert_close(
                states[0]["window", entry], other["window", entry], equal_nan=True
            )


def test_what_it_costs_before_it_starts():
    plan = threshold_plan(32, 3_000, ratio=0.3)
    # 10,000 candidates by a forward, 3,000 of them by a forward and a backward.
    assert plan.cost == 10_000 + 3 * 3_000
    assert plan.saving == pytest.approx(1 - 19_000 / 30_000)
    assert plan.warnings() == []
    assert threshold_plan(32, 3_000, ratio=0.66).warnings() == []
    assert threshold_plan(32, 3_000, ratio=2 / 3).saving == pytest.approx(0)
    (warning,) = threshold_plan(32, 3_000, ratio=0.7).warnings()
    assert "measuring a candidate costs 1 forwards and not training on 30%" in warning
    assert len(threshold_plan(32, 3_000, ratio=0.01, score_cost=3).warnings()) == 1


def test_a_score_that_is_not_finite_and_an_example_that_cannot_be_read():
    task = TinyTask()
    held = Window(scores(1, 2, 3, math.nan, 4), 2)
    stage = refill(held, keep=above_quantile(task, batch_size=5, signal=GIVEN))
    expected = r"given of example 3 \(position 3 of the stream\) is nan"
    state = initialize(stage, initial_state(task, held))
    with pytest.raises(ExampleError, match=expected):
        run(stage, state)
    held = Window([{"x": torch.ones(3), "y": 1.0}, (1, 2, 3)], 2)
    stage = refill(held, keep=above_quantile(task, batch_size=2))
    with pytest.raises(ExampleError, match=r"at position 1 of the stream cannot be read"):
        run(stage, initialize(stage, initial_state(task, held)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ratio": 1.0}, r"ratio of candidates that are kept is in \(0, 1\), got 1.0"),
        ({"ratio": 0.0}, r"is in \(0, 1\), got 0.0"),
        ({"step": 0.0}, r"step of a running quantile is in \(0, 1\), got 0.0"),
        ({"batch_size": 0}, "at least 1, got 0 and 32"),
        ({"chunk": 0}, "at least 1, got 256 and 0"),
        ({"signal": "los"}, "los"),
    ],
)
def test_options_outside_their_range(options, message):
    with pytest.raises(ValueError, match=message):
        above_quantile(TinyTask(), **options)


def test_it_needs_the_model_in_the_state():
    held = Window(begin, 4)
    task = TinyTask()
    graph = attent_threshold(task, held, train=tiny_train(task, held), examples=8)
    with pytest.raises(KeyError, match="buffers"):
        run(graph, initialize(graph, bare_state(4)))
