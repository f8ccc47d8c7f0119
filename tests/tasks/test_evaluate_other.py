"""``attent evaluate RUN --data OTHER``: of the other data only the held-out split is needed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from attent.tasks.commands import COMMANDS
from attent.tasks.run import start
from tests.tasks.finetuned import (
    trained,
    write_ade20k,
    write_folders,
    write_images,
    write_nyuv2,
    write_taskonomy,
)
from tests.tasks.test_cli import only_an_error
from tests.tasks.test_detect_cli import SMALL, write_split
from tests.tasks.test_resume import silent

LINEAR = {"head": "linear", "epochs": 1}
RGB = {"in_domains": ["rgb"], "out_domains": ["rgb"], "num_encoded_tokens": 8, "batch_size": 2}


def measured(attent, run: str, flag: str = "--data") -> dict:
    status, _, err = attent("evaluate", run, flag, "other")
    assert status == 0, err
    return json.loads((Path(run) / "evaluation.json").read_text())


def without(root: Path, *names: str) -> Path:
    """A copy of a data set that lacks some of its parts."""
    other = Path(shutil.copytree(root, "other"))
    for name in names:
        path = other / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    return other


@pytest.mark.parametrize(
    ("command", "write", "gone", "options"),
    [
        ("classify", write_images, ["train"], {"epochs": 1}),
        ("pretrain", write_folders, ["train"], RGB),
        ("segment", write_ade20k, ["images/training", "annotations/training"], LINEAR),
        ("segment", write_folders, ["train"], LINEAR | {"num_classes": 5}),
        ("segment", write_nyuv2, ["train"], LINEAR),
        ("depth", write_nyuv2, ["train"], LINEAR),
        ("depth", write_taskonomy, ["train.csv"], LINEAR | {"target": "normal"}),
    ],
)
def test_a_training_split_is_not_needed(attent, tmp_path, command, write, gone, options):
    root = write(tmp_path / "own")
    folder = trained(command, tmp_path / "run", data=str(root), **options)
    assert attent("evaluate", "run")[0] == 0
    own = json.loads((folder.path / "evaluation.json").read_text())
    without(root, *gone)
    for flag in ("--data", "--data_path"):
        assert measured(attent, "run", flag)["metrics"] == own["metrics"]


def test_fewer_classes_keep_the_labels_of_the_run(attent, tmp_path):
    """Those of bees alone are labelled 1, as in the run; with a training split of theirs too."""
    root = write_images(tmp_path / "own")
    trained("classify", tmp_path / "run", data=str(root), epochs=1)
    without(root, "val/ant", "train/ant")
    first = measured(attent, "run")["metrics"]
    shutil.rmtree("other/train")
    assert measured(attent, "run")["metrics"] == first
    shutil.rmtree(root / "val" / "ant")
    attent("evaluate", "run")
    assert json.loads(Path("run/evaluation.json").read_text())["metrics"] == first


def test_what_is_wrong_with_the_other_data_is_told(attent, tmp_path):
    root = write_images(tmp_path / "own")
    trained("classify", tmp_path / "run", data=str(root), epochs=1)
    write_images(tmp_path / "other", classes=("ant", "cow"))
    shutil.rmtree("other/train")
    error = only_an_error(*attent("evaluate", "run", "--data", "other"))
    assert "has other classes (['ant', 'cow']) than the run (['ant', 'bee'])" in error
    shutil.move("other/val", "other/test")
    error = only_an_error(*attent("evaluate", "run", "--data", "other"))
    assert "no folder other/val; expected ROOT/train/CLASS/IMAGE" in error
    assert "found test in other" in error


def test_objects_of_a_held_out_file_alone(attent, tmp_path):
    root = tmp_path / "own"
    write_split(root, "train2017", 4, seed=0)
    write_split(root, "val2017", 3, seed=1)
    options = SMALL | {"data": str(root), "epochs": 1, "warmup_epochs": 0.0, "output_dir": "run"}
    start("detect", COMMANDS["detect"].config(**options), silent)
    assert attent("evaluate", "run")[0] == 0
    own = json.loads(Path("run/evaluation.json").read_text())["metrics"]
    other = without(root, "train2017", "annotations/instances_train2017.json")
    assert measured(attent, "run")["metrics"] == own
    # A category less: the labels are the run's.
    path = other / "annotations" / "instances_val2017.json"
    found = json.loads(path.read_text())
    found["categories"] = [c for c in found["categories"] if c["name"] == "dog"]
    found["annotations"] = [a for a in found["annotations"] if a["category_id"] == 18]
    path.write_text(json.dumps(found))
    measured(attent, "run")
    found["categories"] = [{"id": 18, "name": "cat"}]
    path.write_text(json.dumps(found))
    error = only_an_error(*attent("evaluate", "run", "--data", "other"))
    assert "other classes (('cat',)) than the run (('dog', 'bottle'))" in error
