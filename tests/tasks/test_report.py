from __future__ import annotations

import base64
import html
import re
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from attent.pipeline import JsonLog
from attent.pipeline.observers import read_log
from attent.tasks import cli
from attent.tasks.classification.config import ClassifyConfig
from attent.tasks.config import ConfigError, as_dict
from attent.tasks.data.options import rendered_scenes
from attent.tasks.finetuning import build as finetuning
from attent.tasks.folder import RunFolder
from attent.tasks.report.page import write_report
from attent.tasks.run import start
from tests.tasks.finetuned import SELECT, trained

TINY = {
    "model_args": {"depth": 1, "embed_dim": 16, "num_heads": 2},
    "method": "attent_complex", "epochs": 4, "total_cycles": 2, "initial_interval": 1,
    "warmup_epochs": 1.0, "threads": 1, "progress": False, "steps_per_tick": 10,
}  # fmt: skip
# A name as unkind as a folder's may be.
COMPLEX, SIMPLE, FULL = 'complex <b>&"1"', "simple", "full"


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """What TINY asks for, whichever test is the first to run."""
    former = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(former)


def silent(message: str) -> None:
    del message


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A run of each method; that of attent_simple on colour images."""
    root = tmp_path_factory.mktemp("report")
    images = np.random.default_rng(0).integers(0, 256, (60, 8, 8, 3)).astype(np.uint8)
    np.savez(root / "colour.npz", images=images, labels=np.arange(60) % 3)
    options = {
        COMPLEX: {},
        SIMPLE: {
            "method": "attent_simple", "batch_size": 8, "data": str(root / "colour.npz"),
        },
        FULL: {"method": "full", "epochs": 2},
    }  # fmt: skip
    return {
        name: start(
            "classify", ClassifyConfig(**(TINY | changed), output_dir=str(root / name)), silent
        )[1]
        for name, changed in options.items()
    }


@pytest.fixture(scope="module")
def page(runs, tmp_path_factory):
    """The page of all three, and the folder it is in."""
    path = write_report(list(runs.values()), str(tmp_path_factory.mktemp("page") / "all"))
    return path.read_text(), path.parent


def cells(text: str) -> list[list[str]]:
    """The rows of the table, its heads first."""
    table = re.search(r"<table>.*</table>", text)[0]
    return [
        [html.unescape(cell) for cell in re.findall(r"<t[dh]>(.*?)</t[dh]>", row)]
        for row in re.findall(r"<tr>(.*?)</tr>", table)
    ]


def pictures(folder: Path) -> set[str]:
    return {path.name for path in folder.glob("*.png")}


OF_A_RUN = {"schedule.png", "scores.png", "selections.png", "examples.png"}


def test_the_page_needs_nothing_from_elsewhere(page):
    text, _ = page
    sources = re.findall(r'\bsrc="([^"]*)', text)
    assert len(sources) == 9
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    without = re.sub(r'src="[^"]*"', "", text)
    assert not re.search(r"src=|href=|https?:|<script|<link|@import|url\(", without)


def test_the_pictures_are_beside_the_page_and_in_it(page):
    text, folder = page
    of_complex = {f"{COMPLEX}_{name}" for name in OF_A_RUN}
    of_simple = {f"{SIMPLE}_{name}" for name in OF_A_RUN}
    assert pictures(folder) == {"learning_curves.png"} | of_complex | of_simple
    embedded = [base64.b64decode(data) for data in re.findall(r'base64,([^"]+)"', text)]
    assert sorted(embedded) == sorted(path.read_bytes() for path in folder.glob("*.png"))


def test_no_picture_is_blank(page):
    _, folder = page
    for path in folder.glob("*.png"):
        with Image.open(path) as picture:
            picture.load()
            width, height = picture.size
            colours = picture.convert("RGB").getcolors(maxcolors=2**24)
        assert min(width, height) > 200, path.name
        assert len(colours) > 50, path.name
        # Something is drawn: the background is not nearly all there is.
        assert max(count for count, _ in colours) < 0.99 * width * height, path.name


def test_colour_images_are_shown_in_colour(page):
    _, folder = page

    def saturated(name: str) -> int:
        with Image.open(folder / name) as picture:
            pixels = np.asarray(picture.convert("RGB")).astype(int)
        return int((pixels.max(-1) - pixels.min(-1) > 60).sum())

    assert saturated(f"{SIMPLE}_examples.png") > 10_000
    assert saturated(f"{COMPLEX}_examples.png") == 0


def test_the_table_has_each_runs_figures_as_logged(page, runs):
    heads, *rows = cells(page[0])
    assert [row[0] for row in rows] == [COMPLEX, SIMPLE, FULL]
    for row, folder in zip(rows, runs.values(), strict=True):
        log = read_log(folder.log)
        last, row_of = log[-1], dict(zip(heads, row, strict=True))
        accuracies = [line["val_accuracy"] for line in log if "val_accuracy" in line]
        assert row_of["held-out accuracy"] == f"{accuracies[-1]:.2%}"
        assert row_of["best"] == f"{max(accuracies):.2%}"
        assert row_of["held-out loss"] == f"{last['val_loss']:.4f}"
        assert row_of["examples"] == f"{last['budget']:,}"
        assert row_of["steps"] == f"{last['step']:,}"
        assert row_of["compute saved"] == f"{last['saved']:.1%}"
    methods = [row[heads.index("method")] for row in rows]
    assert methods == ["attent_complex, hard", "attent_simple, hard", "full"]
    # attent_complex scores 1,437 examples in two cycles; the others score for nothing.
    assert [row[heads.index("scored")] for row in rows] == ["2,874", "0", "0"]


def test_names_and_options_are_escaped(page):
    text, _ = page
    assert "<b>" not in text
    assert text.count(html.escape(COMPLEX)) >= 3  # title, heading, table


def test_the_options_of_a_run_are_on_the_page(page, runs):
    text, _ = page
    shown = [html.unescape(block) for block in re.findall(r"<pre>(.*?)</pre>", text, re.S)]
    for block, folder in zip(shown, runs.values(), strict=True):
        config = folder.load_config()[1]
        assert block.splitlines() == [f"{name}: {v}" for name, v in as_dict(config).items()]


def test_one_run_is_reported_in_its_own_folder(runs):
    path = write_report([runs[FULL]], None)
    assert path == runs[FULL].path / "report" / "report.html"
    assert pictures(path.parent) == {"learning_curves.png"}
    assert "Everything was trained on all the time." in path.read_text()


def test_what_a_run_was_made_of_is_made_again_once(tmp_path, monkeypatch):
    folder = trained("depth", tmp_path / "run", **SELECT, head="linear", num_train=12)
    made = []

    def counted(*args):
        made.append(args)
        return rendered_scenes(*args)

    monkeypatch.setattr(finetuning, "rendered_scenes", counted)
    shown = {"learning_curves.png", "parts.png", *OF_A_RUN, "maps.png"}
    text = write_report([folder], str(tmp_path / "whole")).read_text()
    assert pictures(tmp_path / "whole") == shown
    assert 'class="note">Nothing' not in text
    assert len(made) == 1
    shutil.rmtree(folder.checkpoints)
    text = write_report([folder], str(tmp_path / "without")).read_text()
    assert pictures(tmp_path / "without") == shown - {"maps.png"}
    assert '<p class="note">Nothing by the model: there is no checkpoint' in text


def test_data_that_are_gone_are_told_of(runs, tmp_path):
    folder = RunFolder(Path(shutil.copytree(runs[SIMPLE].path, tmp_path / "run")))
    written = folder.config.read_text()
    folder.config.write_text(written.replace("colour.npz", "<gone>.npz"))
    text = write_report([folder], str(tmp_path / "page")).read_text()
    assert pictures(tmp_path / "page") == {"learning_curves.png", *OF_A_RUN} - {"examples.png"}
    assert '<p class="note">No pictures of examples: data: there is no ' in text
    assert "&lt;gone&gt;.npz; it is" in text


def test_runs_of_one_name_are_told_apart(runs, tmp_path):
    path = write_report([runs[SIMPLE], runs[SIMPLE]], str(tmp_path))
    assert [row[0] for row in cells(path.read_text())[1:]] == ["simple", "simple (2)"]
    assert {"simple_schedule.png", "simple (2)_schedule.png"} <= pictures(tmp_path)


def test_the_command(runs, tmp_path, capsys):
    argv = ["report", *(str(folder.path) for folder in runs.values())]
    assert cli.main([*argv, "--report_dir", str(tmp_path / "ours")]) == 0
    assert capsys.readouterr().err == f"report {tmp_path / 'ours' / 'report.html'}\n"
    assert len(pictures(tmp_path / "ours")) == 9


def test_a_report_folder_that_cannot_be_made(runs, tmp_path, capsys):
    (tmp_path / "file").write_text("not a folder")
    where = str(tmp_path / "file" / "report")
    assert cli.main(["report", str(runs[FULL].path), "--report_dir", where]) == 2
    assert where in capsys.readouterr().err


def test_a_run_that_was_interrupted_before_it_was_measured(tmp_path, monkeypatch):
    class Interrupting(JsonLog):
        def tick(self, state):
            super().tick(state)
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr("attent.tasks.run.JsonLog", Interrupting)
    config = ClassifyConfig(**TINY, output_dir=str(tmp_path / "run"))
    _, folder = start("classify", config, silent)
    assert len(read_log(folder.log)) == 1
    heads, row = cells(write_report([folder], None).read_text())
    assert dict(zip(heads, row, strict=True))["held-out accuracy"] == "-"


def test_a_run_without_a_log_has_nothing_to_report(tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.path.mkdir()
    values = {"command": "classify", **as_dict(ClassifyConfig())}
    folder.config.write_text(yaml.safe_dump(values))
    with pytest.raises(ConfigError, match="run has no log yet: nothing to report"):
        write_report([folder], None)
    assert not (folder.path / "report").exists()
