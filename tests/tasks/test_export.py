"""Weights that leave a run (``attent export``), and weights that a run starts from."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor, nn

from attent.models.multimae import Decoders, MultiMAE, build_multimae, build_multivit
from attent.models.multimae.weights import Loaded, load_weights, read_weights
from attent.models.vit import build_vit
from attent.pipeline.score import Frozen
from attent.pipeline.source import fetch_batch
from attent.tasks.data.scenes import SEMANTIC_CLASSES
from attent.tasks.folder import RunFolder
from attent.tasks.pretraining.build import build_pretrain
from attent.tasks.pretraining.config import PretrainConfig
from attent.tasks.pretraining.task import Hidden, MaskedPretraining, Output
from attent.tasks.run import load_trained, resume, start
from tests.tasks.test_cli import only_an_error, quick
from tests.tasks.test_pretrain_cli import ONCE, SMALL, STILL, evaluations, trained, written
from tests.tasks.test_resume import assert_same_end, interrupted, last_checkpoint, silent

ENCODER: dict[str, Any] = {"embed_dim": 16, "depth": 1, "num_heads": 2}
"""Of timm, what `SMALL` is here."""

TIMMS = "timm:vit_tiny_patch16_224"


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> RunFolder:
    return trained(tmp_path_factory.mktemp("export") / "run", **SMALL)


def fresh(seed: int) -> MultiMAE:
    """What `SMALL` trains, made by hand."""
    torch.manual_seed(seed)
    return build_multimae(
        "pretrain_multimae_micro",
        image_size=32,
        patch_size=8,
        num_semseg_classes=len(SEMANTIC_CLASSES),
        decoders=Decoders(dim=16, depth=1, num_heads=2),
        model_args={"dim": 16, "depth": 1, "num_heads": 2},
    )


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert [name for name in found if not torch.equal(found[name], expected[name])] == []


# --- out of a run


@pytest.mark.parametrize("output", [None, "mine/ours.pth", "ours.safetensors"])
def test_released_names_and_shapes_load_into_a_fresh_model(finished, attent, tmp_path, output):
    given = [] if output is None else ["--output", output]
    status, _, told = attent("export", str(finished.path), "--format", "multimae", *given)
    path = finished.path / "export" / "multimae.pth" if output is None else Path(output)
    assert (status, told) == (0, f"weights {path}\n")
    weights, model = read_weights(tmp_path / path), fresh(seed=9)
    shapes = {name: value.shape for name, value in model.state_dict().items()}
    assert {name: value.shape for name, value in weights.items()} == shapes
    if path.suffix == ".pth":  # as the released ones are, and nothing that has to be trusted
        assert list(torch.load(tmp_path / path, weights_only=True)) == ["model"]
    assert load_weights(model, weights, "the file") == Loaded((), (), ())
    assert_same(model.state_dict(), load_file(finished.weights))


def test_a_model_from_the_exported_weights_is_as_good_as_the_log_says(finished, attent):
    assert attent("export", str(finished.path))[0] == 0
    model = fresh(seed=9).eval()
    load_weights(model, read_weights(finished.path / "export" / "multimae.pth"), "the file")
    run, _ = load_trained(finished)
    task, frozen = run.task, Frozen(run.task, run.state)
    assert isinstance(task, MaskedPretraining)
    batch = frozen.prepare(fetch_batch(run.held_out, torch.arange(12)))
    with torch.no_grad():
        expected = task.forward(frozen, batch).predictions[0]
        found, _ = model(task.pictures(batch), masks=task.orders(batch)[0])
        losses, _ = task.output_losses(Output([found], Hidden(None)), batch)
    assert_same(found, expected)
    last = evaluations(finished)[-1]
    for name, loss in zip(task.outputs, losses.mean(dim=0), strict=True):
        assert float(loss) == pytest.approx(last[f"val_{name}"], rel=1e-5)


def test_timm_computes_the_tokens_of_the_run_on_rgb(finished, attent):
    status, _, told = attent("export", str(finished.path), "--format", "timm")
    path = finished.path / "export" / "timm.safetensors"
    assert (status, told) == (0, f"weights {path}\n")
    theirs: Any = timm.create_model(
        "vit_tiny_patch16_224", num_classes=0, img_size=32, patch_size=8, **ENCODER
    ).eval()
    theirs.load_state_dict(load_file(path), strict=True)
    ours = build_multivit(
        "multivit_micro",
        image_size=32,
        patch_size=8,
        model_args={"dim": 16, "depth": 1, "num_heads": 2},
    ).eval()
    load_weights(ours, load_file(finished.weights), "the run")
    picture = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        tokens = ours(picture)
        normed = theirs.forward_features(picture)
        theirs.norm = nn.Identity()
        found = theirs.forward_features(picture)
    # The class token is the first there, the global one the last here; the norm is fresh.
    expected = torch.cat([tokens[:, -1:], tokens[:, :-1]], dim=1)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    layer_norm = nn.functional.layer_norm(expected, (16,), eps=1e-6)
    torch.testing.assert_close(normed, layer_norm, rtol=1e-5, atol=1e-5)


def test_an_exported_classifier_loads_strictly_and_is_no_autoencoder(attent, tmp_path):
    _, folder = start("classify", quick(tmp_path), silent)
    told = only_an_error(*attent("export", str(folder.path), "--format", "multimae"))
    assert "format multimae is of pre-training; " in told
    assert told.splitlines()[0].endswith("is a run of classification")
    assert attent("export", str(folder.path), "--format", "timm", "--output", "c.pth")[0] == 0
    model = build_vit("vit_digits", num_classes=2, model_args=ENCODER)
    weights = read_weights(tmp_path / "c.pth")
    model.load_state_dict(weights, strict=True)
    assert_same(weights, load_file(folder.weights))


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ("--output weights.onnx", "output: weights.onnx must end in .pth or .safetensors"),
        ("--output weights", "output: weights must end in .pth or .safetensors"),
        ("--output ours.yaml/weights.pth", "output: ours.yaml cannot be made: File exists"),
        ("--format onnx", "'multimae', 'timm'"),
        ("--ouput weights.pth", "unknown option 'ouput'; did you mean 'output'?"),
    ],
)
def test_what_cannot_be_exported_is_told_in_one_message(finished, attent, tmp_path, argv, message):
    written({}, tmp_path / "ours.yaml")
    told = only_an_error(*attent("export", str(finished.path), *argv.split()))
    assert message in told.splitlines()[0]
    assert [p.name for p in tmp_path.iterdir()] == ["ours.yaml"]


def test_a_run_that_never_saw_rgb_is_nothing_for_timm(attent, tmp_path):
    folder = trained(tmp_path / "run", **(ONCE | {"in_domains": "depth"}))
    told = only_an_error(*attent("export", str(folder.path), "--format", "timm"))
    assert "timm's vision transformers see rgb, and these weights have no such input" in told
    assert not (folder.path / "export").exists()


def test_the_last_checkpoint_of_an_unfinished_run_is_exported(attent, monkeypatch, tmp_path):
    with interrupted(monkeypatch, 4):
        folder = trained(tmp_path / "run", **ONCE)
    assert not folder.weights.exists()
    assert attent("export", str(folder.path), "--output", "ours.safetensors")[0] == 0
    saved = load_file(last_checkpoint(folder))
    for name, value in load_file(tmp_path / "ours.safetensors").items():
        if f"params/multimae.{name}" in saved:
            assert torch.equal(value, saved[f"params/multimae.{name}"])


# --- into a run


@pytest.mark.parametrize("form", ["model.safetensors", "multimae.pth"])
def test_a_run_starts_from_the_weights_of_a_file(finished, attent, tmp_path, form):
    """Hardly learning at all, it ends as the run that the weights are from."""
    file = finished.weights
    if form == "multimae.pth":
        assert attent("export", str(finished.path), "--output", form)[0] == 0
        file = tmp_path / form
    folder = trained(tmp_path / "run", **(ONCE | STILL | {"pretrained_weights": str(file)}))
    assert_same(load_file(folder.weights), load_file(finished.weights))
    then, now = evaluations(finished)[-1], evaluations(folder)[0]
    for name in ("loss", "rgb", "depth", "semseg", "norm_rgb"):
        assert now[f"val_{name}"] == pytest.approx(then[f"val_{name}"], rel=1e-6)


def test_a_run_goes_on_without_the_file_it_started_from(finished, attent, monkeypatch, tmp_path):
    """Named relatively, from another folder, and with the file gone."""
    (tmp_path / "ours.safetensors").write_bytes(finished.weights.read_bytes())
    monkeypatch.chdir(tmp_path)
    options = ONCE | {"pretrained_weights": "ours.safetensors"}
    whole = trained(tmp_path / "whole", **options)
    with interrupted(monkeypatch, 4):
        folder = trained(tmp_path / "run", **options)
    (tmp_path / "ours.safetensors").unlink()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    resume(folder.path, silent)
    assert_same_end(whole, folder)
    assert attent("export", str(folder.path), "--output", "weights.pth")[0] == 0


def test_resampled_positions_stay_with_the_run(finished, monkeypatch, tmp_path):
    """They are not what a model of this size is made with, and nothing trains them."""
    options = ONCE | {"input_size": 48, "pretrained_weights": str(finished.weights)}
    whole = trained(tmp_path / "whole", **options)
    with interrupted(monkeypatch, 4):
        folder = trained(tmp_path / "run", **options)
    resume(folder.path, silent)
    assert_same_end(whole, folder)
    run, _ = load_trained(whole)
    assert isinstance(run.task, MaskedPretraining)
    found, given = run.task.weights(run.state), load_file(finished.weights)
    assert_same(found, load_file(whole.weights))
    name = "input_adapters.rgb.pos_emb"
    expected = nn.functional.interpolate(given[name], (6, 6), mode="bicubic")
    assert torch.equal(found[name], expected)


def test_of_modalities_that_are_left_out_nothing_is_taken(finished):
    config = PretrainConfig(
        **ONCE | {"num_semseg_classes": 4, "in_domains": "rgb-depth", "out_domains": "rgb-depth"},
        pretrained_weights=str(finished.weights),
    )
    weights = load_file(finished.weights)
    task = build_pretrain(config).task
    assert isinstance(task, MaskedPretraining)
    taken = task.multimae.state_dict()
    new = [k for k, v in taken.items() if k not in weights or not torch.equal(v, weights[k])]
    assert new == []
    kinds = {k.rsplit(".", k.count(".") - 1)[0] for k in taken if "put_adapters" in k}
    assert kinds == {
        "input_adapters.rgb", "input_adapters.depth",
        "output_adapters.rgb", "output_adapters.norm_rgb", "output_adapters.depth",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "flags", "message"),
    [
        ("absent.pth", "", "there is no file of weights absent.pth"),
        ("notes.txt", "", "notes.txt cannot be read as weights: "),
        ("ours.safetensors", "--patch_size 16", "; is it of another model, patch size or number"),
        ("ours.safetensors", '--model_args {"depth":2}', "; is it of another model"),
        ("timm:vit_tinny_patch16_224", "", "did you mean vit_tiny_patch16_224"),
        ("timm:vit_digits", "", "there are no pretrained weights of 'vit_digits'"),
    ],
)
def test_wrong_weights_are_told_in_one_message(finished, attent, tmp_path, name, flags, message):
    (tmp_path / "notes.txt").write_text("hello world\n")
    (tmp_path / "ours.safetensors").write_bytes(finished.weights.read_bytes())
    file = written(ONCE, tmp_path / "ours.yaml")
    argv = ["pretrain", "--config", file, "--pretrained_weights", name, *flags.split()]
    status, out, err = attent(*argv, "--output_dir", "run")
    lines = [line for line in err.splitlines() if not line.startswith("warning: ")]
    told = only_an_error(status, out, "\n".join(lines))
    assert message in told
    assert name.removeprefix("timm:") in told
    assert not (tmp_path / "run").exists()


def test_a_run_stopped_before_anything_was_saved_starts_from_the_same_file(
    finished, monkeypatch, tmp_path
):
    """Named relatively, and gone on with from another folder."""
    (tmp_path / "ours.safetensors").write_bytes(finished.weights.read_bytes())
    monkeypatch.chdir(tmp_path)
    options = ONCE | STILL | {"pretrained_weights": "ours.safetensors", "data_cache": "cache"}
    folder = trained(tmp_path / "run", **options)
    shutil.rmtree(folder.checkpoints)
    folder.weights.unlink()
    folder.log.write_text("")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    resume(folder.path, silent)
    assert_same(load_file(folder.weights), load_file(finished.weights))
    assert list((tmp_path / "elsewhere").iterdir()) == []


# --- from timm


@pytest.fixture
def from_timm(monkeypatch):
    """timm's weights without a network: what a run of `timm:NAME` is given for them."""

    create = timm.create_model

    def from_timm(**options: Any) -> nn.Module:
        torch.manual_seed(3)
        arguments: dict[str, Any] = {"img_size": 32, "patch_size": 8} | ENCODER | options
        vit = create("vit_tiny_patch16_224", num_classes=0, **arguments)

        def download(name: str, *, num_classes: int, pretrained: bool) -> nn.Module:
            assert (name, num_classes, pretrained) == ("vit_tiny_patch16_224", 0, True)
            return vit

        monkeypatch.setattr(timm, "create_model", download)
        return vit

    return from_timm


def test_the_encoder_is_timms_and_what_timm_has_not_is_fresh(from_timm, tmp_path):
    vit = from_timm().state_dict()
    options = ONCE | STILL
    folder = trained(tmp_path / "run", **options, pretrained_weights=TIMMS)
    found = load_file(folder.weights)
    own = load_file(trained(tmp_path / "fresh", **options).weights)
    blocks = {k.replace("encoder.", "blocks."): k for k in found if k.startswith("encoder.")}
    assert len(blocks) == 12
    expected = {k: vit[name] for name, k in blocks.items()}
    expected["input_adapters.rgb.proj.weight"] = vit["patch_embed.proj.weight"]
    expected["global_tokens"] = vit["cls_token"] + vit["pos_embed"][:, :1]
    rest = ("input_adapters.depth.", "input_adapters.semseg.", "output_adapters.")
    expected |= {k: v for k, v in own.items() if k.startswith(rest)}
    assert len(found) - len(expected) == 2  # the bias and the positions of rgb
    for name, value in expected.items():
        # Zeros are moved by as little as STILL moves anything.
        torch.testing.assert_close(found[name], value, rtol=0, atol=1e-20, msg=name)
    # The weights are the checkpoint's from then on: neither timm nor its cache is asked again.
    assert yaml.safe_load(folder.config.read_text())["pretrained_weights"] == TIMMS
    from_timm(embed_dim=8)
    assert_same(load_file(resume(folder.path, silent)[1].weights), found)


def test_timms_positions_fit_pictures_of_another_size(from_timm):
    vit = from_timm(img_size=64).state_dict()
    config = PretrainConfig(**ONCE, pretrained_weights=TIMMS)
    state = build_pretrain(config).task.model.state_dict()
    grid = vit["pos_embed"][:, 1:].transpose(1, 2).unflatten(2, (8, 8))
    expected = nn.functional.interpolate(grid, (4, 4), mode="bicubic")
    assert torch.equal(state["multimae.input_adapters.rgb.pos_emb"], expected)


def test_a_transformer_of_timm_that_is_another_size_is_refused(from_timm):
    from_timm(embed_dim=8)
    config = PretrainConfig(**ONCE, pretrained_weights=TIMMS)
    with pytest.raises(ValueError, match=rf"{TIMMS}: \S+ is \[.*8.*\], the model's \[.*16"):
        build_pretrain(config)


def test_without_a_network_it_is_said_that_timms_weights_are_not_there(
    attent, monkeypatch, tmp_path
):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    file = written(ONCE, tmp_path / "ours.yaml")
    for argv in (
        ["pretrain", "--config", file, "--pretrained_weights", TIMMS],
        ["classify", "--model", "vit_tiny_patch16_224", "--pretrained", "true"],
    ):
        status, out, err = attent(*argv, "--output_dir", "run")
        lines = [line for line in err.splitlines() if not line.startswith("warning: ")]
        told = only_an_error(status, out, "\n".join(lines))
        assert "weights of 'vit_tiny_patch16_224' cannot be loaded: " in told
        assert not (tmp_path / "run").exists()
