from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from attent.tasks.config import ConfigError
from attent.tasks.data.ade20k import ADE20K
from attent.tasks.data.dense_layouts import LAYOUTS, find_dense
from attent.tasks.data.nyuv2 import NYUv2
from attent.tasks.data.paired_folder import PairedFolder
from attent.tasks.data.taskonomy import Taskonomy

IMAGES: dict[str, Callable[[], np.ndarray]] = {
    "rgb": lambda: np.zeros((4, 4, 3), np.uint8),
    "depth": lambda: np.full((4, 4), 32768, np.uint16),
    "semseg": lambda: np.zeros((4, 4), np.uint8),
    "mask": lambda: np.full((4, 4), 255, np.uint8),
}
SEGMENT = {"inputs": ["rgb"], "target": "semseg"}
DEPTH = {"inputs": ["rgb"], "target": "depth"}


def put(kind: str, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(IMAGES[kind]()).save(path)


def ade(root: Path) -> Path:
    for split in ("training", "validation"):
        put("rgb", root / "images" / split / "ADE_1.jpg")
        put("semseg", root / "annotations" / split / "ADE_1.png")
    return root


def folders(root: Path, *, mask: str = "mask_valid", held_out: str = "val") -> Path:
    for split in ("train", held_out):
        for kind in ("rgb", "depth", "semseg"):
            put(kind, root / split / kind / "all" / "1.png")
        for folder in ("pseudo_depth", "pseudo_semseg"):
            put(folder.removeprefix("pseudo_"), root / split / folder / "all" / "1.png")
        if mask:
            put("mask", root / split / mask / "all" / "1.png")
    return root


def taskonomy(root: Path, train: str = "train", val: str = "val") -> Path:
    for task, domain, kind in (
        ("rgb", "rgb", "rgb"),
        ("normal", "normal", "rgb"),
        ("depth_zbuffer", "depth_zbuffer", "depth"),
        ("mask_valid", "depth_zbuffer", "mask"),
    ):
        put(kind, root / task / "hall" / f"point_1_view_2_domain_{domain}.png")
    for split in (train, val):
        (root / f"{split}.csv").write_text("building,point,view\nhall,1,2\n")
    return root


def test_each_layout_is_recognised(tmp_path):
    cases = (
        (ade(tmp_path / "a"), SEGMENT, "ade20k", ADE20K, ["rgb", "semseg"]),
        (folders(tmp_path / "f"), SEGMENT, "folders", PairedFolder, ["rgb", "semseg"]),
        (folders(tmp_path / "f"), DEPTH, "folders", PairedFolder, ["rgb", "depth", "mask_valid"]),
        (
            folders(tmp_path / "n", mask="mask", held_out="test"),
            {"inputs": ["rgb", "depth"], "target": "semseg"},
            "nyuv2",
            NYUv2,
            ["rgb", "depth", "semseg", "mask_valid"],
        ),
        (
            taskonomy(tmp_path / "t"),
            {"inputs": ["rgb"], "target": "normal"},
            "taskonomy",
            Taskonomy,
            ["rgb", "normal", "mask_valid"],
        ),
    )
    for root, wanted, layout, kind, domains in cases:
        found = find_dense(root, **wanted)
        assert found.layout == layout
        assert type(found.train) is type(found.val) is kind
        assert found.train.locate(0) != found.val.locate(0) or layout == "taskonomy"
        for reader in (found.train, found.val):
            assert list(reader.read(0)) == domains
    assert {layout for _, _, layout, *_ in cases} == set(LAYOUTS)


def test_some_layouts_settle_the_classes(tmp_path):
    classes = {
        "ade20k": (150, True),
        "nyuv2": (40, True),
        "folders": (None, False),
    }
    roots = [ade(tmp_path / "a"), folders(tmp_path / "n", mask="mask"), folders(tmp_path / "f")]
    for root in roots:
        found = find_dense(root, **SEGMENT)
        assert (found.num_classes, found.reduce_zero_label) == classes[found.layout]


def test_a_layout_that_is_named_is_taken(tmp_path):
    root = folders(tmp_path)
    reader = find_dense(root, layout="nyuv2", **DEPTH).train
    assert float(reader.read(0)["depth"][0, 0, 0]) == 5  # 32768 / 65536 * 10 metres
    assert float(find_dense(root, **DEPTH).train.read(0)["depth"][0, 0, 0]) == 0.5


def test_masks_are_not_needed(tmp_path):
    found = find_dense(folders(tmp_path, mask=""), **DEPTH)
    assert list(found.val.read(0)) == ["rgb", "depth"]


def test_a_mask_of_one_split_alone_is_a_mistake(tmp_path):
    root = folders(tmp_path, mask="")
    put("mask", root / "train" / "mask_valid" / "all" / "1.png")
    with pytest.raises(ConfigError, match=r"no folder .*val/mask_valid; expected"):
        find_dense(root, **DEPTH)


def test_predictions_come_without_a_mask(tmp_path):
    found = find_dense(
        folders(tmp_path),
        inputs=["rgb", "depth", "semseg"],
        target="semseg",
        pseudo=["depth", "semseg"],
    )
    assert list(found.train.read(0)) == ["rgb", "pseudo_depth", "pseudo_semseg", "semseg"]


def test_lists_of_views_may_be_called_otherwise(tmp_path):
    root = taskonomy(tmp_path, "tiny_train", "tiny_val")
    wanted = {"inputs": ["rgb"], "target": "depth_zbuffer"}
    assert find_dense(root, **wanted).train.locate(0).endswith("domain_rgb.png")
    (root / "full_train.csv").write_text("building,point,view\nhall,1,2\nhall,1,2\n")
    with pytest.raises(
        ConfigError,
        match=r"expected .*train\.csv, or one list with train in its name; found full_train, ti",
    ):
        find_dense(root, **wanted)
    assert len(find_dense(root, train="full_train", **wanted).train) == 2
    assert len(find_dense(root, train="full_train", val="full_train", **wanted).val) == 2


def test_a_folder_of_no_layout_says_what_was_expected_and_found(tmp_path):
    (tmp_path / "pictures").mkdir()
    with pytest.raises(ConfigError, match="is of no known layout") as caught:
        find_dense(tmp_path, **SEGMENT)
    assert all(f"{name}: {holds}" in str(caught.value) for name, holds in LAYOUTS.items())
    assert str(caught.value).endswith("found pictures")
    with pytest.raises(ConfigError, match="found nothing"):
        find_dense(tmp_path / "pictures", **SEGMENT)
    with pytest.raises(ConfigError, match="found no such folder"):
        find_dense(tmp_path / "nowhere", **SEGMENT)
    for i in range(10):
        (tmp_path / f"n{i}").mkdir()
    with pytest.raises(ConfigError, match=r"n7, \.\.\. \(11 in all\)"):
        find_dense(tmp_path, **SEGMENT)


@pytest.mark.parametrize(
    ("make", "wanted", "message"),
    [
        (ade, DEPTH, r"layout ade20k .*one or more of rgb, semseg, each once; got \['rgb', 'depth"),
        (ade, SEGMENT | {"val": "testing"}, "split is one of train, val; got 'testing'"),
        (folders, {"inputs": ["rgb"], "target": "normal"}, "layout folders .*got .*'normal'"),
        (folders, SEGMENT | {"train": "trian"}, r"no folder .*trian/rgb.* found train, val in"),
        (folders, SEGMENT | {"layout": "coco"}, "layout is one of ade20k, .*; got 'coco'"),
        (folders, SEGMENT | {"layout": "taskonomy"}, r"expected .*train\.csv, .*found no \.csv"),
        (folders, SEGMENT | {"layout": "ade20k"}, "layout ade20k .* found train, val in it"),
        (taskonomy, SEGMENT, r"layout taskonomy .*files are missing: .*segmentsemantic\.png"),
    ],
)
def test_a_folder_that_lacks_something_is_told(tmp_path, make, wanted, message):
    with pytest.raises(ConfigError, match=message):
        find_dense(make(tmp_path), **wanted)
