"""Mask R-CNN on a MultiViT: the pyramid by hand, what is drawn, detections as torchvision's."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F
from torchvision.models.detection.image_list import ImageList

from attent.models.detection import FeaturePyramid, MaskRCNN
from attent.models.multimae import build_multivit

SIDE, CLASSES = 64, 3


def make(seed=0, **options) -> MaskRCNN:
    torch.manual_seed(seed)
    encoder = build_multivit(
        "multivit_micro",
        image_size=SIDE,
        patch_size=8,
        model_args={"dim": 32, "depth": 1, "num_heads": 2},
    )
    small = {
        "channels": 16, "box_dim": 32, "anchor_sizes": (8, 16, 32, 64), "num_proposals": 50,
        "anchors_drawn": 64, "regions_drawn": 32,
    }  # fmt: skip
    return MaskRCNN(encoder, CLASSES, **(small | options))


def one_of(*boxes, labels=None):
    """Objects that fill their boxes."""
    masks = torch.zeros(len(boxes), SIDE, SIDE, dtype=torch.uint8)
    for mask, (left, top, right, bottom) in zip(masks, boxes, strict=True):
        mask[top:bottom, left:right] = 1
    return {
        "boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        "labels": torch.tensor(labels or [1] * len(boxes), dtype=torch.int64),
        "masks": masks,
    }


def pictures(count=2):
    return torch.randn(count, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(2))


def test_the_levels_are_four_two_one_and_half_times_the_map():
    maps = FeaturePyramid(32, 16)(torch.randn(2, 32, 8, 6))
    assert {name: tuple(level.shape) for name, level in maps.items()} == {
        "0": (2, 16, 32, 24), "1": (2, 16, 16, 12), "2": (2, 16, 8, 6), "3": (2, 16, 4, 3),
    }  # fmt: skip


def test_the_coarsest_level_by_hand():
    """Of each 2 x 2 the largest, 1 x 1 convolution, norm over channels, 3 x 3, norm."""
    torch.manual_seed(0)
    pyramid, tokens = FeaturePyramid(4, 3), torch.randn(1, 4, 4, 4)
    _, first, _, second, _ = pyramid.levels["3"]
    largest = tokens.reshape(1, 4, 2, 2, 2, 2).amax(dim=(3, 5))

    def norm(x):
        variance, mean = torch.var_mean(x, dim=1, keepdim=True, unbiased=False)
        return (x - mean) / (variance + 1e-6).sqrt()

    once = norm(torch.einsum("oi,bihw->bohw", first.weight[..., 0, 0], largest))
    expected = norm(F.conv2d(once, second.weight, padding=1))
    torch.testing.assert_close(pyramid(tokens)["3"], expected, rtol=1e-4, atol=1e-4)


def test_a_map_of_odd_size_is_refused():
    with pytest.raises(ValueError, match="even number of patches a side, got 8 x 7"):
        FeaturePyramid(8, 4)(torch.randn(1, 8, 8, 7))


def test_anchors_of_each_level_stand_on_its_grid():
    with torch.no_grad():
        anchors = make(anchor_ratios=(1.0,))(pictures(1), [one_of()])[2].anchors
    levels = anchors.split([32 * 32, 16 * 16, 8 * 8, 4 * 4])
    for level, size, stride in zip(levels, (8, 16, 32, 64), (2, 4, 8, 16), strict=True):
        half = size / 2
        # The first is centred on the picture's corner, the next one stride to the right.
        assert level[0].tolist() == [-half, -half, half, half]
        assert level[1].tolist() == [stride - half, -half, stride + half, half]


def test_a_fifth_size_adds_a_level_for_anchors_alone():
    with torch.no_grad():
        encoded = make(anchor_sizes=(8, 16, 32, 64, 128))(pictures(1), [one_of()])[2]
    assert torch.equal(encoded.maps["pool"], encoded.maps["3"][:, :, ::2, ::2])
    assert len(encoded.anchors) == 3 * (1024 + 256 + 64 + 16 + 4)
    assert make(anchor_sizes=(8, 16, 32, 64, 128)).roi_heads.box_roi_pool.featmap_names == tuple(
        "0123"
    )


def test_what_is_drawn_is_padded_to_a_fixed_number():
    model = make()
    objects = [one_of((8, 8, 40, 40), (30, 20, 60, 50), labels=[1, 3]), one_of()]
    with torch.no_grad():
        predictions, assigned, _ = model(pictures(), objects)
    assert predictions.class_logits.shape == (2, 32, CLASSES + 1)
    assert predictions.box_deltas.shape == (2, 32, CLASSES + 1, 4)
    assert predictions.mask_logits.shape == (2, 8, 28, 28)
    assert (assigned.anchor_labels >= 0).sum(1).tolist() == [64, 64]
    held = (assigned.labels > 0).sum(1)
    assert torch.equal(held, assigned.has_mask.sum(1))
    # Both objects are regions themselves; a quarter of the regions at most has an object.
    assert 2 <= held[0] <= 8
    assert held[1] == 0
    assert set(assigned.labels[0].tolist()) >= {0, 1, 3}
    gone = assigned.labels < 0
    assert not predictions.class_logits[gone].any()
    assert bool(predictions.class_logits[~gone].all())


def test_a_mask_target_is_the_mask_within_its_region():
    """The object's own box, of which the mask covers the left half."""
    model, own = make(), one_of((8, 8, 40, 40))
    own["masks"][:, :, :24], own["masks"][:, :, 24:] = 1, 0
    proposed = own["boxes"]
    with torch.no_grad():
        encoded = model(pictures(1), [own])[2]
        drawn = model._draw(own, proposed, encoded.anchors)
    target = drawn.mask_targets[0]
    assert bool((target[:, :13] > 0.99).all())
    assert bool((target[:, 15:] < 0.01).all())


def test_detections_are_torchvisions():
    model = make(min_score=0.0).eval()
    with torch.no_grad():
        found = model(pictures())
        encoded = model._encode(pictures())
        images = ImageList(pictures(), [(SIDE, SIDE)] * 2)
        proposals, _ = model.rpn(images, encoded.maps)
        expected, _ = model.roi_heads(encoded.maps, proposals, images.image_sizes)
    for one, own in zip(expected, found, strict=True):
        for name in ("boxes", "labels", "scores"):
            torch.testing.assert_close(own[name], one[name])
        assert own["masks"].shape == (len(one["boxes"]), SIDE, SIDE)
        assert own["masks"].dtype == torch.bool
        assert len(own["boxes"]) > 10


def test_detections_of_what_was_encoded_are_those_of_the_pictures():
    model = make(min_score=0.0).eval()
    with torch.no_grad():
        encoded = model(pictures(), [one_of(), one_of()])[2]
        again, fresh = model(encoded=encoded), model(pictures())
    for one, other in zip(again, fresh, strict=True):
        assert all(torch.equal(one[name], other[name]) for name in fresh[0])


def test_every_parameter_is_trained_also_without_objects():
    model = make()
    predictions, _, _ = model(pictures(), [one_of(), one_of()])
    sum(value.sum() for value in vars(predictions).values()).backward()
    missing = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert missing == []


def test_wrong_arguments():
    with pytest.raises(ValueError, match="anchor_sizes are four or five, one a level; got 3"):
        make(anchor_sizes=(8, 16, 32))
    with pytest.raises(ValueError, match="an encoder of rgb, without heads"):
        MaskRCNN(build_multivit("multivit_micro", in_domains=["depth"]), 3)


def test_wrong_calls():
    model = make()
    with pytest.raises(ValueError, match=r"eval mode: call eval\(\) first"):
        model(pictures())
    with pytest.raises(ValueError, match="give pictures"):
        model()


def test_tokens_and_positions_are_spared_by_weight_decay():
    names = make().no_weight_decay()
    assert {"encoder.global_tokens", "encoder.input_adapters.rgb.pos_emb"} <= names
    assert names <= {name for name, _ in make().named_parameters()}
