"""Options under another name, in flags and in files."""

from __future__ import annotations

import argparse
from typing import get_type_hints

import numpy as np
import pytest

from attent.tasks import cli
from attent.tasks.commands import COMMANDS
from attent.tasks.config import ConfigError
from attent.tasks.words import explain, key_lines, one_name
from tests.tasks.test_cli import only_an_error


@pytest.fixture
def attent(attent, tmp_path):
    """Run a command in a folder with some images."""
    images = np.random.default_rng(0).random((24, 8, 8))
    np.savez(tmp_path / "ours.npz", images=images, labels=np.arange(24) % 2)
    return attent


PLAN = ["--method", "full", "--epochs", "2", "--batch_size", "8", "--held_out", "0.25"]
REST = "method: full\nepochs: 2\nbatch_size: 8\nheld_out: 0.25\n"
# 75% of 24 images, twice.
DONE = "full: 36 examples trained on"


@pytest.mark.parametrize(
    "words", [["--data_path", "ours.npz"], ["--data_path=ours.npz"], ["--data", "ours.npz"]]
)
def test_data_path_is_data_as_a_flag(attent, words):
    status, printed, err = attent("plan", "classify", *PLAN, *words)
    assert (status, err) == (0, "")
    assert DONE in printed


@pytest.mark.parametrize(
    "text",
    [
        f"data_path: ours.npz\n{REST}",
        f"# ours\n\n{REST}'data_path': ours.npz  # data_path: theirs.npz\n",
        "{method: full, data_path: ours.npz, epochs: 2, batch_size: 8, held_out: 0.25}",
        f"{REST}data_path:\n  ours.npz\n",
    ],
)
@pytest.mark.parametrize("command", ["plan", "plan --config=", "plan classify --config "])
def test_data_path_is_data_in_a_file(attent, tmp_path, text, command):
    (tmp_path / "ours.yaml").write_text(text)
    separate = command == "plan"
    words = ["plan", "ours.yaml"] if separate else f"{command}ours.yaml".split()
    status, printed, err = attent(*words)
    assert (status, err) == (0, "")
    assert DONE in printed


def test_a_flag_wins_over_a_file_whichever_name_either_uses(attent, tmp_path):
    for name, flag in (("data_path", "data"), ("data", "data_path"), ("data_path", "data_path")):
        (tmp_path / "file.yaml").write_text(f"{name}: theirs.npz\n{REST}")
        status, printed, err = attent("plan", "file.yaml", f"--{flag}", "ours.npz")
        assert (status, err) == (0, "")
        assert DONE in printed


def test_a_run_keeps_the_option_under_its_own_name(attent, tmp_path):
    (tmp_path / "ours.yaml").write_text(f"data_path: ours.npz\n{REST}")
    small = '{"depth": 1, "embed_dim": 16, "num_heads": 2}'
    status, _, err = attent(
        "classify", "--config", "ours.yaml", "--model_args", small, "--output_dir", "run"
    )
    assert status == 0, err
    kept = (tmp_path / "run" / "config.yaml").read_text()
    assert f"\ndata: {tmp_path / 'ours.npz'}\n" in kept
    assert "data_path" not in kept


@pytest.mark.parametrize("epochs", ["epochs: few", "epochs: 0", "epoch: 3"])
def test_errors_of_such_a_file_say_its_name_and_their_lines(attent, tmp_path, epochs):
    (tmp_path / "ours.yaml").write_text(f"# ours\ndata_path: ours.npz\nbatch_size: 8\n{epochs}\n")
    told = only_an_error(*attent("classify", "--config", "ours.yaml"))
    if epochs.startswith("epochs"):
        assert "  epochs: set in ours.yaml, line 4" in told
    else:
        assert "unknown option 'epoch'; did you mean 'epochs'?" in told


def test_data_that_are_not_there_are_told_with_where_they_were_named(attent, tmp_path):
    (tmp_path / "ours.yaml").write_text("epochs: 3\n\ndata_path: theirs\n")
    told = only_an_error(*attent("classify", "--config", "ours.yaml"))
    assert "data: there is no theirs" in told
    assert "  data: set in ours.yaml, line 3" in told
    told = only_an_error(*attent("classify", "--data_path", "theirs"))
    assert "  data: set by the flag --data_path" in told


def test_both_names_at_once_are_an_error(attent, tmp_path):
    (tmp_path / "ours.yaml").write_text(f"data: ours.npz\n{REST}data_path: ours.npz\n")
    told = only_an_error(*attent("plan", "ours.yaml"))
    assert "error: data and data_path are one option, and ours.yaml gives both" in told
    assert "  data: set in ours.yaml, line 6" in told
    told = only_an_error(*attent("classify", "--data", "a", "--data_path=a"))
    assert "data and data_path are one option, and the command line gives both" in told


def test_what_names_no_data_path_is_handed_on_as_it_is(tmp_path):
    (tmp_path / "a.yaml").write_text("data: x\nmodel_args: {data_path: 3}\n")
    (tmp_path / "b.yaml").write_text("epochs: [30\ndata_path: x\n")
    (tmp_path / "c.yaml").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "d.yaml").write_text("- data_path\n")
    (tmp_path / "f.yaml").write_text("? [data_path]\n: 1\n")
    for name in "abcdef":
        file = str(tmp_path / f"{name}.yaml")
        assert one_name(["classify", "--config", file]) == ["classify", f"--config={file}"]
    assert one_name(["classify", "data_path", "--config"]) == ["classify", "data_path", "--config"]
    with pytest.raises(ConfigError, match="the command line gives both"):
        one_name(["evaluate", "run", "--data_path", "a", "--data=b"])


def test_lines_and_origins_are_of_the_options_own_name(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("epochs: 3\ndata_path: x\n")
    assert key_lines(path) == {"epochs": 1, "data": 2}
    path.with_name("f.yaml").write_text("? [data_path]\n: 1\nlr: 1\n")
    assert key_lines(path.with_name("f.yaml")) == {"lr": 3}
    told = explain("data: there is no x", ["classify", "--config", str(path)])
    assert told.splitlines()[1:] == [f"  data: set in {path}, line 2"]


@pytest.mark.parametrize("command", COMMANDS)
def test_flags_of_every_command_have_their_types(command):
    """A folder called 12 is no number, and what is no number is refused where it stands."""
    known = get_type_hints(COMMANDS[command].config)
    given = [command, "--output_dir", "12", "--data=7", "--lr", "1e-3", "--epochs", "30"]
    parsed = cli.parser().parse_args(given)[command]
    assert (parsed.output_dir, parsed.data, parsed.lr, parsed.epochs) == ("12", "7", 0.001, 30)
    assert set(known) <= set(vars(parsed))
    wrong = {"lr": "fast", "epochs": "1.5", "method": "attent", "compile": "3", "threads": "[1]"}
    for name, value in wrong.items():
        with pytest.raises(argparse.ArgumentError, match=f'Parser key "{name}"'):
            cli.parser().parse_args([command, f"--{name}", value])
