from __future__ import annotations

import pytest
import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from timm.optim import param_groups_layer_decay
from torch import nn

from attent.models.heads import LinearMap
from attent.models.layers import layer_scales
from attent.models.multimae import MultiViT, build_multivit
from tests.models.slow_multimae import TINY, tiny

# Two blocks, decay 1/2: adapters at 0.5 ** 3, blocks at 0.5 ** 2 and 0.5, heads at 1.
BY_PART = {"input_adapters": 0.125, "global_tokens": 0.125, "output_adapters": 1.0}
BY_BLOCK = {"0": 0.25, "1": 0.5}


def multivit(*, head: bool = True) -> MultiViT:
    heads = {"semseg": LinearMap(5, dim=24)} if head else {}
    return build_multivit(
        "multivit_micro",
        in_domains=["rgb", "semseg"],
        output_adapters=heads,
        image_size=32,
        patch_size=8,
        model_args=TINY,
    )


def by_hand(model: MultiViT) -> dict[str, float]:
    scales = {}
    for name, _ in model.named_parameters():
        part, block = name.split(".")[0], name.split(".")[1:2]
        scales[name] = BY_BLOCK[block[0]] if part == "encoder" else BY_PART[part]
    return scales


def vit(**options) -> VisionTransformer:
    return VisionTransformer(
        img_size=16, patch_size=8, num_classes=5, embed_dim=16, depth=2, num_heads=2, **options
    )


@pytest.mark.parametrize("make", [multivit, lambda: multivit(head=False), tiny])
def test_scales_of_two_blocks_by_hand(make):
    model = make()
    found = layer_scales(model, 0.5)
    assert found == by_hand(model)
    assert found["input_adapters.semseg.class_emb.weight"] == 0.125
    assert found["encoder.0.attn.qkv.weight"] == 0.25
    assert found["encoder.1.mlp.fc2.bias"] == 0.5


def test_a_model_in_another_module_keeps_its_scales_and_the_rest_is_at_the_full_rate():
    class Task(nn.Module):
        def __init__(self):
            super().__init__()
            self.balance = nn.Parameter(torch.zeros(2))
            self.inner = nn.ModuleDict({"encoder": multivit()})

    found = layer_scales(Task(), 0.5)
    own = {f"inner.encoder.{name}": scale for name, scale in by_hand(multivit()).items()}
    assert found == {"balance": 1.0} | own


def test_scales_of_a_timm_model_by_hand():
    found = layer_scales(vit(), 0.5)
    expected = {
        "cls_token": 0.125,
        "pos_embed": 0.125,
        "patch_embed.proj.weight": 0.125,
        "patch_embed.proj.bias": 0.125,
        "norm.weight": 0.5,  # with the last block
        "norm.bias": 0.5,
        "head.weight": 1.0,
        "head.bias": 1.0,
    }
    blocks = {name: BY_BLOCK[name.split(".")[1]] for name in found if name.startswith("blocks.")}
    assert found == expected | blocks
    assert len(blocks) == 2 * 12
    nested = layer_scales(nn.ModuleDict({"net": vit(), "more": nn.Linear(2, 2)}), 0.5)
    assert {n: s for n, s in nested.items() if n.startswith("net.")} == {
        f"net.{name}": scale for name, scale in found.items()
    }
    assert nested["more.bias"] == 1.0


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "resnet18", "convnext_atto"])
def test_scales_of_timm_models_are_those_of_timms_optimizers(name):
    model = timm.create_model(name, num_classes=3)
    expected = {
        id(p): group["lr_scale"]
        for group in param_groups_layer_decay(model, layer_decay=0.75)
        for p in group["params"]
    }
    found = layer_scales(model, 0.75)
    assert {n: expected[id(p)] for n, p in model.named_parameters()} == pytest.approx(found)
    assert found[f"{model.pretrained_cfg['classifier']}.weight"] == 1.0
    assert min(found.values()) == next(iter(found.values())) < 0.75


def test_without_decay_all_learn_alike():
    assert set(layer_scales(multivit(), 1.0).values()) == {1.0}


@pytest.mark.parametrize("decay", [0.0, -0.5, 1.5, float("nan")])
def test_a_decay_out_of_range(decay):
    with pytest.raises(ValueError, match=r"layer_decay is in \(0, 1\]"):
        layer_scales(multivit(), decay)


def test_models_without_known_layers():
    with pytest.raises(ValueError, match="one encoder whose layers are known, Linear has 0"):
        layer_scales(nn.Linear(2, 2), 0.5)
    with pytest.raises(ValueError, match="known, ModuleList has 2"):
        layer_scales(nn.ModuleList([multivit(), vit()]), 0.5)
