"""The ready-made configs of fine-tuning, against the table of the method's documentation."""

from __future__ import annotations

from importlib import resources

import pytest

from attent.tasks.classification.config import ClassifyConfig
from attent.tasks.cli import _config_of, main, parser, rewritten
from attent.tasks.commands import COMMANDS
from attent.tasks.config import without_effect

CONFIGS = resources.files("attent.tasks.configs")

# The documentation's columns: of Hypersim and NYUv2's depth not in mixed precision. A batch is
# that of a GPU times the GPUs.
ROWS = (
    "command", "epochs", "warmup_epochs", "min_lr", "weight_decay", "batch_size", "input_size",
    "layer_decay", "drop_path", "head", "eval_every", "bf16",
)  # fmt: skip
TABLE = {
    "imagenet": ("classify", 100, 5, 1e-6, 0.05, 128 * 8, 224, 0.65, 0.1, "linear", 1, True),
    "ade20k": ("segment", 64, 1, 0, 0.05, 4 * 4, 512, 0.75, 0.1, "convnext", 1, True),
    "hypersim": ("segment", 25, 1, 0, 0.05, 4 * 4, 512, 0.75, 0.1, "convnext", 1, False),
    "nyuv2_segment": ("segment", 200, 1, 0, 0.05, 2 * 4, 640, 0.75, 0.1, "convnext", 20, True),
    "nyuv2_depth": ("depth", 2000, 100, 0, 1e-4, 64 * 2, 256, 0.75, 0.0, "dpt", 250, False),
    "taskonomy": ("depth", 100, 5, 0, 0.05, 8 * 1, 384, 0.75, 0.1, "dpt", 5, True),
}
FURTHER = {
    "imagenet": {
        "lr": None, "blr": 5e-4, "peak_lr": 5e-4 * 1024 / 256, "num_classes": 1000, "pool": "mean",
        "mixup": 0.8, "cutmix": 1.0, "label_smoothing": 0.1, "rand_augment": 9, "crop_scale": 0.08,
        "flip": 0.5, "crop_pct": 224 / 256, "ema": None,
    },
    "ade20k": {"lr": 1e-4, "layout": "ade20k", "num_classes": 150},
    "hypersim": {"lr": 1e-4, "layout": "folders", "num_classes": 40},
    "nyuv2_segment": {"lr": 1e-4, "layout": "nyuv2", "num_classes": 40},
    "nyuv2_depth": {
        "lr": 1e-4, "layout": "nyuv2", "target": "depth", "error": "berhu", "max_depth": None,
        "target_mean": 2070.7764 / 1000, "target_deviation": 777.5723 / 1000, "hflip": 0.5,
    },
    "taskonomy": {
        "lr": 3e-4, "layout": "taskonomy", "target": "depth_zbuffer", "error": "l1",
        "target_mean": 0, "target_deviation": 1,
    },
}  # fmt: skip
OF_SEGMENTS = {
    "reduce_zero_label": True, "scale_min": 0.1, "scale_max": 2.0, "hflip": 0.5,
    "head_args": {"embed_dim": 6144, "preds_per_patch": 16, "num_blocks": 4},
}  # fmt: skip
ALL = {
    "model": "multivit_base", "patch_size": 16, "optimizer": "adamw", "betas": [0.9, 0.999],
    "method": "full", "clip": None, "pretrained_weights": None, "model_args": None,
}  # fmt: skip


def loaded(name: str, *flags: str):
    """(command, options) of a ready-made file, as the command line reads it."""
    command = TABLE[name][0]
    parsed = parser().parse_args([command, "--config", str(CONFIGS / f"{name}.yaml"), *flags])
    return command, _config_of(parsed[command], command)


@pytest.mark.parametrize("name", TABLE)
def test_every_figure_is_that_of_the_table(name):
    command, config = loaded(name)
    assert isinstance(config, COMMANDS[command].config)
    wanted = ALL | FURTHER[name] | dict(zip(ROWS[1:], TABLE[name][1:], strict=True))
    if command == "segment":
        wanted |= OF_SEGMENTS
    if isinstance(config, ClassifyConfig):
        wanted["image_size"] = wanted.pop("input_size")
        assert wanted.pop("head") == "linear"  # it has no other
    else:
        wanted |= {"in_domains": ["rgb"], "augment": True, "num_global_tokens": 1}
    for option, value in wanted.items():
        found = getattr(config, option)
        assert found == (pytest.approx(value) if isinstance(value, float) else value), option


@pytest.mark.parametrize("name", TABLE)
def test_no_option_of_a_file_is_idle_and_its_data_are_a_placeholder(name):
    _, config = loaded(name)
    assert without_effect(config) == []
    assert config.data.startswith("path/to/")


def test_every_config_is_tested_here_or_has_data_of_its_own():
    names = {path.name.removesuffix(".yaml") for path in CONFIGS.iterdir() if ".yaml" in path.name}
    own = {
        name for name in names if "\ndata: path/to" not in (CONFIGS / f"{name}.yaml").read_text()
    }
    assert own == {"digits", "multimae_scenes", "detect_scenes", "stdlib_code"}
    assert names - own == set(TABLE)


@pytest.mark.parametrize("name", TABLE)
def test_flags_win_and_a_plan_is_of_the_right_command(name, tmp_path, capsys):
    _, config = loaded(name, "--data=elsewhere")
    assert config.data == "elsewhere"
    planning, argv = rewritten(["plan", str(CONFIGS / f"{name}.yaml")])
    assert (planning, argv[0]) == (True, TABLE[name][0])
    assert main(["plan", str(CONFIGS / f"{name}.yaml"), f"--data={tmp_path / 'none'}"]) == 2
    assert "data: there is no " in capsys.readouterr().err
