"""``attent evaluate`` and ``attent predict``: what a trained run is worth, and what it sees."""

from __future__ import annotations

import json
import math
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from attent.pipeline import load_state
from attent.pipeline.observers import read_log
from attent.tasks.classification.config import ClassifyConfig
from attent.tasks.data.scenes import SCENE_CLASSES
from attent.tasks.folder import RunFolder
from attent.tasks.run import load_trained, start
from tests.tasks.finetuned import (
    held_out,
    ids,
    picture,
    save,
    trained,
    write_folders,
    write_images,
    write_nyuv2,
)
from tests.tasks.test_cli import only_an_error
from tests.tasks.test_resume import silent

RUNS = {
    "segment": {"head": "linear"},
    "depth": {"head": "linear"},
    "classify": {},
    "pretrain": {},
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A finished run of each command; two evaluations in each but the last."""
    path = tmp_path_factory.mktemp("runs")
    return {name: trained(name, path / name, **options) for name, options in RUNS.items()}


def copy_of(folder: RunFolder, path: Path) -> RunFolder:
    return RunFolder(Path(shutil.copytree(folder.path, path)))


def told(folder: RunFolder) -> dict:
    return json.loads((folder.path / "evaluation.json").read_text())


# --- evaluate


@pytest.mark.parametrize("name", RUNS)
def test_an_evaluation_is_that_of_the_log_whatever_the_batch(runs, attent, name):
    folder = runs[name]
    logged = held_out(folder)
    first = attent("evaluate", folder.path)
    assert attent("evaluate", folder.path) == first
    status, printed, err = first
    assert (status, err) == (0, f"step {logged['step']:.0f}\n")
    about = told(folder)
    assert all(math.isfinite(value) for value in logged.values())
    assert about["metrics"] == {k: v for k, v in logged.items() if k != "step"}
    count = 4 if name == "pretrain" else 6
    assert (about["data"], about["examples"]) == ("scenes", count)
    assert (about["step"], about["checkpoint"]) == (logged["step"], "last")
    lines = dict(line.split() for line in printed.splitlines())
    assert lines == {name: f"{value:.6g}" for name, value in about["metrics"].items()}
    for size in ("1", "3"):
        status, _, err = attent("evaluate", folder.path, "--batch_size", size)
        assert status == 0, err
        assert told(folder)["metrics"] == pytest.approx(about["metrics"], rel=1e-5)


def test_the_best_checkpoint_is_the_one_that_was_logged_as_the_best(attent, tmp_path):
    folder = trained("classify", tmp_path / "run", epochs=6, lr=1e-2)
    logged = {line["val_step"]: line for line in read_log(folder.log) if "val_step" in line}
    best = max(logged.values(), key=lambda line: line["val_accuracy"])
    assert best["val_step"] != max(logged)
    status, _, err = attent("evaluate", "run", "--best")
    assert (status, err) == (0, f"step {best['val_step']}\n")
    assert told(folder)["checkpoint"] == "best"
    assert told(folder)["metrics"]["accuracy"] == best["val_accuracy"]
    assert told(folder)["metrics"]["loss"] == best["val_loss"]


def test_averaged_weights_are_the_ones_that_are_evaluated(attent, tmp_path):
    folder = trained("segment", tmp_path / "run", head="linear", ema=0.9)
    assert attent("evaluate", "run")[0] == 0
    logged = {k: v for k, v in held_out(folder).items() if k != "step"}
    assert told(folder)["metrics"] == logged
    run, _ = load_trained(folder)
    saved, _ = load_state(max(folder.checkpoints.glob("checkpoint-*")))
    for name, value in saved["ema"].items():
        assert torch.equal(run.state["params", name], value)


def test_other_data_of_the_same_classes_are_measured(attent, tmp_path):
    root = write_images(tmp_path / "images")
    folder = trained("classify", tmp_path / "run", data=str(root))
    other = write_images(tmp_path / "others")
    save(255 - picture(3), other / "val" / "bee" / "negative.jpg")
    for flag in ("--data", "--data_path"):
        status, printed, err = attent("evaluate", "run", flag, "others")
        assert status == 0, err
        assert "accuracy" in printed
        assert (told(folder)["data"], told(folder)["examples"]) == ("others", 5)
    kept = folder.load_config()[1].data
    assert kept == str(root)  # the run itself is as it was


@pytest.mark.parametrize("kind", ["classes", "outputs", "scenes"])
def test_data_of_other_classes_are_refused(runs, attent, tmp_path, kind):
    if kind == "classes":
        root = write_images(tmp_path / "images")
        folder = trained("classify", tmp_path / "run", data=str(root))
        write_images(tmp_path / "others", classes=("ant", "cow"))
        message = "others has other classes (['ant', 'cow']) than the run (['ant', 'bee'])"
    else:
        folder, message = runs["segment"], "others has other outputs a pixel (40) than the run (8)"
        write_nyuv2(tmp_path / "others")
    before = folder.path / "evaluation.json"
    former = before.read_text() if before.exists() else None
    if kind == "scenes":
        write_folders(tmp_path / "plain")
        error = only_an_error(*attent("evaluate", folder.path, "--data", "plain"))
        assert "num_classes: a folder of the layout folders does not say" in error
        return
    error = only_an_error(*attent("evaluate", folder.path, "--data_path", "others"))
    assert message in error
    assert "  data: set by the flag --data_path" in error
    assert (before.read_text() if before.exists() else None) == former


def test_arrays_of_another_form_are_refused_in_a_line(attent, tmp_path):
    draw = np.random.default_rng(0)
    shapes = {"ours": (8, 8, 2), "larger": (12, 12, 2), "more": (8, 8, 5)}
    for name, (height, width, classes) in shapes.items():
        images = draw.random((24, height, width))
        np.savez(tmp_path / f"{name}.npz", images=images, labels=np.arange(24) % classes)
    config = ClassifyConfig(
        data=str(tmp_path / "ours.npz"), model_args={"depth": 1, "embed_dim": 16, "num_heads": 2},
        epochs=1, batch_size=6, method="full", warmup_epochs=0.0, threads=1, progress=False,
        device="cpu", output_dir="run",
    )  # fmt: skip
    start("classify", config, silent)
    assert attent("evaluate", "run", "--data", "ours.npz")[0] == 0
    error = only_an_error(*attent("evaluate", "run", "--data", "larger.npz"))
    message = "larger.npz holds pictures of {'image': [1, 12, 12]}, the run was of {'image': [1, 8"
    assert message in error
    error = only_an_error(*attent("evaluate", "run", "--data", "more.npz"))
    assert "labels out of range" in error


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--batch_size", "0"], "batch_size is at least 1, got 0"),
        (["--batch_size", "-2"], "batch_size is at least 1, got -2"),
        (["--batch_size", "few"], "batch_size: Expected a int or null. Got value: few"),
        (["--device", "tpu"], "device is auto, cpu, cuda or cuda:N, not 'tpu'"),
        (["--data", "nowhere"], "data: there is no nowhere; it is 'scenes' or a folder"),
        (["--bset"], "unknown option 'bset'"),
    ],
)
def test_wrong_words_of_an_evaluation(runs, attent, words, message):
    assert message in only_an_error(*attent("evaluate", runs["depth"].path, *words))


def test_a_run_without_checkpoints_is_told(runs, attent, tmp_path):
    assert "nowhere is not a run folder" in only_an_error(*attent("evaluate", "nowhere"))
    folder = copy_of(runs["depth"], tmp_path / "run")
    (folder.checkpoints / "best.safetensors").unlink()
    error = only_an_error(*attent("evaluate", "run", "--best"))
    assert "best.safetensors: nothing was saved when it was measured" in error
    shutil.rmtree(folder.checkpoints)
    assert "run" in only_an_error(*attent("evaluate", "run"))


# --- predict


@pytest.fixture
def photographs(tmp_path) -> dict[str, Path]:
    """One of each kind, none of the model's size."""
    rgba = np.dstack([picture(2, 30, 30), ids(2, 255, 30, 30)])
    made = {
        "wide.jpg": picture(0, 40, 64), "grey.png": picture(1, 64, 40)[..., 0], "clear.png": rgba,
        "thin.png": picture(3, 90, 3), "dot.png": picture(4, 1, 1),
    }  # fmt: skip
    for name, values in made.items():
        save(values, tmp_path / "photos" / name)
    with Image.open(tmp_path / "photos" / "wide.jpg") as image:
        image.convert("P").save(tmp_path / "photos" / "palette.png")
    return {path.stem: path for path in sorted((tmp_path / "photos").iterdir())}


SIZES = {
    "wide": (40, 64), "palette": (40, 64), "grey": (64, 40), "clear": (30, 30), "thin": (90, 3),
    "dot": (1, 1),
}  # fmt: skip


def test_segments_of_photographs(runs, attent, photographs):
    folder = copy_of(runs["segment"], Path("run").absolute())
    status, out, err = attent("predict", folder.path, *photographs.values())
    assert (status, out) == (0, "")
    where = folder.path / "predictions"
    made = {f"{name}{end}" for name in SIZES for end in (".png", "_labels.png")}
    assert {path.name for path in where.iterdir()} == made
    lines = err.splitlines()
    for line, name in zip(lines, photographs, strict=True):
        assert line.startswith(f"{where / name}.png: ")
        assert re.search(r": \w+ \d+%", line)
        with Image.open(where / f"{name}_labels.png") as image:
            assert image.mode == "L"
            labels = np.array(image)
        assert labels.shape == SIZES[name]
        assert labels.max() < 8
        with Image.open(where / f"{name}.png") as image:
            assert image.width > 500
    # Not one picture for all.
    assert len({(where / f"{name}_labels.png").read_bytes() for name in SIZES}) > 2


def test_depth_of_photographs(runs, attent, photographs):
    status, _, err = attent("predict", runs["depth"].path, *photographs.values(), "--output_dir=d")
    assert status == 0, err
    for line, name in zip(err.splitlines(), photographs, strict=True):
        depth = np.load(Path("d") / f"{name}_map.npy")
        assert (depth.shape, depth.dtype) == ((1, *SIZES[name]), np.float32)
        assert np.isfinite(depth).all()
        low, high = map(float, re.findall(r"depth from (\S+) to (\S+) m", line)[0])
        assert (low, high) == pytest.approx((depth.min(), depth.max()), rel=0.01)


def test_classes_of_photographs_have_names(runs, attent, photographs, tmp_path):
    status, _, err = attent("predict", runs["classify"].path, photographs["wide"], "--output_dir=c")
    assert status == 0, err
    shares = np.load(Path("c") / "wide_probabilities.npy")
    assert (shares.shape, shares.dtype) == ((10,), np.float32)
    assert shares.sum() == pytest.approx(1, abs=1e-5)
    first, second, third = np.argsort(-shares)[:3]
    words = ", ".join(f"{SCENE_CLASSES[i]} {shares[i]:.1%}" for i in (first, second, third))
    assert err == f"c/wide.png: {words}\n"
    root = write_images(tmp_path / "images")
    trained("classify", tmp_path / "run", data=str(root))
    _, _, err = attent("predict", "run", photographs["grey"])
    assert re.search(r"grey\.png: (ant|bee) [\d.]+%, (ant|bee) [\d.]+%$", err.strip())


def test_a_prediction_is_that_of_the_model_on_the_held_out_view(runs, attent, tmp_path):
    """The photograph is a held-out one, which the model sees as it does in evaluation."""
    run, _ = load_trained(runs["classify"])
    save(run.held_out.picture(2).permute(1, 2, 0).numpy(), tmp_path / "two.png")
    attent("predict", runs["classify"].path, "two.png", "--output_dir", "c")
    run.task.model.load_state_dict(
        dict(run.state["params"].items()) | dict(run.state["buffers"].items()), strict=False
    )
    with torch.no_grad():
        batch = run.held_out.fetch(torch.tensor([2]))
        expected = run.task.forward(run.task.model.eval(), batch)[0].softmax(0)
    found = np.load(Path("c") / "two_probabilities.npy")
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_pictures_of_one_name_are_told_apart(runs, attent, tmp_path):
    """Also from each other's arrays, and from names that are numbered already."""
    names = ["a/x.png", "b/x.jpg", "c/x.png", "c/x_2.png", "c/x_labels.png"]
    for i, name in enumerate(names):
        save(picture(i, 30 + i, 40), tmp_path / name)
    status, _, err = attent("predict", runs["segment"].path, *names, "--output_dir", "found")
    assert status == 0, err
    figures = [Path(line.partition(": ")[0]) for line in err.splitlines()]
    assert len({figure.stem for figure in figures}) == len(names)
    arrays = [figure.with_name(f"{figure.stem}_labels.png") for figure in figures]
    assert len({*figures, *arrays}) == 2 * len(names)
    for i, path in enumerate(arrays):
        with Image.open(path) as image:
            assert image.size == (40, 30 + i)


def test_a_photograph_is_never_written_over(runs, attent, tmp_path):
    save(picture(0), tmp_path / "x.png")
    save(picture(1), tmp_path / "y.jpg")
    before = (tmp_path / "x.png").read_bytes()
    words = ["predict", runs["segment"].path, "x.png", "y.jpg", "--output_dir", "."]
    error = only_an_error(*attent(*words))
    assert "output_dir: x.png would be written over" in error
    assert (tmp_path / "x.png").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.png", "y.jpg"]


def test_what_is_no_photograph_is_told_in_a_line(runs, attent, tmp_path):
    (tmp_path / "text.jpg").write_text("not a photograph")
    save(np.full((8, 8), 70, np.uint16), tmp_path / "deep.png")
    run = runs["depth"].path
    cases = {
        "text.jpg": "text.jpg cannot be read",
        "deep.png": "deep.png is PNG of mode I;16 stored as I;16B; expected an image of 8 bits",
        "nowhere.png": "there is no picture nowhere.png",
        ".": "there is no picture .",
    }
    for name, message in cases.items():
        assert message in only_an_error(*attent("predict", run, name, "--output_dir", "d"))
    assert "images" in only_an_error(*attent("predict", run))


def test_runs_that_predict_nothing_of_photographs_say_so(runs, attent, photographs, tmp_path):
    photo = photographs["wide"]
    error = only_an_error(*attent("predict", runs["pretrain"].path, photo))
    made = "predictions are made of photographs, by runs of classify, segment, depth, detect on pic"
    assert f"is a run of attent pretrain; {made}" in error
    assert not (runs["pretrain"].path / "predictions").exists()
    trained("segment", tmp_path / "both", head="linear", in_domains="rgb-depth", epochs=1)
    error = only_an_error(*attent("predict", "both", photo))
    assert "a photograph is rgb alone; the run semantic segmentation encodes rgb, depth" in error
