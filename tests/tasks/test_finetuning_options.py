"""Options of fine-tuning: decay by layer, averages, resuming, what has no effect, what is wrong."""

from __future__ import annotations

import re
import shlex

import pytest
import torch
from safetensors.torch import load_file

from attent.models.layers import layer_scales
from attent.pipeline import load_state
from attent.pipeline.observers import read_log
from attent.tasks.commands import COMMANDS
from attent.tasks.config import ConfigError, without_effect
from attent.tasks.folder import RunFolder
from attent.tasks.run import load_trained, resume
from tests.tasks.finetuned import SELECT, SMALL, flags, held_out, options, trained
from tests.tasks.test_cli import only_an_error
from tests.tasks.test_resume import assert_same_end, interrupted, last_checkpoint, silent

LINEAR = {"head": "linear"}


# --- decay by layer


@pytest.mark.parametrize("command", ["segment", "classify"])
def test_a_step_is_shorter_the_farther_a_layer_is_from_the_head(tmp_path, command):
    """One step of plain gradient descent: the decayed step is the other, scaled."""
    one = {"epochs": 1, "num_train": 6, "optimizer": "sgd", "momentum": 0.0, "weight_decay": 0.0}
    one |= {"lr": 0.1, "min_lr": 0.1} | (LINEAR if command == "segment" else {})
    run = COMMANDS[command].build(options(command, **one))
    before = {name: value.clone() for name, value in run.state["params"].items()}
    steps = []
    for decay in (1.0, 0.5):
        folder = trained(command, tmp_path / str(decay), **one, layer_decay=decay)
        assert read_log(folder.log)[-1]["step"] == 1
        after = load_file(folder.weights)
        steps.append({name: after[name] - value for name, value in before.items()})
    scales = layer_scales(run.task.model, 0.5)
    # Two blocks: 0.5 ** 3 for tokens, 0.5 ** 2 and 0.5 for the blocks, 1 for the head.
    assert set(scales.values()) == {0.125, 0.25, 0.5, 1.0}
    moved = 0
    for name, step in steps[0].items():
        close = {"rtol": 1e-3, "atol": 1e-7}
        torch.testing.assert_close(steps[1][name], scales[name] * step, **close)
        moved += bool((step.abs() > 1e-5).any())
    assert moved > 20
    assert len({scales[name] for name in steps[0] if steps[0][name].any()}) == 4


# --- global tokens


@pytest.mark.parametrize("command", ["segment", "depth", "classify"])
@pytest.mark.parametrize("number", [0, 2])
def test_an_encoder_has_as_many_global_tokens_as_asked_for(command, number):
    heads = {} if command == "classify" else LINEAR
    run = COMMANDS[command].build(options(command, num_global_tokens=number, **heads))
    shapes = {name: value.shape for name, value in run.state["params"].items()}
    assert shapes["global_tokens"] == (1, number, 16)


# --- averages


@pytest.fixture(scope="module")
def averaged(tmp_path_factory) -> RunFolder:
    """A segmentation that selects, its weights averaged."""
    return trained("segment", tmp_path_factory.mktemp("ema") / "run", **AVERAGED)


AVERAGED = LINEAR | SELECT | {
    "ema": 0.9, "drop_path": 0.1, "signal": "grad_norm", "num_train": 12, "batch_size": 4,
    "save_every": 0.3,
}  # fmt: skip


def test_averages_are_what_is_evaluated_and_exported(averaged):
    saved, _ = load_state(last_checkpoint(averaged))
    exported = load_file(averaged.weights)
    different = 0
    for name, value in saved["ema"].items():
        assert torch.equal(exported[name], value)
        different += not torch.equal(value, saved["params", name])
    assert different > 20
    run, _ = load_trained(averaged)
    batch = run.held_out.fetch(torch.arange(6))
    model = run.task.model
    model.load_state_dict(exported, strict=True)
    with torch.no_grad():
        losses = run.task.losses(run.task.forward(model.eval(), batch), batch)
    assert float(losses.mean()) == pytest.approx(held_out(averaged)["loss"], rel=1e-5)


@pytest.mark.parametrize("at", [1, 4, 6])
def test_a_killed_run_with_averages_ends_as_it_would_have(averaged, monkeypatch, tmp_path, at):
    folder = RunFolder(tmp_path / "run")
    with interrupted(monkeypatch, at):
        trained("segment", folder.path, **AVERAGED)
    assert not folder.weights.exists()
    resume(folder.path, silent)
    assert_same_end(averaged, folder)


def test_averages_by_hand(tmp_path):
    """Of two steps: 0.9 ** 2 of the first weights, 0.09 and 0.1 of those after each step."""
    changed = LINEAR | {"epochs": 1, "num_train": 12, "lr": 0.1, "steps_per_tick": 1}
    first = COMMANDS["depth"].build(options("depth", **changed)).state["params"].clone()
    folder = trained("depth", tmp_path / "run", **changed, ema=0.9, save_every=0.1)
    states = [load_state(path)[0] for path in sorted(folder.checkpoints.glob("checkpoint-*"))]
    assert [int(state["clock", "step"]) for state in states] == [0, 1, 2]
    for name, value in states[2]["ema"].items():
        after = [state["params", name] for state in states[1:]]
        expected = 0.81 * first[name] + 0.09 * after[0] + 0.1 * after[1]
        torch.testing.assert_close(value, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("command", ["depth", "classify"])
def test_the_others_are_resumed_exactly(monkeypatch, tmp_path, command):
    drawn = {
        "depth": LINEAR | {"in_domains": "rgb-semseg"},
        "classify": {
            "crop_scale": 0.3, "flip": 0.5, "rand_augment": 9, "mixup": 0.8, "cutmix": 1.0,
        },
    }[command]  # fmt: skip
    changed = SELECT | drawn | {"drop_path": 0.1, "num_train": 12, "batch_size": 4}
    whole = trained(command, tmp_path / "whole", **changed)
    folder = RunFolder(tmp_path / "run")
    with interrupted(monkeypatch, 3):
        trained(command, folder.path, **changed)
    with interrupted(monkeypatch, 6):
        resume(folder.path, silent)
    resume(folder.path, silent)
    assert_same_end(whole, folder)


# --- plans, and options without effect


def test_a_plan_of_each_command(attent):
    for command in ("segment", "depth", "classify"):
        status, printed, err = attent("plan", command, *flags(SMALL[command]))
        assert (status, err) == (0, "")
        assert "full: 48 examples trained on in 8 steps of 6" in printed


IDLE = [
    ("segment", {"layout": "nyuv2"}, "layout = nyuv2 has no effect: scenes are rendered"),
    ("segment", {"num_semseg_classes": 9}, "num_semseg_classes = 9 .*: semseg is not encoded"),
    ("segment", {"augment": False, "scale_min": 0.5}, "scale_min = 0.5 .*: augment is false"),
    ("segment", {"augment": False, "hflip": 0.0}, "hflip = 0.0 has no effect: augment is false"),
    ("segment", {"data": "folder"}, "num_train = 24 .*: only data scenes are rendered"),
    ("depth", {"augment": False, "hflip": 0.0}, "hflip = 0.0 has no effect: augment is false"),
    ("depth", {"target": "normal", "max_depth": 5.0}, "max_depth = 5.0 .*: target is normal"),
    ("classify", {"held_out": 0.3}, "held_out = 0.3 .*: scenes have their own val split"),
    ("classify", {"data": "folder", "imbalance": 3.0}, "imbalance = 3.0 .*only data scenes are"),
    ("classify", {"data": "folder", "held_out": 0.3}, "held_out = 0.3 .*: a folder has its own"),
    ("classify", {"data": "digits", "crop_pct": 0.5}, "crop_pct = 0.5 .*: digits data are not cro"),
    ("classify", {"data": "a.npz", "image_size": 9}, "image_size = 9 .*: .npz data keep their"),
    ("classify", {"model": "vit_digits", "pool": "last"}, "pool = last .*: model is vit_digits"),
    ("classify", {"model": "vit_digits", "num_global_tokens": 2}, "num_global_tokens = 2 .*vit"),
    (
        "classify",
        {"pretrained": True},
        "pretrained = True .*multivit_SIZE takes pretrained_weights",
    ),
]


@pytest.mark.parametrize(("command", "changed", "message"), IDLE)
def test_options_without_effect_are_warned_of(command, changed, message):
    assert without_effect(options(command)) == []
    warned = without_effect(options(command, **changed))
    assert any(re.search(message, warning) for warning in warned), warned


def test_warnings_are_told_by_the_command(attent):
    given = flags(SMALL["segment"] | LINEAR | {"layout": "nyuv2"})
    status, _, err = attent("plan", "segment", *given)
    assert (status, err) == (0, "warning: layout = nyuv2 has no effect: scenes are rendered\n")


# --- what is wrong is told in a line

WRONG = {
    "segment --head linaer": "head: Expected a one of ['convnext', 'dpt', 'segmenter', 'linear']",
    "depth --head segmenter": "['dpt', 'convnext', 'linear']. Got value: segmenter",
    "segment --model multivit_mirco": "no model 'multivit_mirco'",
    "segment --model vit_tiny_patch16_224": "no model 'vit_tiny_patch16_224' (multivit_micro",
    "segment --model_args '{\"dims\": 16}'": "model_args: no 'dims'",
    "segment --head_args '{\"embed\": 16}'": "no argument of head 'linear' 'embed'",
    "segment --input_size 30": "input_size 30 is not a whole number of patches of patch_size 8",
    "segment --patch_size 0": "patch_size must be at least 1, got 0",
    "segment --in_domains rgb-dept": "in_domains names rgb, dept; it takes rgb, depth, semseg",
    "segment --in_domains rgb-rgb": "in_domains names rgb, rgb; it takes",
    "segment --in_domains ''": "in_domains names nothing; it takes rgb, depth, semseg",
    "segment --in_domains rgb-semseg": "the input semseg is what is to be predicted",
    "depth --in_domains rgb-depth": "the input depth is what is to be predicted",
    "depth --pseudo_domains rgb": "pseudo_domains names rgb; it takes depth, semseg",
    "depth --pseudo_domains depth": "pseudo_domains names depth: of data scenes no network has",
    "depth --target normals": "target: Expected a one of ['depth', 'depth_zbuffer', 'edge_te",
    "depth --target normal": "target normal: data scenes have depth; take a folder of Taskonomy",
    "depth --error l3": "error: Expected a one of ['berhu', 'l1', 'l2']. Got value: l3",
    "depth --max_depth 0": "max_depth must be above 0, or null, got 0",
    "depth --target_deviation 0": "target_deviation must be above 0, or null",
    "depth --max_depth 0.001": "target_mean and target_deviation cannot be measured",
    "segment --num_classes 1": "num_classes must be 2 to 254, or null, got 1",
    "segment --num_classes 3": "semseg holds the id",
    "segment --scale_min 3": "scale_min must be above 0, at most scale_max, got 3",
    "segment --hflip 2": "hflip must be in [0, 1], got 2",
    "segment --layer_decay 0": "layer_decay must be in (0, 1], got 0",
    "segment --ema 1": "ema must be in [0, 1), or null, got 1",
    "segment --drop_path 1": "drop_path must be in [0, 1), got 1",
    "segment --pretrained_weights nowhere": "there is no file of weights nowhere",
    "segment --pretrained_weights .": "holds no model.safetensors: it is no finished run",
    "segment --pretrained_weights timm:vit_of_none": "no model 'vit_of_none' here or in timm",
    "segment --data nowhere": "data: there is no nowhere; it is 'scenes' or a folder",
    "classify --data digits": "model multivit_micro sees rgb; images have 1 channels",
    "classify --num_global_tokens -1": "num_global_tokens must be at least 0, got -1",
    "classify --pool maen": "pool: Expected a one of ['mean', 'last']. Got value: maen",
    "classify --crop_scale 0": "crop_scale must be in (0, 1], got 0",
    "classify --crop_pct 2": "crop_pct must be in (0, 1], got 2",
    "classify --rand_augment 11": "rand_augment must be 0 to 10, got 11",
    "classify --mixup -1": "mixup must be at least 0, got -1",
    "classify --num_classes 4": "labels out of range: training example",
    "classify --image_size 30": "input_size 30 is not a whole number of patches of 8 pixels",
}  # fmt: skip


@pytest.mark.parametrize("words", WRONG)
def test_wrong_options_are_told_in_a_line_and_leave_nothing_behind(attent, tmp_path, words):
    command, *given = shlex.split(words)
    heads = {} if command == "classify" else LINEAR
    status, out, err = attent(command, *flags(SMALL[command] | heads), *given)
    lines = [line for line in err.splitlines() if not line.startswith("warning: ")]
    told = only_an_error(status, out, "\n".join(lines))
    assert WRONG[words] in told
    if "semseg holds" not in WRONG[words]:
        assert list(tmp_path.iterdir()) == []


def test_wrong_values_in_python():
    with pytest.raises(
        ConfigError, match="head must be one of 'convnext', 'dpt', 'segmenter', 'li"
    ):
        options("segment", head="linaer")
    with pytest.raises(ConfigError, match="num_semseg_classes must be at least 1, or null, got 0"):
        options("segment", num_semseg_classes=0)


@pytest.mark.parametrize("command", ["segment", "depth", "classify"])
def test_every_option_is_explained(command):
    kind = COMMANDS[command].config
    told = "\n".join(base.__doc__ or "" for base in kind.__mro__)
    missing = [name for name in kind.__dataclass_fields__ if f"\n        {name}: " not in told]
    assert missing == []
