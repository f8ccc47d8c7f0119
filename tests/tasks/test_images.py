"""Labelled photographs as a source: the fixed view, and what training makes of them."""

from __future__ import annotations

from math import ceil, floor, sqrt

import numpy as np
import pytest
import torch
from PIL import Image as Pillow
from torchvision.transforms import v2
from torchvision.tv_tensors import Image

from attent.pipeline import Loading, example_keys, fold
from attent.pipeline.stream import Stream
from attent.tasks.data.folder import ImageFolder
from attent.tasks.data.images import Augmentation, Images
from attent.tasks.data.joint import JointView
from attent.tasks.data.pixels import DEVIATION, MEAN
from attent.tasks.data.randaugment import rand_augment


class Photographs:
    """Noise of several sizes; the one of index 3 is square, of 16 pixels."""

    def __init__(self, count: int = 8) -> None:
        draw = torch.Generator().manual_seed(0)
        sizes = [(20 + 3 * i, 34 - 2 * i) if i != 3 else (16, 16) for i in range(count)]
        self.pictures = [
            torch.randint(256, (3, *size), generator=draw, dtype=torch.uint8) for size in sizes
        ]
        self.labels = torch.arange(count) % 3

    def __len__(self) -> int:
        return len(self.pictures)

    def locate(self, index: int) -> str:
        return f"photograph {index}"

    def read(self, index: int) -> dict[str, torch.Tensor]:
        return {"rgb": self.pictures[index]}


RANDOM = Augmentation(scale=0.3, hflip=0.5, rand_augment=9)


def keys_of(index: torch.Tensor, passes: int = 0) -> torch.Tensor:
    return example_keys(fold(2, "views", passes), index)


def undone(images: torch.Tensor) -> torch.Tensor:
    """Standardised images as bytes."""
    mean, deviation = torch.tensor(MEAN)[:, None, None], torch.tensor(DEVIATION)[:, None, None]
    return ((images * deviation + mean) * 255).round().to(torch.uint8)


# --- the fixed view


def test_a_batch_holds_standardised_images_and_labels():
    reader = Photographs()
    batch = Images(reader, size=16).fetch(torch.tensor([3, 0, 5]))
    assert set(batch.keys()) == {"image", "label"}
    assert (batch["image"].shape, batch["image"].dtype) == ((3, 3, 16, 16), torch.float32)
    assert batch["label"].tolist() == [0, 0, 2]
    # The one of the right size is left alone.
    assert torch.equal(undone(batch["image"][0]), reader.pictures[3])
    expected = (reader.pictures[3][1, 4, 5] / 255 - MEAN[1]) / DEVIATION[1]
    assert float(batch["image"][0, 1, 4, 5]) == pytest.approx(float(expected), abs=1e-6)


def test_mean_and_deviation_are_those_that_are_given():
    reader = Photographs()
    images = Images(reader, size=16, mean=(0.5, 0.5, 0.5), deviation=(0.5, 0.5, 0.5))
    found = images.fetch(torch.tensor([3]))["image"][0]
    torch.testing.assert_close(found, reader.pictures[3].float() / 127.5 - 1)


@pytest.mark.parametrize("crop_pct", [1.0, 0.875, 0.5])
def test_the_fixed_view_resizes_the_shorter_side_and_crops_the_centre(crop_pct):
    reader = Photographs()
    source = Images(reader, size=14, crop_pct=crop_pct)
    side = {1.0: 14, 0.875: 16, 0.5: 28}[crop_pct]
    resize = v2.Resize(side, v2.InterpolationMode.BICUBIC, antialias=True)
    for i in (0, 3, 7):
        resized, found = resize(Image(reader.pictures[i])).int(), source.picture(i).int()
        assert min(resized.shape[1:]) == side
        down, right = ((extent - 14) / 2 for extent in resized.shape[1:])
        centres = [
            resized[:, y : y + 14, x : x + 14]
            for y in {floor(down), ceil(down)}
            for x in {floor(right), ceil(right)}
        ]
        assert any((found - centre).abs().max() <= 1 for centre in centres)


def test_a_smaller_share_is_seen_closer():
    """Brightness rises by 2 a column: the slope of the view says how far apart its pixels are."""
    reader = Photographs(1)
    reader.pictures = [(2 * torch.arange(96)).to(torch.uint8).expand(3, 96, 96).contiguous()]
    slopes = []
    for crop_pct in (1.0, 0.5):
        row = Images(reader, size=48, crop_pct=crop_pct).picture(0)[0, 24].float()
        slopes.append(float((row[40] - row[8]) / 32))
    # 96 pixels into 48: 2 columns a pixel, 4 levels; half of the side: 1 column, 2 levels.
    assert slopes == pytest.approx([4, 2], abs=0.1)


def test_a_folder_is_read_as_it_is_without_augmentation(tmp_path):
    """As Pillow would resize and crop it, but for the last bit or two of how it resizes."""
    smooth = np.add.outer(np.arange(40), np.arange(56)).astype(np.uint8)
    for name in ("ant", "bee"):
        (tmp_path / name).mkdir()
        Pillow.fromarray(np.stack([smooth, 2 * smooth, 255 - smooth], axis=2)).save(
            tmp_path / name / "1.png"
        )
        Pillow.fromarray(smooth).save(tmp_path / name / "2.png")
    source, index = Images(ImageFolder(tmp_path), size=20), torch.arange(4)
    assert source.classes == ["ant", "bee"]
    assert source.locate(2) == str(tmp_path / "bee" / "1.png")
    found = source.fetch(index)
    assert found["label"].tolist() == [0, 0, 1, 1]
    for i in range(4):
        with Pillow.open(source.locate(i)) as file:  # 56 x 40: its shorter side to 20, the middle
            small = file.convert("RGB").resize((28, 20), Pillow.Resampling.BICUBIC)
        expected = v2.functional.pil_to_tensor(small.crop((4, 0, 24, 20)))
        standard = v2.functional.normalize(expected.float() / 255, MEAN, DEVIATION)
        assert float((found["image"][i] - standard).abs().max()) < 2 / 255 / min(DEVIATION)


# --- what is random


def test_an_augmented_image_is_a_crop_a_flip_and_rand_augment_of_its_key():
    reader, index = Photographs(), torch.tensor([0, 4])
    keys = keys_of(index)
    found = undone(
        Images(reader, size=16, augmentation=RANDOM).fetch_augmented(index, keys)["image"]
    )
    for image, i, key in zip(found, index.tolist(), keys.tolist(), strict=True):
        view = JointView(size=16, scale=(0.3, 1.0), hflip=0.5)
        cropped = view({"rgb": Image(reader.pictures[i])}, key)["rgb"].as_subclass(torch.Tensor)
        assert torch.equal(image, rand_augment(cropped, fold(key, "rand_augment"), 9))


def test_an_augmented_image_depends_on_its_own_key_only():
    source, index = Images(Photographs(), size=16, augmentation=RANDOM), torch.arange(8)
    keys = keys_of(index)
    together = source.fetch_augmented(index, keys)["image"]
    alone = [source.fetch_augmented(index[i : i + 1], keys[i : i + 1])["image"] for i in range(8)]
    reverse = source.fetch_augmented(index.flip(0), keys.flip(0))["image"].flip(0)
    assert torch.equal(together, torch.cat(alone))
    assert torch.equal(together, reverse)
    later = source.fetch_augmented(index, keys_of(index, passes=1))["image"]
    assert all(not torch.equal(a, b) for a, b in zip(together, later, strict=True))


def test_workers_change_nothing_and_no_global_generator_is_drawn_from():
    source = Images(Photographs(), size=16, augmentation=RANDOM)
    before = torch.default_generator.get_state()
    batches = [
        [batch["image"] for batch in Stream(source, range(8), 3, loading=loading, keys=keys_of)]
        for loading in (Loading(), Loading(workers=3))
    ]
    assert torch.equal(torch.default_generator.get_state(), before)
    assert [len(images) for images in batches[0]] == [3, 3, 2]
    for one, many in zip(*batches, strict=True):
        assert torch.equal(one, many)


def test_the_flip_has_its_probability():
    ramp = torch.arange(0, 240, 30, dtype=torch.uint8).expand(3, 8, 8)
    augmentation = Augmentation(scale=1.0, hflip=0.3)
    keys = keys_of(torch.arange(500)).tolist()
    views = [augmentation(ramp, key, 8)[0, 4] for key in keys]
    flipped = np.mean([float(row[0] > row[-1]) for row in views])
    # The standard deviation of the share is sqrt(0.3 * 0.7 / 500) = 0.02.
    assert flipped == pytest.approx(0.3, abs=5 * sqrt(0.3 * 0.7 / 500))


def test_without_augmentation_training_sees_what_is_evaluated():
    source, index = Images(Photographs(), size=16), torch.tensor([6, 1])
    assert torch.equal(
        source.fetch_augmented(index, keys_of(index))["image"], source.fetch(index)["image"]
    )


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Images(Photographs(), size=8, crop_pct=0), r"crop_pct is in \(0, 1\], got 0"),
        (lambda: Images(Photographs(), size=8, crop_pct=1.1), r"crop_pct is in \(0, 1\], got 1.1"),
        (lambda: Augmentation(scale=0), r"scale is two rising shares in \(0, 1\]"),
        (lambda: Augmentation(hflip=2), r"hflip is a probability in \[0, 1\]; got 2"),
        (lambda: Augmentation(rand_augment=11), "rand_augment is 0 to 10, got 11"),
    ],
)
def test_arguments_out_of_range(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_reader_without_labels_is_refused():
    reader = Photographs()
    del reader.labels
    with pytest.raises(ValueError, match="Photographs has no labels to learn"):
        Images(reader, size=8)


def test_keys_that_are_not_one_for_each_image():
    source = Images(Photographs(), size=8, augmentation=RANDOM)
    with pytest.raises(ValueError, match=r"one for each index: expected \[3\], got \[1\]"):
        source.fetch_augmented(torch.arange(3), torch.arange(1))
