"""Losses of masked pre-training and their balance, by numbers derived by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from attent.tasks.pretraining.balancing import Balancer, balanced
from attent.tasks.pretraining.losses import (
    absolute_error,
    cross_entropy,
    masked_loss,
    normalized_by_patch,
    patch_means,
    squared_error,
    standardized_depth,
)


def picture(rows):
    return torch.tensor(rows, dtype=torch.float32)[None, None]


# --- pixels and patches


def test_errors_are_means_over_channels():
    prediction = torch.tensor([1.0, 4.0]).reshape(1, 2, 1, 1)
    target = torch.tensor([3.0, 1.0]).reshape(1, 2, 1, 1)
    assert squared_error(prediction, target).tolist() == [[[(4 + 9) / 2]]]
    assert absolute_error(prediction, target).tolist() == [[[(2 + 3) / 2]]]


def test_cross_entropy_of_two_classes():
    logits = torch.tensor([0.0, math.log(3)]).reshape(1, 2, 1, 1)  # shares 1/4 and 3/4
    for label, share in ((0, 0.25), (1, 0.75)):
        loss = cross_entropy(logits, torch.tensor([[[label]]]))
        assert loss.item() == pytest.approx(-math.log(share))


def test_patch_means_row_by_row():
    pixels = torch.arange(16.0).reshape(1, 4, 4)
    # The patches' corners are 0, 2, 8, 10; each mean is corner + (0 + 1 + 4 + 5) / 4.
    assert patch_means(pixels, (2, 2)).tolist() == [[2.5, 4.5, 10.5, 12.5]]


def test_a_masked_loss_is_the_mean_over_masked_patches_of_each_example():
    pixels = torch.arange(16.0).reshape(1, 4, 4).expand(3, 4, 4)
    masked = torch.tensor([[1, 0, 0, 1], [0, 0, 1, 0], [0, 0, 0, 0]]).bool()
    losses, valid = masked_loss(pixels, masked, (2, 2))
    assert losses.tolist() == [(2.5 + 12.5) / 2, 10.5, 0.0]
    assert valid.tolist() == [True, True, False]


def test_the_mask_at_the_resolution_of_the_picture_gives_the_same():
    draw = torch.Generator().manual_seed(0)
    pixels = torch.rand(5, 8, 12, generator=draw)
    masked = torch.rand(5, 6, generator=draw) < 0.6
    masked[:, 0] = True
    wide = F.interpolate(masked.float().reshape(5, 1, 2, 3), size=(8, 12))[:, 0]
    slow = (pixels * wide).sum((1, 2)) / wide.sum((1, 2))
    torch.testing.assert_close(masked_loss(pixels, masked, (2, 3))[0], slow)


def test_a_patch_is_normalised_over_all_its_channels_jointly():
    # One patch of two channels and two pixels: 0, 2, 4, 6. Mean 3, unbiased variance 20/3.
    x = torch.tensor([0.0, 2.0, 4.0, 6.0]).reshape(1, 2, 1, 2)
    found = normalized_by_patch(x, (1, 1)).flatten()
    deviation = math.sqrt(20 / 3 + 1e-6)
    torch.testing.assert_close(found, torch.tensor([-3.0, -1.0, 1.0, 3.0]) / deviation)


def test_each_patch_is_normalised_apart():
    draw = torch.Generator().manual_seed(1)
    x = torch.rand(2, 3, 8, 12, generator=draw) * 5 + 7
    found = normalized_by_patch(x, (4, 3))
    for b in range(2):
        for r in range(4):
            for c in range(3):
                where = (b, slice(None), slice(2 * r, 2 * r + 2), slice(4 * c, 4 * c + 4))
                patch = x[where]
                slow = (patch - patch.mean()) / (patch.var() + 1e-6).sqrt()
                torch.testing.assert_close(found[where], slow, rtol=1e-4, atol=1e-4)


def test_depth_is_standardised_by_its_middle_eight_tenths():
    # 10 pixels: in order those from 1 to 8 count; outliers 0 and 1000 do not.
    x = torch.tensor([5.0, 1000, 3, 4, 0, 6, 7, 8, 9, 2]).reshape(1, 1, 2, 5)
    middle = torch.tensor([2.0, 3, 4, 5, 6, 7, 8, 9])
    assert middle.mean() == 5.5
    assert middle.var() == 6.0  # 2 (0.25 + 2.25 + 6.25 + 12.25) / 7
    found = standardized_depth(x)
    torch.testing.assert_close(found, (x - 5.5) / math.sqrt(6 + 1e-6))
    assert found.max() > 400  # the map itself is not clipped


def test_depth_is_standardised_image_by_image():
    draw = torch.Generator().manual_seed(2)
    x = torch.rand(4, 1, 6, 7, generator=draw)
    alone = torch.cat([standardized_depth(x[i : i + 1]) for i in range(4)])
    assert torch.equal(standardized_depth(x), alone)
    moved = standardized_depth(3 * x + 11)
    torch.testing.assert_close(moved, alone, rtol=1e-3, atol=1e-3)


# --- balance

LOSSES = torch.tensor([[0.3, 0.5, 4.8, 0.9]])
ALL = torch.ones(1, 4, dtype=torch.bool)


def test_none_is_the_sum():
    assert balanced(LOSSES, ALL, "none").item() == pytest.approx(6.5)


def test_an_output_without_a_loss_leaves_and_the_rest_is_scaled_up():
    valid = torch.tensor([[True, True, False, True]])
    assert balanced(LOSSES, valid, "none").item() == pytest.approx(1.7 * 4 / 3)
    assert balanced(LOSSES, ~ALL, "none").item() == 0


def test_uncertainty():
    s = torch.tensor([[0.0, math.log(2), 0.0, -math.log(2)]])
    # 0.3 + (0.5 / 2 + log 2) + 4.8 + (0.9 * 2 - log 2)
    assert balanced(LOSSES, ALL, "uncertainty", s).item() == pytest.approx(0.3 + 0.25 + 4.8 + 1.8)
    gradient = torch.autograd.functional.jacobian(
        lambda s: balanced(LOSSES, ALL, "uncertainty", s).sum(), s
    )
    # d/ds = 1 - exp(-s) L
    torch.testing.assert_close(gradient, torch.tensor([[0.7, 0.75, -3.8, -0.8]]))


def test_an_output_without_a_loss_does_not_move_its_variance():
    valid = torch.tensor([[True, False, True, True]])
    s = torch.zeros(1, 4, requires_grad=True)
    balanced(LOSSES, valid, "uncertainty", s).sum().backward()
    assert s.grad is not None
    assert s.grad[0, 1] == 0
    assert s.grad[0, 0] != 0


def test_softmax_weighs_by_constants():
    """The published weights are not: these losses then have gradients -0.035 ... for easy tasks."""
    losses = LOSSES.clone().requires_grad_()
    weights = torch.softmax(LOSSES, dim=1)
    total = balanced(losses, ALL, "softmax")
    assert total.item() == pytest.approx(float((weights * LOSSES).sum()))
    total.backward()
    torch.testing.assert_close(losses.grad, weights)
    through = torch.softmax(losses, dim=1)
    (published,) = torch.autograd.grad((through * losses).sum(), losses)
    assert (published < 0).sum() == 3


def test_softmax_is_shared_among_those_that_have_a_loss():
    valid = torch.tensor([[True, True, False, True]])
    kept = LOSSES[valid]
    expected = (torch.softmax(kept, 0) * kept).sum()
    assert balanced(LOSSES, valid, "softmax").item() == pytest.approx(float(expected))
    nothing = LOSSES.clone().requires_grad_()
    total = balanced(nothing, ~ALL, "softmax")
    total.sum().backward()
    assert total.item() == 0
    assert nothing.grad is not None
    assert not nothing.grad.any()


@pytest.mark.parametrize("kind", ["none", "uncertainty", "softmax"])
def test_a_balanced_loss_is_a_function_of_its_own_example(kind):
    draw = torch.Generator().manual_seed(3)
    losses = torch.rand(6, 4, generator=draw)
    valid = torch.rand(6, 4, generator=draw) < 0.7
    balancer = Balancer(kind, 4)
    with torch.no_grad():
        for parameter in balancer.parameters():
            parameter.copy_(torch.rand(4, generator=draw))
    whole = balanced(losses, valid, kind, balancer(6))
    for i in range(6):
        alone = balanced(losses[i : i + 1], valid[i : i + 1], kind, balancer(1))
        torch.testing.assert_close(whole[i : i + 1], alone)


def test_only_uncertainty_learns_and_starts_at_the_sum():
    sizes = {k: sum(p.numel() for p in Balancer(k, 5).parameters()) for k in ("none", "softmax")}
    assert sizes == {"none": 0, "softmax": 0}
    balancer = Balancer("uncertainty", 4)
    assert balancer.log_variances.shape == (4,)
    start = balanced(LOSSES, ALL, "uncertainty", balancer(1))
    assert start.item() == pytest.approx(float(LOSSES.sum()))
