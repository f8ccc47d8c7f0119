"""The options of pre-training: the documented YAML, domains as lists or joined, what is refused."""

from __future__ import annotations

import dataclasses
import re

import pytest
import yaml

from attent.tasks.config import ConfigError, as_dict, from_dict, without_effect
from attent.tasks.pretraining.config import PretrainConfig

DOCUMENTED = """
model: pretrain_multimae_base
input_size: 224
patch_size: 16
in_domains: [rgb, depth, semseg]
batch_size: 32
epochs: 400
lr: 1.5e-4
weight_decay: 0.05
warmup_epochs: 40
ratio_schedule: cosine
selection_strategy: hard
initial_ratio: 0.2
final_ratio: 0.8
total_cycles: 10
"""


def test_the_documented_yaml_is_one_flag_from_what_was_published(capsys, tmp_path, monkeypatch):
    """Of the method's own documentation; the model made small, which the plan does not show."""
    from attent.tasks.cli import main

    monkeypatch.chdir(tmp_path)
    (tmp_path / "my.yaml").write_text(DOCUMENTED)
    small = '{"dim": 32, "depth": 1, "num_heads": 2}'
    plan = ["plan", "my.yaml", "--model_args", small, "--num_train", "50"]
    assert main([*plan, "--method", "attent_complex"]) == 0
    told = capsys.readouterr()
    # 400 epochs of 50; the ten subset intervals of 5 and the rest in full epochs.
    assert "attent_complex: 20,000 examples trained on" in told.out
    assert "500 scored" in told.out
    assert told.err == ""
    # It names no method: that nothing is selected is said of every option that asks for it.
    assert main(plan) == 0
    told = capsys.readouterr()
    assert "full: 20,000 examples trained on" in told.out
    assert re.findall(r"warning: (\w+) = \S+ has no effect: method is full; attent_", told.err) == [
        "total_cycles", "initial_ratio", "final_ratio", "ratio_schedule", "selection_strategy",
    ]  # fmt: skip


def test_domains_joined_by_hyphens_are_lists():
    config = PretrainConfig(in_domains="rgb-depth", out_domains="semseg-rgb")
    assert config.in_domains == ["rgb", "depth"]
    assert config.out_domains == ["semseg", "rgb"]
    assert config.domains == ["rgb", "depth", "semseg"]
    assert config == PretrainConfig(in_domains=["rgb", "depth"], out_domains=["semseg", "rgb"])


def test_the_learning_rate_follows_the_batch_unless_it_is_given():
    assert PretrainConfig(batch_size=2048).peak_lr == pytest.approx(8e-4)  # the published recipe
    assert PretrainConfig(lr=1.5e-4).peak_lr == 1.5e-4


def test_a_config_survives_yaml():
    config = PretrainConfig(alphas=[1.0, 2.0, 0.5], in_domains="rgb-depth-semseg", lr=1e-4)
    text = yaml.safe_dump(as_dict(config))
    assert from_dict(PretrainConfig, yaml.safe_load(text), "test") == config


def test_the_defaults_are_the_published_recipe():
    config = PretrainConfig()
    assert (config.model, config.input_size, config.patch_size) == (
        "pretrain_multimae_base", 224, 16,
    )  # fmt: skip
    assert (config.num_encoded_tokens, config.alphas) == (98, 1.0)
    assert (config.epochs, config.warmup_epochs, config.batch_size) == (1600, 40, 256)
    assert (config.blr, config.betas, config.weight_decay) == (1e-4, [0.9, 0.95], 0.05)
    assert (config.decoder_dim, config.decoder_depth, config.decoder_num_heads) == (256, 2, 8)
    assert config.extra_norm_pix_loss
    assert config.standardize_depth
    assert (config.hflip, config.fp32_output_adapters) == (0.5, ["semseg"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"in_domains": "rgb-dpeth"}, "in_domains names rgb, dpeth; it takes rgb, depth, semseg"),
        ({"out_domains": []}, "out_domains names nothing"),
        ({"in_domains": ["rgb", "rgb"]}, "in_domains names rgb, rgb"),
        ({"alphas": [1.0, 1.0]}, "alphas are 2 numbers for 3 in_domains"),
        ({"alphas": 0}, "alphas must be above 0"),
        ({"alphas": []}, "alphas must be above 0"),
        ({"alphas": "even"}, "alphas must be a number or a list, each a number, got 'even'"),
        ({"fp32_output_adapters": "sem"}, "fp32_output_adapters names sem; it takes rgb, depth"),
        ({"hflip": 1.1}, r"hflip must be in \[0, 1\], got 1.1"),
        ({"crop_scale": 0.0}, r"crop_scale must be in \(0, 1\], got 0.0"),
        ({"drop_path": 1.0}, r"drop_path must be in \[0, 1\), got 1.0"),
        ({"imbalance": 0.5}, "imbalance must be at least 1, got 0.5"),
        ({"num_semseg_classes": 1}, "num_semseg_classes must be at least 2, or null, got 1"),
        ({"num_global_tokens": -1}, "num_global_tokens must be at least 0, got -1"),
        ({"score_masks": 0}, "score_masks must be at least 1, got 0"),
        ({"task_balancer": "magic"}, "task_balancer must be one of 'none', 'uncertainty', 'softm"),
        ({"lr": None, "blr": None}, "lr and blr are both null"),
    ],
    ids=str,
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        PretrainConfig(**options)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"data": "photos", "num_train": 7}, "num_train"),
        ({"in_domains": "rgb", "out_domains": "rgb", "standardize_depth": False}, "standardize_de"),
        ({"in_domains": "rgb", "out_domains": "rgb", "num_semseg_classes": 9}, "num_semseg_clas"),
        ({"out_domains": "depth", "extra_norm_pix_loss": False}, "extra_norm_pix_loss"),
        ({"fp32_output_adapters": []}, "fp32_output_adapters"),
        ({"lr": 1e-4, "blr": 2e-4}, "blr"),
        ({"max_interval": 50}, "max_interval"),
    ],
    ids=str,
)
def test_options_without_effect_are_told(options, named):
    assert [line for line in without_effect(PretrainConfig(**options)) if named in line]
    assert without_effect(PretrainConfig()) == []


def test_every_option_is_explained_in_the_help(monkeypatch, capsys):
    from attent.tasks.cli import main

    monkeypatch.setenv("COLUMNS", "1000")
    with pytest.raises(SystemExit, match=r"^0$"):
        main(["pretrain", "--help"])
    text = capsys.readouterr().out
    chunks = {re.split(r"\W", part)[0]: part for part in text.split("\n  --")[1:]}
    for field in dataclasses.fields(PretrainConfig):
        assert len(chunks[field.name].split("(type:")[0].split()) > 3, field.name
