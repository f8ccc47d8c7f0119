"""Shapes: H x W a scene's own size, S the view's side, C channels."""

from __future__ import annotations

import math
import random

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor
from torch.nn import functional as F
from torchvision.tv_tensors import Image, Mask

from attent.pipeline import example_keys, fold
from attent.tasks.data.joint import JointView

NUM_KEYS = 2000
KEYS = example_keys(fold(0, "views"), torch.arange(NUM_KEYS)).tolist()


def noise(*shape: int, high: int = 256, seed: int = 0) -> Tensor:
    return torch.randint(high, shape, generator=torch.Generator().manual_seed(seed))


def scene(height: int = 40, width: int = 52) -> dict[str, Tensor]:
    return {
        "rgb": Image(noise(3, height, width).to(torch.uint8)),
        "depth": Image(noise(1, height, width, seed=1).float() / 256),
        "semseg": Mask(noise(height, width, high=133, seed=2).to(torch.uint8)),
    }


def coordinates(height: int, width: int) -> dict[str, Tensor]:
    """Columns in every modality, each in its own type: 3 of 256 grey levels, or 1 id, a column."""
    column = torch.arange(width).expand(height, width)
    return {
        "rgb": Image((3 * column).to(torch.uint8).repeat(3, 1, 1)),
        "depth": Image(column.float()[None]),
        "semseg": Mask(column.to(torch.int64)),
    }


# --- what a view keeps


@settings(max_examples=60, deadline=None)
@given(
    height=st.integers(1, 70),
    width=st.integers(1, 70),
    size=st.integers(1, 40),
    key=st.none() | st.integers(-(2**63), 2**63 - 1),
    seed=st.integers(0, 2**32),
)
def test_a_view_of_labels_holds_only_ids_of_the_scene(height, width, size, key, seed):
    # Few ids far apart: whatever mixes two of them makes a third.
    ids = torch.tensor([0, 7, 50, 132, 255])[noise(height, width, high=5, seed=seed)]
    view = JointView(size=size)({"semseg": Mask(ids.to(torch.uint8))}, key)["semseg"]
    assert view.shape == (size, size)
    assert isinstance(view, Mask)
    assert set(view.unique().tolist()) <= set(ids.unique().tolist())


@pytest.mark.parametrize("key", [None, KEYS[0], KEYS[1]])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64])
def test_every_type_of_label_takes_the_pixels_that_torchs_nearest_takes(key, dtype):
    view, size = JointView(size=24), (40, 52)
    ids = noise(*size, high=100)
    out = view({"semseg": Mask(ids.to(dtype))}, key)["semseg"]
    assert out.dtype == dtype
    assert isinstance(out, Mask)
    if (
        key is None
    ):  # 40 x 52 becomes 24 x 31, of which columns 4 to 27 are the middle (31 - 24 / 2)
        expected = F.interpolate(ids[None, None].float(), size=(24, 31))[0, 0, :, 4:28]
    else:
        top, left, height, width = view.box(key, *size)
        crop = ids[None, None, top : top + height, left : left + width].float()
        expected = F.interpolate(crop, size=(24, 24))[0, 0]
        expected = expected.flip(-1) if view.flips(key) else expected
    assert torch.equal(out.long(), expected.long())


def test_ids_beyond_the_exact_integers_of_float32_are_kept():
    ids = 2**24 + torch.arange(40 * 52).reshape(40, 52)
    for key in (None, KEYS[0]):
        view = JointView(size=24)({"semseg": Mask(ids)}, key)["semseg"]
        assert view.dtype == torch.int64
        # Rounded to float32, all of them would be even.
        assert set((view % 2).unique().tolist()) == {0, 1}
        assert torch.isin(view, ids).all()


@pytest.mark.parametrize("key", [None, *KEYS[:8]])
def test_all_modalities_see_the_same_crop(key):
    # 60 rows and 80 columns in a view of 32: a pixel of it is at most 2.5 of the scene's.
    view = JointView(size=32)(coordinates(60, 80), key)
    columns = {"rgb": view["rgb"][0] / 3, "depth": view["depth"][0], "semseg": view["semseg"]}
    for one in columns.values():
        for other in columns.values():
            # Nearest takes the first pixel of those a bicubic mean is of: half of 2.5, rounded.
            assert float((one - other).abs().max()) < 2
    assert (columns["depth"].diff(dim=1)[0, 2:-2].sign() == (-1 if _flipped(key) else 1)).all()


def _flipped(key: int | None) -> bool:
    return key is not None and JointView(size=32).flips(key)


def test_the_view_is_the_box_and_the_flip():
    # A box as large as the view is not resampled, so that the pixels can be compared.
    view = JointView(size=8, scale=(0.25, 0.25), ratio=(1, 1))
    sample = scene(16, 16)
    for key in KEYS[:10]:
        top, left, height, width = view.box(key, 16, 16)
        assert (height, width) == (8, 8)
        for name, value in view(sample, key).items():
            crop = sample[name][..., top : top + 8, left : left + 8]
            assert torch.equal(value, crop.flip(-1) if view.flips(key) else crop)


def test_types_and_names_are_kept():
    for key in (None, KEYS[0]):
        view = JointView(size=16)(scene(), key)
        assert list(view) == ["rgb", "depth", "semseg"]
        assert [type(value) for value in view.values()] == [Image, Image, Mask]
        assert [value.dtype for value in view.values()] == [
            torch.uint8,
            torch.float32,
            torch.uint8,
        ]
        assert [list(value.shape) for value in view.values()] == [
            [3, 16, 16],
            [1, 16, 16],
            [16, 16],
        ]


@pytest.mark.parametrize("key", [None, *KEYS[:5]])
def test_depth_stays_within_the_range_of_the_pixels_it_is_made_from(key):
    # A step of which bicubic interpolation would overshoot by about 5%.
    depth = torch.ones(1, 20, 20)
    depth[:, :, 10:] = 3
    depth[:, 10:] += 0.5
    view = JointView(size=64, scale=(0.5, 1))
    out = view({"depth": Image(depth)}, key)["depth"]
    inside = depth
    if key is not None:
        top, left, height, width = view.box(key, 20, 20)
        inside = depth[:, top : top + height, left : left + width]
    assert float(out.min()) >= float(inside.min())
    assert float(out.max()) <= float(inside.max())
    assert float(out.max()) == pytest.approx(float(inside.max()), abs=1e-6)


def test_a_scene_is_not_changed_by_its_views():
    sample = scene()
    kept = {name: value.clone() for name, value in sample.items()}
    for key in (None, *KEYS[:20]):
        JointView(size=24)(sample, key)
    assert all(torch.equal(sample[name], kept[name]) for name in kept)


# --- the fixed view


def test_the_fixed_view_of_a_scene_of_its_size_is_the_scene():
    sample = scene(24, 24)
    view = JointView(size=24)(sample, None)
    assert all(view[name] is sample[name] for name in sample)


def test_the_fixed_view_is_the_middle_of_the_shorter_side():
    # 8 x 24: the shorter side is 8 already, and columns 8 to 15 are the middle.
    sample = scene(8, 24)
    for name, value in JointView(size=8)(sample, None).items():
        assert torch.equal(value, sample[name][..., 8:16])


# --- what is drawn


def test_a_view_is_a_function_of_its_key():
    view, sample = JointView(size=24), scene()
    for key in KEYS[:5]:
        once, again = view(sample, key), view(sample, key)
        assert all(torch.equal(once[name], again[name]) for name in sample)
    assert len({view.box(key, 40, 52) for key in KEYS[:100]}) > 90


def test_no_global_generator_is_drawn_from_or_heeded():
    view, sample = JointView(size=24), scene()
    states = (torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy())  # noqa: NPY002
    first = view(sample, KEYS[0])
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert (np.random.get_state()[1] == states[2]).all()  # noqa: NPY002
    with torch.random.fork_rng():
        torch.manual_seed(1)
        second = view(sample, KEYS[0])
    assert all(torch.equal(first[name], second[name]) for name in sample)


@pytest.mark.parametrize("hflip", [0.0, 0.3, 1.0])
def test_flips_are_as_frequent_as_asked(hflip):
    share = sum(JointView(size=8, hflip=hflip).flips(key) for key in KEYS) / NUM_KEYS
    # Four deviations of a share of 2,000: 4 * sqrt(0.3 * 0.7 / 2000) = 0.041.
    assert share == pytest.approx(hflip, abs=0.041 if 0 < hflip < 1 else 0)


def test_boxes_are_uniform_in_area_and_log_uniform_in_ratio():
    boxes = torch.tensor([JointView(size=8).box(key, 1000, 1000) for key in KEYS]).double()
    top, left, height, width = boxes.unbind(1)
    assert ((top >= 0) & (left >= 0) & (top + height <= 1000) & (left + width <= 1000)).all()
    # What does not fit is drawn again, which thins the largest areas: below 3/4 all fit, since the
    # longer side is at most sqrt(3/4 * 4/3) = 1.
    area = (height * width / 1e6).clamp(0.2, 1)
    small = area[area < 0.75]
    counts = torch.histc(small, bins=5, min=0.2, max=0.75) / len(small)
    assert counts.tolist() == pytest.approx([0.2] * 5, abs=0.05)
    assert 0.15 < float((area >= 0.75).double().mean()) < 0.32  # (1 - 0.75) / 0.8 = 0.31 at most
    log_ratio = (width / height).log()[area < 0.75]
    bound = math.log(4 / 3)
    assert float(log_ratio.abs().max()) <= bound + 0.01
    counts = torch.histc(log_ratio, bins=4, min=-bound, max=bound) / len(log_ratio)
    assert counts.tolist() == pytest.approx([0.25] * 4, abs=0.06)
    # Wherever it fits: anywhere among the free rows and columns, whatever the other and the size.
    free = (height < 990) & (width < 990)
    down, right = (top / (1001 - height))[free], (left / (1001 - width))[free]
    for place in (down, right):
        counts = torch.histc(place, bins=4, min=0, max=1) / len(place)
        assert counts.tolist() == pytest.approx([0.25] * 4, abs=0.06)
    related = torch.corrcoef(torch.stack([down, right, (height * width)[free], height[free]]))
    assert float(related[:2].fill_diagonal_(0).abs().max()) < 0.1


@pytest.mark.parametrize(
    ("height", "width", "box"),
    [
        # Ten times as long as wide, and no crop of all of it has a ratio of 3/4 to 4/3.
        (10, 100, (0, 43, 10, 13)),  # 10 * 4/3 = 13 columns, from (100 - 13) // 2 on
        (100, 10, (43, 0, 13, 10)),  # 10 / (3/4) = 13 rows
    ],
)
def test_the_central_box_is_taken_where_no_random_one_fits(height, width, box):
    view = JointView(size=8, scale=(1, 1))
    assert {view.box(key, height, width) for key in KEYS[:20]} == {box}


def test_the_whole_scene_is_taken_where_its_ratio_is_allowed_but_no_box_fits():
    # Nine tenths of a square at ratios of at least 2: never fits, and 1 is below 2.
    view = JointView(size=8, scale=(0.9, 0.9), ratio=(2, 3))
    assert view.box(KEYS[0], 100, 100) == (25, 0, 50, 100)
    assert JointView(size=8, scale=(1, 1), ratio=(0.5, 0.9)).box(KEYS[0], 1, 1) == (0, 0, 1, 1)


# --- mistakes


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 0}, "at least 1; got 0"),
        ({"scale": (0.0, 1.0)}, r"scale is two rising shares in \(0, 1\]; got \(0.0, 1.0\)"),
        ({"scale": (0.8, 0.2)}, "rising shares"),
        ({"scale": (0.2, 1.1)}, "rising shares"),
        ({"ratio": (0, 1)}, "ratio is two rising, positive numbers"),
        ({"ratio": (2, 1)}, "ratio is two rising"),
        ({"hflip": 1.5}, r"probability in \[0, 1\]; got 1.5"),
    ],
)
def test_options_that_make_no_view(options, message):
    with pytest.raises(ValueError, match=message):
        JointView(**{"size": 8, **options})


@pytest.mark.parametrize(
    ("sample", "message"),
    [
        ({}, "found no modality"),
        (
            {"rgb": Image(torch.zeros(3, 8, 8)), "semseg": Mask(torch.zeros(8, 9, dtype=int))},
            r"one size \(height, width\); found rgb \(8, 8\), semseg \(8, 9\)",
        ),
        ({"rgb": torch.zeros(3, 8, 8)}, r"rgb is Tensor \[3, 8, 8\] torch.float32; expected Image"),
        ({"rgb": Image(torch.zeros(3, 8, 8).half())}, "rgb is Image .* torch.float16; expected"),
        ({"semseg": Mask(torch.zeros(8, 8))}, "semseg is Mask .* torch.float32; expected"),
        ({"semseg": Mask(torch.zeros(8, 8, dtype=torch.bool))}, "torch.bool; expected"),
        ({"semseg": Mask(torch.zeros(1, 8, 8, dtype=int))}, r"semseg is Mask \[1, 8, 8\]"),
    ],
)
def test_scenes_that_have_no_joint_view(sample, message):
    with pytest.raises(ValueError, match=message):
        JointView(size=8)(sample, None)
