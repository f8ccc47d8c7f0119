from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from attent.models.heads import (
    HEADS,
    ConvNeXtHead,
    DPTHead,
    LinearHead,
    LinearMap,
    SegmenterHead,
    build_head,
)
from attent.models.heads.dpt import spaced
from attent.models.multimae import build_multivit
from attent.models.multimae.outputs import Layout
from tests.models import slow_heads
from tests.models.slow_multimae import TINY, pictures, randomize

DIM = 24
BOTH = ("depth", "rgb")
"""In another order than the sequence."""


def layout_of(grid: tuple[int, int] = (2, 3), patch: int = 8, num_global: int = 1) -> Layout:
    image = grid[0] * patch, grid[1] * patch
    return Layout(image, {"rgb": grid, "depth": grid}, num_global)


def tokens_of(layout: Layout, *, batch: int = 2, dim: int = DIM, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    number = layout.num_tokens + layout.num_global
    return torch.randn(batch, number, dim, dtype=torch.float64, generator=generator)


def prepared(head: nn.Module) -> nn.Module:
    return randomize(head.double()).eval()


def same(head: nn.Module, given, layout: Layout, slow, *options) -> None:
    """The head gives what the slow one does of each example."""
    with torch.no_grad():
        found = head(given, layout)
    batch = len(found)
    assert found.shape == (batch, head.num_channels, *layout.image)
    assert found.std() > 1e-3
    for n in range(batch):
        own = [x[n] for x in given] if isinstance(given, list) else given[n]
        expected = slow(head.state_dict(), own, layout, head.main_tasks, *options)
        torch.testing.assert_close(found[n], expected, rtol=1e-9, atol=1e-9)


# --- against the slow ones

SHOWN = {
    "square patches of 8": {},
    "patches of 16": {"patch": 16},
    "patches of 4, one odd column": {"grid": (3, 1), "patch": 4},
    "no global token": {"num_global": 0},
}


@pytest.mark.parametrize("main", [("rgb",), BOTH], ids=["rgb", "both"])
@pytest.mark.parametrize("shown", SHOWN.values(), ids=SHOWN.keys())
def test_parity_of_linear_maps(shown, main):
    layout = layout_of(**shown)
    head = prepared(LinearMap(5, dim=DIM, main_tasks=main))
    same(head, tokens_of(layout), layout, slow_heads.linear_map)


@pytest.mark.parametrize("main", [("rgb",), BOTH], ids=["rgb", "both"])
@pytest.mark.parametrize("shown", SHOWN.values(), ids=SHOWN.keys())
def test_parity_of_convnext(shown, main):
    layout = layout_of(**shown)
    head = ConvNeXtHead(5, dim=DIM, main_tasks=main, embed_dim=48, preds_per_patch=4, num_blocks=2)
    same(prepared(head), tokens_of(layout), layout, slow_heads.convnext, 2)


@pytest.mark.parametrize("main", [("rgb",), BOTH], ids=["rgb", "both"])
@pytest.mark.parametrize("shown", SHOWN.values(), ids=SHOWN.keys())
def test_parity_of_segmenter(shown, main):
    layout = layout_of(**shown)
    head = SegmenterHead(5, dim=DIM, main_tasks=main, embed_dim=16, num_heads=2)
    same(prepared(head), tokens_of(layout), layout, slow_heads.segmenter, 2)


@pytest.mark.parametrize("kind", ["regression", "segmentation"])
@pytest.mark.parametrize("shown", SHOWN.values(), ids=SHOWN.keys())
def test_parity_of_dpt(shown, kind):
    layout = layout_of(**shown)
    head = DPTHead(3, kind=kind, dim=DIM, main_tasks=BOTH, features=4)
    given = [tokens_of(layout, batch=1, seed=seed) for seed in range(4)]
    same(prepared(head), given, layout, slow_heads.dpt)


def test_a_linear_head_by_hand():
    # The mean of (0, 6), (2, 0) and (4, 0) is (2, 2), whose norm is (0, 0); the last is (4, 0),
    # normed to (1, -1): 3 - 4 + 5 = 4.
    tokens = torch.tensor([[[0.0, 6.0], [2.0, 0.0], [4.0, 0.0]]])
    for pool, expected in (("mean", 5.0), ("last", 4.0)):
        head = LinearHead(2, 1, pool=pool)
        with torch.no_grad():
            head.head.weight.copy_(torch.tensor([[3.0, 4.0]]))
            head.head.bias.fill_(5)
        assert head(tokens, layout_of()).tolist() == [[pytest.approx(expected, abs=1e-4)]]


def test_a_regression_is_unbounded_and_a_segmentation_drops_features():
    layout = layout_of()
    given = [tokens_of(layout, seed=seed) for seed in range(4)]
    values = prepared(DPTHead(1, dim=DIM, features=4))(given, layout)
    assert values.min() < 0 < values.max()
    head = prepared(DPTHead(5, kind="segmentation", dim=DIM, features=4, dropout=0.9))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        assert torch.equal(head(given, layout), head(given, layout))
        head.train()
        assert not torch.equal(head(given, layout), head(given, layout))


# --- sizes


def numbers(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_convnext_has_as_many_parameters_as_the_published_one():
    with torch.device("meta"):
        head = ConvNeXtHead(150)
    embed = 768 * 6144 + 6144
    block = (49 * 384 + 384) + 2 * 384 + (384 * 1536 + 1536) + (1536 * 384 + 384)
    assert numbers(head) == embed + 4 * block + (384 * 150 + 150) == 9_588_630


def test_dpt_has_as_many_parameters_as_the_published_one_but_for_the_unused_unit():
    with torch.device("meta"):
        head = DPTHead(1)
        classes = DPTHead(150, kind="segmentation")
    unit = 2 * (9 * 256 * 256 + 256)
    levels = sum(768 * width + width + 9 * width * 256 for width in (96, 192, 384, 768))
    resampled = (16 * 96 * 96 + 96) + (4 * 192 * 192 + 192) + (9 * 768 * 768 + 768)
    fusions = 4 * (2 * unit + 256 * 256 + 256)
    regression = (9 * 256 * 128 + 128) + (9 * 128 * 32 + 32) + (32 + 1)
    published = levels + resampled + fusions + regression
    assert published == 20_065_921  # "20.07 M"
    assert unit == 1_180_160
    assert numbers(head) == published - unit
    segmentation = 9 * 256 * 256 + (256 * 150 + 150)
    assert numbers(classes) == numbers(head) - regression + segmentation


@pytest.mark.parametrize(
    ("depth", "layers"),
    [
        (12, (2, 5, 8, 11)),
        (24, (5, 11, 17, 23)),
        (6, (1, 2, 4, 5)),
        (1, (0, 0, 0, 0)),
    ],
)
def test_the_blocks_of_dpt_are_evenly_spaced(depth, layers):
    assert spaced(depth) == layers
    assert DPTHead(1, dim=DIM, depth=depth).encoder_layers == layers


def test_sizes_follow_the_encoder_unless_they_are_given():
    assert DPTHead(1, dim=96).end.conv1.weight.shape == (16, 32, 3, 3)
    assert DPTHead(1, dim=96, widths=(2, 3, 4, 5)).levels[2][0].weight.shape == (4, 96, 1, 1)
    assert DPTHead(1, dim=1536).fusions[0].out.weight.shape == (256, 256, 1, 1)
    assert ConvNeXtHead(2, dim=96).head.weight.shape == (2, 48, 1, 1)
    assert SegmenterHead(2, dim=192).blocks[0].attn.num_heads == 3
    assert SegmenterHead(2, dim=192).embed.weight.shape == (192, 192)


# --- in a model


def vit(head: nn.Module | None = None, **others):
    heads = {} if head is None else {"out": head}
    return build_multivit(
        "multivit_micro",
        in_domains=["rgb", "depth"],
        output_adapters=heads,
        image_size=32,
        patch_size=8,
        model_args=TINY | others,
    )


def shown(**options) -> dict[str, Tensor]:
    return {name: x.float() for name, x in pictures("rgb", "depth", **options).items()}


CASES = [(name, kind) for name, kinds in HEADS.items() for kind in kinds]


def small(name: str, kind: str, **options) -> nn.Module:
    args = {"embed_dim": 64} if name == "convnext" else {}
    options = {"num_channels": 3, "dim": DIM, "depth": 2, "main_tasks": BOTH} | args | options
    return build_head(name, kind=kind, **options)


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_all_that_is_trained_gets_a_gradient(name, kind):
    model = vit(small(name, kind)).eval()
    found = model(shown())["out"]
    assert found.shape == ((2, 3) if kind == "classification" else (2, 3, 32, 32))
    # A plain sum of scores that are normed over the classes would not depend on anything.
    found.flatten(1).cumsum(1).square().mean().backward()
    without = {n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()}
    assert without == {f"input_adapters.{name}.pos_emb" for name in ("rgb", "depth")}


@pytest.mark.parametrize(("name", "kind"), [c for c in CASES if c[1] != "classification"])
def test_a_head_of_pixels_fits_any_whole_number_of_patches(name, kind):
    model = vit(small(name, kind)).eval()
    with torch.no_grad():
        assert model(shown(height=24, width=8))["out"].shape == (2, 3, 24, 8)


def test_each_head_is_given_the_blocks_it_names_and_others_the_last():
    class Head(nn.Module):
        def __init__(self, *layers: int):
            super().__init__()
            if layers:
                self.encoder_layers = layers

        def forward(self, tokens, layout):
            return tokens

    model = build_multivit(
        "multivit_micro",
        output_adapters={"some": Head(2, 0, 0), "last": Head()},
        image_size=32,
        patch_size=8,
        model_args=TINY | {"depth": 3},
    )
    picture = pictures("rgb")["rgb"].float()
    found = model(picture)
    every = model(picture, return_all_layers=True)
    assert len(every["last"]) == 3
    for result in (found, every):
        named = [every["last"][n] for n in (2, 0, 0)]
        torch.testing.assert_close(result["some"], named, rtol=0, atol=0)
    assert torch.equal(found["last"], every["last"][2])
    assert not torch.equal(every["last"][0], every["last"][2])


def test_a_head_of_pixels_reads_its_main_modalities_alone():
    layout = layout_of()
    head = prepared(LinearMap(5, dim=DIM, main_tasks=("depth",)))
    tokens = tokens_of(layout)
    changed = tokens.clone()
    changed[:, :6] = 9.0  # rgb
    changed[:, 12:] = 9.0  # global
    assert torch.equal(head(tokens, layout), head(changed, layout))
    changed[:, 6] = 9.0
    assert not torch.equal(head(tokens, layout), head(changed, layout))


@pytest.mark.parametrize("nested", [False, True])
def test_a_linear_head_starts_xavier_alone_as_in_a_model(nested):
    head = LinearHead(DIM, 1000)
    if nested:
        nn.init.zeros_(head.head.weight)
        vit(head)
    bound = math.sqrt(6 / (DIM + 1000))
    weight = head.head.weight.detach()
    assert weight.abs().max() <= bound
    assert float(weight.std()) == pytest.approx(bound / math.sqrt(3), rel=0.05)
    assert not head.head.bias.any()


def test_convolutions_of_heads_start_as_torch_has_them():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        head = small("dpt", "regression")
        before = {n: p.clone() for n, p in head.named_parameters()}
    vit(head)
    assert {n for n, p in head.named_parameters() if not torch.equal(p, before[n])} == set()


def test_weight_decay_spares_the_embeddings_of_classes():
    spared = vit(small("segmenter", "segmentation")).no_weight_decay()
    assert spared == {
        "global_tokens",
        "input_adapters.rgb.pos_emb",
        "input_adapters.depth.pos_emb",
        "output_adapters.out.class_emb",
    }
    model = vit(small("segmenter", "segmentation"))
    start = model.output_adapters["out"].class_emb
    assert 0.015 < float(start.detach().std()) < 0.025


# --- the user's mistakes


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            {"name": "convnxt"},
            r"no head 'convnxt' \(linear, .*, segmenter\); did.* 'convnext'",
        ),
        ({"kind": "segmentatoin"}, "no kind 'segmentatoin' .*; did you mean 'segmentation'"),
        (
            {"name": "segmenter", "kind": "regression"},
            "head 'segmenter' is not for regression; those that are: linear, convnext, dpt",
        ),
        ({"name": "dpt", "kind": "classification"}, "those that are: linear$"),
        ({"num_block": 2}, "no argument of head 'convnext' 'num_block' .* mean 'num_blocks'"),
        (
            {"name": "linear", "pool": "mean"},
            r"of head 'linear' 'pool' \(it takes none\)$",
        ),
        ({"num_channels": 0}, "at least one channel, got 0"),
        ({"main_tasks": []}, "main_tasks names .* once, got none"),
        ({"main_tasks": ["rgb", "rgb"]}, "main_tasks names .* once, got rgb, rgb"),
        ({"preds_per_patch": 8}, "preds_per_patch is a square number, got 8"),
        ({"preds_per_patch": 0}, "preds_per_patch is a square number, got 0"),
        ({"embed_dim": 40}, "embed_dim 40 is not a multiple of preds_per_patch 16"),
        ({"name": "dpt", "layers": [0, 1]}, "dpt has 4 layers, got 2"),
        ({"name": "dpt", "widths": [8] * 5}, "dpt has 4 widths, got 5"),
        ({"name": "dpt", "features": 5}, "features is a multiple of 2, got 5"),
        ({"name": "dpt", "dim": 4}, "features is a multiple of 2, got 0"),
        ({"name": "segmenter", "num_channels": 1}, "at least two"),
        ({"name": "segmenter", "num_heads": 5}, "embed_dim 24 is not a multiple of num_heads 5"),
        ({"name": "linear", "kind": "classification", "pool": "max"}, "mean, last, got 'max'"),
        ({"name": "linear", "kind": "classification", "num_channels": 0}, "one output, got 0"),
    ],
)
def test_heads_that_cannot_be_made(options, said):
    given = {"name": "convnext", "kind": "segmentation", "num_channels": 3, "dim": DIM, "depth": 2}
    with pytest.raises(ValueError, match=said):
        build_head(**given | options)


def test_an_end_that_dpt_has_not():
    with pytest.raises(ValueError, match="kind is one of regression, segmentation, got 'depth'"):
        DPTHead(1, dim=DIM, kind="depth")  # type: ignore[arg-type]


@pytest.mark.parametrize(("layers", "wrong"), [((0, 1, 2, 3), 2), ((0, 1, 1, -1), -1)])
def test_a_head_that_asks_for_a_block_there_is_not(layers, wrong):
    with pytest.raises(ValueError, match=f"output out asks for block {wrong}; there are 2, from 0"):
        vit(DPTHead(1, dim=DIM, layers=layers))


@pytest.mark.parametrize("name", ["linear", "convnext", "segmenter"])
def test_main_modalities_that_are_not_shown(name):
    model = vit(small(name, "segmentation"))
    with pytest.raises(ValueError, match="reads tokens of depth; the pictures are rgb"):
        model(pictures("rgb")["rgb"].float())


def test_main_modalities_of_different_grids():
    layout = Layout((16, 24), {"rgb": (2, 3), "depth": (4, 6)}, 1)
    with pytest.raises(ValueError, match=r"different grids: depth \(4, 6\), rgb \(2, 3\)"):
        LinearMap(2, dim=DIM, main_tasks=BOTH)(tokens_of(layout).float(), layout)
