from __future__ import annotations

import contextlib
import json
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

from attent.pipeline import CheckpointError, CheckpointFolder, JsonLog, load_state, save_state
from attent.pipeline.keys import differences, leaves, number
from attent.pipeline.observers import read_log
from attent.tasks import cli
from attent.tasks.classification.config import ClassifyConfig
from attent.tasks.config import ConfigError, as_dict
from attent.tasks.folder import RunFolder
from attent.tasks.run import resume, start

# Ticks of three steps, a checkpoint every 0.2 * 1437 = 287 examples (9 steps, the next tick's end),
# 45 steps a full pass; with everything that draws: augmentation, stochastic depth.
TINY = {
    "model_args": {"depth": 1, "embed_dim": 16, "num_heads": 2},
    "method": "attent_complex", "epochs": 4, "total_cycles": 2, "initial_interval": 1,
    "warmup_epochs": 1.0, "lr": 3e-3, "steps_per_tick": 3, "save_every": 0.2, "eval_every": 0.5,
    "threads": 1, "progress": False, "shift": 1, "drop_path": 0.1, "device": "cpu",
}  # fmt: skip
PROGRAMS = {
    "attent_complex": {},
    "soft, by observed losses": {"selection_strategy": "soft", "scores": "observed"},
    "attent_simple": {"method": "attent_simple", "epochs": 2},
    "full, sgd": {"method": "full", "epochs": 2, "optimizer": "sgd"},
}


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
def whole(tmp_path_factory):
    """The folder of an uninterrupted run with these options; each is made once."""
    made: dict[str, RunFolder] = {}

    def whole(**options) -> RunFolder:
        name = json.dumps(options)
        if name not in made:
            path = tmp_path_factory.mktemp("whole") / "run"
            config = ClassifyConfig(**(TINY | options), output_dir=str(path))
            made[name] = start("classify", config, silent)[1]
        return made[name]

    return whole


@pytest.fixture
def begin(tmp_path, monkeypatch):
    """Start a run and interrupt it between ticks, when it has reached a step."""

    def begin(at: int, *, signals=(signal.SIGINT,), **options) -> RunFolder:
        folder = RunFolder(tmp_path / "run")
        config = ClassifyConfig(**(TINY | options), output_dir=str(folder.path))
        with interrupted(monkeypatch, at, signals):
            start("classify", config, silent)
        return folder

    return begin


@contextlib.contextmanager
def interrupted(monkeypatch, at: int, signals=(signal.SIGINT,)):
    """Raise signals after the first tick that ends at this step or later."""

    class Interrupting(JsonLog):
        def tick(self, state):
            super().tick(state)
            if number(state, "clock", "step") >= at and not raised:
                raised.extend(signals)
                for number_ in signals:
                    signal.raise_signal(number_)

    raised: list[int] = []
    with monkeypatch.context() as patch:
        patch.setattr("attent.tasks.run.JsonLog", Interrupting)
        yield
    assert raised == list(signals)


@pytest.fixture
def copy_of(tmp_path):
    """A copy of a run, to be spoilt."""

    def copy_of(folder: RunFolder) -> RunFolder:
        return RunFolder(Path(shutil.copytree(folder.path, tmp_path / "copy")))

    return copy_of


def last_checkpoint(folder: RunFolder) -> Path:
    return max(folder.checkpoints.glob("checkpoint-*.safetensors"))


def logged(folder: RunFolder) -> list[dict]:
    """The log but for its seconds."""
    return [{k: v for k, v in line.items() if "seconds" not in k} for line in read_log(folder.log)]


def arrays_of(folder: RunFolder) -> dict[str, dict[str, bytes]]:
    """Every recorded selection's arrays, as bytes."""
    found = {}
    for path in sorted(folder.selections.iterdir()):
        with np.load(path) as file:
            found[path.name] = {name: file[name].tobytes() for name in file.files}
    return found


def assert_same_end(a: RunFolder, b: RunFolder, *, log: bool = True) -> None:
    """Two finished runs have the same bits: state, best state, weights, selections, log."""
    for path_a, path_b in (
        (last_checkpoint(a), last_checkpoint(b)),
        (a.checkpoints / "best.safetensors", b.checkpoints / "best.safetensors"),
    ):
        (state_a, about_a), (state_b, about_b) = load_state(path_a), load_state(path_b)
        assert differences(state_a, state_b) == []
        assert about_a == about_b
    weights_a, weights_b = load_file(a.weights), load_file(b.weights)
    assert weights_a.keys() == weights_b.keys()
    assert all(torch.equal(weights_a[name], weights_b[name]) for name in weights_a)
    assert arrays_of(a) == arrays_of(b)
    if log:
        assert logged(a) == logged(b)


# --- interrupted between ticks


# In the first tick; within a pass; where scoring is due; on the subset; in the last passes.
@pytest.mark.parametrize("at", [1, 20, 45, 50, 150])
def test_a_resumed_run_ends_like_an_uninterrupted_one(whole, begin, at):
    folder = begin(at)
    assert at <= load_state(last_checkpoint(folder))[1]["step"] <= at + 3
    assert not folder.weights.exists()
    resume(folder.path, silent)
    assert_same_end(whole(), folder)


@pytest.mark.parametrize("program", PROGRAMS)
def test_every_program_can_be_interrupted_twice(whole, begin, monkeypatch, program):
    options = PROGRAMS[program]
    folder = begin(20, **options)
    with interrupted(monkeypatch, 60):
        resume(folder.path, silent)
    resume(folder.path, silent)
    assert_same_end(whole(**options), folder)


def test_sigterm_stops_a_run_as_an_interrupt_does(whole, begin):
    folder = begin(50, signals=(signal.SIGTERM,))
    assert load_state(last_checkpoint(folder))[1]["step"] == 51
    resume(folder.path, silent)
    assert_same_end(whole(), folder)


def test_stopped_at_once_it_goes_on_from_the_last_checkpoint(whole, begin, tmp_path):
    """The second interrupt saves nothing: what was logged since the checkpoint is done again."""
    with pytest.raises(KeyboardInterrupt):
        begin(50, signals=(signal.SIGINT, signal.SIGINT))
    folder = RunFolder(tmp_path / "run")
    assert load_state(last_checkpoint(folder))[1]["step"] < read_log(folder.log)[-1]["step"]
    resume(folder.path, silent)
    assert_same_end(whole(), folder)


def test_killed_between_a_checkpoint_and_marking_it_the_best(whole, monkeypatch, tmp_path):
    mark, marked = CheckpointFolder.mark_best, []

    def count(self, path):
        marked.append(path.name)
        mark(self, path)

    with monkeypatch.context() as patch:
        patch.setattr(CheckpointFolder, "mark_best", count)
        config = ClassifyConfig(**TINY, output_dir=str(tmp_path / "counted"))
        start("classify", config, silent)
    best = marked[-1]

    def die(self, path):
        if path.name == best:
            raise KeyboardInterrupt
        mark(self, path)

    folder = RunFolder(tmp_path / "run")
    config = ClassifyConfig(**TINY, output_dir=str(folder.path))
    with monkeypatch.context() as patch:
        patch.setattr(CheckpointFolder, "mark_best", die)
        with pytest.raises(KeyboardInterrupt):
            start("classify", config, silent)
    assert last_checkpoint(folder).name == best
    resume(folder.path, silent)
    assert_same_end(whole(), folder)


def test_how_a_run_is_carried_out_may_change_on_resume(whole, begin):
    folder = begin(50)
    options = yaml.safe_load(folder.config.read_text())
    options |= {"steps_per_tick": 7, "workers": 2, "keep": 1, "save_every": 1.0}
    folder.config.write_text(yaml.safe_dump(options))
    resume(folder.path, silent)
    # Ticks end elsewhere, and so do the lines of the log.
    assert_same_end(whole(), folder, log=False)
    assert logged(folder)[-1] == logged(whole())[-1]
    assert len(list(folder.checkpoints.glob("checkpoint-*"))) == 1


def test_a_run_from_before_an_option_was_there_goes_on_with_its_default(whole, begin):
    folder = begin(50)
    path = last_checkpoint(folder)
    state, about = load_state(path)
    del about["options"]["reselect"]
    save_state(state, path, about)
    options = yaml.safe_load(folder.config.read_text())
    del options["reselect"]
    folder.config.write_text(yaml.safe_dump(options))
    resume(folder.path, silent)
    assert_same_end(whole(), folder)


def test_attent_simple_from_when_it_always_observed_still_does(whole, begin):
    """Its options said ``scores: fresh`` then, the default, which had no effect on it."""
    options = {"method": "attent_simple"}
    folder = begin(50, **options)
    path = last_checkpoint(folder)
    state, about = load_state(path)
    given = yaml.safe_load(folder.config.read_text())
    for old in (about["options"], given):
        del old["reselect"]
        old["scores"] = "fresh"
    save_state(state, path, about)
    folder.config.write_text(yaml.safe_dump(given))
    resume(folder.path, silent)
    assert_same_end(whole(**options), folder)


def test_a_line_of_the_log_that_a_kill_cut_short_is_written_again(whole, begin):
    folder = begin(50)
    with folder.log.open("a") as file:
        file.write('{"cycle": 0, "st')
    resume(folder.path, silent)
    assert logged(folder) == logged(whole())


def test_a_loaded_state_lies_in_memory_as_a_fresh_one_does(whole):
    """Kernels are chosen by alignment too: unaligned weights give other last bits."""
    state, _ = load_state(last_checkpoint(whole()))
    assert {value.data_ptr() % 64 for _, value in leaves(state) if value.numel()} == {0}


def test_files_a_kill_left_half_written_are_cleared_away(begin):
    folder = begin(50)
    leftover = folder.checkpoints / ".checkpoint-000000060.safetensors.1.tmp"
    leftover.write_bytes(b"half")
    resume(folder.path, silent)
    assert not leftover.exists()


def test_another_environment_is_warned_of(begin):
    folder = begin(150)
    path = folder.path / "environment.json"
    environment = json.loads(path.read_text())
    path.write_text(json.dumps(environment | {"torch": "1.0"}))
    said: list[str] = []
    resume(folder.path, said.append)
    version = environment["torch"]
    assert said[0] == f"warning: not bit for bit as it would have been: torch 1.0 -> {version}"
    assert len(said) == 2


# --- finished, damaged, changed, not a run


def test_resuming_a_finished_run_changes_nothing(whole, copy_of, capsys):
    folder = copy_of(whole())
    assert cli.main(["resume", str(folder.path)]) == 0
    assert "held-out accuracy" in capsys.readouterr().err
    assert_same_end(whole(), folder)
    assert folder.log.read_bytes() == whole().log.read_bytes()
    names = [{p.name for p in f.checkpoints.iterdir()} for f in (whole(), folder)]
    assert names[0] == names[1]


@pytest.fixture
def damaged(whole, copy_of):
    """A run whose last checkpoint lost its second half."""
    folder = copy_of(whole())
    path = last_checkpoint(folder)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return folder


def test_a_truncated_checkpoint_is_named_and_the_last_good_one_is_offered(damaged, capsys):
    bad, good = (
        path.name for path in sorted(damaged.checkpoints.glob("checkpoint-*"), reverse=True)[:2]
    )
    assert cli.main(["resume", str(damaged.path)]) == 2
    told = capsys.readouterr().err
    assert re.search(rf"error: .*{bad} is truncated or corrupt", told)
    assert f"The previous good checkpoint is {good}" in told
    assert "--allow_previous" in told
    assert last_checkpoint(damaged).name == bad


def test_the_last_good_checkpoint_gives_the_same_end(whole, damaged):
    bad = last_checkpoint(damaged)
    assert cli.main(["resume", str(damaged.path), "--allow_previous"]) == 0
    assert bad.with_suffix(".damaged").exists()
    assert_same_end(whole(), damaged)


def test_one_changed_byte_is_found(damaged, whole):
    path = last_checkpoint(damaged)
    content = bytearray(last_checkpoint(whole()).read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"{path.name} is corrupt: .* checksum"):
        resume(damaged.path, silent)


def test_no_good_checkpoint_left(damaged):
    for path in damaged.checkpoints.glob("checkpoint-*"):
        path.write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"every checkpoint in .* is damaged"):
        resume(damaged.path, silent, allow_previous=True)


def test_no_checkpoint_at_all(copy_of, whole):
    folder = copy_of(whole())
    shutil.rmtree(folder.checkpoints)
    with pytest.raises(CheckpointError, match="there is no checkpoint in"):
        resume(folder.path, silent)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"lr": 0.5}, r"config\.yaml was changed since .*: lr 0.003 -> 0.5; put it back"),
        ({"seed": 1, "shift": 2}, r"config\.yaml was changed since .*: seed 0 -> 1, shift 1 -> 2"),
        ({"epohcs": 3}, r"config\.yaml: unknown option 'epohcs'; did you mean 'epochs'"),
        ({"lr": -1.0}, "lr must be above 0"),
        ({"lr": "1e-3"}, "lr"),
        ({"command": "clasify"}, r"config\.yaml names no known command, but 'clasify'"),
    ],
    ids=str,
)
def test_a_config_that_was_changed_since(whole, copy_of, changed, message):
    folder = copy_of(whole())
    values = yaml.safe_load(folder.config.read_text()) | changed
    folder.config.write_text(yaml.safe_dump(values))
    with pytest.raises(ConfigError, match=message):
        resume(folder.path, silent)


def test_a_config_that_is_no_yaml_any_more(whole, copy_of):
    folder = copy_of(whole())
    folder.config.write_text("epochs: [4\n")
    with pytest.raises(ConfigError, match=r"config\.yaml"):
        resume(folder.path, silent)


def test_a_folder_that_is_no_run(tmp_path):
    with pytest.raises(ConfigError, match=rf"{tmp_path} is not a run folder: it has no config"):
        resume(tmp_path, silent)


def test_a_checkpoint_of_another_task(whole, copy_of):
    folder = copy_of(whole())
    path = last_checkpoint(folder)
    state, about = load_state(path)
    save_state(state, path, about | {"command": "segment"})
    with pytest.raises(CheckpointError, match="is of 'segment', the run of 'classify'"):
        resume(folder.path, silent)


def test_a_checkpoint_of_another_model(whole, copy_of):
    folder = copy_of(whole())
    path = last_checkpoint(folder)
    state, about = load_state(path)
    del state["params", "head.weight"]
    save_state(state, path, about)
    with pytest.raises(CheckpointError, match=rf"{path.name} does not fit .*'params/head.weight'"):
        resume(folder.path, silent)


# --- processes of their own


def launch(folder: RunFolder, command: str, **options) -> subprocess.Popen:
    """A run in a process of its own; its config is TINY with these options."""
    argv = [sys.executable, "-m", "attent.tasks", command]
    if command == "resume":
        argv.append(str(folder.path))
    else:
        config = ClassifyConfig(**(TINY | options), output_dir=str(folder.path))
        file = folder.path.with_suffix(".yaml")
        file.write_text(yaml.safe_dump(as_dict(config)))
        argv += ["--config", str(file)]
    return subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def wait_for_checkpoint(folder: RunFolder, process: subprocess.Popen, after: int) -> int:
    """The step of the first checkpoint beyond this one."""
    store, deadline = CheckpointFolder(folder.checkpoints), time.monotonic() + 90
    while time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()[1]
        steps = [step for step in store.steps() if step > after]
        if steps:
            return steps[-1]
        time.sleep(0.005)
    process.kill()
    raise AssertionError("no checkpoint in 90 seconds")


LONG = {"epochs": 12, "initial_interval": 3}
"""About four seconds of training on one core."""


@pytest.mark.slow
def test_killed_three_times_it_ends_like_an_uninterrupted_run(whole, tmp_path):
    folder, draw, at = RunFolder(tmp_path / "run"), random.Random(0), 0
    for command in ("classify", "resume", "resume"):
        process = launch(folder, command, **LONG)
        at = wait_for_checkpoint(folder, process, after=at)
        time.sleep(draw.uniform(0, 0.3))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL
    assert not folder.weights.exists()
    resume(folder.path, silent)
    assert_same_end(whole(**LONG), folder)


@pytest.mark.slow
def test_ctrl_c_saves_and_a_running_folder_is_locked(tmp_path):
    folder = RunFolder(tmp_path / "run")
    process = launch(folder, "classify", **LONG)
    wait_for_checkpoint(folder, process, after=0)
    with pytest.raises(ConfigError, match="is being run by another process"):
        resume(folder.path, silent)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=300)
    assert process.returncode == 130
    assert told.splitlines() == [f"stopped and saved; go on with: attent resume {folder.path}"]
    step = load_state(last_checkpoint(folder))[1]["step"]
    assert read_log(folder.log)[-1]["step"] == step
    assert not folder.weights.exists()


def test_killed_before_the_first_checkpoint_it_starts_anew(whole, copy_of):
    folder = copy_of(whole())
    for path in (folder.checkpoints, folder.selections):
        shutil.rmtree(path)
    folder.log.write_text("")
    said: list[str] = []
    resume(folder.path, said.append)
    assert "stopped before anything was saved" in said[0]
    assert_same_end(whole(), folder)


def test_a_damaged_best_is_set_aside_and_named(begin, whole):
    folder = begin(150)
    best = CheckpointFolder(folder.checkpoints).best
    best.write_bytes(best.read_bytes()[:100])
    with pytest.warns(UserWarning, match=r"set aside: .*best\.safetensors is truncated"):
        resume(folder.path, silent)
    assert best.with_suffix(".damaged").exists()
    ends = [load_state(last_checkpoint(run))[0] for run in (whole(), folder)]
    assert differences(*ends) == []
