"""The real data sets' layouts, through the commands of fine-tuning."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from attent.pipeline.observers import read_log
from attent.tasks.classification.build import load_data as load_images
from attent.tasks.depth.build import build_depth
from attent.tasks.folder import RunFolder
from attent.tasks.segmentation.build import build_segment
from tests.tasks.finetuned import (
    SMALL,
    flags,
    held_out,
    options,
    trained,
    write_ade20k,
    write_folders,
    write_images,
    write_nyuv2,
    write_taskonomy,
)
from tests.tasks.test_cli import only_an_error

DEPTH_FIGURES = {"delta1", "delta2", "delta3", "rmse", "abs_rel", "log10"}


def finite(folder: RunFolder) -> dict[str, float]:
    """The held-out figures of a run that went to its end, all of them numbers."""
    found = held_out(folder)
    assert all(math.isfinite(value) for value in found.values())
    assert math.isfinite(read_log(folder.log)[-1]["train_loss"])
    assert all(bool(value.isfinite().all()) for value in load_file(folder.weights).values())
    return found


def of_scenes(command: str) -> dict:
    """Options without those of rendered scenes, which are idle elsewhere."""
    return {k: v for k, v in SMALL[command].items() if k not in ("data", "num_train", "num_val")}


# --- segmentation


def test_ade20k_by_the_command_line(attent, tmp_path):
    """150 classes, counted from 1, in pictures of several sizes, one of them grey."""
    write_ade20k(tmp_path / "ade")
    given = flags(of_scenes("segment") | {"head": "linear"})
    status, out, err = attent("segment", *given, "--data_path", "ade", "--output_dir", "run")
    assert (status, out) == (0, ""), err
    assert "warning" not in err
    folder = RunFolder(tmp_path / "run")
    found = finite(folder)
    assert set(found) == {"miou", "pixel_accuracy", "mean_accuracy", "loss", "step"}
    # Nothing to learn in noise: any of the 150 is about as likely.
    assert found["loss"] == pytest.approx(math.log(150), rel=0.15)
    assert read_log(folder.log)[-1]["seen"] == 16
    weights = load_file(folder.weights)
    assert any(150 in value.shape for value in weights.values())


@pytest.mark.parametrize("inputs", ["rgb", "depth", "rgb-depth"])
def test_labels_of_nyuv2(tmp_path, inputs):
    root = write_nyuv2(tmp_path / "nyu")
    folder = trained("segment", tmp_path / "run", data=str(root), head="linear", in_domains=inputs)
    assert finite(folder)["loss"] == pytest.approx(math.log(40), rel=0.5)
    run = build_segment(folder.load_config()[1])
    assert (len(run.source), len(run.held_out)) == (8, 3)
    target = run.held_out.fetch(torch.arange(3))["target"]
    assert set(target.unique().tolist()) <= {*range(40), 255}


def test_folders_of_scenes_and_their_own_number_of_classes(tmp_path):
    root = write_folders(tmp_path / "own")
    given = {"data": str(root), "num_classes": 5, "in_domains": "rgb-depth", "head": "convnext"}
    folder = trained("segment", tmp_path / "run", **given, head_args={"embed_dim": 64})
    assert finite(folder)["loss"] == pytest.approx(math.log(5), rel=0.3)


# --- depth and other maps


def test_depth_of_nyuv2_is_in_metres(tmp_path):
    root = write_nyuv2(tmp_path / "nyu")
    folder = trained("depth", tmp_path / "run", data=str(root), head="linear")
    found = finite(folder)
    assert set(found) == {"loss", "l1", "step"} | DEPTH_FIGURES
    run = build_depth(folder.load_config()[1])
    # 16-bit noise: uniform in 10 m, so 5 m and 10 / sqrt(12) = 2.89 m; resizing picks pixels.
    assert run.task.mean == pytest.approx(5, abs=0.2)
    assert run.task.deviation == pytest.approx(2.89, abs=0.1)
    batch = run.held_out.fetch(torch.arange(3))
    assert bool((batch["target"][batch["valid"]] > 0).all())
    assert not bool(batch["valid"].all())
    assert 2 < found["l1"] < 10  # to say the mean of everything is off by 2.5 m


def test_depth_beyond_what_counts_is_neither_learned_nor_measured(tmp_path):
    root = write_nyuv2(tmp_path / "nyu")
    run = build_depth(options("depth", data=str(root), max_depth=4.0))
    batch = run.source.fetch(torch.arange(8))
    assert float(batch["target"][batch["valid"]].max()) <= 4
    assert run.task.mean == pytest.approx(2, abs=0.1)


@pytest.mark.parametrize(
    ("target", "channels"), [("normal", 3), ("edge_texture", 1), ("depth_zbuffer", 1)]
)
def test_taskonomys_maps_by_the_command_line(attent, tmp_path, target, channels):
    write_taskonomy(tmp_path / "taskonomy")
    given = flags(of_scenes("depth") | {"head": "linear", "error": "l1", "target": target})
    status, out, err = attent("depth", *given, "--data=taskonomy", "--output_dir", "run")
    assert (status, out) == (0, ""), err
    assert "warning" not in err
    folder = RunFolder(tmp_path / "run")
    found = finite(folder)
    assert set(found) == {"loss", "l1", "step"}
    run = build_depth(folder.load_config()[1])
    batch = run.held_out.fetch(torch.arange(3))
    assert batch["target"].shape[1] == channels
    assert 0 <= float(batch["target"].min()) <= float(batch["target"].max()) <= 1
    # The mask's one invalid pixel spoils its cell.
    assert 0 < int((~batch["valid"]).sum()) < 3 * 200
    assert f"held-out absolute error {found['l1']:.4f}" in err


def test_depth_of_other_folders_is_a_share_of_sixteen_bits(tmp_path):
    root = write_folders(tmp_path / "own")
    folder = trained("depth", tmp_path / "run", data=str(root), head="linear", error="l2")
    assert set(finite(folder)) >= DEPTH_FIGURES
    run = build_depth(folder.load_config()[1])
    assert run.task.mean == pytest.approx(0.5, abs=0.05)


# --- classification


@pytest.mark.parametrize("inside", ["", "rgb"])
def test_folders_of_images_by_the_command_line(attent, tmp_path, inside):
    write_images(tmp_path / "images", inside)
    if inside:  # beside other modalities, which are no classes
        for split in ("train", "val"):
            (tmp_path / "images" / split / "depth" / "ant").mkdir(parents=True)
    given = of_scenes("classify") | {
        "crop_scale": 0.3, "flip": 0.5, "rand_augment": 9, "mixup": 0.8, "cutmix": 1.0,
        "label_smoothing": 0.1, "crop_pct": 0.875,
    }  # fmt: skip
    status, out, err = attent(
        "classify", *flags(given), "--data_path=images", "--output_dir", "run"
    )
    assert (status, out) == (0, ""), err
    assert "warning" not in err
    folder = RunFolder(tmp_path / "run")
    assert set(finite(folder)) == {"accuracy", "loss", "step"}
    train, val = load_images(folder.load_config()[1])
    assert (train.classes, val.classes) == (["ant", "bee"], ["ant", "bee"])
    assert (len(train), len(val)) == (12, 4)


def test_images_are_as_large_as_a_model_of_timm_expects(tmp_path):
    root = write_images(tmp_path / "images")
    config = options("classify", data=str(root), model="vit_tiny_patch16_224", image_size=None,
                     model_args=None)  # fmt: skip
    train, _ = load_images(config)
    assert train.fetch(torch.tensor([0]))["image"].shape == (1, 3, 224, 224)
    # Its own mean and deviation, which are 0.5.
    grey = torch.full((3, 224, 224), 255, dtype=torch.uint8)
    assert float(train.standardized(grey).max()) == pytest.approx(1.0)


# --- what is missing is told in a line

WRONG = {
    "a class of no label": (
        "segment", write_folders, {}, "num_classes: a folder of the layout folders does not say"
    ),
    "no depth in ADE20K": (
        "depth", write_ade20k, {}, "data of layout ade20k .*one or more of rgb, semseg"
    ),
    "no labels in Taskonomy": (
        "segment", write_taskonomy, {"num_classes": 17}, "layout taskonomy .*files are missing"
    ),
    "no normals in NYUv2": ("depth", write_nyuv2, {"target": "normal"}, "got .*'normal'"),
    "images for scenes": (
        "segment", write_images, {"num_classes": 2}, r"no folder .*train/rgb and no folder"
    ),
    "a layout that is none": (
        "segment", write_folders, {"layout": "nope", "num_classes": 5}, "layout: .*Got value: nope"
    ),
    "too many ids": (
        "segment", write_folders, {"num_classes": 4},
        r"semseg holds the id 4; expected 0 to 3 or 255 for no class \(num_classes is 4",
    ),
    "what is to be predicted": (
        "segment", write_nyuv2, {"in_domains": "rgb-semseg"}, "the input semseg is what is to be"
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", WRONG)
def test_data_that_do_not_fit_are_told_in_a_line(attent, tmp_path, what):
    command, write, changed, message = WRONG[what]
    write(tmp_path / "data")
    given = flags(of_scenes(command) | {"head": "linear"} | changed)
    status, out, err = attent(command, *given, "--data", "data", "--output_dir", "run")
    told = only_an_error(status, out, err)
    assert re.search(message, told), told


def test_a_missing_file_is_named(attent, tmp_path):
    root = write_nyuv2(tmp_path / "data")
    gone = root / "test" / "depth" / "data" / "0001.png"
    gone.unlink()
    given = flags(of_scenes("depth"))
    told = only_an_error(*attent("depth", *given, "--data", "data", "--output_dir", "run"))
    assert "depth lacks 1 of 3 scenes, the partners of rgb/data/0001.png" in told
    assert not Path("run").exists()
    told = only_an_error(*attent("depth", *given, "--data", "nowhere"))
    assert "data: there is no nowhere; it is 'scenes' or a folder" in told
    assert "  data: set by the flag --data" in told
