from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

from attent.pipeline import load_state
from attent.pipeline.keys import number
from attent.pipeline.observers import read_log
from attent.tasks import cli
from attent.tasks.classification.build import build_classify
from attent.tasks.classification.config import ClassifyConfig
from attent.tasks.config import as_dict
from attent.tasks.folder import RunFolder
from attent.tasks.run import start

SCRIPT = Path(sys.executable).with_name("attent")
TINY = {
    "model_args": {"depth": 1, "embed_dim": 16, "num_heads": 2},
    "method": "attent_complex", "epochs": 4, "total_cycles": 2, "initial_interval": 1,
    "warmup_epochs": 1.0, "threads": 1,
}  # fmt: skip
TINY_FLAGS = [
    word
    for name, value in TINY.items()
    for word in (f"--{name}", value if isinstance(value, str) else json.dumps(value))
]
DIGITS = str(resources.files("attent.tasks.configs") / "digits.yaml")


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """What TINY asks for, whichever test is the first to run."""
    former = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(former)


# --- one run, by the installed script, in a process of its own


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The process and the folder of a whole run."""
    path = tmp_path_factory.mktemp("cli") / "run"
    argv = [str(SCRIPT), "classify", *TINY_FLAGS, "--output_dir", str(path)]
    process = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=300)
    assert process.returncode == 0, process.stderr
    return process, RunFolder(path)


def test_a_run_tells_what_it_does_and_where_it_is(finished):
    process, folder = finished
    accuracy = read_log(folder.log)[-1]["val_accuracy"]
    warning, *progress, last, where, report = process.stderr.splitlines()
    # One pass over 80% of the examples saves less than scoring all of them costs.
    assert re.match(r"warning: cycle \d cannot pay: scoring 1,437 examples", warning)
    assert len(progress) == 4  # one evaluation an epoch
    assert all(" saved " in line for line in progress)
    assert last == f"held-out accuracy {accuracy:.2%}"
    assert where == f"run folder {folder.path}"
    assert report == f"report {folder.path / 'report' / 'report.html'}"
    assert process.stdout == ""


def test_what_is_in_a_run_folder(finished):
    _, folder = finished
    assert {p.name for p in folder.path.iterdir() if not p.name.startswith(".")} == {
        "config.yaml", "environment.json", "log.jsonl", "checkpoints", "selections",
        "model.safetensors", "report",
    }  # fmt: skip
    assert not list(folder.path.rglob("*.tmp"))
    # Everything; cycle 1; everything; cycle 2; everything. Budget and passes: see `attent plan`.
    assert [p.name for p in sorted(folder.selections.iterdir())][:2] == [
        "selection-000000.npz", "selection-000001.npz",
    ]  # fmt: skip
    assert (folder.path / "report" / "report.html").stat().st_size > 10_000


def test_the_config_of_a_run_is_resolved_and_reads_back(finished):
    _, folder = finished
    wanted = ClassifyConfig(**TINY, output_dir=str(folder.path))
    assert yaml.safe_load(folder.config.read_text()) == {"command": "classify", **as_dict(wanted)}
    assert folder.load_config() == ("classify", wanted)


def test_the_environment_of_a_run_says_what_the_bits_depend_on(finished):
    _, folder = finished
    environment = json.loads((folder.path / "environment.json").read_text())
    assert environment["torch"] == torch.__version__.split("+")[0]
    assert environment["threads"] == 1
    assert environment["device"] == ("cuda:0" if torch.cuda.is_available() else "cpu")


def test_the_log_of_a_run_ends_at_the_budget(finished):
    _, folder = finished
    log = read_log(folder.log)
    steps = [line["step"] for line in log]
    assert steps == sorted(set(steps))
    assert log[-1]["seen"] == log[-1]["budget"] == 4 * 1437
    assert sum("val_accuracy" in line for line in log) == 4


def test_the_checkpoints_of_a_run(finished):
    _, folder = finished
    log = read_log(folder.log)
    last, about = load_state(folder.checkpoints / f"checkpoint-{log[-1]['step']:09d}.safetensors")
    assert number(last, "clock", "step") == log[-1]["step"]
    assert (about["command"], about["task"]) == ("classify", "classification")
    _, best = load_state(folder.checkpoints / "best.safetensors")
    assert best["val_accuracy"] == max(line.get("val_accuracy", 0) for line in log)
    assert len(list(folder.checkpoints.glob("checkpoint-*"))) == 3  # --keep


def test_the_weights_of_a_run_load_strictly_and_are_as_good_as_the_log_says(finished):
    _, folder = finished
    built = build_classify(folder.load_config()[1])
    built.task.model.load_state_dict(load_file(folder.weights), strict=True)
    batch = built.held_out.fetch(torch.arange(len(built.held_out)))
    with torch.no_grad():
        logits = built.task.model.eval().cpu()(batch["image"])
    accuracy = float((logits.argmax(1) == batch["label"]).double().mean())
    assert accuracy == pytest.approx(read_log(folder.log)[-1]["val_accuracy"])


def test_a_plan_says_what_the_run_did(finished, attent):
    _, folder = finished
    status, printed, _ = attent("plan", *TINY_FLAGS)
    last = read_log(folder.log)[-1]
    scored = last["forwarded"] - last["seen"]
    assert status == 0
    assert f"{last['seen']:,} examples trained on in {last['step']:,} steps of 32" in printed
    assert f"{scored:,} scored" in printed
    assert f"everything: {last['saved']:.1%}" in printed


@pytest.mark.slow
def test_wrong_input_in_a_process_of_its_own(tmp_path):
    argv = [sys.executable, "-m", "attent.tasks", "classify", "--initial_ratio", "1.5"]
    process = subprocess.run(
        argv, capture_output=True, text=True, check=False, timeout=300, cwd=tmp_path
    )
    assert process.returncode == 2
    assert process.stdout == ""
    assert process.stderr.splitlines() == [
        "error: initial_ratio must be in (0, 1], got 1.5",
        "  initial_ratio: set by the flag --initial_ratio",
    ]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--help"], ["classify", "resume", "report", "plan"]),
        (["plan", "--help"], ["classify"]),
        (["plan", "classify", "--help"], ["--config", "--epochs", "--total_cycles"]),
        (["resume", "--help"], ["run", "--allow_previous"]),
        (["report", "--help"], ["runs", "--report_dir"]),
    ],
)
def test_help(argv, words, capsys):
    with pytest.raises(SystemExit, match=r"^0$"):
        cli.main(argv)
    printed = capsys.readouterr().out
    assert [word for word in words if word not in printed] == []


# --- wrong input

WRONG = {
    "--intial_ratio 0.3": "unknown option 'intial_ratio'; did you mean 'initial_ratio'?",
    "--intial_ratio=0.3": "unknown option 'intial_ratio'; did you mean 'initial_ratio'?",
    "--epoch 30": "unknown option 'epoch'; did you mean 'epochs'?",
    "surplus": "unknown option 'surplus'",
    "--initial_ratio 1.5": "initial_ratio must be in (0, 1], got 1.5",
    "--initial_interval 0": "initial_interval must be at least 1, got 0",
    "--lr fast": "lr: Expected a float or null. Got value: fast",
    "--method attent": "'attent_complex', 'attent_simple', 'attent_paced', 'attent_adaptive', "
    "'infobatch', 'full'",
    "--batch_size 1438": "batch_size 1438 is above the 1437 training examples",
    "--data nowhere": "data: there is no nowhere",
    "--model vit_digit": "no model 'vit_digit' here or in timm; did you mean vit_digits",
    "--device tpu": "device is auto, cpu, cuda or cuda:N, not 'tpu'",
    # 1 full epoch and 10 cycles of 5 passes.
    "--epochs 30 --budget passes --method attent_complex": "= 51 passes, but epochs",
    "--config nowhere.yaml": "nowhere.yaml",
    "--pretrained true": "there are no pretrained weights of 'vit_digits'",
    """--model_args '{"dept": 1}'""": "dept",
}


def only_an_error(status: int, out: str, err: str) -> str:
    """The one error that was told, on few lines, without anything else."""
    first, *origins = err.splitlines()
    assert (status, out) == (2, "")
    assert first.startswith("error: ")
    assert all(re.match(r"  \w+: set (by the flag|in) ", line) for line in origins)
    return err


@pytest.mark.parametrize("flags", WRONG)
def test_wrong_flags_are_told_in_one_message_and_leave_nothing_behind(attent, tmp_path, flags):
    told = only_an_error(*attent("classify", *shlex.split(flags)))
    assert WRONG[flags] in told
    named = flags.split()[0].removeprefix("--").split("=")[0]
    assert named in told
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["clasify"], "unknown command 'clasify'; did you mean 'classify'?"),
        ([], "classify"),
        (["resume"], "run"),
        (["resume", "nowhere"], "nowhere is not a run folder: it has no config.yaml"),
        (["resume", "a", "--alow_previous"], "'alow_previous'; did you mean 'allow_previous'?"),
        (["report"], "runs"),
        (["report", "nowhere"], "nowhere is not a run folder"),
        (["plan", "nowhere.yaml"], "nowhere.yaml"),
        (["plan", "--batch_size", "0"], "batch_size must be at least 1, got 0"),
    ],
    ids=str,
)
def test_wrong_commands(attent, argv, message):
    assert message in only_an_error(*attent(*argv))


@pytest.mark.parametrize("command", ["classify --config ", "classify --config=", "plan "])
@pytest.mark.parametrize(
    ("text", "message", "line"),
    [
        ("# ours\nepochs: 30\ninitial_ratio: 1.5\n", "must be in (0, 1], got 1.5", "line 3"),
        ("epochs: 30\nlr: fast\n", "lr: Expected a float or null. Got value: fast", "line 2"),
        ("epochs: 30\nintial_ratio: 1\n", "'intial_ratio'; did you mean 'initial_ratio'?", ""),
        ("epochs: [30\nlr: 1\n", "", "line 2"),
    ],
    ids=["value", "type", "unknown option", "no YAML"],
)
def test_wrong_yaml_is_told_with_its_file_and_line(attent, tmp_path, command, text, message, line):
    (tmp_path / "ours.yaml").write_text(text)
    told = only_an_error(*attent(*f"{command}ours.yaml".split()))
    assert message in told
    assert "ours.yaml" in told
    assert line in told


def test_a_plan_too_long_for_the_budget_names_the_options_to_change(attent):
    told = only_an_error(*attent("classify", "--method", "attent_complex", "--epochs", "20"))
    assert "the plan does not fit: 1 full epoch(s) of 1,437 examples and 10 cycles of 5" in told
    assert "raise epochs to at least " in told
    assert "  epochs: set by the flag --epochs" in told


def test_a_folder_that_holds_a_run_is_not_run_over(finished, attent):
    _, folder = finished
    before = folder.config.read_bytes()
    told = only_an_error(*attent("classify", "--output_dir", str(folder.path)))
    assert f"holds a run already; go on with it (attent resume {folder.path})" in told
    assert folder.config.read_bytes() == before


def test_a_folder_that_holds_something_else_is_left_alone(attent, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    told = only_an_error(*attent("classify", "--output_dir", "mine"))
    assert "output_dir: mine exists and is not an empty folder" in told


def test_a_folder_that_cannot_be_made(attent, tmp_path):
    (tmp_path / "file").write_text("not a folder")
    told = only_an_error(*attent("classify", "--method", "full", "--output_dir", "file/run"))
    assert "file/run" in told


def test_messages_are_shown_as_they_are_whatever_is_in_them(attent, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    path = "no[/b]where[red] " + "x" * 200
    assert f"there is no {path};" in attent("classify", "--data", path)[2]


# --- folders by default, warnings, plans


def quick(tmp_path, **options) -> ClassifyConfig:
    """One epoch over twelve images."""
    path = tmp_path / "data.npz"
    images = np.random.default_rng(0).random((16, 8, 8))
    np.savez(path, images=images, labels=np.arange(16) % 2)
    small = {"method": "full", "epochs": 1, "warmup_epochs": 0.0, "batch_size": 4, **options}
    return ClassifyConfig(**(TINY | {"data": str(path), "progress": False} | small))


def test_runs_without_a_folder_of_their_own_are_numbered(attent, tmp_path):
    del attent
    config = quick(tmp_path)
    assert [start("classify", config, print)[1].path for _ in range(2)] == [
        Path("out/classify-1"), Path("out/classify-2"),
    ]  # fmt: skip


def test_other_folders_in_out_are_no_matter(attent, tmp_path):
    del attent
    (tmp_path / "out" / "classify-3-old").mkdir(parents=True)
    (tmp_path / "out" / "classify-3").mkdir(parents=True)
    assert start("classify", quick(tmp_path), print)[1].path == Path("out/classify-4")


def test_options_without_effect_are_warned_of(attent):
    status, _, err = attent("plan", "--method", "attent_complex", "--max_interval", "7")
    assert status == 0
    assert "warning: max_interval = 7 has no effect: interval_schedule is fixed" in err


def test_a_flag_without_effect_is_warned_of_though_it_gives_the_default(attent, tmp_path):
    """Whoever asks for it would believe that something is selected."""
    asked = ("--initial_ratio", "0.2", "--selection_strategy=hard")
    _, _, err = attent("plan", "classify", *asked)
    assert err == (
        "warning: initial_ratio = 0.2 has no effect: method is full; attent_complex, attent_paced "
        "would use it\n"
        "warning: selection_strategy = hard has no effect: method is full; attent_complex, "
        "attent_simple, attent_paced would use it\n"
    )
    assert (
        attent("plan", "classify", *asked, "--method", "attent_complex", "--epochs", "60")[2] == ""
    )
    options = "initial_ratio: 0.2\nselection_strategy: hard\n"
    (tmp_path / "some.yaml").write_text(options)
    assert attent("plan", "classify", "some.yaml")[2] == err
    (tmp_path / "all.yaml").write_text(options + "method: full\n")
    assert attent("plan", "classify", "all.yaml")[2] == ""  # as a resolved config has them all


def test_the_plan_of_the_ready_made_config(attent):
    status, printed, _ = attent("plan", DIGITS)
    assert status == 0
    # 60 epochs of 1,437 examples; 10 cycles score each of them; a forward and backward cost 3.
    assert "86,220 examples trained on" in printed
    assert "14,370 scored" in printed
    assert "cost: 3 x 86,220 + 1 x 14,370 = 273,030 forwards of one example" in printed
    plan = build_classify(ClassifyConfig(method="attent_complex", epochs=60)).plan
    assert f"everything: {plan.saving:.1%}\n" in printed
    assert 0.2 < plan.saving < 0.3


@pytest.mark.parametrize("method", ["attent_complex", "attent_simple", "full"])
def test_the_rows_of_a_plan_add_up_to_its_summary(attent, method):
    _, printed, _ = attent("plan", "--method", method, "--epochs", "60")
    table, summary = printed.split("\n\n")
    rows = [row.replace(",", "").split() for row in table.splitlines()[1:]]
    examples = sum(float(row[2]) * float(row[3]) for row in rows)
    steps = sum(int(row[4]) for row in rows)
    # Passes are shown to six digits.
    assert examples == pytest.approx(86_220, rel=1e-4)
    assert f"in {steps:,} steps" in summary


@pytest.mark.parametrize("method", ["attent_adaptive", "infobatch", "attent_paced"])
def test_a_plan_says_where_the_losses_decide_how_many_are_selected(attent, method):
    _, printed, said = attent("plan", "--method", method, "--epochs", "60")
    assert "86,220 examples trained on" in printed
    assert ("decided by the losses" in said) == (method != "attent_paced")


def test_a_plan_takes_its_file_by_name_or_as_a_config_and_flags_after_it(attent):
    assert attent("plan", DIGITS) == attent("plan", "--config", DIGITS)
    assert "43,110 examples" in attent("plan", DIGITS, "--epochs", "30", "--total_cycles", "4")[1]


@pytest.mark.parametrize(
    "file", [p.name for p in resources.files("attent.tasks.configs").iterdir()
             # Others are of data that one has to have: see test_configs.
             if p.name.endswith(".yaml") and "\ndata: path/to/" not in p.read_text()],
)  # fmt: skip
def test_every_ready_made_config_loads_and_fits(attent, file):
    status, printed, err = attent("plan", str(resources.files("attent.tasks.configs") / file))
    assert status == 0
    assert "compute saved" in printed
    # What the standard library has of rows that leave nothing to learn is its own.
    assert all("leave nothing to learn" in line for line in err.splitlines())


def test_a_run_on_a_relative_path_is_reported_from_anywhere(attent, tmp_path, monkeypatch):
    draw = np.random.default_rng(0)
    np.savez(tmp_path / "ours.npz", images=draw.random((24, 8, 8)), labels=np.arange(24) % 2)
    flags = [*TINY_FLAGS, "--data", "ours.npz", "--batch_size", "8"]
    status, _, err = attent("classify", *flags, "--output_dir", "run")
    assert status == 0, err
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    status, _, err = attent("report", str(tmp_path / "run"))
    assert status == 0, err
