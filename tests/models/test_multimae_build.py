from __future__ import annotations

import math
import re

import pytest
import torch
from torch import Tensor, nn

from attent.models.multimae import Decoders, MultiViT, build_multimae, build_multivit
from attent.models.multimae.build import pretraining_names
from attent.models.multimae.inputs import PatchedInput, SemsegInput
from attent.models.multimae.outputs import Layout, SpatialOutput
from attent.models.multimae.positions import fixed_positions, resample, sincos_2d
from tests.models.slow_multimae import DOMAINS, TINY, tiny


def numbers(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


# --- sizes


@pytest.mark.parametrize(
    ("extra", "total", "trained", "keys"),
    [(True, 98_569_360, 97_917_072, 351), (False, 95_754_128, 95_152_016, 302)],
)
def test_the_base_model_has_as_many_parameters_as_the_published_one(extra, total, trained, keys):
    with torch.device("meta"):
        model = build_multimae("pretrain_multimae_base", decoders=Decoders(extra_norm_pix=extra))
    assert numbers(model) == total
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == trained
    assert len(model.state_dict()) == keys
    assert numbers(model.encoder) == 85_054_464


def test_the_large_encoder_has_as_many_parameters_as_the_published_one():
    with torch.device("meta"):
        model = build_multimae("pretrain_multimae_large", decoders=Decoders(dim=32, depth=0))
    assert numbers(model.encoder) == 302_309_376


@pytest.mark.parametrize("name", pretraining_names())
def test_both_kinds_of_every_size_have_the_same_encoder(name):
    with torch.device("meta"):
        model = build_multimae(name, decoders=Decoders(dim=32, depth=0))
        encoder = build_multivit(
            name.removeprefix("pretrain_").replace("multimae", "multivit"), in_domains=DOMAINS
        )
    own = {n: x.shape for n, x in model.state_dict().items() if not n.startswith("output")}
    assert own == {n: x.shape for n, x in encoder.state_dict().items()}


def test_keys_are_those_of_the_released_weights():
    affine = r"\.(weight|bias)"
    block = rf"\d+\.(norm[12]|attn\.(qkv|proj)|mlp\.fc[12]){affine}"
    outputs = (
        rf"mask_token|pos_emb|task_embeddings\.(rgb|depth|semseg)|proj_context{affine}"
        rf"|(query|context|out)_norm{affine}|decoder\.(q|kv|proj){affine}|mlp\.fc[12]{affine}"
        rf"|decoder_transformer\.{block}|out_proj{affine}"
    )
    known = re.compile(
        rf"global_tokens|input_adapters\.(rgb|depth|semseg)\.(pos_emb|proj{affine})"
        rf"|input_adapters\.semseg\.class_emb\.weight|encoder\.{block}"
        rf"|output_adapters\.(rgb|depth|semseg|norm_rgb)\.({outputs})"
    )
    state = tiny().state_dict()
    assert [name for name in state if not known.fullmatch(name)] == []
    # The global tokens; three inputs of 3 and a table; two blocks of 12; four outputs of 2 tokens,
    # 3 embeddings, 2 of a projection, 6 of norms, 6 of attention, 4 of an MLP, a block, 2 at last.
    assert len(state) == 1 + 10 + 24 + 4 * (2 + 3 + 2 + 6 + 6 + 4 + 12 + 2)


def test_a_decoder_without_cross_attention_has_no_weights_for_it():
    names = tiny(out_domains=["depth"], decoders={"use_xattn": False}).output_adapters.state_dict()
    assert {name.split(".")[1] for name in names} == {
        *("mask_token", "pos_emb", "task_embeddings"),
        *("proj_context", "decoder_transformer", "out_proj"),
    }


# --- positions


def test_positions_by_hand():
    # D = 8: d = 2, frequencies 1 and 10000 ** (-1 / 2) = 1 / 100.
    found = sincos_2d(2, 3, 8)
    assert found.shape == (1, 8, 2, 3)
    sin, cos = math.sin, math.cos
    # Row 1, column 2; rows first.
    by_rows = [sin(1), sin(0.01), cos(1), cos(0.01)]
    by_columns = [sin(2), sin(0.02), cos(2), cos(0.02)]
    assert found[0, :, 1, 2].tolist() == pytest.approx(by_rows + by_columns)
    assert found[0, :, 0, 0].tolist() == [0, 0, 1, 1, 0, 0, 1, 1]
    assert torch.equal(found[0, :4, 1, 0], found[0, :4, 1, 2])
    assert torch.equal(found[0, 4:, 0, 2], found[0, 4:, 1, 2])


def test_positions_are_kept_with_the_weights_and_never_trained():
    positions = fixed_positions(3, 8)
    assert not positions.requires_grad
    assert torch.equal(positions, sincos_2d(3, 3, 8))
    model = tiny(random=False).float()
    for adapters, dim in [(model.input_adapters, 24), (model.output_adapters, 16)]:
        for adapter in adapters.values():
            assert not adapter.pos_emb.requires_grad
            assert torch.equal(adapter.pos_emb, sincos_2d(4, 4, dim))


def test_positions_at_their_own_grid_are_themselves():
    positions = sincos_2d(2, 2, 4)
    assert resample(positions, (2, 2), "bicubic") is positions
    # Halved without aligned corners, linear in between: the mean of the four.
    small = resample(positions, (1, 1), "bilinear")
    torch.testing.assert_close(small, positions.mean(dim=(2, 3), keepdim=True))


@pytest.mark.parametrize(("patch", "stride", "own"), [(16, 1, 16), (16, 4, 4), (2, 4, 1)])
def test_a_patch_on_a_modalitys_own_grid(patch, stride, own):
    adapter = PatchedInput(1, 8, patch_size=patch, stride=stride, image_size=32)
    assert adapter.patch_size == own
    assert adapter.proj.kernel_size == adapter.proj.stride == (own, own)
    assert adapter.pos_emb.shape[-1] == 32 // (own * stride)


# --- how a model starts


@pytest.fixture(scope="module")
def fresh() -> dict[str, Tensor]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build_multimae("pretrain_multimae_micro", image_size=64).state_dict()


def is_spread(x: Tensor, std: float) -> bool:
    """The standard deviation, to five of its own standard errors (of a normal)."""
    return abs(float(x.std()) / std - 1) < 5 / (2 * x.numel()) ** 0.5


def is_uniform(x: Tensor, bound: float) -> bool:
    """Nothing beyond the bound, the largest near it, the spread bound / sqrt(3)."""
    largest = float(x.detach().abs().max())
    return 0.99 * bound < largest <= bound * (1 + 1e-6) and is_spread(x.detach(), bound / 3**0.5)


@pytest.mark.parametrize(
    ("name", "fans"),
    [
        ("encoder.3.attn.qkv", 96 + 96),  # of each of the three
        ("encoder.5.attn.proj", 96 + 96),
        ("encoder.0.mlp.fc1", 96 + 384),
        ("encoder.0.mlp.fc2", 384 + 96),
        ("output_adapters.depth.decoder.q", 256 + 256),
        ("output_adapters.depth.decoder.kv", 256 + 256),  # of each of the two
        ("output_adapters.depth.decoder.proj", 256 + 256),
        ("output_adapters.rgb.mlp.fc1", 256 + 1024),
        ("output_adapters.norm_rgb.decoder_transformer.1.attn.qkv", 256 + 256),
        ("output_adapters.semseg.proj_context", 96 + 256),
        ("output_adapters.semseg.out_proj", 256 + 133 * 4 * 4),
    ],
)
def test_linear_layers_start_xavier_uniform_with_zero_bias(fresh, name, fans):
    assert is_uniform(fresh[f"{name}.weight"], math.sqrt(6 / fans))
    assert not fresh[f"{name}.bias"].any()


@pytest.mark.parametrize(("domain", "inputs"), [("rgb", 768), ("depth", 256), ("semseg", 64 * 16)])
def test_patch_projections_start_xavier_uniform_over_the_patch(fresh, domain, inputs):
    assert is_uniform(fresh[f"input_adapters.{domain}.proj.weight"], math.sqrt(6 / (96 + inputs)))
    bias = fresh[f"input_adapters.{domain}.proj.bias"]  # as torch starts it: 1 / sqrt(inputs)
    assert 0.9 * inputs**-0.5 < float(bias.abs().max()) <= inputs**-0.5


def test_norms_start_as_the_identity_and_mask_tokens_at_zero(fresh):
    norms = {name: x for name, x in fresh.items() if re.search(r"norm\d?\.(weight|bias)$", name)}
    # Two in each of 6 + 4 * 2 blocks and three in each of 4 decoders: 40 of a weight and a bias.
    assert len(norms) == 80
    for name, x in norms.items():
        assert bool((x == (1 if name.endswith("weight") else 0)).all()), name
    tokens = [x for name, x in fresh.items() if name.endswith("mask_token")]
    assert len(tokens) == 4
    assert not torch.cat(tokens).any()


def test_tables_start_normal(fresh):
    assert is_spread(fresh["input_adapters.semseg.class_emb.weight"], 0.02)
    learned = [x.flatten() for name, x in fresh.items() if ".task_embeddings." in name]
    assert len(learned) == 12
    assert is_spread(torch.cat(learned), 0.02)
    assert is_spread(fresh["global_tokens"], 0.02)


def test_what_the_model_overwrites_and_what_not():
    """A head's own initialisation is lost; a padding class starts like any other."""
    head = nn.Sequential(nn.LayerNorm(24), nn.Linear(24, 1000), nn.Conv2d(8, 8, 1))
    for module, value in zip(head, (3.0, 7.0, 5.0), strict=True):
        nn.init.constant_(module.weight, value)
    options = {"image_size": 32, "patch_size": 8, "model_args": TINY}
    build_multivit("multivit_micro", output_adapters={"cls": head}, **options)
    assert bool((head[0].weight == 1).all())
    assert is_uniform(head[1].weight, math.sqrt(6 / (24 + 1000)))
    assert bool((head[2].weight == 5).all())
    adapter = SemsegInput(9, 8, patch_size=8, image_size=32, padding_class=True)
    assert adapter.class_emb.weight.shape == (10, 64)
    assert float(adapter.class_emb.weight[9].detach().abs().min()) > 0


# --- what is asked of a model besides


def test_what_weight_decay_spares():
    model = tiny(in_domains=["rgb", "semseg"], out_domains=["depth"])
    head = "output_adapters.depth."
    assert model.no_weight_decay() == {
        "global_tokens",
        "input_adapters.rgb.pos_emb",
        "input_adapters.semseg.pos_emb",
        "input_adapters.semseg.class_emb.weight",
        f"{head}pos_emb",
        f"{head}mask_token",
        f"{head}task_embeddings.rgb",
        f"{head}task_embeddings.semseg",
    }


def test_norm_rgb_predicts_rgb():
    model = tiny()
    assert {name: model.task_of(name) for name in model.output_adapters} == {
        "rgb": "rgb", "depth": "depth", "semseg": "semseg", "norm_rgb": "rgb"
    }  # fmt: skip
    layout = Layout((16, 32), dict.fromkeys(DOMAINS, (2, 4)), 1)
    assert {model.output_grid(name, layout) for name in model.output_adapters} == {(2, 4)}
    assert list(tiny(decoders={"extra_norm_pix": False}).output_adapters) == list(DOMAINS)
    assert list(tiny(out_domains=["depth"]).output_adapters) == ["depth"]


# --- the user's mistakes


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("pretrain_multimae_bse", {}, "no model .*; did you mean 'pretrain_multimae_base'"),
        ("%%%", {}, r"no model '%%%' \(pretrain_multimae_micro, .*\)$"),
        ("multivit_base", {}, "no model 'multivit_base'"),
        ("", {"in_domains": []}, "in_domains names no modality"),
        ("", {"out_domains": []}, "out_domains names no modality"),
        ("", {"in_domains": ["rgb", "dept"]}, "in_domains: no modality 'dept' .* mean 'depth'"),
        ("", {"out_domains": ["%%%"]}, r"out_domains: no modality '%%%' \(rgb, .*\)$"),
        ("", {"in_domains": ["rgb", "rgb"]}, "in_domains names a modality twice: rgb, rgb"),
        ("", {"image_size": 36}, "input_size 36 is not a whole number of patches of 8"),
        ("", {"patch_size": 2}, "patch_size 2 is not a multiple of 4"),
        ("", {"model_args": TINY | {"dim": 30}}, "multiples of 4, got 30"),
        ("", {"model_args": TINY | {"num_heads": 5}}, "dim 24 is not a multiple of num_heads 5"),
        ("", {"model_args": {"num_head": 3}}, "model_args: no 'num_head' .* mean 'num_heads'"),
        ("", {"model_args": {"num_global_tokens": 2}}, "model_args: no 'num_global_tokens'"),
        ("", {"drop_path_rate": 1.0}, r"drop_path is in \[0, 1\), got 1.0"),
        (
            "",
            {"in_domains": ["rgb"], "out_domains": ["semseg"], "patch_size": 2},
            "patch_size 2 is not a multiple of 4",
        ),
        ("", {"decoders": Decoders(dim=36)}, "decoder_dim 36 is not a multiple of 8 heads"),
        ("", {"decoders": Decoders(fp32=["edges"])}, "edges is no output; there are rgb, depth"),
    ],
)
def test_models_that_cannot_be_built(name, options, said):
    with pytest.raises(ValueError, match=said):
        build_multimae(
            name or "pretrain_multimae_micro",
            **{"image_size": 32, "patch_size": 8, "model_args": TINY} | options,
        )


def test_parts_that_cannot_be_put_together():
    with pytest.raises(ValueError, match="at least one modality must be an input"):
        MultiViT({}, dim=24, depth=1, num_heads=3)
    sizes = {"encoder_dim": 24, "patch_size": 8, "image_size": 32, "dim": 16}
    with pytest.raises(ValueError, match="context_tasks must name the modalities"):
        SpatialOutput(3, task="rgb", context_tasks=[], **sizes)
    decoder = SpatialOutput(3, task="rgb", context_tasks=["rgb"], **sizes)
    with pytest.raises(ValueError, match=r"rgb has \(2, 2\) tokens, its output \(4, 4\)"):
        decoder.grid(Layout((32, 32), {"rgb": (2, 2)}, 1))
    with pytest.raises(KeyError, match="depth"):
        Layout((32, 32), {"rgb": (2, 2)}, 1).span("depth")
