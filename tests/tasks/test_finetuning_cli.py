"""``attent segment``, ``attent depth`` and ``attent classify`` on a MultiViT, from end to end."""

from __future__ import annotations

import base64
import re

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file

from attent.models.vit import build_vit
from attent.pipeline.observers import read_log
from attent.tasks.commands import COMMANDS
from attent.tasks.folder import RunFolder
from attent.tasks.run import resume
from tests.tasks.finetuned import SELECT, SMALL, held_out, options, trained
from tests.tasks.test_resume import assert_same_end, interrupted, silent

HEADS = {
    "segment": ("convnext", "dpt", "segmenter", "linear"),
    "depth": ("dpt", "convnext", "linear"),
}
EVERY = [(command, head) for command, heads in HEADS.items() for head in heads]
NARROW = {
    "convnext": {"embed_dim": 64},
    "dpt": {"features": 8, "widths": [8, 8, 8, 8]},
    "segmenter": {"num_blocks": 1},
    "linear": None,
}
COMMANDS_HERE = ("segment", "depth", "classify")


def of(command: str, head: str | None = None, **changed):
    """Options of a small run with a narrow head."""
    heads = {} if head is None else {"head": head, "head_args": NARROW[head]}
    return heads | changed


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory) -> RunFolder:
    """A finished run of pre-training on rgb, depth and semseg."""
    return trained("pretrain", tmp_path_factory.mktemp("pretrained") / "run")


def scores_of(folder: RunFolder) -> np.ndarray:
    """The scores by which the subset was selected."""
    for path in sorted(folder.selections.iterdir()):
        with np.load(path) as file:
            if file["num_selected"] < file["num_examples"]:
                return file["scores"]
    raise AssertionError("no subset was selected")


# --- one run of each command: a YAML file, flags, a report

PICTURES = {"segment": "segmentations", "depth": "maps"}
FIGURES = {
    "segment": {"miou", "pixel_accuracy", "mean_accuracy", "loss"},
    "depth": {"l1", "loss", "delta1", "delta2", "delta3", "rmse", "abs_rel", "log10"},
    "classify": {"accuracy", "top5", "loss"},
}


@pytest.mark.parametrize("command", COMMANDS_HERE)
def test_a_file_and_flags_make_a_run_and_its_report(attent, pretrained, tmp_path, command):
    given = SMALL[command] | SELECT | {"epochs": 99, "seed": 3}
    if command != "classify":
        given |= of(command, "linear")
    (tmp_path / "ours.yaml").write_text(yaml.safe_dump(given))
    words = ["--epochs=4", "--config", "ours.yaml", "--pretrained_weights", pretrained.path]
    status, out, err = attent(command, *words, "--seed", "0", "--output_dir", "run")
    assert (status, out) == (0, ""), err
    folder = RunFolder(tmp_path / "run")
    wanted = given | {"epochs": 4, "seed": 0, "pretrained_weights": str(pretrained.path)}
    name, config = folder.load_config()
    assert name == command
    assert {k: getattr(config, k) for k in wanted} == wanted
    assert read_log(folder.log)[-1]["seen"] == 4 * 24
    found = held_out(folder)
    assert set(found) == FIGURES[command] | {"step"}
    measure = COMMANDS[command].measures[0]
    told = f"{measure.title} {measure.text(found[measure.metric.removeprefix('val_')])}"
    assert err.splitlines()[-3:] == [
        told, "run folder run", "report run/report/report.html",
    ]  # fmt: skip
    assert len(np.unique(scores_of(folder))) == 24
    page = (tmp_path / "run" / "report" / "report.html").read_text()
    if command == "classify":
        return
    path = tmp_path / "run" / "report" / f"{PICTURES[command]}.png"
    assert base64.b64encode(path.read_bytes()).decode() in page
    pixels = np.array(Image.open(path).convert("RGB"))
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 300
    rows = page.split("Held-out figures by part</h2>")[1].split("</table>")[0]
    parts = COMMANDS[command].parts
    values = [part.text(found[part.metric.removeprefix("val_")]) for part in parts]
    cells = re.findall(r"<t[hd]>(.*?)</t[hd]>", rows)
    assert cells == ["run", *(part.title for part in parts), "run", *values]


@pytest.mark.parametrize(("command", "head"), EVERY)
def test_every_head_is_trained(tmp_path, command, head):
    folder = trained(command, tmp_path / "run", **of(command, head, epochs=6, num_train=12))
    figures = {line["val_step"]: line["val_loss"] for line in read_log(folder.log)
               if "val_step" in line}  # fmt: skip
    assert np.isfinite(list(figures.values())).all()
    losses = [line["train_loss"] for line in read_log(folder.log)]
    assert losses[-1] < losses[0]
    assert all(bool(value.isfinite().all()) for value in load_file(folder.weights).values())


@pytest.mark.parametrize("command", COMMANDS_HERE)
def test_several_modalities_are_encoded_and_all_is_repeatable(tmp_path, command):
    changed = {
        "segment": of("segment", "linear", in_domains="rgb-depth"),
        "depth": of("depth", "linear", in_domains="rgb-semseg"),
        "classify": {"crop_scale": 0.3, "rand_augment": 5, "mixup": 0.8, "flip": 0.5},
    }[command]
    runs = [
        trained(command, tmp_path / name, epochs=1, drop_path=0.1, workers=workers, **changed)
        for name, workers in (("a", 0), ("b", 2))
    ]
    first, second = (load_file(folder.weights) for folder in runs)
    assert all(torch.equal(first[name], second[name]) for name in first)
    if command != "classify":
        domain = {"segment": "depth", "depth": "semseg"}[command]
        assert any(f"input_adapters.{domain}." in name for name in first)


# --- weights to start from


def built(command: str, **changed) -> dict[str, torch.Tensor]:
    """Parameters and buffers before the first step."""
    run = COMMANDS[command].build(options(command, **changed))
    found = {**run.state["buffers"], **run.state["params"]}
    return {name: value.clone() for name, value in found.items()}


@pytest.mark.parametrize(("command", "head"), [*EVERY, ("classify", None)])
def test_the_encoder_starts_from_the_runs_weights_and_the_head_afresh(pretrained, command, head):
    saved = load_file(pretrained.weights)
    path = str(pretrained.path)
    started = built(command, **of(command, head, pretrained_weights=path))
    fresh = built(command, **of(command, head))
    heads = [name for name in started if name.startswith("output_adapters.")]
    encoder = [name for name in started if name not in heads]
    assert len(encoder) > 20
    assert all(torch.equal(started[name], saved[name]) for name in encoder)
    assert not all(torch.equal(fresh[name], saved[name]) for name in encoder)
    assert len(heads) >= 2
    assert all(torch.equal(started[name], fresh[name]) for name in heads)


def test_every_modality_starts_from_the_runs_weights_and_no_class_from_zero(pretrained):
    saved = load_file(pretrained.weights)
    started = built(
        "depth", **of("depth", "linear", in_domains="rgb-semseg"),
        pretrained_weights=str(pretrained.path),
    )  # fmt: skip
    table = "input_adapters.semseg.class_emb.weight"
    assert len(saved[table]) == 8  # the scenes' own classes, without being told
    assert len(started[table]) == len(saved[table]) + 1
    assert torch.equal(started[table][:-1], saved[table])
    assert not started[table][-1].any()
    others = [n for n in started if n.startswith(("input_", "encoder.")) and n != table]
    assert all(torch.equal(started[name], saved[name]) for name in others)


def test_another_input_size_resamples_the_positions(pretrained):
    saved = load_file(pretrained.weights)
    started = built("segment", **of("segment", "linear"), input_size=48,
                    pretrained_weights=str(pretrained.path))  # fmt: skip
    name = "input_adapters.rgb.pos_emb"
    assert (saved[name].shape[-2:], started[name].shape[-2:]) == ((4, 4), (6, 6))
    assert torch.equal(started["encoder.0.attn.qkv.weight"], saved["encoder.0.attn.qkv.weight"])


@pytest.mark.parametrize("command", COMMANDS_HERE)
def test_weights_of_a_vision_transformer_of_timm(monkeypatch, tmp_path, command):
    torch.manual_seed(7)
    vit = build_vit(
        "vit_tiny_patch16_224", num_classes=0, img_size=32,
        model_args={"patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2},
    )  # fmt: skip
    asked = []

    def stand_in(name, **given):
        asked.append((name, given))
        return vit

    monkeypatch.setattr("attent.tasks.initial.build_vit", stand_in)
    changed = {} if command == "classify" else of(command, "linear")
    started = built(command, **changed, pretrained_weights="timm:vit_of_ours")
    assert asked == [("vit_of_ours", {"num_classes": 0, "pretrained": True})]
    weights = vit.state_dict()
    for name in ("attn.qkv.weight", "mlp.fc2.bias", "norm1.weight"):
        assert torch.equal(started[f"encoder.1.{name}"], weights[f"blocks.1.{name}"])
    tokens = [value for name, value in started.items() if name.startswith("input_adapters.rgb")]
    assert any(torch.equal(v, weights["patch_embed.proj.weight"]) for v in tokens)
    if command == "segment":
        folder = trained(
            "segment", tmp_path / "run", **changed, epochs=1, pretrained_weights="timm:vit_of_ours"
        )
        assert folder.load_config()[1].pretrained_weights == "timm:vit_of_ours"


def test_a_run_that_was_started_from_weights_goes_on_without_them(
    pretrained, monkeypatch, tmp_path
):
    gone = tmp_path / "weights.safetensors"
    gone.write_bytes(pretrained.weights.read_bytes())
    changed = of("depth", "linear", pretrained_weights=str(gone))
    whole = trained("depth", tmp_path / "run", **changed)
    other = RunFolder(tmp_path / "cut")
    with interrupted(monkeypatch, 4):
        trained("depth", other.path, **changed)
    gone.unlink()
    resume(other.path, silent)
    assert_same_end(whole, other)


# --- signals

NORMS = ("grad_norm", "vmap_grad_norm", "looped_grad_norm")


@pytest.mark.parametrize("command", COMMANDS_HERE)
def test_every_signal_scores_and_the_gradient_norms_agree(tmp_path, command):
    changed = {} if command == "classify" else of(command, "linear")
    scores = {}
    for signal in ("loss", "last_layer", "output_grad_norm", *NORMS):
        given = changed | SELECT | {"signal": signal, "num_train": 12, "batch_size": 4}
        scores[signal] = scores_of(trained(command, tmp_path / signal, **given))
    for found in scores.values():
        assert found.shape == (12,)
        assert np.isfinite(found).all()
        assert (found > 0).all()
    for signal in NORMS[1:]:
        np.testing.assert_allclose(scores[signal], scores["grad_norm"], rtol=1e-3)
    # Parts of the gradient are not all of it, and a loss is no gradient.
    assert (scores["last_layer"] < scores["grad_norm"]).all()
    kinds = {name: np.round(found, 4).tobytes() for name, found in scores.items()
             if name not in NORMS[1:]}  # fmt: skip
    assert len(set(kinds.values())) == len(kinds)


@pytest.mark.parametrize(
    "changed",
    [
        {"scores": "observed"},
        {"scores": "observed", "signal": "grad_norm"},
        {"method": "attent_simple", "attent_ratio": 0.5},
        {"selection_strategy": "soft"},
        {"bf16": True},
    ],
    ids=str,
)
@pytest.mark.parametrize("command", COMMANDS_HERE)
def test_other_kinds_of_selection_run(tmp_path, command, changed):
    heads = {} if command == "classify" else of(command, "linear")
    given = heads | SELECT | {"num_train": 12, "batch_size": 4} | changed
    folder = trained(command, tmp_path / "run", **given)
    assert np.isfinite(scores_of(folder)).all()
    assert np.isfinite(list(held_out(folder).values())).all()
