"""Commands over several processes, as torchrun and accelerate start them."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from attent.pipeline.checkpoint import CheckpointFolder
from attent.pipeline.keys import differences, leaves
from attent.tasks.classification.config import ClassifyConfig
from attent.tasks.commands import COMMANDS
from attent.tasks.language.config import InstructConfig
from attent.tasks.run import resume, start
from tests.tasks.test_language_cli import LLAMA, OPTIONS, entries

CLASSIFY = {
    "model": "vit_digits", "method": "attent_complex", "epochs": 12, "total_cycles": 2,
    "initial_interval": 2, "batch_size": 16, "optimizer": "sgd", "lr": 0.05, "steps_per_tick": 3,
    "score_batch_size": 16, "threads": 1, "keep": 1000, "clip": 1.0,
}  # fmt: skip


def silent(message: str) -> None:
    pass


@pytest.fixture(scope="module")
def digits_file(tmp_path_factory) -> Path:
    """Eighty digits: enough for forty-odd steps, and a last batch of few."""
    from sklearn.datasets import load_digits

    found = load_digits()
    path = tmp_path_factory.mktemp("data") / "digits.npz"
    images = (found.images[:100] * 15).astype(np.uint8)
    np.savez(path, images=images, labels=found.target[:100])
    return path


def flags(options: dict) -> list[str]:
    return [word for name, value in options.items() for word in (f"--{name}", str(value))]


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def torchrun(
    count: int, *words: str, module: str = "attent.tasks", **environment: str
) -> subprocess.Popen:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(count)]
    return subprocess.Popen(
        [*launcher, "--master-port", str(free_port()), "-m", module, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
    )


def accelerate(*words: str) -> subprocess.Popen:
    """Two processes by accelerate; the words before the command are its own."""
    own = list(itertools.takewhile(lambda word: word not in COMMANDS, words))
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "2"]
    launcher += ["--num_machines", "1", "--dynamo_backend", "no", "--main_process_port"]
    return subprocess.Popen(
        [*launcher, str(free_port()), *own, "-m", "attent.tasks", *words[len(own) :]],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


def done(process: subprocess.Popen) -> str:
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 0, said
    return said


def last_state(folder: Path):
    return CheckpointFolder(folder / "checkpoints").load_last()[0]


@pytest.fixture(scope="module")
def alone(digits_file, tmp_path_factory) -> Path:
    """The run that nobody stops, of one process."""
    folder = tmp_path_factory.mktemp("alone") / "run"
    start(
        "classify",
        ClassifyConfig(data=str(digits_file), output_dir=str(folder), **CLASSIFY),
        silent,
    )
    return folder


@pytest.fixture(scope="module")
def killed(digits_file, tmp_path_factory) -> tuple[Path, str]:
    """A run of two processes, the second of which is killed on the way."""
    folder = tmp_path_factory.mktemp("killed") / "run"
    words = ["--data", str(digits_file), "--output_dir", str(folder), *flags(CLASSIFY)]
    words += ["--save_every", "0.5", "--report_to", "[tensorboard]"]
    process = torchrun(2, "classify", *words, module="tests.tasks.dying")
    said, _ = process.communicate(timeout=300)
    assert process.returncode != 0
    return folder, said


def assert_same_run(folder: Path, other: Path) -> None:
    """The same selections, the same clock; weights apart by the order of additions.

    By SGD: Adam makes steps of what is nothing but rounding, such as the gradients of keys' biases.
    """
    one, many = last_state(folder), last_state(other)
    for group in ("clock", "plan", "ledger"):
        assert differences(one[group], many[group]) == []
    masks = [sorted((f / "selections").glob("*.npz")) for f in (folder, other)]
    assert len(masks[0]) == len(masks[1]) >= 4
    for a, b in zip(*masks, strict=True):
        assert np.array_equal(np.load(a)["selected"], np.load(b)["selected"]), a.name
    for (path, x), (_, y) in zip(leaves(one["params"]), leaves(many["params"]), strict=True):
        assert float((x - y).norm() / x.norm().clamp_min(1e-2)) < 1e-4, path


@pytest.mark.slow
def test_a_process_that_dies_takes_the_run_down_and_says_so(killed):
    folder, said = killed
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert lines[-1]["step"] == 27  # three a tick; the next is never finished
    assert "another process of this run is gone" in said
    assert f"attent resume {folder}" in said
    assert "Traceback" not in said.split("another process")[0]


@pytest.mark.slow
def test_it_goes_on_alone_as_if_nothing_had_been(killed, alone, tmp_path):
    shutil.copytree(killed[0], tmp_path / "run")
    resume(tmp_path / "run", silent)
    assert_same_run(alone, tmp_path / "run")


@pytest.mark.slow
def test_it_goes_on_in_four_processes(killed, alone, tmp_path):
    shutil.copytree(killed[0], tmp_path / "run")
    said = done(torchrun(4, "resume", str(tmp_path / "run")))
    assert said.count("resuming") == 1  # the main process alone speaks
    assert said.count("held-out accuracy") == 1
    assert (tmp_path / "run" / "report" / "report.html").is_file()
    assert_same_run(alone, tmp_path / "run")


@pytest.mark.slow
def test_tensorboard_has_what_the_log_has(killed):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = killed[0]
    found = EventAccumulator(str(folder / "tensorboard"))
    found.Reload()
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    told = [(e.step, e.value) for e in found.Scalars("train_loss")]
    assert told[: len(lines)] == [
        (line["step"], pytest.approx(line["train_loss"], rel=1e-6)) for line in lines[: len(told)]
    ]
    assert len(told) > 5


@pytest.mark.slow
def test_bad_input_is_said_once(digits_file, tmp_path):
    """The options are wrong in both processes: one error, and no traceback."""
    options = CLASSIFY | {"epochs": 2}
    words = ["--data", str(digits_file), "--output_dir", str(tmp_path / "run"), *flags(options)]
    process = torchrun(2, "classify", *words)
    said, _ = process.communicate(timeout=300)
    assert process.returncode != 0
    assert said.count("error: the plan does not fit") == 1
    assert not (tmp_path / "run").exists()


@pytest.fixture(scope="module")
def rows(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("rows") / "data.json"
    path.write_text(json.dumps(entries()))
    return path


@pytest.mark.slow
def test_frozen_weights_are_shared_out(rows, tmp_path):
    """FSDP: the same run, its model in parts; a model made anew below the adapters."""
    options = OPTIONS | {
        "data": str(rows), "model_name_or_path": LLAMA, "pretrain_epochs": 0, "epochs": 2,
        "method": "attent_simple", "scores": "fresh", "accumulate": 2, "threads": 1,
    }  # fmt: skip
    start("instruct", InstructConfig(**options, output_dir=str(tmp_path / "one")), silent)
    words = flags(options | {"output_dir": str(tmp_path / "two")})
    said = done(accelerate("--use_fsdp", "--fsdp_version", "2", "instruct", *words))
    assert "blocks are shared out over 2 processes" in said
    one, two = (last_state(tmp_path / name) for name in ("one", "two"))
    assert torch.equal(one["mask"], two["mask"])
    for group in ("clock", "ledger"):
        assert differences(one[group], two[group]) == []
    torch.testing.assert_close(one["scores", "loss"], two["scores", "loss"], rtol=1e-4, atol=1e-4)
    adapters = [
        load_file(tmp_path / n / "adapter" / "adapter_model.safetensors") for n in ("one", "two")
    ]
    assert adapters[0].keys() == adapters[1].keys()
    for name, value in adapters[0].items():
        torch.testing.assert_close(value, adapters[1][name], rtol=1e-3, atol=1e-4)
    resume(tmp_path / "two", silent)  # a finished run, whole again


@pytest.mark.slow
def test_fsdp_is_refused_where_everything_is_trained(digits_file, tmp_path):
    words = ["--data", str(digits_file), "--output_dir", str(tmp_path / "run"), *flags(CLASSIFY)]
    process = torchrun(2, "classify", *words, ACCELERATE_USE_FSDP="true")
    said, _ = process.communicate(timeout=300)
    assert process.returncode != 0
    assert said.count("error: FSDP shares out the frozen weights of language models") == 1


@pytest.mark.slow
def test_weights_and_biases_without_a_network(digits_file, tmp_path):
    pytest.importorskip("wandb")
    options = CLASSIFY | {"epochs": 1, "method": "full"}
    words = ["--data", str(digits_file), "--output_dir", str(tmp_path / "run"), *flags(options)]
    found = subprocess.run(
        [sys.executable, "-m", "attent.tasks", "classify", *words, "--report_to", "[wandb]"],
        env=os.environ | {"WANDB_MODE": "offline", "WANDB_SILENT": "true"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert found.returncode == 0, found.stderr
    (records,) = (tmp_path / "run" / "wandb").glob("offline-run-*/*.wandb")
    assert (tmp_path / "run" / "wandb.id").read_text() in records.name
    assert b"train_loss" in records.read_bytes()


def test_a_tracker_whose_package_is_missing(digits_file, tmp_path):
    config = ClassifyConfig(
        data=str(digits_file), output_dir=str(tmp_path / "run"), report_to=["dvclive"], **CLASSIFY
    )
    with pytest.raises(ValueError, match=r"report_to: dvclive needs .*pip install dvclive"):
        start("classify", config, silent)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_the_launchers_precision_and_accumulation_are_taken(digits_file, tmp_path):
    options = CLASSIFY | {"data": str(digits_file), "epochs": 1, "method": "full"}
    for name, more in (("flags", {"bf16": True, "accumulate": 2}), ("plain", {})):
        config = ClassifyConfig(output_dir=str(tmp_path / name), **options, **more)
        start("classify", config, silent)
    words = flags(options | {"output_dir": str(tmp_path / "launcher")})
    own = ("--multi_gpu", "--mixed_precision", "bf16", "--gradient_accumulation_steps", "2")
    done(accelerate(*own, "classify", *words))
    by_flags, plain, by_launcher = (
        float(last_state(tmp_path / name)["metrics", "train_loss"])
        for name in ("flags", "plain", "launcher")
    )
    assert by_launcher == pytest.approx(by_flags, rel=1e-3)
    assert abs(by_launcher - by_flags) < abs(by_launcher - plain)  # which is in float32


@pytest.mark.parametrize("precision", ["fp16", "fp8"])
def test_precisions_that_scale_losses_are_refused(precision, digits_file, tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", precision)
    config = ClassifyConfig(data=str(digits_file), output_dir=str(tmp_path / "run"), **CLASSIFY)
    with pytest.raises(ValueError, match=f"mixed_precision {precision} scales losses"):
        start("classify", config, silent)


def test_an_engine_that_keeps_the_optimisers_state_is_refused(digits_file, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_MEGATRON_LM", "true")
    with pytest.raises(ValueError, match=r"Megatron-LM keeps the optimiser's state .* --use_fsdp"):
        start("classify", ClassifyConfig(data=str(digits_file), **CLASSIFY), silent)


def test_one_device_for_several_processes_is_refused(digits_file, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="device cuda:0 is one device, but there are several"):
        start(
            "classify", ClassifyConfig(data=str(digits_file), device="cuda:0", **CLASSIFY), silent
        )
