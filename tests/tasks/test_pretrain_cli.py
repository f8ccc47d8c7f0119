"""``attent pretrain`` from end to end: files and flags, what a run leaves behind, kinds of data."""

from __future__ import annotations

import base64
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file

from attent.pipeline.observers import read_log
from attent.tasks.folder import RunFolder
from attent.tasks.pretraining.config import PretrainConfig
from attent.tasks.run import resume, start
from tests.tasks.test_cli import SCRIPT, only_an_error
from tests.tasks.test_paired_folder import depth_map, label_map, photograph, save
from tests.tasks.test_pretrain_config import DOCUMENTED
from tests.tasks.test_resume import (
    assert_same_end,
    interrupted,
    last_checkpoint,
    silent,
    wait_for_checkpoint,
)

# Three modalities of 16 patches, 12 of the 48 seen: none is ever seen whole. Six steps an epoch.
SMALL = {
    "model": "pretrain_multimae_micro", "model_args": {"dim": 16, "depth": 1, "num_heads": 2},
    "decoder_dim": 16, "decoder_depth": 1, "decoder_num_heads": 2,
    "input_size": 32, "patch_size": 8, "num_encoded_tokens": 12, "num_train": 48, "num_val": 12,
    "method": "attent_complex", "epochs": 3, "batch_size": 8, "lr": 3e-3, "warmup_epochs": 1.0,
    "total_cycles": 1, "initial_interval": 1, "initial_ratio": 0.5, "final_ratio": 0.5,
    "steps_per_tick": 2, "save_every": 0.2, "device": "cpu", "threads": 1, "progress": False,
}  # fmt: skip
# Beside masks, crops and flips, which are drawn by default.
LONG = SMALL | {"epochs": 6, "total_cycles": 2, "task_balancer": "uncertainty", "drop_path": 0.1}
ONCE = SMALL | {"method": "full", "epochs": 1, "warmup_epochs": 0.0}
PARTS = ("rgb", "depth", "semseg", "norm_rgb")
STILL = {"lr": 1e-30, "weight_decay": 0.0}
"""Learning so slow that no weight changes."""


def written(options: dict, path: Path) -> str:
    path.write_text(yaml.safe_dump(options))
    return str(path)


def trained(path: Path, **options) -> RunFolder:
    """A whole run in this process, without its report."""
    return start("pretrain", PretrainConfig(**options, output_dir=str(path)), silent)[1]


def evaluations(folder: RunFolder) -> list[dict]:
    """The held-out figures, each once: a line repeats those of the last evaluation."""
    lines = {line["val_step"]: line for line in read_log(folder.log) if "val_step" in line}
    return [{k: v for k, v in line.items() if k.startswith("val_")} for line in lines.values()]


# --- one run, by the installed script, in a process of its own


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The process and the folder of a whole run: a file, and flags that win over it."""
    path = tmp_path_factory.mktemp("pretrain")
    file = written(LONG | {"epochs": 99, "seed": 5}, path / "ours.yaml")
    argv = [str(SCRIPT), "pretrain", "--epochs", "6", "--config", file, "--seed=0"]
    argv += ["--output_dir", str(path / "run")]
    process = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=300)
    assert process.returncode == 0, process.stderr
    return process, RunFolder(path / "run")


def test_flags_win_over_the_file_wherever_they_stand(finished):
    _, folder = finished
    wanted = PretrainConfig(**LONG, output_dir=str(folder.path))
    assert folder.load_config() == ("pretrain", wanted)
    assert read_log(folder.log)[-1]["seen"] == 6 * 48


def test_a_run_tells_its_held_out_loss_and_where_it_is(finished):
    process, folder = finished
    assert process.stdout == ""
    assert process.stderr.splitlines()[-3:] == [
        f"held-out loss {evaluations(folder)[-1]['val_loss']:.4f}",
        f"run folder {folder.path}",
        f"report {folder.path / 'report' / 'report.html'}",
    ]
    assert "Traceback" not in process.stderr


def test_the_held_out_loss_of_each_modality_is_logged_and_their_sum_falls(finished):
    _, folder = finished
    figures = evaluations(folder)
    assert len(figures) == 6
    for found in figures:
        assert set(found) == {"val_step", "val_loss", *(f"val_{part}" for part in PARTS)}
        total = sum(found[f"val_{part}"] for part in PARTS)
        assert found["val_loss"] == pytest.approx(total, rel=1e-5)
    losses = [found["val_loss"] for found in figures]
    assert losses[-1] < 0.85 * losses[0]
    for part in ("rgb", "depth", "semseg"):
        assert figures[-1][f"val_{part}"] < figures[0][f"val_{part}"]


def test_the_balance_is_learned(finished):
    _, folder = finished
    saved = load_file(last_checkpoint(folder))
    (balance,) = (value for name, value in saved.items() if name.endswith("log_variances"))
    assert balance.shape == (4,)
    assert bool((balance.abs() > 1e-3).all())


def test_the_report_shows_reconstructions_and_a_table_of_the_parts(finished):
    _, folder = finished
    page = (folder.path / "report" / "report.html").read_text()
    picture = folder.path / "report" / "reconstructions.png"
    assert base64.b64encode(picture.read_bytes()).decode() in page
    pixels = np.array(Image.open(picture).convert("RGB"))
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 1000
    # Scenes and their predictions from the left edge to the right: no third of it is blank.
    assert all(third.std() > 20 for third in np.array_split(pixels, 3, axis=1))
    rows = page.split("Held-out figures by part</h2>")[1].split("</table>")[0]
    last = evaluations(folder)[-1]
    assert re.findall(r"<t[hd]>(.*?)</t[hd]>", rows) == [
        "run", *PARTS, "run", *(f"{last[f'val_{part}']:.4f}" for part in PARTS)
    ]  # fmt: skip


# --- plans


@pytest.mark.slow
def test_the_documented_yaml_is_planned_with_the_published_method(attent, tmp_path):
    """Nothing made smaller: the base model is built."""
    (tmp_path / "my.yaml").write_text(DOCUMENTED)
    status, printed, told = attent("plan", "my.yaml", "--method", "attent_complex")
    assert (status, told) == (0, "")
    # 400 epochs of the 4,000 scenes; ten scorings of them.
    assert "attent_complex: 1,600,000 examples trained on in 50,016 steps of 32" in printed
    assert "40,000 scored" in printed
    assert re.search(r"of which parameters 3\d\d\.\d MiB", printed)


def test_domains_joined_by_hyphens_are_planned(attent, tmp_path):
    file = written({k: v for k, v in SMALL.items() if k != "model_args"}, tmp_path / "ours.yaml")
    plans = [
        attent("plan", "pretrain", "--config", file, *flags)
        for flags in (
            ["--in_domains", "rgb-depth"],
            ["--in_domains", "[rgb, depth]"],
            ["--in_domains=rgb-depth-semseg"],
        )
    ]
    assert [status for status, *_ in plans] == [0, 0, 0]
    assert plans[0] == plans[1]
    # One input less is less to hold.
    held = [float(re.findall(r"([\d.]+) MiB", printed)[0]) for _, printed, _ in plans]
    assert held[0] < held[2]
    told = only_an_error(*attent("plan", "pretrain", "--in_domains", "rgb-dpeth"))
    assert "in_domains names rgb, dpeth; it takes rgb, depth, semseg" in told


# --- killed, interrupted


@pytest.mark.slow
def test_killed_in_the_middle_it_ends_like_an_uninterrupted_run(finished, attent, tmp_path):
    _, whole = finished
    folder = RunFolder(tmp_path / "run")
    file = written(LONG, tmp_path / "ours.yaml")
    argv = [sys.executable, "-m", "attent.tasks", "pretrain", "--config", file]
    process = subprocess.Popen(
        [*argv, "--output_dir", str(folder.path)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    at = wait_for_checkpoint(folder, process, after=15)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert at < read_log(whole.log)[-1]["step"]
    assert not folder.weights.exists()
    status, _, told = attent("resume", str(folder.path))
    assert status == 0
    assert f"resuming {folder.path} at step " in told
    assert_same_end(whole, folder)
    assert (folder.path / "report" / "reconstructions.png").exists()


def test_interrupted_where_scores_are_due_and_again_on_the_subset(finished, monkeypatch, tmp_path):
    _, whole = finished
    folder = RunFolder(tmp_path / "run")
    with interrupted(monkeypatch, 6):
        trained(folder.path, **LONG)
    with interrupted(monkeypatch, 8):
        resume(folder.path, silent)
    assert read_log(folder.log)[-1]["ratio"] == 0.5
    resume(folder.path, silent)
    assert_same_end(whole, folder)


# --- kinds of training

KINDS = {
    "grad_norm": {"signal": "grad_norm"},
    "observed": {"scores": "observed"},
    "observed grad_norm": {
        "scores": "observed",
        "signal": "grad_norm",
        "task_balancer": "uncertainty",
    },
    "attent_simple": {"method": "attent_simple", "attent_ratio": 0.5},
    "softmax": {"task_balancer": "softmax"},
    "two masks": {"score_masks": 2},
    "uniform tasks": {"sample_tasks_uniformly": True},
    "bf16": {"bf16": True},
    "one to another": {"in_domains": "depth", "out_domains": "semseg"},
}


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """The selections and the last figures of a run without any of `KINDS`."""
    folder = trained(tmp_path_factory.mktemp("plain") / "run", **SMALL)
    return scores_of(folder), evaluations(folder)[-1]


def scores_of(folder: RunFolder) -> np.ndarray:
    """The scores by which the subset was selected."""
    for path in sorted(folder.selections.iterdir()):
        with np.load(path) as file:
            if file["num_selected"] < file["num_examples"]:
                return file["scores"]
    raise AssertionError("no subset was selected")


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_training_runs_and_is_not_the_plain_one(plain, tmp_path, kind):
    folder = trained(tmp_path / "run", **(SMALL | KINDS[kind]))
    scores, figures = scores_of(folder), evaluations(folder)
    assert np.isfinite(scores).all()
    assert not np.array_equal(scores, plain[0])
    assert figures[-1]["val_loss"] != plain[1]["val_loss"]
    assert figures[-1]["val_loss"] < figures[0]["val_loss"]
    weights = load_file(folder.weights)
    assert all(bool(torch.isfinite(value).all()) for value in weights.values())


# --- data


@pytest.fixture
def paired(tmp_path) -> Path:
    """Scenes of two classes: 24 to train on, 6 held out."""
    root = tmp_path / "scenes"
    for split, count in (("train", 24), ("val", 6)):
        for i in range(count):
            name, size = f"{'ant' if i % 2 else 'bee'}/{i}.png", (40, 48)
            save(photograph(i, size), root / split / "rgb" / name)
            save(depth_map(i, size), root / split / "depth" / name)
            save(label_map(i, size), root / split / "semseg" / name)
    return root


@pytest.fixture
def taskonomy(tmp_path) -> Path:
    """Views of one building: 16 to train on, 4 held out."""
    root = tmp_path / "taskonomy"
    for i in range(20):
        view = f"point_{i}_view_0_domain_"
        save(photograph(i, (32, 32)), root / "rgb" / "allensville" / f"{view}rgb.png")
        depth = root / "depth_zbuffer" / "allensville" / f"{view}depth_zbuffer.png"
        save(depth_map(i, (32, 32)), depth)
        semseg = root / "segment_semantic" / "allensville" / f"{view}segmentsemantic.png"
        save(label_map(i, (32, 32)), semseg)
    for split, views in (("train", range(16)), ("val", range(16, 20))):
        rows = "".join(f"allensville,{i},0\n" for i in views)
        (root / f"{split}.csv").write_text("building,point,view\n" + rows)
    return root


def test_a_paired_folder_is_trained_on_and_resumed_from_anywhere(paired, monkeypatch, tmp_path):
    """Not the rendered scenes, though it has their name."""
    monkeypatch.chdir(tmp_path)
    with interrupted(monkeypatch, 4):
        folder = trained(tmp_path / "run", **(SMALL | {"data": "./scenes"}))
    assert folder.load_config()[1].data == str(paired)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    resume(folder.path, silent)
    found = evaluations(folder)[-1]
    # Nothing to learn in noise: the best is to say that any of the 133 is as likely.
    assert found["val_semseg"] == pytest.approx(np.log(133), rel=0.1)


def test_taskonomy_is_trained_on(taskonomy, tmp_path):
    folder = trained(tmp_path / "run", **(ONCE | {"data": str(taskonomy)}))
    assert read_log(folder.log)[-1]["seen"] == 16
    assert set(evaluations(folder)[-1]) >= {f"val_{part}" for part in PARTS}


def test_photographs_are_trained_on(tmp_path):
    pytest.importorskip("sklearn")
    rgb = {"data": "photos", "in_domains": "rgb", "out_domains": "rgb", "num_encoded_tokens": 4}
    large = {"input_size": 96, "patch_size": 24, "batch_size": 16, "epochs": 2}
    folder = trained(tmp_path / "run", **(ONCE | rgb | large))
    figures = evaluations(folder)
    assert set(figures[-1]) == {"val_step", "val_loss", "val_rgb", "val_norm_rgb"}
    assert figures[-1]["val_rgb"] < figures[0]["val_rgb"]


def refused(attent, tmp_path: Path, *flags: str) -> str:
    """What is said of flags that are refused, before anything is written."""
    file = written(ONCE, tmp_path / "ours.yaml")
    status, out, err = attent("pretrain", "--config", file, *flags, "--output_dir", "run")
    lines = [line for line in err.splitlines() if not line.startswith("warning: ")]
    assert not (tmp_path / "run").exists()
    return only_an_error(status, out, "\n".join(lines))


def test_a_missing_depth_file_is_named(attent, paired, taskonomy, tmp_path):
    (paired / "train" / "depth" / "bee" / "4.png").unlink()
    told = refused(attent, tmp_path, "--data", str(paired))
    assert "depth lacks 1 of 24 scenes, the partners of rgb/bee/4.png" in told
    gone = next((taskonomy / "depth_zbuffer" / "allensville").glob("point_17_*"))
    gone.unlink()
    told = refused(attent, tmp_path, "--data", str(taskonomy))
    assert f"val.csv lists views whose files are missing: {gone}" in told


def test_a_file_that_turns_out_damaged_is_named_and_the_run_goes_on_when_it_is_mended(
    attent, paired, tmp_path
):
    path = paired / "train" / "depth" / "bee" / "4.png"
    content = path.read_bytes()
    path.write_bytes(content[:40])
    file = written(ONCE | {"data": str(paired)}, tmp_path / "ours.yaml")
    status, out, err = attent("pretrain", "--config", file, "--output_dir", "run")
    lines = [line for line in err.splitlines() if not line.startswith("warning: ")]
    assert f"{path} cannot be read" in only_an_error(status, out, "\n".join(lines))
    path.write_bytes(content)
    assert resume("run", silent)[1].weights.exists()


def test_labels_beyond_the_classes_are_named(attent, paired, tmp_path):
    file = written(ONCE | {"data": str(paired), "num_semseg_classes": 5}, tmp_path / "ours.yaml")
    status, out, err = attent("pretrain", "--config", file, "--output_dir", "run")
    lines = [line for line in err.splitlines() if not line.startswith("warning: ")]
    told = only_an_error(status, out, "\n".join(lines))
    assert re.search(r"semseg holds the id \d+; expected 0 to 4 \(num_semseg_classes is 5\)", told)
    assert "num_semseg_classes: set in " in told


def test_a_folder_of_something_else_is_explained(attent, paired, tmp_path):
    told = refused(attent, tmp_path, "--data", str(paired / "train"))
    assert f"data: {paired / 'train'} holds depth, rgb, semseg; it is 'scenes', 'photos'" in told
    assert "{train,val}/{rgb,depth,semseg}/CLASS/NAME.EXT" in told
    assert "train.csv and val.csv" in told
    shutil.rmtree(paired / "val" / "semseg")
    told = refused(attent, tmp_path, "--data", str(paired))
    assert f"no folder {paired / 'val' / 'semseg'}; expected" in told
    told = refused(attent, tmp_path, "--data", "scenez")
    assert "data: there is no folder scenez; it is 'scenes', 'photos'" in told
    (tmp_path / "empty" / ".git").mkdir(parents=True)
    assert "/empty holds nothing; it is" in refused(attent, tmp_path, "--data", "empty")
    told = refused(attent, tmp_path, "--data", "photos")
    assert "data photos are rgb alone or depth alone, of different scenes" in told
