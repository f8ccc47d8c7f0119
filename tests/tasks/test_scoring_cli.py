"""``attent score``: a trained run's scores of its own data and of others, a table and a page."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pyarrow import parquet
from rich.console import Console
from sklearn.datasets import load_digits

from attent.pipeline import initialize, run, score
from attent.tasks import cli, score_run
from attent.tasks.detection.config import DetectConfig
from attent.tasks.folder import RunFolder
from attent.tasks.language.config import InstructConfig
from attent.tasks.run import load_trained, start
from attent.tasks.score_run import counting
from tests.tasks.finetuned import flags, picture, save, trained, write_images
from tests.tasks.test_cli import only_an_error
from tests.tasks.test_detect_cli import SMALL as DETECT
from tests.tasks.test_language_cli import LLAMA, entries
from tests.tasks.test_resume import silent
from tests.tasks.texts import labelled, release, write

SCRIPT = Path(sys.executable).with_name("attent")
FLIPPED = 0.05
TRAINING = {
    "image_size": 8, "model_args": {"depth": 2, "embed_dim": 32, "num_heads": 2}, "epochs": 14,
    "batch_size": 16, "lr": 4e-3, "warmup_epochs": 1.0, "eval_every": 14.0, "method": "full",
    "threads": 1, "device": "cpu",
}  # fmt: skip


def write_digits(root: Path) -> set[str]:
    """Handwritten digits as PNGs in folders of their classes, a twentieth of them in a wrong one.

    Returns:
        The paths of those, below ``root``.
    """
    data, draw = load_digits(), np.random.default_rng(0)
    wrong = set()
    for i, (image, digit) in enumerate(zip(data.images, data.target, strict=True)):  # type: ignore[attr-defined]
        label, split = int(digit), "val" if i % 3 == 0 else "train"
        flip = draw.random() < FLIPPED
        if flip:
            label = int((digit + draw.integers(1, 10)) % 10)
        name = f"{split}/{label}/{i:04}.png"
        if flip:
            wrong.add(name)
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((image * 255 / 16).round().astype(np.uint8)).save(root / name)
    return wrong


def script(*argv: str | Path, cwd: Path) -> subprocess.CompletedProcess:
    """The installed command in a process of its own."""
    words = [str(SCRIPT), *map(str, argv)]
    return subprocess.run(words, cwd=cwd, capture_output=True, text=True, check=False, timeout=300)


@pytest.fixture(scope="module")
def digits_run(tmp_path_factory):
    """Where a run was trained on such digits, by the command; and which of them are wrong."""
    path = tmp_path_factory.mktemp("score")
    wrong = write_digits(path / "data")
    made = script("classify", "--data", "data", *flags(TRAINING), "--output_dir", "run", cwd=path)
    assert made.returncode == 0, made.stderr
    return path, wrong


@pytest.mark.slow
def test_most_wrong_labels_of_held_out_digits_are_found(digits_run):
    path, wrong = digits_run
    made = script("score", "run", "--split", "val", "--out", "out/scores.parquet", cwd=path)
    assert made.returncode == 0, made.stderr
    assert "100% scored 599 of 599\n" in made.stderr
    assert made.stderr.endswith("scores out/scores.parquet\npage out/scores.html\n")
    rows = parquet.read_table(path / "out" / "scores.parquet").to_pylist()
    assert len(rows) == 599
    data = path / "data"
    wrong = {name for name in wrong if name.startswith("val/")}
    found = {str(Path(r["name"]).relative_to(data)) for r in rows if r["label_error"]}
    # By chance alone, of as many candidates a twentieth would be wrong.
    assert len(found & wrong) > 0.6 * len(wrong)
    assert len(found & wrong) > 0.5 * len(found)
    assert f"{len(found)} labels are likely wrong\n" in made.stderr
    for row in rows:
        assert row["label_name"] == Path(row["name"]).parent.name
    about = json.loads(parquet.read_schema(path / "out" / "scores.parquet").metadata[b"attent"])
    assert (about["model"], about["split"], about["signals"]) == ("run", "val", ["loss"])
    page = (path / "out" / "scores.html").read_text()
    assert page.count("<figcaption>") == 96 + min(48, len(found))
    assert sorted(p.name for p in (path / "out").iterdir()) == ["scores.html", "scores.parquet"]


@pytest.mark.slow
def test_the_loss_is_the_score_stages_to_the_bit(digits_run, attent):
    path, _ = digits_run
    status, _, err = attent(
        "score",
        path / "run",
        "--signals",
        "loss",
        "grad_norm",
        "--out",
        "s.parquet",
        "--device=cpu",
    )
    assert status == 0, err
    table = parquet.read_table("s.parquet")
    trained_run, _ = load_trained(RunFolder(path / "run"))
    for name in ("loss", "grad_norm"):
        stage = score(trained_run.task, trained_run.source, name)
        state = initialize(stage, trained_run.state)
        wanted = run(stage, state)["scores", name].numpy()
        assert np.array_equal(table[name].to_numpy(), wanted)
    assert table.num_rows == len(trained_run.source)


@pytest.mark.slow
def test_other_data_are_scored_by_the_classes_of_the_run(digits_run, attent, tmp_path):
    path, _ = digits_run
    images = sorted((path / "data" / "val" / "7").iterdir())[:4]
    for split in ("train", "val"):
        for image in images:
            to = tmp_path / "others" / split / "7" / image.name
            to.parent.mkdir(parents=True, exist_ok=True)
            to.write_bytes(image.read_bytes())
    attent("score", path / "run", "--split", "val", "--out", "own.parquet")
    own = {Path(row["name"]).name: row for row in parquet.read_table("own.parquet").to_pylist()}
    words = ("score", path / "run", "--data_path", "others", "--page", "false")
    status, _, err = attent(*words, "--split", "val", "--out", "s.jsonl")
    assert status == 0, err
    assert not Path("s.html").exists()
    rows = [json.loads(line) for line in Path("s.jsonl").read_text().splitlines()]
    assert [row["label_name"] for row in rows] == ["7"] * 4
    for row in rows:
        wanted = own[Path(row["name"]).name]
        assert row["predicted_name"] == wanted["predicted_name"]
        assert row["loss"] == pytest.approx(wanted["loss"], rel=1e-4)
    # A training split says itself which classes there are.
    error = only_an_error(*attent(*words, "--out", "t.jsonl"))
    assert "others has other classes (['7']) than the run" in error
    assert "(--split val can be scored: 4 examples)" in error
    error = only_an_error(*attent("score", path / "run", "--data", "digits", "--out", "u.csv"))
    assert "digits has other classes" in error
    assert "--split val" not in error
    assert not Path("t.jsonl").exists()


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A run on small photographs."""
    path = tmp_path_factory.mktemp("small")
    write_images(path / "images")
    return trained("classify", path / "run", data=str(path / "images"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--signals", "los"], "there is no 'los'; did you mean 'loss'?"),
        (["--signals", "loss", "relative_loss"], "relative_loss is of when training saw"),
        (["--out", "s.xlsx"], "out: s.xlsx must end in .parquet, .csv or .jsonl"),
        (["--out", "."], "out: . must end in .parquet"),
        (["--data", "nowhere"], "data: there is no nowhere"),
        (["--batch_size", "0"], "batch_size must be at least 1, or null, got 0"),
        (["--split", "test"], "test"),
        (["--sginals", "loss"], "unknown option 'sginals'"),
    ],
)
def test_wrong_words(small, attent, words, message):
    assert message in only_an_error(*attent("score", small.path, *words))
    assert list(Path().iterdir()) == []


def test_a_model_that_is_not_there(attent):
    assert "nowhere is not a run folder" in only_an_error(*attent("score", "nowhere"))


def test_what_is_there_is_replaced_only_where_that_is_asked_for(small, attent):
    for name in ("s.csv", "s.html"):
        Path(name).write_text("mine")
        error = only_an_error(*attent("score", small.path, "--out", "s.csv"))
        assert f"out: {name} is there already" in error
        assert Path(name).read_text() == "mine"
        assert len(list(Path().iterdir())) == 1
        Path(name).unlink()
    Path("s.csv").write_text("mine")
    status, _, err = attent("score", small.path, "--out", "s.csv", "--overwrite")
    assert status == 0, err
    assert len(Path("s.csv").read_text().splitlines()) == 13


def test_what_is_read_is_not_replaced_even_where_that_is_asked_for(small, attent, tmp_path):
    log = small.log.read_text()
    for out in (small.log, small.path / "skipped.jsonl"):
        error = only_an_error(*attent("score", small.path, "--out", out, "--overwrite"))
        assert f"out: {out} is what the run or its data are read from" in error
    assert small.log.read_text() == log
    rows = tmp_path / "rows.jsonl"
    rows.write_text("mine")
    words = ("score", small.path, "--data", rows, "--out", "./rows.jsonl", "--overwrite")
    assert "rows.jsonl is what the run or its data are read from" in only_an_error(*attent(*words))
    assert rows.read_text() == "mine"


def test_where_nothing_can_be_written_is_said_before_the_work(small, attent, monkeypatch):
    def refused(*given, **how):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(score_run.tempfile, "TemporaryFile", refused)
    monkeypatch.setattr(score_run, "load_trained", None)  # would be called
    error = only_an_error(*attent("score", small.path, "--out", "there/s.csv"))
    assert "out: nothing can be written in there: [Errno 30] Read-only file system" in error


def test_what_training_saw_is_known_by_its_name(small, attent, tmp_path):
    own = small.load_config()[1].data
    cases = [
        ([], True), (["--split", "val"], False), (["--data", own], True),
        (["--data", own, "--split", "val"], False), (["--data", tmp_path / "images"], None),
    ]  # fmt: skip
    write_images(tmp_path / "images")
    for i, (words, seen) in enumerate(cases):
        status, _, err = attent("score", small.path, *words, "--out", f"{i}.parquet")
        assert status == 0, err
        about = json.loads(parquet.read_schema(f"{i}.parquet").metadata[b"attent"])
        assert about.get("trained on these") is seen, words
        assert ("it was trained on them" in err) is (seen is True), words
        assert "the model predicts the given label of " in err


def test_ctrl_c_leaves_nothing_half_done(small, attent, monkeypatch, capsys):
    Path("s.csv").write_text("mine")

    def stopped(*given, **how):
        os.kill(os.getpid(), signal.SIGINT)
        raise AssertionError("it goes on")

    monkeypatch.setattr(score_run, "score_dataset", stopped)
    words = ["score", str(small.path), "--out", "s.csv", "--overwrite"]
    assert cli.main(words) == cli.EXIT_INTERRUPTED
    assert capsys.readouterr().err.startswith("stopped: no file was left half written")
    assert Path("s.csv").read_text() == "mine"
    assert [p.name for p in Path().iterdir()] == ["s.csv"]


def test_a_terminal_is_shown_a_bar_and_a_file_ten_lines(tmp_path):
    for terminal in (True, False):
        with (tmp_path / "told").open("w") as file:
            console = Console(file=file, force_terminal=terminal, width=80)
            with counting(console) as tell:
                for done in range(1, 1001):
                    tell(done, 1000)
        told = (tmp_path / "told").read_text()
        if terminal:
            assert "1000/1000" in told
        else:
            assert told.splitlines()[:2] == [" 10% scored 100 of 1,000", " 20% scored 200 of 1,000"]
            assert len(told.splitlines()) == 10


@pytest.mark.parametrize("name", ["segment", "depth", "pretrain"])
def test_runs_of_scenes_are_scored(name, attent, tmp_path):
    trained(name, tmp_path / "run", **({} if name == "pretrain" else {"head": "linear"}))
    status, _, err = attent("score", "run", "--split", "val", "--batch_size", "3")
    assert status == 0, err
    table = parquet.read_table("run/scores.parquet")
    assert np.isfinite(table["loss"].to_numpy()).all()
    count = 4 if name == "pretrain" else 6
    assert table.num_rows == count
    page = Path("run/scores.html").read_text()
    assert page.count("<figcaption>") == count  # half of them hard, the others easy
    assert page.count("data:image/") == count + 1
    assert "label errors" not in page


def test_objects_are_scored_one_at_a_time_where_gradients_are_asked_for(attent, tmp_path):
    options = {**DETECT, "data": "scenes", "epochs": 2, "output_dir": str(tmp_path / "run")}
    start("detect", DetectConfig(**options), silent)
    words = ("score", "run", "--signals", "loss", "grad_norm", "looped_grad_norm")
    status, _, err = attent(*words)
    assert status == 0, err
    found = parquet.read_table("run/scores.parquet")
    assert found["grad_norm"].to_pylist() == found["looped_grad_norm"].to_pylist()
    assert "objects<br>loss" in Path("run/scores.html").read_text()
    for name in ("vmap_grad_norm", "last_layer"):
        error = only_an_error(*attent("score", "run", "--signals", name, "--out", "s.csv"))
        assert f"signals: {name} needs a model whose rows are examples" in error


def test_instructions_are_scored_and_packed_ones_have_no_gradients(attent, tmp_path):
    (tmp_path / "rows.json").write_text(json.dumps(entries(30)))
    for packing in (False, True):
        options = {
            "data": "rows.json", "model_name_or_path": LLAMA, "adapter": "full", "epochs": 2,
            "model_max_length": 128, "warmup_epochs": 0.0, "method": "full", "device": "cpu",
            "threads": 1, "progress": False, "packing": packing, "output_dir": f"run{packing}",
        }  # fmt: skip
        start("instruct", InstructConfig(**options), silent)
    status, _, err = attent("score", "runFalse", "--signals", "loss", "grad_norm", "--out", "s.csv")
    assert status == 0, err
    assert "--- learned:" in Path("s.html").read_text()
    words = ("score", "runTrue", "--out", "t.csv", "--signals")
    error = only_an_error(*attent(*words, "loss", "grad_norm"))
    assert "in packed rows there is no gradient of one example, which grad_norm is made of" in error
    assert attent(*words, "loss", "output_grad_norm")[0] == 0
    rows = entries(5)
    rows[3]["output"] = ""
    Path("more.json").write_text(json.dumps(rows))
    status, _, err = attent("score", "runFalse", "--data", "more.json", "--out", "u.csv")
    assert status == 0, err
    assert "1 of 5 rows leave nothing to learn (the response is empty: rows 4)" in err
    assert "1 of 5 rows leave nothing to learn" in Path("u.html").read_text()


@pytest.mark.slow
def test_texts_are_scored_and_shown(attent, tmp_path):
    rows = labelled(each=20)
    write(tmp_path / "rows.jsonl", rows)
    release(tmp_path / "model", texts=[row["text"] for row in rows])
    words = {
        "data": "rows.jsonl", "model_name_or_path": "model", "lora_rank": 4, "lora_alpha": 4.0,
        "epochs": 2, "warmup_epochs": 0.0, "model_max_length": 32, "method": "full",
        "threads": 1, "device": "cpu", "progress": False, "output_dir": "run",
    }  # fmt: skip
    assert attent("classify", *flags(words))[0] == 0
    # Rows of others: as the training split all of them, nothing held out.
    write(tmp_path / "more.jsonl", [{**row, "text": f"{row['text']} <b>"} for row in rows])
    status, _, err = attent("score", "run", "--data", "more.jsonl", "--out", "s.parquet")
    assert status == 0, err
    found = parquet.read_table("s.parquet").to_pylist()
    assert [row["label_name"] for row in found] == [row["label"] for row in rows]
    assert "more.jsonl" in found[0]["name"]
    page = Path("s.html").read_text()
    assert "&lt;b&gt;" in page
    assert "<pre>" in page
    status, _, err = attent("score", "run", "--out", "own.parquet", "--page", "false")
    assert status == 0, err
    assert parquet.read_table("own.parquet").num_rows < len(rows)  # some are held out


def test_a_picture_is_shown_in_its_own_colours(attent, tmp_path):
    root = write_images(tmp_path / "images")
    trained("classify", tmp_path / "run", data=str(root))
    seen = np.full((32, 32, 3), (250, 120, 10), np.uint8)
    seen[:4, :4] = picture(0, 4, 4)
    for split in ("train", "val"):
        for name in ("ant", "bee"):
            save(seen, tmp_path / "others" / split / name / "one.png")
    status, _, err = attent("score", "run", "--data", "others", "--out", "s.csv")
    assert status == 0, err
    page = Path("s.html").read_text()
    pictures = re.findall(r'class=small src="data:image/png;base64,([^"]+)"', page)
    with Image.open(io.BytesIO(base64.b64decode(pictures[0]))) as shown:
        np.testing.assert_allclose(np.asarray(shown).astype(int), seen, atol=1)
