from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from attent.pipeline import ExampleError
from attent.pipeline.source import fetch_batch
from attent.tasks.data.dense import Dense
from attent.tasks.data.dense_view import DenseView, DepthView
from attent.tasks.data.nyuv2 import DEPTH_RANGE, NUM_CLASSES, NYUv2

DOMAINS = ("rgb", "depth", "semseg", "mask_valid")
METRES = np.array([[0.0, 0.5, 1.0, 2.5], [3.0, 5.0, 7.25, 9.999], [1, 2, 3, 4], [5, 6, 7, 8]])
LABELS = np.arange(16).reshape(4, 4) * 40 // 15  # 0 to 40


@pytest.fixture
def root(tmp_path) -> Path:
    """Two rooms as the preparation writes them."""
    rng = np.random.default_rng(0)
    for i in range(2):
        images = {
            "rgb": rng.integers(0, 256, (4, 4, 3)).astype(np.uint8),
            "depth": (METRES * 65536 / 10).astype(np.uint16),
            "semseg": LABELS.astype(np.uint8),
            "mask": np.where(i < METRES, 255, 0).astype(np.uint8),
        }
        for folder, image in images.items():
            path = tmp_path / folder / "data" / f"{i + 1:04}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(path)
    return tmp_path


def test_depth_is_in_metres(root):
    scene = NYUv2(root, domains=DOMAINS).read(0)
    # The file's steps are 10 / 65536 m = 0.15 mm, rounded down when it was written.
    np.testing.assert_allclose(scene["depth"][0], METRES, atol=10 / 65536)
    assert float(scene["depth"].max()) < DEPTH_RANGE


@pytest.mark.parametrize("name", ["mask", "mask_valid"])
def test_masks_may_be_in_either_folder(root, name):
    if name != "mask":
        (root / "mask").rename(root / name)
    reader = NYUv2(root, domains=DOMAINS)
    assert [reader.read(i)["mask_valid"].tolist() for i in (0, 1)] == [
        (METRES > 0).tolist(),
        (METRES > 1).tolist(),
    ]
    assert reader.locate(1) == f"{root}/{{rgb,depth,semseg,{name}}}/data/0002.*"


def test_it_makes_batches_for_depth(root):
    reader = NYUv2(root, domains=["rgb", "depth", "mask_valid"])
    data = Dense(reader, DepthView(size=4), inputs=["rgb"], target="depth")
    batch = data.fetch(torch.tensor([1]))
    assert batch["valid"][0, 0].tolist() == (METRES > 1).tolist()
    np.testing.assert_allclose(batch["target"][0, 0], METRES, atol=10 / 65536)


def test_it_makes_batches_for_segmentation(root):
    reader = NYUv2(root, domains=DOMAINS)
    options = {"target": "semseg", "num_classes": NUM_CLASSES, "reduce_zero_label": True}
    data = Dense(reader, DenseView(size=4), inputs=["rgb", "depth"], **options)
    batch = data.fetch(torch.tensor([0]))
    expected = np.where(LABELS == 0, 255, LABELS - 1)
    assert batch["target"][0].tolist() == expected.tolist()
    assert batch["target"].max() == 255
    assert sorted(set(batch["target"].flatten().tolist()))[-2] == 39
    assert batch["depth_valid"][0, 0].tolist() == (METRES > 0).tolist()


def test_a_label_beyond_the_classes_is_named_with_its_files(root):
    Image.fromarray(np.full((4, 4), 41, np.uint8)).save(root / "semseg" / "data" / "0002.png")
    options = {"target": "semseg", "num_classes": NUM_CLASSES, "reduce_zero_label": True}
    reader = NYUv2(root, domains=["rgb", "semseg"])
    data = Dense(reader, DenseView(size=4), inputs=["rgb"], **options)
    with pytest.raises(ExampleError, match=r"example 1 .*data/0002\.\*: semseg .* id 41"):
        fetch_batch(data, torch.arange(2))


def test_missing_and_corrupt_files_are_named(root):
    reader = NYUv2(root, domains=DOMAINS)
    path = root / "mask" / "data" / "0001.png"
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(ValueError, match=r"mask/data/0001\.png cannot be read"):
        reader.read(0)
    (root / "depth" / "data" / "0002.png").unlink()
    with pytest.raises(ValueError, match=r"depth lacks 1 of 2 scenes, .*rgb/data/0002\.png"):
        NYUv2(root, domains=DOMAINS)
