"""The evaluation stage, against numbers by hand."""

from __future__ import annotations

import math

import pytest
import torch

from attent.pipeline import TensorSource, evaluate, initial_state, initialize, run, sequence
from attent.pipeline.keys import differences, key_name
from tests.tiny import TinyTask, tiny_source

# At w = (0.1, 0.2, 0.3), b = 0 the outputs are 0.1, 0.2, 0.3: errors 0, 0.2 and 0.3.
HELD_OUT = TensorSource({"x": torch.eye(3), "y": torch.tensor([0.1, 0.4, 0.0])})
LOSS, ERROR = (0.04 + 0.09) / 3, 0.5 / 3


def ready(stage, task):
    state = initialize(stage, initial_state(task, tiny_source(), seed=5))
    state["plan", "eval_due"] = torch.tensor(True)
    state["clock", "step"] = torch.tensor(17)
    return state


@pytest.mark.parametrize("batch_size", [1, 2, 256])
def test_metrics_by_hand(batch_size):
    # The batches of 2 and 1 weigh by their examples. Dropout and augmentation have no part.
    task = TinyTask(dropout=0.5, noise=3.0)
    task.model.train()
    stage = evaluate(task, HELD_OUT, batch_size=batch_size)
    metrics = run(stage, ready(stage, task))["metrics"]
    assert float(metrics["val_loss"]) == pytest.approx(LOSS)
    assert float(metrics["val_error"]) == pytest.approx(ERROR)
    assert metrics["val_loss"].dtype == torch.float64
    assert int(metrics["val_step"]) == 17


def test_changes_nothing_else(task):
    stage = evaluate(task, HELD_OUT, split="test")
    state = ready(stage, task)
    after = run(stage, state)
    assert not bool(after["plan", "eval_due"])
    assert {key_name(key) for key in differences(state, after)} == {
        "plan/eval_due", "metrics/test_loss", "metrics/test_error", "metrics/test_step",
    }  # fmt: skip


def test_before_the_first_evaluation(task):
    metrics = ready(evaluate(task, HELD_OUT), task)["metrics"]
    assert math.isnan(metrics["val_loss"])
    assert int(metrics["val_step"]) == -1


def test_init_keeps_the_last_evaluation(task):
    stage = evaluate(task, HELD_OUT)
    after = run(stage, ready(stage, task))
    assert differences(initialize(stage, after.clone()), after) == []


def test_moving_averages_are_measured_where_asked_for(task):
    stage = evaluate(task, HELD_OUT, weights="ema")
    state = initial_state(task, tiny_source())
    state["ema"] = state["params"].clone()
    state["params", "linear.weight"] = torch.full((1, 3), 7.0)
    metrics = run(stage, initialize(stage, state))["metrics"]
    assert float(metrics["val_loss"]) == pytest.approx(LOSS)


def test_metrics_are_new_for_each_evaluation(task):
    stage = evaluate(task, HELD_OUT)
    state = ready(stage, task)
    assert differences(run(stage, run(stage, state)), run(stage, state)) == []
    # Other weights: f = 0, the loss is the mean of y^2 = (0.01 + 0.16) / 3.
    state["params", "linear.weight"] = torch.zeros(1, 3)
    assert float(run(stage, state)["metrics", "val_loss"]) == pytest.approx(0.17 / 3)


def test_the_fixed_view():
    class Doubled(TinyTask):
        def view(self, batch, keys, *, training):
            assert not training
            assert keys.shape == batch["index"].shape
            batch = batch.copy()
            batch["x"] = 2 * batch["x"]
            return batch

    task = Doubled()
    stage = evaluate(task, HELD_OUT)
    # Outputs 0.2, 0.4, 0.6: errors 0.1, 0 and 0.6.
    error = run(stage, ready(stage, task))["metrics", "val_error"]
    assert float(error) == pytest.approx(0.7 / 3)


def test_two_splits(task):
    other = TensorSource({"x": torch.eye(3)[:1], "y": torch.tensor([1.1])})
    graph = sequence(
        "evaluate", evaluate(task, HELD_OUT), evaluate(task, other, split="test", name="held out")
    )
    assert [child.name for child in graph.children] == ["evaluate val", "held out"]
    metrics = run(graph, ready(graph, task))["metrics"]
    assert float(metrics["val_error"]) == pytest.approx(ERROR)
    assert float(metrics["test_error"]) == pytest.approx(1.0)


def test_an_empty_split(task):
    empty = TensorSource({"x": torch.zeros(0, 3), "y": torch.zeros(0)})
    with pytest.raises(ValueError, match="the test split holds no examples"):
        evaluate(task, empty, split="test")


@pytest.mark.parametrize("batch_size", [0, -4])
def test_a_batch_size_below_one(task, batch_size):
    with pytest.raises(ValueError, match=f"batch_size is at least 1, got {batch_size}"):
        evaluate(task, HELD_OUT, batch_size=batch_size)
