from __future__ import annotations

import pytest
import torch
from sklearn.datasets import load_sample_image

from attent.tasks.data import photos
from attent.tasks.data.joint import JointView
from attent.tasks.data.multimodal import Multimodal
from attent.tasks.data.photos import GAP, Photos


@pytest.mark.parametrize("size", [16, 48, 128])
@pytest.mark.parametrize("domain", ["rgb", "depth"])
def test_training_and_validation_share_no_pixel(domain, size):
    train, val = (Photos(domain, size=size, split=split) for split in ("train", "val"))
    assert len(train) > len(val) > 0
    last = {name: 0 for name, _, _ in train.crops}
    for name, _, left in train.crops:
        last[name] = max(last[name], left + size)
    assert all(left >= last[name] + GAP for name, _, left in val.crops)


@pytest.mark.parametrize(
    ("domain", "shape", "dtype"),
    [("rgb", [3, 32, 32], torch.uint8), ("depth", [1, 32, 32], torch.float32)],
)
def test_a_crop_is_of_one_domain_and_size(domain, shape, dtype):
    reader = Photos(domain, size=32, split="val", stride=64)
    for i in range(len(reader)):
        scene = reader.read(i)
        assert list(scene) == [domain]
        assert (list(scene[domain].shape), scene[domain].dtype) == (shape, dtype)


def test_crops_are_where_they_are_said_to_be():
    reader = Photos("rgb", size=32, stride=20)
    index = reader.crops.index(("china.jpg", 40, 20))
    assert reader.locate(index) == "china.jpg, rows 40-71, columns 20-51"
    china = torch.from_numpy(load_sample_image("china.jpg").copy())
    assert torch.equal(reader.read(index)["rgb"].permute(1, 2, 0), china[40:72, 20:52])


def test_half_of_each_crop_is_shared_with_the_next_unless_asked_otherwise():
    crops = Photos("rgb", size=64).crops
    assert [left for name, top, left in crops if (name, top) == ("flower.jpg", 0)] == list(
        range(0, 384 - 63, 32)
    )
    assert len(Photos("rgb", size=64, stride=64)) < len(crops) / 3


def test_elevation_is_in_metres():
    reader = Photos("depth", size=64)
    hills = [reader.read(i)["depth"] for i, crop in enumerate(reader.crops) if "jack" in crop[0]]
    # The hills around Jacksboro, Tennessee, are between 200 and 1,100 metres high.
    heights = torch.stack(hills)
    assert 200 < float(heights.min()) < 400
    assert 800 < float(heights.max()) < 1100


def test_they_are_batches_of_real_pictures():
    data = Multimodal(Photos("rgb", size=64), JointView(size=32), domains=["rgb"])
    index = torch.arange(0, len(data), 40)
    for batch in (data.fetch(index), data.fetch_augmented(index, index)):
        assert batch["rgb"].shape == (len(index), 3, 32, 32)
        assert 0.5 < float(batch["rgb"].std()) < 1.5


def test_reading_does_not_hand_out_what_others_read():
    reader = Photos("depth", size=32)
    kept = reader.read(3)["depth"].clone()
    reader.read(3)["depth"].zero_()
    assert torch.equal(Photos("depth", size=32).read(3)["depth"], kept)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (("semseg",), {}, "expected domain rgb or depth and split train or val; got 'semseg'"),
        (("rgb",), {"split": "test"}, "got 'rgb', 'test'"),
        (("rgb",), {"size": 0}, "at least 1 pixel; got 0"),
        (("rgb",), {"stride": 0}, "at least 1 pixel; got 32 and 0"),
        (("rgb",), {"size": 500}, r"no train crop of 500 pixels in china\.jpg, .*at most 384"),
        (("depth",), {"size": 200, "split": "val"}, "no val crop of 200 pixels.*at most 145"),
    ],
)
def test_what_gives_no_crop(arguments, options, message):
    with pytest.raises(ValueError, match=message):
        Photos(*arguments, **{"size": 32, **options})


def test_an_installation_without_pictures(monkeypatch):
    monkeypatch.setattr(photos, "_pictures", lambda domain: {})
    with pytest.raises(ValueError, match="no train crop of 32 pixels in no picture"):
        Photos("rgb", size=32)
