"""Maps of numbers as a task: errors and metrics by hand."""

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
    train,
)
from attent.tasks.depth import DenseRegression
from attent.tasks.depth.task import DEPTH_METRICS, depth_figures


class Pixelwise(nn.Module):
    def __init__(self, channels=1):
        super().__init__()
        self.proj = nn.Conv2d(3, channels, 1)

    def forward(self, pictures):
        return {"dense": self.proj(pictures["rgb"])}


def task(channels=1, **options):
    torch.manual_seed(0)
    return DenseRegression(Pixelwise(channels), **options)


def batch_of(target, valid=None):
    target = torch.tensor(target).reshape(len(target), 1, 1, -1)
    if valid is None:
        valid = torch.ones_like(target).bool()
    else:
        valid = torch.tensor(valid).reshape(len(target), 1, 1, -1)
    return TensorDict({"target": target, "valid": valid}, batch_size=[len(target)])


def maps(values):
    return torch.tensor(values).reshape(len(values), 1, 1, -1)


def source(count=8, channels=1, side=8):
    draw = torch.Generator().manual_seed(2)
    rgb = torch.randn(count, 3, side, side, generator=draw)
    return TensorSource(
        {
            "rgb": rgb,
            "target": 3 + rgb[:, :channels].clamp(-2, 2),
            "valid": torch.rand(count, 1, side, side, generator=draw) < 0.8,
        }
    )


def test_errors_are_means_over_valid_pixels_in_deviations():
    batch = batch_of([[5.0, 5, 5, 5], [1, 3, 5, 7]], [[True] * 4, [True, False, True, True]])
    output = maps([[0.0, 1, 2, 3], [1, 9, -2, 0]])
    # Standardised by mean 3, deviation 2 the targets are 1 1 1 1 and -1 0 1 2.
    l1 = task(error="l1", mean=3.0, deviation=2.0).losses(output, batch)
    assert l1.tolist() == pytest.approx([(1 + 0 + 1 + 2) / 4, (2 + 3 + 2) / 3])
    l2 = task(error="l2", mean=3.0, deviation=2.0).losses(output, batch)
    assert l2.tolist() == pytest.approx([(1 + 0 + 1 + 4) / 4, (4 + 9 + 4) / 3])


def test_berhu_is_quadratic_beyond_a_fifth_of_the_images_own_largest_error():
    output, batch = maps([[0.1, 0.2, 0.5, 1.0], [10, 0, 0, 0]]), batch_of([[0.0] * 4, [0.0] * 4])
    losses = task(error="berhu").losses(output, batch)
    c = 0.2
    expected = (0.1 + 0.2 + (0.25 + c**2) / (2 * c) + (1 + c**2) / (2 * c)) / 4
    assert losses.tolist() == pytest.approx([expected, (100 + 4) / 4 / 4])
    alone = task(error="berhu").losses(output[:1], batch[:1])
    assert torch.equal(alone, losses[:1])  # whoever else is in the batch
    zero = task(error="berhu").losses(torch.zeros(2, 1, 1, 4), batch)
    assert zero.tolist() == [0, 0]


@pytest.mark.parametrize("error", ["l1", "l2", "berhu"])
def test_pixels_that_are_not_valid_have_no_part(error):
    batch = batch_of([[1.0, math.nan], [math.inf, -math.inf]], [[True, False], [False, False]])
    output = maps([[3.0, 5.0], [1.0, 1.0]]).requires_grad_()
    some = task(error=error)
    losses = some.losses(output, batch)
    assert losses[0] > 0
    assert losses[1] == 0
    losses.sum().backward()
    assert output.grad is not None
    assert output.grad[0, 0, 0, 0] != 0
    assert output.grad.count_nonzero() == 1
    assert some.targets(batch).tolist() == [1, 0]


def test_metrics_of_depth_by_hand():
    predicted, target = maps([[1.0, 2, 4, 8]]), maps([[1.0, 2.4, 2, -5]])
    valid = torch.tensor([True, True, True, False]).reshape(1, 1, 1, 4)
    found = {name: float(v) for name, v in depth_figures(predicted, target, valid).items()}
    # Ratios 1, 1.2 and 2.
    assert found == pytest.approx(
        {
            "delta1": 2 / 3,
            "delta2": 2 / 3,
            "delta3": 2 / 3,
            "rmse": math.sqrt((0.16 + 4) / 3),
            "abs_rel": (0.4 / 2.4 + 1) / 3,
            "log10": (math.log10(1.2) + math.log10(2)) / 3,
        }
    )
    assert tuple(found) == DEPTH_METRICS


def test_depths_at_the_bounds_are_not_within_them():
    valid = torch.ones(1, 1, 1, 3).bool()
    found = depth_figures(maps([[1.25, 1.5624, 1.9531]]), maps([[1.0, 1, 1]]), valid)
    assert [float(found[f"delta{k}"]) for k in (1, 2, 3)] == pytest.approx([0, 2 / 3, 1])


def test_a_prediction_behind_the_camera_is_measured_as_very_near():
    found = depth_figures(maps([[-1.0]]), maps([[1.0]]), maps([[1]]) > 0)
    assert float(found["log10"]) == pytest.approx(3)
    assert float(found["delta3"]) == 0


@pytest.mark.parametrize("batch_size", [1, 3, 256])
def test_metrics_do_not_depend_on_the_batches(batch_size):
    some, data = task(mean=3.0, deviation=0.5), source()
    data.fields["valid"][3] = False
    stage = evaluate(some, data, batch_size=batch_size)
    state = initialize(stage, initial_state(some, data))
    found = run(stage, state)["metrics"]
    slow = dict.fromkeys(DEPTH_METRICS, 0.0)
    for i in range(8):
        if i == 3:
            continue
        one = data.fetch(torch.tensor([i]))
        output = some.predict(some.forward(some.model, one)).detach()
        for name, value in depth_figures(output, one["target"], one["valid"]).items():
            slow[name] += float(value) / 7
    for name in DEPTH_METRICS:
        assert float(found[f"val_{name}"]) == pytest.approx(slow[name], rel=1e-6)


def test_other_maps_have_no_metrics_of_depth():
    assert set(task(channels=3, depth=False).metrics()) == {"loss", "l1"}


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("signal", ["loss", "grad_norm", "output_grad_norm"])
def test_every_signal_scores_it_and_keeps_the_laws(signal, channels):
    some, data = task(channels, depth=False), source(channels=channels)
    stage = score(some, data, signal)
    state = initialize(stage, initial_state(some, data))
    assert_stage_laws(stage, state)
    assert (run(stage, state)["scores", signal] > 0).all()


def test_training_keeps_the_laws_and_learns():
    some, data = task(mean=3.0), source()
    stage = train(some, data, optimizer=adamw(0.05), step=Step(batch_size=4), steps=2)
    measure = evaluate(some, data)
    state = initialize(measure, initialize(stage, initial_state(some, data)))
    state["plan", "budget"] = torch.tensor(10**6)
    assert_stage_laws(stage, state)
    for _ in range(60):
        state["clock", "offset"].zero_()
        state = run(stage, state)
    assert float(run(measure, state)["metrics", "val_delta1"]) > 0.9


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"error": "huber"}, "error is berhu, l1 or l2, not 'huber'"),
        ({"deviation": 0.0}, "deviation must be above 0, got 0.0"),
    ],
)
def test_wrong_options(options, said):
    with pytest.raises(ValueError, match=said):
        task(**options)
