"""Workers through the command line: real pictures, some torn, one that is never done reading."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from attent.pipeline import load_state
from attent.pipeline.keys import differences, number
from attent.tasks.run import RunFolder

OPTIONS = {
    "image_size": 16, "crop_scale": 0.5, "method": "attent_complex", "epochs": 4, "batch_size": 4,
    "total_cycles": 2, "initial_interval": 1, "warmup_epochs": 0.5, "steps_per_tick": 2,
    "score_batch_size": 4, "threads": 1, "device": "cpu", "progress": False,
    "model_args": {"depth": 1, "embed_dim": 16, "num_heads": 2},
}  # fmt: skip


@pytest.fixture(autouse=True)
def one_thread():
    """What OPTIONS ask for, put back."""
    former = torch.get_num_threads()
    yield
    torch.set_num_threads(former)


@pytest.fixture
def pictures(tmp_path) -> Path:
    """``{train,val}/{a,b}/N.png``: eight and four of a class."""
    draw = np.random.default_rng(0)
    root = tmp_path / "pictures"
    for split, count in (("train", 8), ("val", 4)):
        for name in "ab":
            folder = root / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = draw.integers(0, 256, (20, 24, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{i}.png")
    return root


def tear(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:200])


def words(pictures: Path, output: Path, **options) -> list[str]:
    """The command line; the options are in a file."""
    file = output.parent / f"{output.name}.yaml"
    values = OPTIONS | {"data": str(pictures), "output_dir": str(output)} | options
    file.write_text(yaml.safe_dump(values))
    return ["classify", "--config", str(file)]


def last_state(folder: Path):
    return load_state(max(RunFolder(folder).checkpoints.glob("checkpoint-*.safetensors")))[0]


def mended(folder: Path, **options) -> None:
    """Change options of a run, as its owner would, in its file."""
    file = RunFolder(folder).config
    file.write_text(yaml.safe_dump(yaml.safe_load(file.read_text()) | options, sort_keys=False))


def test_threads_and_processes_train_to_the_same_bits(attent, tmp_path, pictures):
    for name, options in {
        "none": {},
        "threads": {"workers": 2},
        "processes": {"workers": 2, "worker_processes": True},
    }.items():
        assert attent(*words(pictures, tmp_path / name, **options))[0] == 0
    none = last_state(tmp_path / "none")
    assert differences(none, last_state(tmp_path / "threads")) == []
    assert differences(none, last_state(tmp_path / "processes")) == []


@pytest.mark.parametrize("processes", [False, True])
def test_a_torn_picture_stops_a_run_which_then_passes_over_it(
    attent, tmp_path, pictures, processes
):
    torn = [pictures / "train" / "b" / "5.png", pictures / "val" / "a" / "2.png"]
    for path in torn:
        tear(path)
    run = tmp_path / "run"
    workers = {"workers": 2, "worker_processes": processes}
    status, _, err = attent(*words(pictures, run, **workers))
    assert status != 0
    assert str(torn[0]) in err
    assert number(last_state(run), "clock", "seen") < 16  # it is met in the first pass

    mended(run, skip_unreadable=True)
    status, _, err = attent("resume", run)
    assert status == 0, err
    said = "2 examples could not be read and were passed over; they are listed in "
    assert said + str(run / "skipped.jsonl") in err
    listed = [json.loads(line) for line in (run / "skipped.jsonl").read_text().splitlines()]
    assert sorted((line["split"], line["index"]) for line in listed) == [("train", 13), ("val", 2)]
    # As if it had been asked for from the beginning, by whatever workers.
    whole = tmp_path / "whole"
    assert attent(*words(pictures, whole, skip_unreadable=True))[0] == 0
    assert differences(last_state(run), last_state(whole)) == []
    state = last_state(run)
    assert number(state, "clock", "seen") == number(state, "plan", "budget") == 4 * 16

    assert attent("evaluate", run, "--device", "cpu")[0] == 0
    (skipped,) = json.loads((run / "evaluation.json").read_text())["skipped"]
    assert skipped.startswith(f"example 2 ({torn[1]}): ")


@pytest.mark.parametrize("processes", [False, True])
def test_a_file_that_is_never_done_reading_stops_a_run_with_its_state_saved(
    attent, tmp_path, pictures, processes
):
    """A pipe that nobody writes to, in a picture's place: also passing over does not help."""
    path, run = pictures / "train" / "b" / "5.png", tmp_path / "run"
    good = path.read_bytes()
    path.unlink()
    os.mkfifo(path)
    options = {"method": "full", "skip_unreadable": True, "workers": 2}
    status, _, err = attent(
        *words(pictures, run, worker_processes=processes, worker_timeout=3.0, **options)
    )
    assert status != 0
    who = "worker process" if processes else "worker thread"
    assert who in err
    assert f"has been reading example 13 ({path}) for 3 s, the timeout of workers" in err
    seen = number(last_state(run), "clock", "seen")

    path.unlink()  # a thread waits for it until this program ends
    path.write_bytes(good)
    assert attent("resume", run)[0] == 0
    assert attent(*words(pictures, tmp_path / "whole", **options))[0] == 0
    assert seen < number(last_state(run), "clock", "seen") == 4 * 16
    assert differences(last_state(run), last_state(tmp_path / "whole")) == []
