"""``attent classify`` on text from end to end, with an encoder of some thousand weights."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import datasets
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from attent.pipeline.checkpoint import load_state
from attent.pipeline.fit import finished
from attent.pipeline.keys import differences
from attent.pipeline.order import bucketed_order
from attent.pipeline.score import Frozen
from attent.pipeline.source import fetch_batch
from attent.tasks import cli
from attent.tasks.config import ConfigError, without_effect
from attent.tasks.folder import RunFolder
from attent.tasks.run import load_trained, resume, start
from attent.tasks.text_classification.build import load_data
from attent.tasks.text_classification.config import TextClassifyConfig
from attent.tasks.text_classification.pictures import LOOKED_AT, looked_at
from tests.tasks.test_resume import silent, wait_for_checkpoint
from tests.tasks.texts import KINDS, encoder_of, labelled, release, tokenizer_of, write

OPTIONS = {
    "lora_rank": 8, "target_modules": "query,value", "model_max_length": 48, "epochs": 2,
    "held_out": 0.2, "lr": 0.01, "threads": 1, "device": "cpu", "steps_per_tick": 5,
    "save_every": 0.5, "progress": False, "method": "attent_simple",
}  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write(tmp_path_factory.mktemp("data") / "pieces.jsonl", labelled())


@pytest.fixture(scope="module")
def released(tmp_path_factory) -> Path:
    return release(tmp_path_factory.mktemp("bert"))


def config_of(data, model, folder, **options) -> TextClassifyConfig:
    given = OPTIONS | {"data": str(data), "model_name_or_path": str(model)} | options
    return TextClassifyConfig(**given, output_dir=str(folder))


def attent(*argv: object) -> subprocess.CompletedProcess:
    """A command in a process of its own."""
    words = [sys.executable, "-m", "attent.tasks", *map(str, argv)]
    return subprocess.run(words, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def tuned(data, released, tmp_path_factory) -> RunFolder:
    """A finished run by the command line, in a process of its own."""
    folder = tmp_path_factory.mktemp("runs") / "text"
    done = attent(
        "classify", "--data", data, "--model_name_or_path", released, "--lora_rank", 8,
        "--target_modules", "query,value", "--model_max_length", 48, "--held_out", 0.2,
        "--epochs", 8, "--lr", 0.01, "--steps_per_tick", 5, "--save_every", 0.5, "--threads", 1,
        "--device", "cpu", "--method", "attent_simple", "--output_dir", folder,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (
        f"{released} has no weights of bert.pooler.dense, classifier: they are fresh" in done.stderr
    )
    return RunFolder(folder)


def end(folder: RunFolder):
    return load_state(sorted(folder.checkpoints.glob("checkpoint-*"))[-1])[0]


def logits_of(run, model, count: int = 7) -> torch.Tensor:
    """Of the first held-out texts."""
    batch = fetch_batch(run.held_out, torch.arange(count))
    with torch.no_grad():
        return run.task.forward(model, batch)


# --- a finished run


def test_it_tells_three_kinds_of_source_apart(tuned):
    """Chance is a third; the bar is ten standard errors above it."""
    state, (run, _) = end(tuned), load_trained(tuned)
    count = len(run.held_out)
    chance = max(run.held_out.labels.bincount().tolist()) / count
    assert count > 100
    assert chance < 0.45
    assert float(state["metrics", "val_accuracy"]) > 0.8 > chance + 7 * (0.25 / count) ** 0.5
    assert int(state["mask"].sum()) == int(0.7 * len(run.source) + 1e-6)
    assert tuned.load_config()[0] == "classify_text"


def test_a_checkpoint_holds_adapters_and_head_but_not_the_encoder(tuned):
    state, (run, _) = end(tuned), load_trained(tuned)
    trained = {n: p.numel() for n, p in run.task.model.named_parameters() if p.requires_grad}
    encoder = sum(p.numel() for n, p in run.task.model.named_parameters() if n not in trained)
    assert {name: value.numel() for name, value in state["params"].items()} == trained
    held = sum(value.numel() for value in state.flatten_keys().values())
    assert held < 3 * sum(trained.values()) + 10 * len(state["mask"]) + 100
    assert encoder > 2 * held
    rest = {name for name in trained if "lora_" not in name}
    assert all("classifier" in name or "pooler" in name for name in rest)


def test_killed_at_any_moment_it_ends_in_the_same_bits(tuned, tmp_path):
    folder = RunFolder(tmp_path / "run")
    given = tuned.config.read_text().replace(str(tuned.path), str(folder.path))
    (tmp_path / "options.yaml").write_text(given.replace("command: classify_text\n", ""))
    at = 0
    argv = ["classify", "--config", str(tmp_path / "options.yaml")]
    for words in (argv, ["resume", str(folder.path)]):
        process = subprocess.Popen(
            [sys.executable, "-m", "attent.tasks", *words],
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        at = wait_for_checkpoint(folder, process, after=at)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL
    assert not (folder.path / "adapter").exists()
    resume(folder.path, silent)
    assert differences(end(tuned), end(folder)) == []
    assert (folder.path / "adapter" / "adapter_config.json").is_file()


def test_the_adapter_is_an_ordinary_one_of_peft(tuned, released):
    run, _ = load_trained(tuned)
    expected = logits_of(run, Frozen(run.task, run.state))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        base = AutoModelForSequenceClassification.from_pretrained(released, num_labels=3)
        plain = logits_of(run, base.eval())
        model = PeftModel.from_pretrained(base, tuned.path / "adapter").eval()
    torch.testing.assert_close(logits_of(run, model), expected)
    assert not torch.allclose(plain, expected, atol=0.5)


def test_a_merged_model_is_loaded_by_transformers_alone(tuned, tmp_path, capsys):
    assert cli.main(["merge", str(tuned.path), "--output", str(tmp_path / "merged")]) == 0
    capsys.readouterr()
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged").eval()
    run, _ = load_trained(tuned)
    expected = logits_of(run, Frozen(run.task, run.state))
    torch.testing.assert_close(logits_of(run, model), expected, rtol=1e-4, atol=1e-4)
    assert not any("lora" in name for name, _ in model.named_parameters())
    assert model.config.id2label == dict(enumerate(KINDS))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "merged")
    seen = tokenizer(run.held_out.text(0), return_tensors="pt")
    with torch.no_grad():
        alone = model(**seen).logits
    torch.testing.assert_close(alone, expected[:1], rtol=1e-4, atol=1e-4)


def test_a_merged_model_is_tuned_further_with_its_classes_in_order(tuned, data, tmp_path):
    cli.main(["merge", str(tuned.path), "--output", str(tmp_path / "merged")])
    path = tmp_path / "merged" / "config.json"
    config = json.loads(path.read_text())
    turned = dict(enumerate(reversed(KINDS)))
    config |= {"id2label": turned, "label2id": {name: i for i, name in turned.items()}}
    path.write_text(json.dumps(config))
    source, held_out = load_data(config_of(data, tmp_path / "merged", tmp_path / "run"))
    assert source.classes == held_out.classes == list(reversed(KINDS))


def test_the_names_of_the_classes_are_in_the_run(tuned, data, tmp_path):
    assert json.loads((tuned.path / "classes.json").read_text()) == list(KINDS)
    shutil.copytree(tuned.path, tmp_path / "copy")
    (tmp_path / "copy" / "classes.json").write_text('["a", "b"]')
    with pytest.raises(ConfigError, match=r"has the classes assign.*; the run began with a, b"):
        resume(tmp_path / "copy", silent)


def test_the_report_shows_texts_and_a_curve_of_accuracy(tuned):
    page = (tuned.path / "report" / "report.html").read_text()
    for title in ("Most selected", "Least selected", "Hardest held-out", "Easiest held-out"):
        assert title in page
    assert "held-out accuracy" in page
    assert (tuned.path / "report" / "learning_curves.png").is_file()
    parts = re.findall(r"<p>the model: (\w+) \(([\d.]+)%\)</p><pre>.*? row \d+: (\w+)\n", page)
    assert len(parts) == 10
    assert all(told != label for told, _, label in parts[:5])
    assert all(told == label and float(share) > 80 for told, share, label in parts[5:])


@pytest.mark.parametrize("count", [1, LOOKED_AT, LOOKED_AT + 1, 3 * LOOKED_AT, 10**6 + 7])
def test_the_hardest_and_the_easiest_are_looked_for_all_over_the_held_out_texts(count):
    found = looked_at(count)
    steps = set(found.diff().tolist())
    assert len(found) == min(count, LOOKED_AT)
    assert found[0] == 0
    assert count - found[-1] <= -(-count // LOOKED_AT)
    assert steps <= {count // LOOKED_AT, -(-count // LOOKED_AT)} - {0}


def test_evaluate_measures_it_again_and_on_other_rows(tuned, tmp_path, capsys):
    assert cli.main(["evaluate", str(tuned.path)]) == 0
    found = float(re.search(r"accuracy\s+([\d.]+)", capsys.readouterr().out)[1])
    assert found == pytest.approx(float(end(tuned)["metrics", "val_accuracy"]), rel=1e-4)
    run, _ = load_trained(tuned)
    logits = logits_of(run, Frozen(run.task, run.state), 40)
    right = (logits.argmax(1) == run.held_out.labels[:40]).nonzero().squeeze(1)[:9].tolist()
    values = [run.held_out.rows[i].values for i in right]
    other = write(tmp_path / "other.jsonl", values)  # of two classes or three, all of them right
    assert cli.main(["evaluate", str(tuned.path), "--data", str(other), "--batch_size", "4"]) == 0
    assert float(re.search(r"accuracy\s+([\d.]+)", capsys.readouterr().out)[1]) == 1
    told = json.loads((tuned.path / "evaluation.json").read_text())
    assert (told["examples"], told["data"]) == (9, str(other))


def test_evaluate_refuses_rows_of_another_class(tuned, tmp_path, capsys):
    other = write(tmp_path / "other.jsonl", [{"text": "x = 1", "label": "poem"}])
    assert cli.main(["evaluate", str(tuned.path), "--data", str(other)]) == 2
    assert "label is 'poem', which no row that is trained on has" in capsys.readouterr().err
    assert cli.main(["evaluate", str(tuned.path), "--data", "./nowhere.jsonl"]) == 2
    assert "data: there is no file or folder ./nowhere.jsonl" in capsys.readouterr().err


def test_photographs_and_other_formats_are_refused_in_words(tuned, capsys):
    assert cli.main(["predict", str(tuned.path), "photo.jpg"]) == 2
    told = capsys.readouterr().err
    assert (
        "is a run of attent classify with model_name_or_path, or rows of text as data "
        "(classify_text); predictions are made of photographs, by runs of classify, segment, "
        "depth, detect on pictures"
    ) in told
    assert cli.main(["export", str(tuned.path), "--format", "timm"]) == 2
    assert "whose weights are in adapter/ or model/" in capsys.readouterr().err


# --- other ways to train


COMPLEX = {
    "method": "attent_complex", "total_cycles": 1, "initial_interval": 1, "initial_ratio": 0.5,
    "final_ratio": 0.5, "epochs": 3,
}  # fmt: skip


@pytest.mark.parametrize(
    "options",
    [
        {"adapter": "dora", "target_modules": "all-linear"},
        {"adapter": "full", "lr": 0.002},
        {"method": "full", "ema": 0.9, "label_smoothing": 0.1},
        COMPLEX | {"signal": "grad_norm"},
        COMPLEX | {"signal": "last_layer", "selection_strategy": "soft"},
        COMPLEX | {"signal": "output_grad_norm", "workers": 2},
        COMPLEX | {"signal": "grad_norm", "scores": "observed"},
        {"bf16": True, "accumulate": 2, "budget": "tokens"},
    ],
    ids=str,
)
def test_other_ways_to_train(data, released, tmp_path, options):
    options = {"dataset_split": "train[:240]"} | options
    config = config_of(data, released, tmp_path / "run", **options)
    state, folder = start("classify_text", config, silent)
    assert finished(state)
    name = "model" if config.adapter == "full" else "adapter"
    assert (folder.path / name / "tokenizer.json").is_file()
    if config.adapter == "full":
        model = AutoModelForSequenceClassification.from_pretrained(folder.path / name)
        assert torch.equal(model.classifier.weight, state["params", "classifier.weight"])
        assert model.config.id2label == dict(enumerate(KINDS))


@pytest.mark.parametrize("family", ["roberta", "distilbert", "modernbert", "llama"])
def test_other_encoders_learn_it_too(data, tmp_path, family):
    path = release(tmp_path / family, family)
    options = {"target_modules": "all-linear", "epochs": 5, "lr": 0.005}
    config = config_of(data, path, tmp_path / "run", **options)
    state, _ = start("classify_text", config, silent)
    assert float(state["metrics", "val_accuracy"]) > 0.8


def test_batches_are_of_similar_length(data, released, tmp_path):
    source, _ = load_data(config_of(data, released, tmp_path / "run"))
    order = bucketed_order(torch.ones(len(source), dtype=torch.bool), 3, source.lengths, 16)
    slots = sum(source.lengths[part].max() * len(part) for part in order.split(16))
    drawn = sum(part.max() * len(part) for part in source.lengths.split(16))
    assert 1 - source.lengths.sum() / slots < 0.06 < 1 - source.lengths.sum() / drawn


def test_pairs_and_whole_numbers_as_classes(released, tmp_path):
    pieces = labelled(60)
    values = [
        {"a": pieces[i]["text"], "b": pieces[i + 3 + i % 2]["text"], "same": 1 - i % 2}
        for i in range(120)
    ]
    path = write(tmp_path / "pairs.jsonl", values)
    options = {"text_field": "a", "pair_field": "b", "label_field": "same", "num_shown": 0}
    config = config_of(path, released, tmp_path / "run", **options)
    state, folder = start("classify_text", config, silent)
    assert finished(state)
    run, _ = load_trained(folder)
    assert run.source.classes == ["0", "1"]
    batch = fetch_batch(run.held_out, torch.arange(3))
    assert int(batch["token_type_ids"].max()) == 1
    cli.main(["report", str(folder.path)])
    assert "b: " in (folder.path / "report" / "report.html").read_text()


def test_a_saved_data_set_of_train_and_val_is_no_folder_of_pictures(released, tmp_path):
    rows = datasets.Dataset.from_list(labelled(8))
    datasets.DatasetDict({"train": rows, "val": rows}).save_to_disk(tmp_path / "saved")
    source, held_out = load_data(config_of(tmp_path / "saved", released, tmp_path / "run"))
    assert len(source) + len(held_out) == 24


def test_rows_that_are_dropped_are_told(released, tmp_path):
    values = labelled(20)
    values[7] = values[7] | {"text": "  "}
    values[30] = values[30] | {"text": ""}
    path = write(tmp_path / "data.jsonl", values)
    said: list[str] = []
    start("classify_text", config_of(path, released, tmp_path / "run"), said.append)
    assert any("leave nothing to learn (text is empty: rows" in line for line in said)
    listed = (tmp_path / "run" / "dropped.txt").read_text().splitlines()
    assert sorted(listed) == [f"{path} row {i}: text is empty" for i in (31, 8)]


# --- what is meant, and what is refused


def test_a_plan_is_of_text_too(data, released, capsys):
    words = ["--data", str(data), "--model_name_or_path", str(released), "--model_max_length=48"]
    assert cli.main(["plan", "classify", *words, "--method", "attent_simple"]) == 0
    assert "attent_simple" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "command"),
    [
        ("classify --data digits", "classify"),
        ("classify --data a/b.csv", "classify_text"),
        ("classify --data_path=b.jsonl", "classify_text"),
        ("classify --model_name_or_path bert --data c", "classify_text"),
        ("classify --model multivit_base --data folder", "classify"),
        ("classify --data rows", "classify_text"),
        ("classify --data hub", "classify_text"),
        ("classify --data saved", "classify_text"),
        ("classify --data pictures", "classify"),
        ("classify --data empty", "classify"),
        ("classify --epochs 3", "classify"),
        ("classify --config text.yaml", "classify_text"),
        ("classify --config text.yaml --model_name_or_path=other", "classify_text"),
        ("classify --config pictures.yaml", "classify"),
        ("plan classify text.yaml", "classify_text"),
        ("plan classify pictures.yaml", "classify"),
        ("plan pictures.yaml", "classify"),
        ("plan text.yaml --label_field stars", "classify_text"),
        ("plan text.yaml --prompt={instruction}", "instruct"),
        ("instruct --model_name_or_path a --data b.json", "instruct"),
    ],
)
def test_what_classify_is_meant_by_its_options(argv, command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("text.yaml").write_text("model_name_or_path: bert\ndata: c\n")
    Path("pictures.yaml").write_text("data: digits\n")
    for name in (
        "rows/train.jsonl", "hub/data/train-00000.parquet", "hub/README.md", "empty/README.md",
        "here.csv",
        "pictures/train/cat/1.png", "pictures/val/cat/1.png", "pictures/names.json",
        "saved/dataset_dict.json", "saved/train/state.json", "saved/val/state.json",
    ):  # fmt: skip
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).touch()
    assert cli.rewritten(argv.split())[1][0] == command


def test_a_plan_of_what_fits_two_commands_alike_asks_which(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("text.yaml").write_text("model_name_or_path: bert\ndata: c.json\nlora_rank: 8\n")
    assert cli.main(["plan", "text.yaml"]) == 2
    told = capsys.readouterr().err
    assert "error: the options fit attent instruct and classify_text alike: name the one" in told
    assert "such as attent plan instruct text.yaml" in told


def test_the_help_of_each_form_is_its_own(capsys):
    for words in (["classify", "--help"], ["classify", "--model_name_or_path", "x", "--help"]):
        with pytest.raises(SystemExit):
            cli.main(words)
    pictures, text = capsys.readouterr().out.split("usage:")[1:]
    told = "with model_name_or_path, or rows of text as data, it is attent classify_text."
    assert told in " ".join(pictures.split())
    assert "--crop_scale" in pictures
    assert "--lora_rank" not in pictures
    assert "--label_field" in text
    assert "--crop_scale" not in text


WRONG = {
    "--layer_decay 0.5": "layer_decay must be 1 for text, whose layers learn at one rate, got 0.5",
    "--compile true": "compile must be false: rows of text are of different lengths",
    "--mixup 0.2": "unknown option 'mixup'; it is of attent classify (with model_name_or_path, or",
    "--label_smoothing 1.0": "label_smoothing must be in [0, 1)",
    "--num_shown=-1": "num_shown must be at least 0",
    "--lora_rank 0": "lora_rank must be at least 1",
    "--adapter adalora": "adapter",
    "--data digits": "data: digits are pictures, and model_name_or_path is of text: leave it",
    "--data a.npz": "data: a.npz are pictures",
    "--data pictures": "/pictures are pictures",
    "--data none.jsonl": "data: there is no file or folder none.jsonl",
    "--label_field stars": "pieces.jsonl row 1 has no 'stars', but text, label; label_field names",
    "--text_field review": "row 1 has no 'review', but text, label; text_field names another",
    "--model_name_or_path ./none": "./none cannot be loaded",
    "--model_name_or_path untold": "untold holds no tokenizer; save the model's own beside it",
    "--model_name_or_path wordy": "words, its model",
    "--target_modules no_proj": "no layer 'no_proj'; its linear layers are",
    "--model_max_length 64": "model_max_length 64 is above the 48 positions of",
    "--held_out_data poems.jsonl": "poems.jsonl row 1: label is 'poem', which no row that",
    "--held_out_data none.jsonl": "held_out_data: there is no file or folder none.jsonl",
}


@pytest.mark.parametrize("flags", WRONG)
def test_what_is_wrong_is_told_before_a_folder_is_made(
    flags, data, released, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    encoder_of("bert", 60).save_pretrained("untold")
    shutil.copytree(released, "wordy")
    tokenizer_of([piece["text"] for piece in labelled()], 500).save_pretrained("wordy")
    write(Path("poems.jsonl"), [{"text": "a rose", "label": "poem"}])
    for split in ("train", "val"):
        (tmp_path / "pictures" / split / "cat").mkdir(parents=True)
    capsys.readouterr()
    usual = f"classify --data {data} --model_name_or_path {released} --model_max_length 48"
    assert cli.main([*usual.split(), "--output_dir", "out", *flags.split()]) == 2
    told = capsys.readouterr().err
    assert WRONG[flags] in told
    assert told.startswith("error: ")
    assert not Path("out").exists()


def test_a_class_that_only_held_out_rows_have_is_named(released, tmp_path):
    values = [*labelled(10), {"text": "a rose is a rose", "label": "poem"}]
    config = config_of(write(tmp_path / "a.jsonl", values), released, tmp_path / "run")
    found = []
    for seed in range(12):
        try:
            load_data(replace(config, seed=seed))
        except ValueError as error:
            found.append(str(error))
    assert 0 < len(found) < 12  # a fifth is held out
    place = f"data: {tmp_path / 'a.jsonl'} row 31"
    known = "('assignment', 'condition', 'docstring')"
    assert set(found) == {f"{place}: label is 'poem', which no row that is trained on has {known}"}


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ("--data a.jsonl", "model_name_or_path: texts are classified by a model of transformers"),
        ("--data rows", "model_name_or_path: texts are classified by a model of transformers"),
        ("--model_name_or_path bert", "data: give texts with their classes: a file (.json, .jsonl"),
        (
            "--data digits --lora_rank 8",
            "unknown option 'lora_rank'; it is of attent instruct, cla",
        ),
    ],
)
def test_half_of_what_text_needs(argv, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("rows").mkdir()
    write(Path("rows/train.jsonl"), labelled(2))
    assert cli.main(["classify", *argv.split()]) == 2
    assert message in capsys.readouterr().err


def test_options_that_do_nothing_are_said_to():
    config = TextClassifyConfig(adapter="full", lora_rank=4, held_out=0.5, held_out_data="x")
    told = [line.split()[0] for line in without_effect(config)]
    assert set(told) == {"lora_rank", "held_out"}
