"""DeepSpeed by the launcher's settings: what is taken, what is refused, and the run it makes."""

from __future__ import annotations

import importlib.util
import itertools
import json
import shutil
from pathlib import Path

import pytest
import torch

from attent.pipeline import adamw
from attent.pipeline.keys import differences, leaves
from attent.tasks import zero
from attent.tasks.classification.config import ClassifyConfig
from attent.tasks.detection.config import DetectConfig
from attent.tasks.language.config import InstructConfig
from attent.tasks.run import resume, start
from tests.tasks.test_language_cli import LLAMA, OPTIONS
from tests.tasks.test_launch_cli import (
    CLASSIFY,
    accelerate,
    alone,
    assert_same_run,
    digits_file,
    done,
    flags,
    last_state,
    rows,
    silent,
    torchrun,
)
from tests.tasks.zeroed import SHAPES
from tests.tasks.zeroed import alone as updated_alone

__all__ = ["alone", "digits_file", "rows"]  # fixtures

ZERO = {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "1"}
"""What `accelerate launch --use_deepspeed --zero_stage 1` sets."""


@pytest.fixture
def asked(monkeypatch):
    """Settings of a launcher by the ends of their names; as if DeepSpeed were installed."""

    def ask(**values: str) -> None:
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
        monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
        for name, value in values.items():
            monkeypatch.setenv(f"ACCELERATE_{name}", value)

    return ask


@pytest.fixture
def config_file(asked, tmp_path):
    """The launcher's file of DeepSpeed's own settings."""

    def write(**sections) -> None:
        path = tmp_path / "ds.json"
        path.write_text(json.dumps({"zero_optimization": {"stage": 2}} | sections))
        asked(DEEPSPEED_CONFIG_FILE=str(path))

    return write


def test_nothing_is_asked_for(monkeypatch):
    assert zero.settings() is None
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "false")
    assert zero.settings() is None


def test_the_launchers_flags_are_taken(asked):
    asked(
        DEEPSPEED_ZERO_STAGE="1", GRADIENT_CLIPPING="0.5", GRADIENT_ACCUMULATION_STEPS="4",
    )  # fmt: skip
    found = zero.settings()
    assert found is not None
    assert (found.zero["stage"], found.clip, found.accumulate) == (1, 0.5, 4)
    assert found.precision == "no"


def test_a_file_of_deepspeeds_is_taken(config_file):
    config_file(
        zero_optimization={"stage": 2, "overlap_comm": False, "reduce_bucket_size": "auto"},
        bf16={"enabled": True},
        fp16={"enabled": "auto"},
        train_batch_size="auto",
        gradient_clipping=2.0,
    )
    found = zero.settings()
    assert found is not None
    assert (found.zero["stage"], found.zero["overlap_comm"]) == (2, False)
    assert "reduce_bucket_size" not in found.zero  # DeepSpeed's default
    assert (found.clip, found.accumulate, found.precision) == (2.0, 1, "bf16")


@pytest.mark.parametrize("stage", ["0", "3"])
def test_other_stages_are_refused(stage, asked):
    asked(DEEPSPEED_ZERO_STAGE=stage)
    with pytest.raises(ValueError, match=rf"ZeRO stage {stage} cannot be taken.* --use_fsdp"):
        start("classify", ClassifyConfig(**CLASSIFY), silent)


def test_offloading_is_refused(asked):
    asked(DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE="cpu")
    with pytest.raises(ValueError, match="offload_optimizer cannot be taken: device none"):
        zero.settings()


@pytest.mark.parametrize("section", ["optimizer", "scheduler", "flops_profiler"])
def test_settings_that_are_the_commands_are_refused(section, config_file):
    config_file(**{section: {"type": "Adam"}})
    with pytest.raises(ValueError, match=f"DeepSpeed's settings say {section}, which cannot"):
        zero.settings()


def test_fp16_is_refused(config_file, digits_file):
    config_file(fp16={"enabled": True})
    with pytest.raises(ValueError, match="mixed_precision fp16 scales losses"):
        start("classify", ClassifyConfig(data=str(digits_file), **CLASSIFY), silent)


def test_detection_is_refused(asked):
    asked()
    with pytest.raises(ValueError, match="detect may leave parameters without a gradient"):
        start("detect", DetectConfig(), silent)


def test_optimisers_that_look_at_single_parameters_are_refused(asked):
    asked()
    found = zero.settings()
    assert found is not None
    zero.updates_of(adamw(0.1), found)
    with pytest.raises(ValueError, match="optimizer pruner cannot update: take adamw or sgd"):
        zero.updates_of(adamw(0.1).__class__(**vars(adamw(0.1)) | {"name": "pruner"}), found)


def test_the_package_is_missing(asked, monkeypatch):
    asked()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install 'attent\[deepspeed\]'"):
        start("classify", ClassifyConfig(**CLASSIFY), silent)


@pytest.mark.slow
def test_each_process_keeps_half_of_the_moments(tmp_path):
    """Updates are torch's; moments are home again also where a step has failed."""
    pytest.importorskip("deepspeed")
    done(torchrun(2, str(tmp_path), module="tests.tasks.zeroed", **ZERO))
    whole = 2 * sum(torch.Size(shape).numel() for shape in SHAPES.values())  # two averages of each
    padded = 2 * 2 * 3  # two averages of two groups, each made up to a multiple of four
    for rank, stage in itertools.product(range(2), ("1", "2")):
        found = json.loads((tmp_path / f"{rank}.json").read_text())[stage]
        assert whole / 2 <= found["kept"] <= whole / 2 + padded
        assert "bias is 2, of other parameters 4: ZeRO keeps one" in found["refused"]
        for name, values in updated_alone().items():
            assert found["state"][name] == pytest.approx(values, rel=1e-5, abs=1e-6), name


@pytest.mark.slow
def test_a_configured_run_is_that_of_one_process(rows, tmp_path):
    """By accelerate's file of settings; AdamW, in two parts a step, its moments too."""
    pytest.importorskip("deepspeed")
    options = OPTIONS | {
        "data": str(rows), "model_name_or_path": LLAMA, "pretrain_epochs": 0, "epochs": 2,
        "method": "attent_simple", "scores": "fresh", "threads": 1,
    }  # fmt: skip
    config = InstructConfig(**options, accumulate=2, clip=0.1, output_dir=str(tmp_path / "one"))
    start("instruct", config, silent)
    (tmp_path / "ds.yaml").write_text(
        "compute_environment: LOCAL_MACHINE\ndistributed_type: DEEPSPEED\nmixed_precision: 'no'\n"
        "num_machines: 1\nnum_processes: 2\ndeepspeed_config:\n  zero_stage: 2\n"
        "  gradient_accumulation_steps: 2\n  gradient_clipping: 0.1\n"
    )
    words = ["instruct", *flags(options | {"output_dir": str(tmp_path / "two")})]
    said = done(accelerate("--config_file", str(tmp_path / "ds.yaml"), *words))
    assert said.count("moments are shared out over 2 processes (DeepSpeed, ZeRO)") == 1
    one, two = (last_state(tmp_path / name) for name in ("one", "two"))
    assert torch.equal(one["mask"], two["mask"])
    for group in ("clock", "ledger", "plan"):
        assert differences(one[group], two[group]) == []
    for group in ("params", "optim"):
        for (path, x), (_, y) in zip(leaves(one[group]), leaves(two[group]), strict=True):
            assert float((x - y).norm() / x.norm().clamp_min(1e-9)) < 1e-3, path


@pytest.fixture(scope="module")
def killed(digits_file, tmp_path_factory) -> Path:
    """A run by DeepSpeed, one of whose processes is killed on the way."""
    pytest.importorskip("deepspeed")
    folder = tmp_path_factory.mktemp("zero") / "run"
    words = ["classify", "--data", str(digits_file), "--output_dir", str(folder)]
    words += [*flags(CLASSIFY), "--save_every", "0.5"]
    process = torchrun(2, *words, module="tests.tasks.dying", **ZERO)
    said, _ = process.communicate(timeout=300)
    assert process.returncode != 0
    assert f"attent resume {folder}" in said
    return folder


@pytest.mark.slow
def test_it_goes_on_without_deepspeed(killed, alone, tmp_path):
    shutil.copytree(killed, tmp_path / "run")
    resume(tmp_path / "run", silent)
    assert_same_run(alone, tmp_path / "run")


@pytest.mark.slow
def test_it_goes_on_with_deepspeed(killed, alone, tmp_path):
    shutil.copytree(killed, tmp_path / "run")
    stage = {"ACCELERATE_DEEPSPEED_ZERO_STAGE": "2"}
    said = done(torchrun(2, "resume", str(tmp_path / "run"), **ZERO | stage))
    assert said.count("resuming") == 1
    assert_same_run(alone, tmp_path / "run")
