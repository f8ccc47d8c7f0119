"""``attent detect`` from end to end: COCO's format, scenes, what is refused, pictures."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as rle
from safetensors.torch import save_file

from attent.models.multimae import build_multimae
from attent.pipeline.observers import read_log
from attent.tasks.config import ConfigError, without_effect
from attent.tasks.data.coco import Coco
from attent.tasks.detection.build import build_detect, load_data
from attent.tasks.detection.config import DetectConfig
from attent.tasks.detection.pictures import drawing, objects, predicted, thumbnails
from attent.tasks.folder import RunFolder
from attent.tasks.run import load_trained, start

SMALL = {
    "model": "multivit_micro", "model_args": {"dim": 16, "depth": 1, "num_heads": 2},
    "input_size": 32, "patch_size": 8, "pyramid_dim": 16, "box_dim": 32,
    "anchor_sizes": [4, 8, 16, 32], "num_proposals": 40, "anchors_drawn": 32, "regions_drawn": 16,
    "drop_path": 0.0, "layer_decay": 1.0, "num_train": 12, "num_val": 4, "epochs": 4,
    "batch_size": 4, "lr": 3e-3, "method": "full", "device": "cpu", "threads": 1,
    "steps_per_tick": 2, "eval_every": 2.0, "progress": False, "min_score": 0.0,
}  # fmt: skip
FIGURES = ("val_loss", "val_box_map", "val_box_map_50", "val_mask_map", "val_mask_map_50")


def segmentation(kind: str, left: int, top: int, right: int, bottom: int) -> list | dict:
    """A rectangle as each form that COCO has, in a picture of 24 x 40."""
    if kind == "polygon":
        return [[left, top, right, top, right, bottom, left, bottom]]
    mask = np.zeros((24, 40), np.uint8, order="F")
    mask[top:bottom, left:right] = 1
    found = rle.encode(mask)
    if kind == "compressed":
        return {"size": [24, 40], "counts": found["counts"].decode()}
    high, height = bottom - top, 24
    between = [high, height - high] * (right - left - 1)
    first, last = left * height + top, (40 - right) * height + height - bottom
    return {"size": [24, 40], "counts": [first, *between, high, last]}


def write_split(root: Path, split: str, count: int, seed: int) -> None:
    """Grey pictures of 40 x 24 with a red or a blue rectangle or two; the third is empty."""
    draw = np.random.default_rng(seed)
    (root / split).mkdir(parents=True)
    (root / "annotations").mkdir(exist_ok=True)
    images, annotations = [], []
    for i in range(count):
        id, pixels = 1000 - 7 * i, np.full((24, 40, 3), 128, np.uint8)
        for kind in (
            () if i == 2 else (("polygon", "compressed", "runs")[i % 3], "polygon")[: 1 + i % 2]
        ):
            left, top = (int(x) for x in draw.integers(0, 14, 2))
            wide, high = int(draw.integers(8, 20)), int(draw.integers(6, 10))
            category = int(draw.choice([18, 44]))
            box = left, top, left + wide, top + high
            pixels[top : top + high, left : left + wide] = (
                (255, 0, 0) if category == 18 else (0, 0, 255)
            )
            annotations.append({
                "id": len(annotations) + 1, "image_id": id, "category_id": category,
                "bbox": [left, top, wide, high], "area": wide * high,
                "iscrowd": int(i == 3 and kind == "compressed"),
                "segmentation": segmentation(kind, *box),
            })  # fmt: skip
        images.append({"id": id, "file_name": f"{id:012}.jpg", "height": 24, "width": 40})
        Image.fromarray(pixels).save(root / split / f"{id:012}.jpg", quality=95)
    categories = [{"id": 44, "name": "bottle"}, {"id": 18, "name": "dog"}]
    found = {"images": images, "annotations": annotations, "categories": categories}
    (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(found))


@pytest.fixture(scope="module")
def coco(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("coco")
    write_split(root, "train2017", 12, seed=0)
    write_split(root, "val2017", 5, seed=1)
    return root


def flags(options: dict) -> list[str]:
    told = []
    for name, value in options.items():
        said = json.dumps(value) if not isinstance(value, str) else value
        told += [f"--{name}", said]
    return told


@pytest.fixture(scope="module")
def by_norms(coco, tmp_path_factory) -> RunFolder:
    """A run on COCO's format by the command line, selecting by gradient norms."""
    path = tmp_path_factory.mktemp("run")
    options = SMALL | {
        "data": str(coco), "method": "attent_complex", "signal": "grad_norm", "total_cycles": 1,
        "initial_interval": 2, "initial_ratio": 0.5, "final_ratio": 0.5, "epochs": 5,
        "output_dir": str(path / "run"),
    }  # fmt: skip
    command = [sys.executable, "-m", "attent.tasks.cli", "detect", *flags(options)]
    done = subprocess.run(command, cwd=path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "held-out box mAP" in done.stderr
    return RunFolder(path / "run")


def test_segmentations_of_the_three_forms_are_the_same(coco):
    first, *others = (
        segmentation(kind, 3, 4, 13, 11) for kind in ("polygon", "compressed", "runs")
    )
    expected = rle.decode(rle.merge(rle.frPyObjects(first, 24, 40)))
    assert expected.sum() == 70
    assert np.array_equal(rle.decode(others[0]), expected)
    assert np.array_equal(rle.decode(rle.frPyObjects(others[1], 24, 40)), expected)


def test_a_run_on_cocos_format_leaves_figures_scores_and_pictures(by_norms):
    last = read_log(by_norms.log)[-1]
    assert all(np.isfinite(last[name]) for name in FIGURES)
    assert 0 <= last["val_box_map"] <= last["val_box_map_50"] <= 1
    found = [np.load(file)["scores"] for file in sorted(by_norms.selections.iterdir())]
    scores = next(scores for scores in found if scores.size)
    assert len(np.unique(scores)) == 12
    assert (scores > 0).all()
    for name in ("objects", "parts", "learning_curves", "selections", "examples"):
        assert (by_norms.path / "report" / f"{name}.png").stat().st_size > 5000


def test_a_trained_run_finds_objects_in_a_photograph(by_norms):
    run, _ = load_trained(by_norms)
    assert run.signal == "looped_grad_norm"
    image = torch.full((3, 48, 80), 128, dtype=torch.uint8)
    image[0, 10:30, 10:50] = 255
    _, config = by_norms.load_config()
    made = predicted(run, config, image)
    count = len(made.arrays["labels"])
    assert count > 0
    # 80 x 48 in a square of 32 is 32 x 19.2 pixels.
    assert made.arrays["masks"].shape == (count, 19, 32)
    assert made.arrays["boxes"].shape == (count, 4)
    assert (made.arrays["boxes"][:, [0, 2]] <= 80).all()
    assert made.arrays["boxes"].max() > 40
    assert set(made.arrays["labels"]) <= {1, 2}
    # The same through the source's own pictures.
    ((name, figure, words),) = objects(run)
    assert (name, len(figure.axes)) == ("objects", 12)
    assert "Held-out" in words


def test_losses_fall_on_scenes_and_a_run_is_repeatable(tmp_path):
    config = DetectConfig(**(SMALL | {"epochs": 16}))
    logs = []
    for name in ("a", "b"):
        folder = start(
            "detect", dataclasses.replace(config, output_dir=str(tmp_path / name)), print
        )[1]
        logs.append(read_log(folder.log))
    first, second = (
        [{k: v for k, v in line.items() if "seconds" not in k} for line in log] for log in logs
    )
    assert first == second
    assert first[-1]["train_loss"] < 0.8 * first[0]["train_loss"]  # a running mean of 50 steps
    held_out = [line["val_loss"] for line in first if "val_loss" in line]
    assert held_out[-1] < held_out[0]


def test_pretrained_weights_reach_the_encoder(tmp_path):
    pretrained = build_multimae(
        "pretrain_multimae_micro", image_size=32, patch_size=8, model_args=SMALL["model_args"]
    )
    path = tmp_path / "weights.safetensors"
    save_file(pretrained.state_dict(), path)
    config = DetectConfig(**SMALL, pretrained_weights=str(path))
    taken, fresh = (build_detect(config, initial=initial) for initial in (True, False))
    name = "encoder.encoder.0.attn.qkv.weight"
    expected = pretrained.state_dict()[name.removeprefix("encoder.")]
    assert torch.equal(taken.state["params", name], expected)
    assert not torch.equal(fresh.state["params", name], expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"input_size": 40}, "input_size 40 is not an even number of patches of patch_size 8"),
        ({"anchor_sizes": [8, 16]}, "anchor_sizes must be four or five sizes"),
        ({"anchor_ratios": [0.0]}, "anchor_ratios must be one number above 0 or more"),
        ({"jitter": [1.5, 0.5]}, "jitter must be two rising numbers above 0"),
        ({"regions_drawn": 3}, "regions_drawn must be at least 4"),
        ({"hflip": 2.0}, r"hflip must be in \[0, 1\]"),
        ({"signal": "vmap_grad_norm"}, "signal vmap_grad_norm needs .*; take loss"),
        ({"signal": "last_layer"}, "signal last_layer needs a model whose rows are examples"),
        (
            {"method": "attent_complex", "signal": "grad_norm", "scores": "observed"},
            "scores: observed records the loss here; signal is grad_norm",
        ),
        ({"compile": True}, "compile: regions differ in number"),
    ],
)  # fmt: skip
def test_wrong_options(options, message):
    with pytest.raises(ConfigError, match=message):
        DetectConfig(**(SMALL | options))


def test_folders_of_another_layout(tmp_path, coco):
    config = DetectConfig(**SMALL, data=str(tmp_path))
    with pytest.raises(ConfigError, match=r"holds nothing, .* one annotations/instances_train"):
        load_data(config)
    with pytest.raises(ConfigError, match="data: there is no nowhere; it is 'scenes' or a folder"):
        load_data(DetectConfig(**SMALL, data="nowhere"))
    train, val = load_data(DetectConfig(**SMALL, data=str(coco)))
    assert isinstance(train, Coco)
    assert (len(train), len(val)) == (12, 5)
    assert train.classes == ("dog", "bottle")
    warned = without_effect(DetectConfig(**SMALL, data=str(coco)))
    assert any(warning.startswith("num_train = 12 has no effect") for warning in warned)


def test_every_option_is_explained():
    told = "\n".join(kind.__doc__ or "" for kind in DetectConfig.__mro__)
    missing = [
        name for name in DetectConfig.__dataclass_fields__ if f"\n        {name}: " not in told
    ]
    assert missing == []


def test_a_drawing_has_the_masks_and_boxes_where_they_are():
    picture = torch.zeros(3, 160, 160)
    masks = torch.zeros(1, 160, 160, dtype=torch.bool)
    masks[0, 20:60, 30:90] = True
    some = {
        "boxes": torch.tensor([[30.0, 20, 90, 60]]), "labels": torch.tensor([2]), "masks": masks,
    }  # fmt: skip
    drawn = drawing(picture, some, ("a", "b"))
    assert drawn.shape == (320, 320, 3)
    lit = np.argwhere(drawn.any(axis=2))
    assert lit.min(axis=0).tolist() == pytest.approx([40, 60], abs=2)
    assert lit.max(axis=0).tolist() == pytest.approx([120, 180], abs=2)
    none = {name: value[:0] for name, value in some.items()}
    assert not drawing(picture, none, ("a", "b")).any()


def test_thumbnails_count_objects(coco):
    train, _ = load_data(DetectConfig(**SMALL, data=str(coco)))
    shown = thumbnails(train.fetch(torch.tensor([2, 0, 1])))
    assert [words for _, words in shown] == ["0 objects", "1 object", "2 objects"]
    assert shown[0][0].shape == (3, 32, 32)
