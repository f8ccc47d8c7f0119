from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from attent.pipeline import ExampleError
from attent.pipeline.source import fetch_batch
from attent.tasks.data.ade20k import ADE20K, NUM_CLASSES
from attent.tasks.data.dense import Dense
from attent.tasks.data.dense_view import SegmentView


def photograph(seed: int, height: int = 6, width: int = 8) -> Image.Image:
    """A smooth one, which JPEG keeps."""
    row, column = np.mgrid[:height, :width]
    levels = np.stack([20 * row, 20 * column, np.full_like(row, 40 * seed)], axis=2)
    return Image.fromarray(levels.astype(np.uint8))


def labels(seed: int, height: int = 6, width: int = 8) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 151, (height, width)).astype(np.uint8)


@pytest.fixture
def root(tmp_path) -> Path:
    """Three photographs for training, of which one is grey, and one for validation."""
    for split, name, seeds in (("training", "train", (3, 1, 2)), ("validation", "val", (4,))):
        images, annotations = tmp_path / "images" / split, tmp_path / "annotations" / split
        images.mkdir(parents=True)
        annotations.mkdir(parents=True)
        for seed in seeds:
            image = photograph(seed).convert("L" if seed == 2 else "RGB")
            image.save(images / f"ADE_{name}_{seed:08}.jpg", quality=95)
            Image.fromarray(labels(seed)).save(annotations / f"ADE_{name}_{seed:08}.png")
    (tmp_path / "objectInfo150.txt").write_text("Idx\tRatio\tTrain\tVal\tStuff\tName\n")
    (tmp_path / "images" / "training" / "._ADE_train_00000001.jpg").touch()
    return tmp_path


def test_photographs_come_with_their_labels_in_the_order_of_their_names(root):
    reader = ADE20K(root, "train")
    assert len(reader) == 3
    assert reader.stems == ["ADE_train_00000001", "ADE_train_00000002", "ADE_train_00000003"]
    for i, seed in enumerate((1, 2, 3)):
        scene = reader.read(i)
        assert list(scene) == ["rgb", "semseg"]
        assert (scene["rgb"].shape, scene["rgb"].dtype) == ((3, 6, 8), torch.uint8)
        assert scene["semseg"].tolist() == labels(seed).tolist()
        pixels = np.array(photograph(seed).convert("L" if seed == 2 else "RGB").convert("RGB"))
        written = torch.from_numpy(pixels).permute(2, 0, 1)
        assert float((scene["rgb"].float() - written.float()).abs().mean()) < 6
    found = f"{root}/images/training/ADE_train_00000002.jpg"
    assert reader.locate(1) == found
    assert ADE20K(root, "val").read(0)["semseg"].tolist() == labels(4).tolist()


def test_labels_in_a_palette_are_indices(root):
    image = Image.fromarray(labels(1))
    image.putpalette([level for i in range(256) for level in (255 - i, 0, i)])
    image.save(root / "annotations" / "training" / "ADE_train_00000001.png")
    assert ADE20K(root, "train").read(0)["semseg"].tolist() == labels(1).tolist()


def test_it_makes_batches(root):
    data = Dense(
        ADE20K(root, "train"),
        SegmentView(size=8),
        inputs=["rgb"],
        target="semseg",
        num_classes=NUM_CLASSES,
        reduce_zero_label=True,
    )
    batch = data.fetch(torch.tensor([2, 0]))
    expected = np.full((8, 8), 255)
    expected[:6] = np.where(labels(3) == 0, 255, labels(3).astype(int) - 1)
    assert batch["target"][0].tolist() == expected.tolist()
    augmented = data.fetch_augmented(torch.tensor([2, 0]), torch.tensor([7, 8]))
    assert set(augmented["target"][0].unique().tolist()) <= {*expected.flatten().tolist()}


def test_an_id_beyond_the_classes_is_named_with_its_file(root):
    bad = labels(2)
    bad[0, 0] = 151
    Image.fromarray(bad).save(root / "annotations" / "training" / "ADE_train_00000002.png")
    options = {"num_classes": NUM_CLASSES, "reduce_zero_label": True, "target": "semseg"}
    data = Dense(ADE20K(root, "train"), SegmentView(size=8), inputs=["rgb"], **options)
    with pytest.raises(ExampleError, match=r"example 1 .*ADE_train_00000002\.jpg: semseg.* id 151"):
        fetch_batch(data, torch.arange(3))


def test_partners_that_are_missing_are_named(root):
    gone = root / "annotations" / "training" / "ADE_train_00000002.png"
    gone.unlink()
    extra = root / "annotations" / "training" / "ADE_train_00000009.png"
    Image.fromarray(labels(9)).save(extra)
    alone = root / "images" / "training" / "ADE_train_00000009.jpg"
    with pytest.raises(ValueError, match="every photograph has an annotation of its") as caught:
        ADE20K(root, "train")
    assert str(caught.value).endswith(f"missing are {gone}, {alone}")
    assert len(ADE20K(root, "train", domains=["rgb"])) == 3
    for i in range(20, 30):
        (extra.parent / f"ADE_train_{i:08}.png").touch()
    with pytest.raises(ValueError, match=r", \.\.\. \(12 in all\)"):
        ADE20K(root, "train")


@pytest.mark.parametrize("folder", ["images", "annotations"])
def test_a_corrupt_file_is_named(root, folder):
    path = next(iter(sorted((root / folder / "training").glob("ADE*1.*"))))
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(ValueError, match=rf"{path.name} cannot be read"):
        ADE20K(root, "train").read(0)


def test_sizes_that_differ_are_named(root):
    Image.fromarray(labels(1, 8, 6)).save(
        root / "annotations" / "training" / "ADE_train_00000001.png"
    )
    with pytest.raises(ValueError, match=r"00000001\.jpg of 8 x 6, .*00000001\.png of 6 x 8"):
        ADE20K(root, "train").read(0)


def test_another_folder_says_what_is_there(root):
    with pytest.raises(
        ValueError, match=r"no \*\.jpg in .*images/training; expected .*, found training, validati"
    ):
        ADE20K(root / "images", "train")
    with pytest.raises(ValueError, match="found nothing in it"):
        ADE20K(root / "nowhere", "train")
    with pytest.raises(ValueError, match="split is one of train, val; got 'training'"):
        ADE20K(root, "training")
    with pytest.raises(ValueError, match=r"one or more of rgb, semseg, each once; got \['depth'\]"):
        ADE20K(root, "train", domains=["depth"])
