from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from attent.pipeline import ExampleError
from attent.pipeline.source import fetch_batch
from attent.tasks.data.digits import digits
from attent.tasks.data.folder import ImageFolder
from attent.tasks.data.images import Images
from attent.tasks.data.npz import npz
from attent.tasks.data.pixels import DEVIATION, MEAN

# --- digits


def grey_levels(*parts) -> list[tuple]:
    """Each image's pixels, 0 to 16 as scanned, with its label: the standardisation undone."""
    images = torch.cat([part.fields["image"] for part in parts])
    labels = torch.cat([part.fields["label"] for part in parts])
    levels = ((images - images.min()) / (images.max() - images.min()) * 16).round().long()
    return [
        (*pixels, label)
        for pixels, label in zip(levels.flatten(1).tolist(), labels.tolist(), strict=True)
    ]


def test_the_two_parts_of_digits_are_all_of_it_and_share_nothing():
    train, held_out = digits(0.2)
    assert (len(train), len(held_out)) == (1437, 360)
    raw = load_digits()
    everything = Counter(
        (*pixels, label)
        for pixels, label in zip(raw.data.astype(int).tolist(), raw.target.tolist(), strict=True)
    )
    assert Counter(grey_levels(train, held_out)) == everything


def test_digits_are_split_by_class_in_equal_shares():
    train, held_out = (part.fields["label"].bincount() for part in digits(0.25))
    assert len(train) == len(held_out) == 10
    assert ((held_out - 0.25 * (train + held_out)).abs() <= 1).all()


def test_digits_are_standardised_by_the_training_images():
    train, held_out = digits(0.5)
    images = train.fields["image"]
    assert images.shape[1:] == (1, 8, 8)
    assert images.dtype == torch.float32
    assert train.fields["label"].dtype == torch.int64
    assert float(images.mean()) == pytest.approx(0, abs=1e-5)
    assert float(images.std()) == pytest.approx(1, abs=1e-5)
    assert float(held_out.fields["image"].mean()) != pytest.approx(0, abs=1e-5)


def test_the_seed_decides_the_split_of_digits():
    first, again, other = (digits(seed=seed)[1].fields["image"] for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


# --- .npz


def arrays(num: int = 30, shape: tuple = (6, 6), classes: int = 3) -> dict[str, np.ndarray]:
    images = np.random.default_rng(0).integers(0, 256, (num, *shape)).astype(np.uint8)
    return {"images": images, "labels": np.arange(num) % classes}


def npz_file(folder: Path, **fields: np.ndarray) -> Path:
    path = folder / "data.npz"
    np.savez(path, **fields)
    return path


@pytest.mark.parametrize(
    ("shape", "channels"), [((6, 6), 1), ((6, 6, 1), 1), ((6, 6, 3), 3)], ids=str
)
def test_npz_images_are_channels_first_and_each_channel_is_standardised(tmp_path, shape, channels):
    fields = arrays(shape=shape)
    train, held_out = npz(npz_file(tmp_path, **fields), 0.2)
    images = train.fields["image"]
    assert images.shape == (24, channels, 6, 6)
    assert held_out.fields["image"].shape == (6, channels, 6, 6)
    torch.testing.assert_close(images.mean((0, 2, 3)), torch.zeros(channels), atol=1e-5, rtol=0)
    torch.testing.assert_close(images.std((0, 2, 3)), torch.ones(channels), atol=1e-5, rtol=0)
    assert held_out.fields["label"].bincount().tolist() == [2, 2, 2]


def test_an_example_of_an_npz_file_is_traced_to_its_row(tmp_path):
    fields = arrays()
    path = npz_file(tmp_path, **fields)
    rows = []
    for part in npz(path, 0.2):
        for i, label in enumerate(part.fields["label"].tolist()):
            name, _, row = part.locate(i).rpartition(" row ")
            assert (name, fields["labels"][int(row)]) == (str(path), label)
            rows.append(int(row))
    assert sorted(rows) == list(range(30))


def test_npz_channels_and_labels_are_not_mixed_up(tmp_path):
    # Example i has the value i in its red channel, 2i in green, 3i in blue; its label is i mod 3.
    num = 30
    images = np.arange(num)[:, None, None, None] * np.ones((1, 4, 4, 1)) * np.array([1, 2, 3])
    train, held_out = npz(npz_file(tmp_path, images=images, labels=np.arange(num) % 3), 0.2)
    pixels = torch.cat([part.fields["image"] for part in (train, held_out)])
    labels = torch.cat([part.fields["label"] for part in (train, held_out)])
    # Standardising makes the three channels alike, and keeps the examples' order.
    torch.testing.assert_close(pixels[:, 0], pixels[:, 2])
    ranks = pixels[:, 0, 0, 0].argsort().argsort()
    assert torch.equal(labels, ranks % 3)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_pixel_that_is_no_number_is_found_before_it_spoils_the_standardisation(tmp_path, value):
    images = arrays()["images"].astype(float)
    images[7, 2, 3] = value
    path = npz_file(tmp_path, images=images, labels=arrays()["labels"])
    with pytest.raises(ValueError, match=r"data\.npz.*example 7"):
        npz(path, 0.2)


def test_a_channel_that_never_changes_gives_zeros(tmp_path):
    fields = arrays() | {"images": np.full((30, 4, 4), 7.0)}
    train, _ = npz(npz_file(tmp_path, **fields), 0.2)
    assert torch.equal(train.fields["image"], torch.zeros(24, 1, 4, 4))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"labels": None}, r"holds images; expected arrays 'images' .* and 'labels'"),
        ({"images": None}, r"holds labels; expected arrays"),
        ({"images": None, "labels": None}, r"holds nothing; expected arrays"),
        ({"images": np.zeros((30, 6))}, r"images are \[30, 6(, 1)?\] and labels \[30\]; expected"),
        ({"labels": np.zeros(29, int)}, r"images are \[30, 6, 6.*\] and labels \[29\]; expected"),
        ({"labels": np.zeros((30, 1), int)}, r"and labels \[30, 1\]; expected"),
        ({"labels": np.arange(30) % 3 * 1.0}, r"labels are float64; expected integers"),
        ({"labels": np.array([4] + [0, 1] * 14 + [0])}, r"class 4 has one example; a split needs"),
        (
            {"images": np.zeros((0, 6, 6)), "labels": np.zeros(0, int)},
            r"data\.npz.*(empty|no (images|examples))",
        ),
    ],
)
def test_npz_files_that_do_not_hold_what_they_should(tmp_path, changed, message):
    fields = {name: value for name, value in (arrays() | changed).items() if value is not None}
    with pytest.raises(ValueError, match=message):
        npz(npz_file(tmp_path, **fields), 0.2)


def _text(path: Path) -> None:
    path.write_text("images, labels")


def _nothing(path: Path) -> None:
    path.write_bytes(b"")


def _cut_short(path: Path) -> None:
    np.savez(path, **arrays())
    path.write_bytes(path.read_bytes()[:200])


def _one_array(path: Path) -> None:
    with path.open("wb") as file:
        np.save(file, np.zeros((3, 3)))


def _objects(path: Path) -> None:
    np.savez(path, images=np.array([None] * 30), labels=np.arange(30) % 3)


@pytest.mark.parametrize("write", [_text, _nothing, _cut_short, _one_array, _objects])
def test_files_that_are_no_npz_are_named(tmp_path, write):
    path = tmp_path / "broken.npz"
    write(path)
    with pytest.raises(ValueError, match=r"broken\.npz"):
        npz(path, 0.2)


# --- folders of images

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


def standardised(rgb: tuple[int, int, int]) -> torch.Tensor:
    """The value of a pixel, by hand: ``(c / 255 - mean) / deviation`` for each channel."""
    channels = zip(rgb, MEAN, DEVIATION, strict=True)
    return torch.tensor([(c / 255 - mean) / deviation for c, mean, deviation in channels])


@pytest.fixture
def folder(tmp_path):
    """Two classes, made in the reverse order of their names; sizes, formats and modes differ."""
    train, val = tmp_path / "train", tmp_path / "val"
    for name in ("zebra", "ant"):
        (train / name).mkdir(parents=True)
    (val / "zebra").mkdir(parents=True)
    Image.new("RGB", (12, 10), RED).save(train / "ant" / "1.png")
    Image.new("L", (9, 16), 51).save(train / "ant" / "2.png")
    Image.new("RGBA", (8, 8), (*GREEN, 255)).save(train / "zebra" / "1.png")
    Image.new("RGB", (20, 8), BLUE).save(train / "zebra" / "2.JPEG", quality=95)
    Image.new("L", (30, 31), 0).save(train / "zebra" / "3.jpg")
    (train / "zebra" / "notes.txt").write_text("not an image")
    Image.new("RGB", (8, 8), BLUE).save(val / "zebra" / "1.png")
    return tmp_path


def test_a_folders_images_have_one_shape_and_the_labels_follow_the_class_names(folder):
    source = Images(ImageFolder(folder / "train"), size=8)
    batch = source.fetch(torch.arange(len(source)))
    assert source.classes == ["ant", "zebra"]
    assert batch["image"].shape == (5, 3, 8, 8)
    assert batch["image"].dtype == torch.float32
    assert batch["label"].tolist() == source.labels.tolist() == [0, 0, 1, 1, 1]


def test_colours_are_kept_and_standardised_whatever_the_format(folder):
    source = Images(ImageFolder(folder / "train"), size=8)
    expected = [RED, (51, 51, 51), GREEN, BLUE, (0, 0, 0)]
    images = source.fetch(torch.arange(5))["image"]
    for image, colour in zip(images, expected, strict=True):
        # JPEG keeps colours only nearly: 0.05 is 3 of 255 levels.
        want = standardised(colour)[:, None, None].expand_as(image)
        torch.testing.assert_close(image, want, atol=0.05, rtol=0)


def test_the_middle_of_a_wide_image_is_cut_out(folder):
    wide = Image.new("RGB", (24, 8), RED)
    wide.paste(GREEN, (8, 0, 16, 8))
    wide.paste(BLUE, (16, 0, 24, 8))
    wide.save(folder / "train" / "ant" / "0.png")
    image = Images(ImageFolder(folder / "train"), size=8).fetch(torch.tensor([0]))["image"][0]
    torch.testing.assert_close(image, standardised(GREEN)[:, None, None].expand(3, 8, 8))


def test_the_shorter_side_is_resized(folder):
    tall = Image.new("RGB", (16, 48), RED)
    tall.paste(GREEN, (0, 16, 16, 32))
    tall.save(folder / "train" / "ant" / "0.png")
    image = Images(ImageFolder(folder / "train"), size=4).fetch(torch.tensor([0]))["image"][0]
    # 16 x 48 becomes 4 x 12; the middle 4 x 4 is the green third, its edge blurred with the red.
    torch.testing.assert_close(image[:, 1:3], standardised(GREEN)[:, None, None].expand(3, 2, 4))


def test_fetching_keeps_the_order_asked_for(folder):
    source = Images(ImageFolder(folder / "train"), size=8)
    batch = source.fetch(torch.tensor([2, 0]))
    assert batch["label"].tolist() == [1, 0]
    assert float(batch["image"][1, 0, 0, 0]) == pytest.approx(float(standardised(RED)[0]))


def test_locate_gives_the_path(folder):
    source = Images(ImageFolder(folder / "train"), size=8)
    assert source.locate(3) == str(folder / "train" / "zebra" / "2.JPEG")


def test_the_labels_of_a_split_are_those_of_the_training_classes(folder):
    source = ImageFolder(folder / "val", classes=["ant", "zebra"])
    assert source.labels.tolist() == [1]


def test_a_missing_split_says_what_is_there(folder):
    with pytest.raises(
        ValueError, match=r"no folder .*test; expected ROOT/train.*found train, val"
    ):
        ImageFolder(folder / "test")


def test_a_missing_root_says_so(folder):
    with pytest.raises(ValueError, match="found nothing in"):
        ImageFolder(folder / "nowhere" / "train")


def test_a_split_without_classes(tmp_path):
    with pytest.raises(ValueError, match=r"has no class folders; expected .*/CLASS/IMAGE"):
        ImageFolder(tmp_path)


def test_classes_without_images(tmp_path):
    (tmp_path / "ant").mkdir()
    with pytest.raises(ValueError, match=r"holds no images \(.*\.png"):
        ImageFolder(tmp_path)


def test_a_class_that_training_has_not(folder):
    (folder / "val" / "yak").mkdir()
    with pytest.raises(ValueError, match=r"classes that the training split has not: \['yak'\]"):
        ImageFolder(folder / "val", classes=["ant", "zebra"])


def test_a_corrupt_image_is_found_in_its_batch_and_named(folder):
    (folder / "train" / "zebra" / "1.png").write_bytes(b"not an image")
    source = Images(ImageFolder(folder / "train"), size=8)
    with pytest.raises(ExampleError, match=r"example 2 \(.*zebra/1\.png\) cannot be fetched"):
        fetch_batch(source, torch.arange(5))


def test_hidden_folders_are_no_classes(folder):
    (folder / "train" / ".ipynb_checkpoints").mkdir()
    assert ".ipynb_checkpoints" not in Images(ImageFolder(folder / "train"), size=8).classes
