"""Small fine-tunings, and files of the real data sets' layouts, for tests of the commands."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from attent.pipeline.observers import read_log
from attent.tasks.commands import COMMANDS
from attent.tasks.folder import RunFolder
from attent.tasks.run import start
from tests.tasks.test_resume import silent

ENCODER = {"dim": 16, "depth": 2, "num_heads": 2}
TRAINING = {
    "model": "multivit_micro", "model_args": ENCODER, "patch_size": 8, "drop_path": 0.0,
    "epochs": 2, "batch_size": 6, "lr": 3e-3, "warmup_epochs": 0.0, "method": "full",
    "score_batch_size": 4, "device": "cpu", "threads": 1, "steps_per_tick": 2, "progress": False,
}  # fmt: skip
SCENES = {"data": "scenes", "num_train": 24, "num_val": 6}
"""Four steps an epoch."""
SMALL: dict[str, dict[str, Any]] = {
    "segment": TRAINING | SCENES | {"input_size": 32, "layer_decay": 1.0},
    "depth": TRAINING | SCENES | {"input_size": 32, "layer_decay": 1.0},
    "classify": TRAINING | SCENES | {"image_size": 32},
}
SELECT = {
    "method": "attent_complex", "total_cycles": 1, "initial_interval": 1, "initial_ratio": 0.5,
    "final_ratio": 0.5, "epochs": 3,
}  # fmt: skip
PRETRAIN = {
    "model": "pretrain_multimae_micro", "model_args": ENCODER, "decoder_dim": 16,
    "decoder_depth": 1, "decoder_num_heads": 2, "input_size": 32, "patch_size": 8,
    "num_encoded_tokens": 12, "num_train": 16, "num_val": 4, "epochs": 1, "batch_size": 8,
    "method": "full", "warmup_epochs": 0.0, "device": "cpu", "threads": 1, "progress": False,
}  # fmt: skip


def options(command: str, **changed: Any) -> Any:
    """The options of a small run."""
    given = (PRETRAIN if command == "pretrain" else SMALL[command]) | changed
    return COMMANDS[command].config(**given)


def trained(command: str, path: Path, **changed: Any) -> RunFolder:
    """A whole run in this process, without its report."""
    return start(command, options(command, **changed, output_dir=str(path)), silent)[1]


def flags(given: dict[str, Any]) -> list[str]:
    """Options as words of a command line."""
    words = []
    for name, value in given.items():
        words += [f"--{name}", value if isinstance(value, str) else json.dumps(value)]
    return words


def held_out(folder: RunFolder) -> dict[str, float]:
    """The last held-out figures of a run's log."""
    last = read_log(folder.log)[-1]
    return {k.removeprefix("val_"): v for k, v in last.items() if k.startswith("val_")}


# --- files


def save(values: np.ndarray, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path, **({"quality": 95} if path.suffix == ".jpg" else {}))


def picture(seed: int, height: int = 28, width: int = 40) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)


def ids(seed: int, classes: int, height: int = 28, width: int = 40) -> np.ndarray:
    """0 to classes."""
    drawn = np.random.default_rng(seed).integers(0, classes + 1, (height, width))
    return drawn.astype(np.uint8)


def deep(seed: int, height: int = 28, width: int = 40) -> np.ndarray:
    return np.random.default_rng(seed).integers(1, 65536, (height, width)).astype(np.uint16)


def write_ade20k(root: Path, train: int = 8, val: int = 3) -> Path:
    """Pictures of several sizes, one of them grey."""
    for split, name, count in (("training", "train", train), ("validation", "val", val)):
        for i in range(count):
            height, width = 20 + 4 * i, 36
            rgb = picture(i, height, width)
            save(rgb[..., 0] if i == 1 else rgb, root / "images" / split / f"ADE_{name}_{i:08}.jpg")
            labels = ids(i, 150, height, width)
            save(labels, root / "annotations" / split / f"ADE_{name}_{i:08}.png")
    (root / "objectInfo150.txt").write_text("Idx\tRatio\tTrain\tVal\tStuff\tName\n")
    return root


def write_nyuv2(root: Path, train: int = 8, val: int = 3) -> Path:
    """Rooms whose depth is unknown here and there."""
    for split, count in (("train", train), ("test", val)):
        for i in range(count):
            depth, mask = deep(i), np.full((28, 40), 255, np.uint8)
            mask[:6, :9] = depth[:6, :9] = 0
            made = {"rgb": picture(i), "depth": depth, "semseg": ids(i, 40), "mask": mask}
            for folder, values in made.items():
                save(values, root / split / folder / "data" / f"{i:04}.png")
    return root


def write_taskonomy(root: Path, train: int = 8, val: int = 3) -> Path:
    """Views of a hall with some of the tasks."""
    for i in range(train + val):
        mask = np.full((28, 28), 255, np.uint8)
        mask[3, 5] = 0
        made = {
            "rgb": picture(i, 28, 28), "depth_zbuffer": deep(i, 28, 28) // 16,
            "edge_texture": deep(i, 28, 28), "normal": picture(i, 28, 28), "mask_valid": mask,
        }  # fmt: skip
        for task, values in made.items():
            domain = "depth_zbuffer" if task == "mask_valid" else task
            save(values, root / task / "hall" / f"point_{i}_view_0_domain_{domain}.png")
    for split, views in (("train", range(train)), ("val", range(train, train + val))):
        rows = "".join(f"hall,{i},0\n" for i in views)
        (root / f"{split}.csv").write_text("building,point,view\n" + rows)
    return root


def write_folders(root: Path, train: int = 8, val: int = 3, *, classes: int = 5) -> Path:
    """Two kinds of scenes: rgb, depth and labels 0 to classes - 1, of which some are 255."""
    for split, count in (("train", train), ("val", val)):
        for i in range(count):
            labels, name = ids(i, classes - 1), f"{'hall' if i % 2 else 'room'}/{i}.png"
            labels[:4, :4] = 255
            for domain, values in (("rgb", picture(i)), ("depth", deep(i)), ("semseg", labels)):
                save(values, root / split / domain / name)
    return root


def write_images(root: Path, inside: str = "", classes: tuple[str, ...] = ("ant", "bee")) -> Path:
    """``{train,val}/CLASS/NAME.jpg``, or below a folder of each split."""
    for split, count in (("train", 6), ("val", 2)):
        for k, name in enumerate(classes):
            for i in range(count):
                where = root / split / inside / name / f"{i}.jpg"
                save(picture(10 * k + i, 24 + 4 * i, 40), where)
    return root
