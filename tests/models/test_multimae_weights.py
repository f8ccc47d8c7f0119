from __future__ import annotations

import argparse
import os
import pickle

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from attent.models.multimae import MultiViT, build_multivit
from attent.models.multimae.weights import from_timm, load_weights, read_weights, to_timm
from tests.models.slow_multimae import TINY, pictures, randomize, tiny

Weights = dict[str, Tensor]


def vit(*, num_global_tokens: int = 1) -> MultiViT:
    """What timm's ViT-Ti of two blocks is for pictures of 64 pixels."""
    model = build_multivit(
        "multivit_tiny",
        image_size=64,
        num_global_tokens=num_global_tokens,
        model_args={"depth": 2},
    )
    return randomize(model.double()).eval()


def timms() -> nn.Module:
    model = timm.create_model("vit_tiny_patch16_224", num_classes=0, img_size=64, depth=2)
    return randomize(model.double()).eval()


def picture(side: int = 64) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    return torch.rand(2, 3, side, side, dtype=torch.float64, generator=generator)


def copy(weights: Weights) -> Weights:
    return {name: x.clone() for name, x in weights.items()}


def assert_same(found: Weights, expected: Weights) -> None:
    assert set(found) == set(expected)
    for name, x in expected.items():
        assert torch.equal(found[name], x), name


def training_checkpoint(state: Weights) -> dict:
    """What a training run of the published code leaves."""
    group = {"lr": np.float64(1.5e-4), "betas": (0.9, 0.95), "steps": np.int64(7), "params": [0]}
    return {
        "model": state,
        "optimizer": {"state": {0: {"exp_avg": torch.ones(2)}}, "param_groups": [group]},
        "epoch": 1599,
        "scaler": {"scale": 65536.0, "growth_factor": 2.0},
        "args": argparse.Namespace(alphas=1.0, in_domains="rgb-depth-semseg", betas=[0.9, 0.95]),
        "loss_balancer": {},
    }


class Malicious:
    """Unpickled, it makes a folder."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


# --- files


@pytest.fixture(scope="module")
def state() -> Weights:
    return tiny().float().state_dict()


@pytest.mark.parametrize("old_format", [False, True])
@pytest.mark.parametrize("kind", ["bare", "checkpoint", "state_dict", "parallel"])
def test_a_file_of_torch_is_read(tmp_path, state, kind, old_format):
    made = {
        "bare": state,
        "checkpoint": training_checkpoint(state),
        "state_dict": {"state_dict": state, "epoch": 3},
        "parallel": {"model": {f"module.{name}": x for name, x in state.items()}},
    }
    path = tmp_path / "weights.pth"
    torch.save(made[kind], path, _use_new_zipfile_serialization=not old_format)
    assert_same(read_weights(path), state)
    assert_same(read_weights(str(path)), state)


def test_scalars_of_an_older_numpy_are_read(tmp_path, state):
    path = tmp_path / "weights.pth"
    torch.save(training_checkpoint(state), path, _use_new_zipfile_serialization=False)
    data = path.read_bytes()
    assert b"cnumpy._core.multiarray\nscalar" in data
    path.write_bytes(data.replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n"))
    assert_same(read_weights(path), state)


@pytest.mark.parametrize("prefix", ["", "module."])
def test_safetensors_are_read(tmp_path, state, prefix):
    path = tmp_path / "weights.safetensors"
    save_file({prefix + name: x.contiguous() for name, x in state.items()}, path)
    assert_same(read_weights(path), state)


def test_what_was_saved_loads_into_a_fresh_model_and_predicts_the_same(tmp_path):
    trained, fresh = tiny(seed=1), tiny(seed=2)
    torch.save(training_checkpoint(trained.state_dict()), tmp_path / "checkpoint-1599.pth")
    weights = read_weights(tmp_path / "checkpoint-1599.pth")
    loaded = load_weights(fresh, weights, "checkpoint-1599.pth")
    assert (loaded.missing, loaded.passed_over, loaded.resized) == ((), (), ())
    given = pictures()
    torch.testing.assert_close(fresh(given)[0], trained(given)[0], rtol=0, atol=0)


def test_nothing_in_a_file_is_executed(tmp_path, state):
    trap = tmp_path / "made by a pickle"
    for number, write in enumerate([torch.save, lambda x, path: path.write_bytes(pickle.dumps(x))]):
        path = tmp_path / f"{number}.pth"
        write({"model": state, "args": Malicious(str(trap))}, path)
        with pytest.raises(ValueError, match=r"\.pth cannot be read as weights"):
            read_weights(path)
    assert not trap.exists()


def test_what_is_said_of_a_file_that_cannot_be_read_is_one_line(tmp_path):
    torch.save({"weights": torch.nn.Linear(1, 1)}, tmp_path / "module.pth")
    said = r"module\.pth cannot be read as weights: it holds torch\.nn\.modules\.linear\.Linear, "
    with pytest.raises(ValueError, match=said) as caught:
        read_weights(tmp_path / "module.pth")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("part", [0.0, 0.2, 0.6, 0.98])
@pytest.mark.parametrize("name", ["weights.pth", "old.pth", "weights.safetensors"])
def test_a_damaged_file_is_said_to_be_one(tmp_path, state, name, part):
    path = tmp_path / name
    if name.endswith("safetensors"):
        save_file(state, path)
    else:
        torch.save(state, path, _use_new_zipfile_serialization=name != "old.pth")
    data = path.read_bytes()
    path.write_bytes(data[: int(part * len(data))])
    with pytest.raises(ValueError, match=rf"{name} (cannot be read as weights: .|.* is damaged)"):
        read_weights(path)


@pytest.mark.parametrize("text", [b"hello world\n", b"epoch: 3\n", b"\x89PNG\r\n", b"{}", b"\xff"])
def test_a_file_of_something_else_is_said_to_be_one(tmp_path, text):
    """Torch answers the first of these with a KeyError: 101."""
    (tmp_path / "notes.txt").write_bytes(text)
    with pytest.raises(ValueError, match=r"notes\.txt cannot be read as weights: ."):
        read_weights(tmp_path / "notes.txt")


def test_there_is_no_such_file(tmp_path):
    for path in (tmp_path / "absent.pth", tmp_path):
        with pytest.raises(ValueError, match="there is no file of weights"):
            read_weights(path)


@pytest.mark.parametrize(
    ("held", "said"),
    [
        ([torch.ones(2)], "holds no weights, but a list"),
        (torch.ones(2), "holds no weights, but a Tensor"),
        ({}, "holds no weights, but a dict"),
        ({"model": {}}, "holds no weights, but a dict"),
        ({"optimizer": {}, "epoch": 3}, "holds optimizer, epoch; expected tensors"),
    ],
)
def test_a_file_without_weights(tmp_path, held, said):
    torch.save(held, tmp_path / "weights.pth")
    with pytest.raises(ValueError, match=said):
        read_weights(tmp_path / "weights.pth")


def test_safetensors_without_weights(tmp_path):
    save_file({}, tmp_path / "weights.safetensors")
    with pytest.raises(ValueError, match="holds no weights, but a dict"):
        read_weights(tmp_path / "weights.safetensors")


# --- what fits


def test_positions_of_another_picture_size_are_resampled_bicubically():
    weights, model = tiny(seed=1, image_size=112).state_dict(), tiny(seed=2)
    before = copy(weights)
    loaded = load_weights(model, weights, "the file")
    names = {name for name in weights if name.endswith("pos_emb")}
    assert len(names) == 7
    assert set(loaded.resized) == names
    assert_same(weights, before)
    for name, x in model.state_dict().items():
        if name in names:
            assert weights[name].shape[-2:] == (14, 14)
            resized = F.interpolate(weights[name].float(), (4, 4), mode="bicubic")
            torch.testing.assert_close(x, resized.double(), rtol=0, atol=0)
        else:
            assert torch.equal(x, weights[name])


def test_heads_may_be_missing_or_left_over_and_inputs_left_over():
    weights = tiny(seed=1, out_domains=["depth"]).state_dict()
    model = tiny(seed=2, in_domains=["semseg"], out_domains=["semseg"])
    before = copy(model.state_dict())
    loaded = load_weights(model, weights, "the file")
    heads = {name for name in before if name.startswith("output_adapters.semseg.")}
    assert set(loaded.missing) == heads
    assert set(loaded.passed_over) == set(weights) - set(before)
    assert {name.rsplit(".", name.count(".") - 1)[0] for name in loaded.passed_over} == {
        "input_adapters.rgb",
        "input_adapters.depth",
        "output_adapters.depth",
    }
    for name, x in model.state_dict().items():
        assert torch.equal(x, before[name] if name in heads else weights[name]), name


def test_tokens_kept_as_plain_vectors_fit_and_are_not_resized():
    weights, model = tiny(seed=1).state_dict(), tiny(seed=2)
    weights["output_adapters.rgb.mask_token"] = torch.arange(16.0)
    loaded = load_weights(model, weights, "the file")
    assert model.output_adapters["rgb"].mask_token.flatten().tolist() == list(range(16))
    assert loaded.resized == ()


def altered(change) -> Weights:
    weights = dict(tiny(seed=1).state_dict())
    change(weights)
    return weights


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda w: [w.pop(name) for name in list(w) if name.startswith("encoder.1.")],
            r"the file has no weights for encoder\.1\.norm1\.weight, .* and 8 more; is it of an",
        ),
        (lambda w: w.pop("global_tokens"), "has no weights for global_tokens; is it of another"),
        (
            lambda w: [w.pop(name) for name in list(w) if name.startswith("input_adapters.depth")],
            r"has no weights for input_adapters\.depth\.pos_emb, .*proj\.bias; is it",
        ),
        (
            lambda w: w.update({"encoder.2.norm1.weight": torch.ones(24)}),
            r"the file holds weights unknown here: encoder\.2\.norm1\.weight; is it of another",
        ),
        (
            lambda w: w.update({"input_adapters.rgb.scale": torch.ones(1)}),
            r"holds weights unknown here: input_adapters\.rgb\.scale; is it",
        ),
        (
            lambda w: w.update({"encoder.0.norm1.weight": torch.ones(12)}),
            r"the file: encoder\.0\.norm1\.weight is \[12\], the model's \[24\]; is it of another",
        ),
        (
            lambda w: w.update({"input_adapters.rgb.pos_emb": torch.ones(1, 12, 4, 4)}),
            r"pos_emb is \[1, 12, 4, 4\], the model's \[1, 24, 4, 4\]",
        ),
        (
            lambda w: w.update({"input_adapters.semseg.class_emb.weight": torch.ones(64, 5)}),
            r"class_emb\.weight is \[64, 5\], the model's \[5, 64\]",
        ),
        (
            lambda w: w.update({"output_adapters.semseg.out_proj.bias": torch.ones(7)}),
            "another model, patch size or number of classes",
        ),
    ],
)
def test_what_does_not_fit_is_refused_and_the_model_left_alone(change, said):
    model = tiny(seed=2)
    before = copy(model.state_dict())
    with pytest.raises(ValueError, match=said):
        load_weights(model, altered(change), "the file")
    assert_same(model.state_dict(), before)


# --- timm


def test_timm_computes_the_same_tokens():
    ours, theirs = vit(), timms()
    weights = ours.state_dict()
    before = copy(weights)
    converted = to_timm(weights)
    theirs.load_state_dict(converted, strict=True)
    assert_same(weights, before)
    assert bool((theirs.norm.weight == 1).all())
    assert not theirs.norm.bias.any()
    theirs.norm = nn.Identity()
    with torch.no_grad():
        found, tokens = theirs.forward_features(picture()), ours(picture())
    # The class token is the first there, the global one the last here.
    expected = torch.cat([tokens[:, -1:], tokens[:, :-1]], dim=1)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    for x in converted.values():  # nothing is shared with what was converted
        x.zero_()
    assert_same(weights, before)


def test_timms_weights_compute_the_same_tokens_here():
    ours, theirs = vit(), timms()
    weights = theirs.state_dict()
    before = copy(weights)
    converted = from_timm(weights)
    loaded = load_weights(ours, converted, "timm")
    assert loaded.missing == loaded.passed_over == loaded.resized == ()
    assert_same(weights, before)
    theirs.norm = nn.Identity()
    with torch.no_grad():
        expected, tokens = theirs.forward_features(picture()), ours(picture())
    torch.testing.assert_close(
        tokens, torch.cat([expected[:, 1:], expected[:, :1]], dim=1), rtol=1e-9, atol=1e-9
    )
    for x in converted.values():
        x.zero_()
    assert_same(weights, before)


def test_timms_weights_load_at_another_picture_size():
    ours = build_multivit("multivit_tiny", image_size=96, model_args={"depth": 2}).double()
    loaded = load_weights(ours, from_timm(timms().state_dict()), "timm")
    assert loaded.resized == ("input_adapters.rgb.pos_emb",)
    assert ours(picture(96)).shape == (2, 37, 192)


def test_there_and_back():
    weights = vit().state_dict()
    assert_same(from_timm(to_timm(weights)), weights)
    # The other way, the class token's position is in the token, and the norm starts anew.
    original = timms().state_dict()
    back = to_timm(from_timm(original))
    assert torch.equal(back["cls_token"], original["cls_token"] + original["pos_embed"][:, :1])
    assert not back["pos_embed"][:, 0].any()
    assert torch.equal(back["pos_embed"][:, 1:], original["pos_embed"][:, 1:])
    rest = set(original) - {"cls_token", "pos_embed", "norm.weight", "norm.bias"}
    assert_same({name: back[name] for name in rest}, {name: original[name] for name in rest})


def test_only_the_encoder_of_rgb_goes_to_timm():
    state = tiny(model_args=TINY).state_dict()
    converted = to_timm(state)
    assert {name.split(".")[0] for name in converted} == {
        "cls_token", "pos_embed", "patch_embed", "norm", "blocks"
    }  # fmt: skip
    assert sum(name.startswith("blocks.") for name in converted) == 24
    # Row by row after the class token: place 1 + 4 * 2 + 3 is row 2, column 3.
    row = state["input_adapters.rgb.pos_emb"][0, :, 2, 3]
    assert torch.equal(converted["pos_embed"][0, 12], row)


@pytest.mark.parametrize("number", [0, 2])
def test_timms_class_token_is_one(number):
    with pytest.raises(ValueError, match=f"there are {number} global tokens"):
        to_timm(vit(num_global_tokens=number).state_dict())


def test_weights_that_are_not_timms_kind():
    with pytest.raises(ValueError, match="these weights have no such input"):
        to_timm(tiny(in_domains=["depth"]).state_dict())
    with pytest.raises(ValueError, match="there are 0 global tokens"):
        to_timm(timms().state_dict())
    with pytest.raises(ValueError, match=r"class token: no cls_token, pos_embed, patch_embed"):
        from_timm(vit().state_dict())
    weights = dict(timms().state_dict())
    weights["pos_embed"] = weights["pos_embed"][:, 1:]  # positions of patches only
    with pytest.raises(ValueError, match="15 positions beside the class token are no square"):
        from_timm(weights)
