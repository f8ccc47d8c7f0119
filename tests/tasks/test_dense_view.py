"""Shapes: C channels, H x W a scene's own size, S the view's side."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor
from torchvision.transforms.v2 import functional as V
from torchvision.tv_tensors import Image, Mask

from attent.pipeline import example_keys, fold
from attent.tasks.data.dense_view import DenseView, DepthView, Jitter, SegmentView

NUM_KEYS = 1000
KEYS = example_keys(fold(0, "views"), torch.arange(NUM_KEYS)).tolist()
STILL = Jitter(probability=0)
VIEWS = [SegmentView, DepthView, DenseView]


def noise(*shape: int, high: int = 256, seed: int = 0) -> Tensor:
    return torch.randint(high, shape, generator=torch.Generator().manual_seed(seed))


def scene(height: int = 40, width: int = 52, seed: int = 0) -> dict[str, Tensor]:
    return {
        "rgb": Image(noise(3, height, width, seed=seed).to(torch.uint8)),
        "depth": Mask(noise(1, height, width, seed=seed + 1).float() / 256),
        "semseg": Mask(noise(height, width, high=150, seed=seed + 2).to(torch.uint8)),
        "depth_valid": Mask(noise(height, width, high=2, seed=seed + 3).bool()),
    }


def coordinates(height: int, width: int) -> dict[str, Tensor]:
    """Rows and columns in every entry, each in its own type; 3 grey levels a row or column."""
    row, column = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return {
        "rgb": Image((3 * torch.stack([row, column, column])).to(torch.uint8)),
        "depth": Mask(torch.stack([row, column]).float()),
        "rows": Mask(row.to(torch.uint8)),
        "columns": Mask(column.to(torch.uint8)),
        "valid": Mask((row >= 20) & (column >= 30)),
        "whole": Mask(torch.ones(height, width, dtype=torch.bool)),
    }


def still(view: type, **options):
    """A view that leaves colours alone."""
    return view(**options) if view is DenseView else view(jitter=STILL, **options)


def plain(value: Tensor) -> Tensor:
    return value.as_subclass(Tensor)


# --- what a view keeps


@settings(max_examples=80, deadline=None)
@given(
    view=st.sampled_from(VIEWS),
    height=st.integers(1, 70),
    width=st.integers(1, 70),
    size=st.integers(1, 40),
    key=st.none() | st.integers(-(2**63), 2**63 - 1),
    seed=st.integers(0, 2**32),
)
def test_no_view_makes_up_an_id_a_measurement_or_a_pixel_that_counts(
    view, height, width, size, key, seed
):
    # Few values far apart: whatever mixes two of them makes a third.
    which = noise(height, width, high=4, seed=seed)
    ids = torch.tensor([0, 7, 50, 149])[which].to(torch.uint8)
    depth = torch.tensor([0.5, 3.0, 1e6, 0.125])[which][None]
    sample = {"semseg": Mask(ids), "depth": Mask(depth), "valid": Mask(which > 0)}
    out = view(size=size)(sample, key)
    assert {name: list(value.shape) for name, value in out.items()} == {
        "semseg": [size, size],
        "depth": [1, size, size],
        "valid": [size, size],
    }
    assert all(type(value) is Mask for value in out.values())
    assert [value.dtype for value in out.values()] == [torch.uint8, torch.float32, torch.bool]
    added = plain(out["semseg"]) == 255
    assert view is SegmentView or not added.any()
    assert set(out["semseg"][~added].tolist()) <= set(ids.unique().tolist())
    assert set(out["depth"][0][~added].tolist()) <= set(depth.unique().tolist())
    assert torch.equal(plain(out["valid"]), (plain(out["semseg"]) != 0) & ~added)
    assert not out["depth"][0][added].any()


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("key", [None, *KEYS[:8]])
@pytest.mark.parametrize("shape", [(60, 80), (80, 60)])
def test_all_entries_see_the_same_pixels(view, key, shape):
    options = {"scale": (0.4, 2.0)} if view is SegmentView else {}
    out = still(view, size=32, **options)(coordinates(*shape), key)
    row, column = plain(out["depth"])
    seen = plain(out["whole"])
    assert seen.float().mean() > 0.1
    assert torch.equal(row[seen], plain(out["rows"])[seen].float())
    assert torch.equal(column[seen], plain(out["columns"])[seen].float())
    assert torch.equal(plain(out["valid"]), seen & (row >= 20) & (column >= 30))
    # A pixel of the view is at most 80 / (0.4 * 32) = 6.25 of the scene's: nearest takes the first
    # of those that a bilinear mean is of, half of that away; and levels are rounded.
    levels = plain(out["rgb"]).float() / 3
    assert float((levels[0] - row)[seen].abs().max()) < 3.75
    assert float((levels[1] - column)[seen].abs().max()) < 3.75
    assert torch.equal(plain(out["rgb"])[1], plain(out["rgb"])[2])


@pytest.mark.parametrize("view", VIEWS)
def test_a_view_is_a_function_of_its_key(view):
    sample, made = scene(), view(size=24)
    for key in (None, *KEYS[:5]):
        once, again = made(sample, key), made(sample, key)
        assert all(torch.equal(once[name], again[name]) for name in sample)
    different = {tuple(made(sample, key)["depth"].flatten().tolist()) for key in KEYS[:20]}
    assert len(different) == 2 if view is DenseView else len(different) > 8


@pytest.mark.parametrize("view", VIEWS)
def test_threads_and_generators_change_nothing(view):
    sample, made = scene(), view(size=24)
    states = (torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy())  # noqa: NPY002
    expected = [made(sample, key) for key in KEYS[:30]]
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert (np.random.get_state()[1] == states[2]).all()  # noqa: NPY002
    with ThreadPoolExecutor(4) as pool, torch.random.fork_rng():
        torch.manual_seed(1)
        found = list(pool.map(lambda key: made(sample, key), KEYS[:30]))
    for one, other in zip(expected, found, strict=True):
        assert all(torch.equal(one[name], other[name]) for name in sample)


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("shape", [(40, 52), (24, 24)])
def test_a_sample_is_not_changed_by_its_views(view, shape):
    sample = scene(*shape)
    kept = {name: value.clone() for name, value in sample.items()}
    for key in (None, *KEYS[:20]):
        out = view(size=24)(sample, key)
        assert list(out) == list(sample)
        assert [type(value) for value in out.values()] == [Image, Mask, Mask, Mask]
    assert all(torch.equal(sample[name], kept[name]) for name in kept)


@pytest.mark.parametrize("view", VIEWS)
def test_the_fixed_view_of_a_square_of_its_size_is_the_square(view):
    sample = scene(24, 24)
    out = view(size=24)(sample, None)
    assert all(torch.equal(out[name], sample[name]) for name in sample)


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("hflip", [0.0, 0.3, 1.0])
def test_flips_are_as_frequent_as_asked(view, hflip):
    # 2 x 2 pixels in a view of 2: nothing but a flip can change them.
    options = {"scale": (1.0, 1.0)} if view is SegmentView else {}
    made = still(view, size=2, hflip=hflip, **options)
    sample = {"semseg": Mask(torch.tensor([[0, 1], [0, 1]], dtype=torch.uint8))}
    seen = [made(sample, key)["semseg"].tolist() for key in KEYS]
    flipped = seen.count([[1, 0], [1, 0]])
    assert flipped + seen.count([[0, 1], [0, 1]]) == NUM_KEYS
    # Four deviations of a share of 1,000: 4 * sqrt(0.3 * 0.7 / 1000) = 0.058.
    assert flipped / NUM_KEYS == pytest.approx(hflip, abs=0.058 if 0 < hflip < 1 else 0)


@pytest.mark.parametrize("view", VIEWS)
def test_what_points_sideways_is_not_flipped(view):
    options = {"scale": (1.0, 1.0)} if view is SegmentView else {}
    made = still(view, size=8, hflip=1, **options)
    sample = {"normal": Mask(torch.rand(3, 8, 8)), "rgb": scene(8, 8)["rgb"]}
    out = made(sample, KEYS[0])
    assert all(torch.equal(out[name], sample[name]) for name in sample)
    assert torch.equal(made({"rgb": sample["rgb"]}, KEYS[0])["rgb"], sample["rgb"].flip(-1))


# --- for segmentation


def test_the_fixed_view_is_padded_at_the_bottom_or_the_right():
    for shape, inside in (((4, 8), np.s_[:4, :]), ((8, 4), np.s_[:, :4])):
        sample = scene(*shape)
        out = SegmentView(size=8)(sample, None)
        added = torch.ones(8, 8, dtype=torch.bool)
        added[inside] = False
        for name, padding in (("rgb", 128), ("depth", 0), ("semseg", 255), ("depth_valid", 0)):
            value = plain(out[name])
            kept = value[..., ~added].reshape(sample[name].shape)
            assert torch.equal(kept, plain(sample[name]))
            assert value[..., added].unique().tolist() == [padding]


def test_the_longer_side_decides():
    # 6 x 12 in 4: 2 rows of 4 columns, every third pixel.
    ids = noise(6, 12).clamp(max=254).to(torch.uint8)
    out = SegmentView(size=4)({"semseg": Mask(ids)}, None)["semseg"].tolist()
    assert out == [*ids[::3, ::3].tolist(), [255] * 4, [255] * 4]


def test_a_small_factor_leaves_the_rest_to_padding():
    ids = noise(8, 8).clamp(max=254).to(torch.uint8)
    view = SegmentView(size=8, scale=(0.5, 0.5), hflip=0)
    expected = torch.full((8, 8), 255)
    expected[:4, :4] = ids[::2, ::2]
    for key in KEYS[:5]:
        assert view({"semseg": Mask(ids)}, key)["semseg"].tolist() == expected.tolist()


def test_a_large_factor_takes_any_crop():
    # 4 x 4 doubled to 8 x 8: a crop of 4 has 5 places along each side, and all are found.
    ids = torch.arange(16, dtype=torch.uint8).reshape(4, 4)
    doubled = ids.repeat_interleave(2, 0).repeat_interleave(2, 1)
    view = SegmentView(size=4, scale=(2.0, 2.0), hflip=0)
    places = {
        tuple(doubled[top : top + 4, left : left + 4].flatten().tolist()): (top, left)
        for top in range(5)
        for left in range(5)
    }
    assert len(places) == 25
    seen = [tuple(view({"a": Mask(ids)}, key)["a"].flatten().tolist()) for key in KEYS]
    counts = torch.tensor([[seen.count(crop)] for crop in places]).float() / NUM_KEYS
    # Each in 25: 0.04, to four deviations, 4 * sqrt(0.04 * 0.96 / 1000) = 0.025.
    assert float((counts - 0.04).abs().max()) < 0.025


def test_factors_are_uniform():
    view = SegmentView(size=100)
    sample = {"semseg": Mask(torch.zeros(10, 10, dtype=torch.uint8))}
    sides = [int((view(sample, key)["semseg"][:, 0] == 0).sum()) for key in KEYS]
    # 0.1 to 2.0, of which what is below 1 shows its size.
    assert min(sides) in range(10, 15)
    shares = [sum(side in range(low, low + 19) for side in sides) / NUM_KEYS for low in (10, 43)]
    assert shares == pytest.approx([0.1, 0.1], abs=0.04)
    assert sum(side == 100 for side in sides) / NUM_KEYS == pytest.approx(1 / 1.9, abs=0.065)


def test_colours_change_but_not_those_of_padding():
    jitter = Jitter(brightness=(0.0, 0.0), probability=1)
    view = SegmentView(size=8, scale=(0.5, 0.5), jitter=jitter)
    out = plain(view({"rgb": scene(8, 8)["rgb"]}, KEYS[0])["rgb"])
    expected = torch.full((3, 8, 8), 128)
    expected[:, :4, :4] = 0
    assert out.tolist() == expected.tolist()


# --- for depth


def test_the_shorter_side_decides_and_the_middle_is_taken():
    # 16 x 48 in 8: 8 rows of 24 columns, every other pixel, of which 8 to 15 are the middle.
    ids = noise(16, 48).to(torch.uint8)
    for value, expected in ((ids, ids[::2, 16:32:2]), (ids.T, ids.T[16:32:2, ::2])):
        out = DepthView(size=8)({"semseg": Mask(value)}, None)["semseg"]
        assert out.tolist() == expected.tolist()


def test_any_part_of_the_longer_side_is_taken():
    columns = torch.arange(24, dtype=torch.uint8).expand(8, 24)
    view = DepthView(size=8, hflip=0)
    seen = [view({"a": Mask(columns)}, key)["a"][0].tolist() for key in KEYS]
    counts = [seen.count(list(range(left, left + 8))) / NUM_KEYS for left in range(17)]
    assert sum(counts) == pytest.approx(1)
    # Each in 17: 0.059, to four deviations, 4 * sqrt(0.059 * 0.941 / 1000) = 0.030.
    assert counts == pytest.approx([1 / 17] * 17, abs=0.030)


# --- the whole scene


def test_the_whole_scene_is_squeezed():
    ids = noise(16, 24).to(torch.uint8)
    out = DenseView(size=8)({"semseg": Mask(ids)}, None)["semseg"]
    assert out.tolist() == ids[::2, ::3].tolist()


# --- colours


@pytest.mark.parametrize(
    ("name", "bounds", "change"),
    [
        ("brightness", (0.7, 0.7), lambda x: V.adjust_brightness(x, 0.7)),
        ("contrast", (0.5, 0.5), lambda x: V.adjust_contrast(x, 0.5)),
        ("saturation", (0.2, 0.2), lambda x: V.adjust_saturation(x, 0.2)),
        ("hue", (-0.2, -0.2), lambda x: V.adjust_hue(x, -0.2)),
    ],
)
def test_each_change_of_colours_is_torchvisions(name, bounds, change):
    picture = scene()["rgb"]
    found = Jitter(**{name: bounds}, probability=1)(picture, KEYS[0])
    assert float((plain(found).int() - plain(change(picture)).int()).abs().max()) <= 2
    assert float((plain(found).int() - plain(picture).int()).abs().max()) > 10


def test_changes_come_in_any_order():
    # Brighter first: 40 and 255, then half-way to their mean 147.5; flatter first: 57 and 152,
    # then 228 and 255.
    picture = Image(torch.tensor([10, 200], dtype=torch.uint8).repeat(3, 1, 1))
    jitter = Jitter(brightness=(4, 4), contrast=(0.5, 0.5), probability=1)
    brighter = V.adjust_contrast(V.adjust_brightness(picture, 4.0), 0.5)[0].tolist()
    flatter = V.adjust_brightness(V.adjust_contrast(picture, 0.5), 4.0)[0].tolist()
    seen = [jitter(picture, key)[0].tolist() for key in KEYS[:400]]
    assert (brighter, flatter) == ([[93, 200]], [[228, 255]])  # in bytes, rounded down
    assert seen.count(brighter) + seen.count(flatter) == 400
    assert seen.count(brighter) / 400 == pytest.approx(0.5, abs=0.1)


def test_factors_are_drawn_between_their_bounds():
    picture = Image(torch.full((3, 1, 1), 100, dtype=torch.uint8))
    jitter = Jitter(brightness=(0.5, 1.5), probability=0.4)
    seen = torch.tensor([int(jitter(picture, key)[0, 0, 0]) for key in KEYS])
    assert (int(seen.min()), int(seen.max())) == pytest.approx((50, 150), abs=3)
    # Unchanged where the colours are left alone, 0.6, and by one factor in a hundred.
    assert float((seen == 100).double().mean()) == pytest.approx(0.604, abs=0.062)
    assert float((seen < 100).double().mean()) == pytest.approx(0.2, abs=0.051)


def test_grey_is_as_frequent_as_asked():
    picture = Image(torch.tensor([250, 10, 20], dtype=torch.uint8).reshape(3, 1, 1))
    jitter = Jitter(probability=0, grey=0.3)
    seen = [jitter(picture, key).flatten().tolist() for key in KEYS]
    # 0.2989 * 250 + 0.587 * 10 + 0.114 * 20 = 82.9
    assert seen.count([82] * 3) + seen.count([83] * 3) + seen.count([250, 10, 20]) == NUM_KEYS
    assert seen.count([250, 10, 20]) / NUM_KEYS == pytest.approx(0.7, abs=0.058)


def test_views_change_colours_by_default():
    # All of a scene's pixels alike, so that no crop changes them.
    sample = {
        "rgb": Image(torch.tensor([200, 90, 30], dtype=torch.uint8)[:, None, None].expand(3, 9, 9))
    }
    for view, same in ((SegmentView, 0.5), (DepthView, 0.5 * 0.7)):
        made = view(size=3)
        seen = [made(sample, key)["rgb"][:, 0, 0].tolist() for key in KEYS[:400]]
        assert seen.count([200, 90, 30]) / 400 == pytest.approx(same, abs=0.1)
        grey = sum(pixel[0] == pixel[1] == pixel[2] for pixel in seen) / 400
        assert grey == pytest.approx(
            0.3 if view is DepthView else 0, abs=0.1 if view is DepthView else 0
        )


# --- mistakes


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SegmentView(size=0), "size is a side in pixels, at least 1; got 0"),
        (lambda: DepthView(size=0), "at least 1; got 0"),
        (lambda: DenseView(size=-1), "at least 1; got -1"),
        (lambda: SegmentView(size=8, scale=(0, 1)), r"two rising factors above 0; got \(0, 1\)"),
        (lambda: SegmentView(size=8, scale=(2, 1)), "two rising factors above 0"),
        (lambda: SegmentView(size=8, hflip=1.5), r"hflip is a probability in \[0, 1\]; got 1.5"),
        (lambda: DepthView(size=8, hflip=-1), "hflip is a probability"),
        (lambda: DenseView(size=8, hflip=2), "hflip is a probability"),
        (lambda: Jitter(brightness=(1, 0.5)), r"brightness is two rising factors from 0; got \(1,"),
        (lambda: Jitter(saturation=(-1, 0.5)), "saturation is two rising factors from 0"),
        (lambda: Jitter(hue=(-0.6, 0)), r"hue is two rising turns in \[-0.5, 0.5\]; got"),
        (lambda: Jitter(grey=2), "grey is a probability"),
        (lambda: Jitter(probability=2), "probability is a probability"),
    ],
)
def test_options_that_make_no_view(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize(
    ("sample", "message"),
    [
        ({}, "found no entry"),
        (
            {"a": Mask(torch.zeros(1, 8, 8)), "b": Mask(torch.zeros(8, 9).bool())},
            r"one size \(height, width\); found a \(8, 8\), b \(8, 9\)",
        ),
        ({"a": torch.zeros(1, 8, 8)}, r"a is Tensor \[1, 8, 8\] torch.float32; expected Image"),
        ({"a": Image(torch.zeros(3, 8, 8))}, "a is Image .* torch.float32; expected"),
        ({"a": Mask(torch.zeros(8, 8))}, r"a is Mask \[8, 8\] torch.float32; expected"),
        ({"a": Mask(torch.zeros(8, 8, dtype=torch.int64))}, "torch.int64; expected"),
        ({"a": Mask(torch.zeros(0, 8).bool())}, r"a is Mask \[0, 8\]"),
    ],
)
def test_samples_that_have_no_view(view, sample, message):
    for key in (None, 1):
        with pytest.raises(ValueError, match=message):
            view(size=8)(sample, key)
