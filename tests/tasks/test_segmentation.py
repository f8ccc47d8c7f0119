"""Semantic segmentation as a task: losses and metrics by hand."""

from __future__ import annotations

import math

import pytest
import torch
from tensordict import TensorDict
from torch import nn

from attent.pipeline import (
    Step,
    TensorSource,
    adamw,
    assert_stage_laws,
    evaluate,
    initial_state,
    initialize,
    run,
    score,
    sequence,
    train,
)
from attent.tasks.finetuning.inputs import standardized_where
from attent.tasks.pretraining.losses import standardized_depth
from attent.tasks.segmentation import Segmentation


class Pixelwise(nn.Module):
    """Logits from each pixel's own colours and depth."""

    def __init__(self, inputs=("rgb",), classes=3):
        super().__init__()
        self.inputs = inputs
        self.proj = nn.Conv2d(3 * ("rgb" in inputs) + ("depth" in inputs), classes, 1)

    def forward(self, pictures):
        return {"semseg": self.proj(torch.cat([pictures[name] for name in self.inputs], dim=1))}


def task(inputs=("rgb",), classes=3):
    torch.manual_seed(0)
    return Segmentation(Pixelwise(inputs, classes), classes, inputs=inputs)


def by_hand():
    """Two images of four pixels: logits that say classes 0 1 1 2 and 2 2 0 0."""
    guesses = torch.tensor([[[0, 1], [1, 2]], [[2, 2], [0, 0]]])
    logits = 2.0 * nn.functional.one_hot(guesses, 3).permute(0, 3, 1, 2).float()
    target = torch.tensor([[[0, 1], [2, 2]], [[2, 255], [255, 1]]])
    return logits, TensorDict({"target": target}, batch_size=[2])


def source(count=10, inputs=("rgb",), side=8):
    draw = torch.Generator().manual_seed(1)
    target = torch.randint(3, (count, side, side), generator=draw)
    target[torch.rand(count, side, side, generator=draw) < 0.2] = 255
    fields = {"rgb": torch.randn(count, 3, side, side, generator=draw), "target": target}
    if "depth" in inputs:
        fields["depth"] = 1 + torch.rand(count, 1, side, side, generator=draw)
        fields["depth_valid"] = torch.rand(count, 1, side, side, generator=draw) < 0.7
    return TensorSource(fields)


def test_a_loss_is_the_mean_over_the_pixels_that_are_not_passed_over():
    logits, batch = by_hand()
    right, wrong = -math.log(math.exp(2) / (math.exp(2) + 2)), -math.log(1 / (math.exp(2) + 2))
    losses = task().losses(logits, batch)
    assert losses.tolist() == pytest.approx([(3 * right + wrong) / 4, (right + wrong) / 2])
    assert task().targets(batch).tolist() == [4, 2]


def test_an_image_of_which_everything_is_passed_over_has_no_loss():
    logits, batch = by_hand()
    batch["target"][1] = 255
    logits.requires_grad_()
    losses = task().losses(logits, batch)
    assert losses[1] == 0
    losses.sum().backward()
    assert logits.grad is not None
    assert not logits.grad[1].any()
    assert logits.grad[0].any()


def test_metrics_by_hand():
    logits, batch = by_hand()
    metrics = task().metrics()
    task().update(metrics, logits, batch)
    found = {name: float(metric.compute()) for name, metric in metrics.items()}
    # Pixels (truth, guess): 00 11 21 22 | 22 10. Intersections 1 1 2 over unions 2 3 3.
    assert found["miou"] == pytest.approx((1 / 2 + 1 / 3 + 2 / 3) / 3)
    assert found["pixel_accuracy"] == pytest.approx(4 / 6)
    assert found["mean_accuracy"] == pytest.approx((1 + 1 / 2 + 2 / 3) / 3)


def test_classes_that_do_not_occur_have_no_part_in_the_means():
    logits, batch = by_hand()
    wider = torch.cat([logits, torch.full((2, 4, 2, 2), -9.0)], dim=1)
    some = task(classes=7)
    metrics = some.metrics()
    some.update(metrics, wider, batch)
    assert float(metrics["miou"].compute()) == pytest.approx((1 / 2 + 1 / 3 + 2 / 3) / 3)
    assert float(metrics["mean_accuracy"].compute()) == pytest.approx((1 + 1 / 2 + 2 / 3) / 3)


@pytest.mark.parametrize("batch_size", [1, 3, 256])
def test_metrics_do_not_depend_on_the_batches(batch_size):
    some, data = task(), source()
    data.fields["target"][4] = 255  # an image with nothing to measure
    stage = evaluate(some, data, batch_size=batch_size)
    state = initialize(stage, initial_state(some, data))
    first, again = run(stage, state)["metrics"], run(stage, state)["metrics"]
    assert {k: float(v) for k, v in first.items()} == {k: float(v) for k, v in again.items()}
    whole = run(evaluate(some, data), state)["metrics"]
    for name in ("miou", "pixel_accuracy", "mean_accuracy", "loss"):
        assert float(first[f"val_{name}"]) == pytest.approx(float(whole[f"val_{name}"]), rel=1e-6)
        assert 0 < float(first[f"val_{name}"]) < 3


@pytest.mark.parametrize("signal", ["loss", "grad_norm", "output_grad_norm", "last_layer"])
@pytest.mark.parametrize("inputs", [("rgb",), ("rgb", "depth")])
def test_every_signal_scores_it_and_keeps_the_laws(signal, inputs):
    some, data = task(inputs), source(inputs=inputs)
    stage = score(some, data, signal)
    state = initialize(stage, initial_state(some, data))
    assert_stage_laws(stage, state)
    scores = run(stage, state)["scores", signal]
    assert (scores > 0).all()
    assert len(scores.unique()) == len(scores)


def test_training_keeps_the_laws_and_learns():
    some, data = task(), source(count=8)
    data.fields["target"] = data.fields["rgb"].argmax(dim=1)
    stage = train(some, data, optimizer=adamw(0.05), step=Step(batch_size=4), steps=2)
    measure = evaluate(some, data)
    graph = sequence("both", stage, measure)
    state = initialize(graph, initial_state(some, data))
    state["plan", "budget"] = torch.tensor(10**6)
    assert_stage_laws(stage, state)
    before = run(measure, state)["metrics", "val_miou"]
    for _ in range(60):
        state["clock", "offset"].zero_()
        state = run(stage, state)
    assert float(run(measure, state)["metrics", "val_miou"]) > max(0.9, float(before))


def test_input_depth_is_standardised_by_its_valid_pixels():
    depth = torch.arange(12.0).reshape(1, 1, 3, 4)
    valid = depth < 10  # 0 to 9: 1 to 8 are in the middle, mean 4.5, variance 6
    found = standardized_where(depth, valid)
    expected = (depth - 4.5) / math.sqrt(6 + 1e-6)
    torch.testing.assert_close(found[valid], expected[valid])
    assert not found[~valid].any()
    assert not standardized_where(depth, torch.zeros_like(valid)).any()
    assert not standardized_where(depth, depth < 1).any()


def test_where_all_is_valid_it_is_standardised_as_in_pre_training():
    depth = torch.rand(3, 1, 9, 7, generator=torch.Generator().manual_seed(0))
    found = standardized_where(depth, torch.ones_like(depth).bool())
    torch.testing.assert_close(found, standardized_depth(depth), rtol=1e-5, atol=1e-6)


def test_predictions_are_the_likeliest_classes():
    logits, _ = by_hand()
    assert task().predict(logits)[0].tolist() == [[0, 1], [1, 2]]
