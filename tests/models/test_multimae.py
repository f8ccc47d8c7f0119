from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from attent.models.multimae import TokenOrder, build_multivit, draw_order, num_draws
from attent.models.multimae.inputs import SemsegInput
from attent.models.multimae.outputs import Layout
from tests.models.slow_multimae import DOMAINS, TINY, Slow, drawn, pictures, randomize, tiny

# --- against the slow one

CASES = {
    "all in and out": ({}, {}),
    "decoders of no blocks": ({"decoders": {"depth": 0}}, {}),
    "rgb to depth": ({"in_domains": ["rgb"], "out_domains": ["depth"]}, {"domains": ["rgb"]}),
    "rgb to classes": ({"in_domains": ["rgb"], "out_domains": ["semseg"]}, {"domains": ["rgb"]}),
    "another order": ({"in_domains": ["semseg", "rgb"]}, {"domains": ["semseg", "rgb"]}),
    "some modalities": ({"out_domains": ["rgb"]}, {"domains": ["depth", "semseg"]}),
    "own tokens are no queries": ({"decoders": {"use_task_queries": False}}, {}),
    "no cross-attention": ({"decoders": {"use_xattn": False, "depth": 2}}, {}),
    "no global token": ({"num_global_tokens": 0}, {}),
    "two global tokens": ({"num_global_tokens": 2}, {}),
    "not square": ({"out_domains": ["semseg", "rgb"]}, {"height": 16, "width": 40}),
    "made for larger pictures": ({"image_size": 56}, {}),
    "made for smaller pictures": ({"image_size": 16, "out_domains": ["depth"]}, {}),
    "one token": ({}, {"number": 1}),
    "nothing masked": ({"out_domains": ["depth"]}, {"number": None}),
}


@pytest.mark.parametrize(("options", "shown"), CASES.values(), ids=CASES.keys())
def test_parity_with_one_token_at_a_time(options, shown):
    model = tiny(**options).eval()
    shown = dict(shown)
    number = shown.pop("number", 11)
    given = pictures(*shown.pop("domains", DOMAINS), **shown)
    sizes = [(shown.get("height", 32) // 8) * (shown.get("width", 32) // 8)] * len(given)
    order = drawn(sizes, number or sum(sizes))
    with torch.no_grad():
        if number is None:
            predicted, masked = model(given)
        else:
            predicted, masked = model(given, masks=order)
    asked = {"use_task_queries": True, "use_xattn": True} | options.get("decoders", {})
    slow = Slow(model.state_dict(), 8, 3, 2, asked["use_task_queries"], asked["use_xattn"])
    expected = slow.run(given, order.keep.tolist(), list(model.output_adapters))
    torch.testing.assert_close(predicted, expected, rtol=1e-9, atol=1e-9)
    assert list(masked) == list(given)
    assert torch.equal(torch.cat(list(masked.values()), dim=1), order.masked)


@pytest.mark.parametrize("num_global_tokens", [0, 1, 2])
def test_parity_of_every_layer_of_the_encoder(num_global_tokens):
    model = build_multivit(
        "multivit_micro",
        image_size=48,
        patch_size=8,
        num_global_tokens=num_global_tokens,
        model_args=TINY,
    )
    randomize(model.double())
    picture = pictures("rgb")["rgb"]
    with torch.no_grad():
        layers = model(picture, return_all_layers=True)
        assert torch.equal(model({"rgb": picture}), layers[-1])  # no norm comes after the last
    slow = Slow(model.state_dict(), patch=8, heads=3)
    for example in range(2):
        expected = slow.encode(slow.embed("rgb", picture[example]), list(range(16)))
        for layer, tokens in zip(layers, expected, strict=True):
            torch.testing.assert_close(layer[example], torch.stack(tokens))


def test_classes_can_be_interpolated_and_one_more_is_a_padding():
    # Halving a map bilinearly without aligned corners is the mean of each 2 x 2 pixels.
    adapter = SemsegInput(
        2,
        4,
        patch_size=8,
        image_size=8,
        dim_class=1,
        interpolate_class_emb=True,
        padding_class=True,
    )
    assert adapter.proj.kernel_size == (1, 1)
    state = {
        "class_emb.weight": torch.tensor([[4.0], [8.0], [-12.0]]),
        "proj.weight": torch.tensor([1.0, 2.0, 3.0, 4.0]).view(4, 1, 1, 1),
        "proj.bias": torch.tensor([0.0, 0.0, 0.0, 1.0]),
        "pos_emb": torch.tensor([0.0, 0.0, 0.5, 0.0]).view(1, 4, 1, 1),
    }
    adapter.load_state_dict(state)
    tokens = adapter(torch.tensor([[[0, 1], [1, 2]]]))
    # (4 + 8 + 8 - 12) / 4 = 2.
    assert tokens.tolist() == [[[2.0, 4.0, 6.5, 9.0]]]


# --- what is seen


def test_masks_are_drawn_from_the_generator_alone():
    model, given = tiny(), pictures(batch=3)
    generator = torch.Generator().manual_seed(7)
    before = torch.get_rng_state()
    options = {"alphas": [1, 0.5, 2.0], "sample_tasks_uniformly": True}
    predicted, masked = model(given, num_encoded_tokens=9, generator=generator, **options)
    assert torch.equal(torch.get_rng_state(), before)
    generator.manual_seed(7)
    noise = torch.rand(3, num_draws([16] * 3), dtype=torch.float64, generator=generator)
    order = draw_order(noise, [16] * 3, 9, **options)
    assert torch.equal(torch.cat(list(masked.values()), dim=1), order.masked)
    torch.testing.assert_close(predicted, model(given, masks=order)[0], rtol=0, atol=0)
    other = torch.Generator().manual_seed(8)
    _, others = model(given, num_encoded_tokens=9, generator=other, **options)
    assert any(not torch.equal(others[name], masked[name]) for name in masked)


def test_given_masks_come_back_and_the_order_of_visible_tokens_does_not_matter():
    model, given, order = tiny(), pictures(), drawn([16] * 3, 11)
    rgb, depth, semseg = order.masked.split(16, dim=1)
    masks = {"semseg": semseg.int(), "rgb": rgb.view(2, 4, 4), "depth": depth}
    predicted, masked = model(given, masks=masks, num_encoded_tokens=11)
    assert all(torch.equal(masked[name], masks[name].flatten(1).bool()) for name in masked)
    torch.testing.assert_close(predicted, model(given, masks=order)[0])


def test_the_order_of_the_sequence_is_the_models_and_what_it_does_not_know_is_passed_over():
    model, order = tiny(out_domains=["depth"]), drawn([16] * 3, 11)
    given = pictures()
    shuffled = {"edges": torch.zeros(1), **{name: given[name] for name in reversed(DOMAINS)}}
    expected, masked = model(given, masks=order)
    found, again = model(shuffled, masks=order)
    assert list(masked) == list(again) == list(DOMAINS)
    assert torch.equal(found["depth"], expected["depth"])


def test_what_is_masked_is_not_seen():
    """Pixels of masked patches do not change a prediction; those of visible ones do."""
    model, given, order = tiny(), pictures(), drawn([16] * 3, 11)
    expected, masked = model(given, masks=order)
    hidden = masked["depth"].view(2, 1, 4, 4).repeat_interleave(8, 2).repeat_interleave(8, 3)
    changed = given | {"depth": torch.where(hidden, 5.0, given["depth"])}
    torch.testing.assert_close(model(changed, masks=order)[0], expected, rtol=0, atol=0)
    changed = given | {"depth": torch.where(hidden, given["depth"], 5.0)}
    assert not torch.allclose(model(changed, masks=order)[0]["rgb"], expected["rgb"])


def test_a_bare_tensor_is_rgb():
    model = tiny(in_domains=["rgb"])
    picture = pictures("rgb")["rgb"]
    bare, masked = model(picture)
    assert list(masked) == ["rgb"]
    assert not masked["rgb"].any()
    torch.testing.assert_close(bare, model({"rgb": picture})[0], rtol=0, atol=0)


def test_heads_of_a_multivit_are_given_tokens_and_where_they_stand():
    class Head(nn.Module):
        def forward(self, tokens, layout):
            return tokens, layout

    model = build_multivit(
        "multivit_micro",
        in_domains=DOMAINS,
        output_adapters={"first": Head()},
        image_size=32,
        patch_size=8,
        model_args=TINY,
    )
    given = {name: x.float() if name != "semseg" else x for name, x in pictures(height=16).items()}
    tokens, layout = model(given)["first"]
    assert tokens.shape == (2, 25, 24)  # 3 of 2 x 4, and the global one
    assert layout == Layout((16, 32), dict.fromkeys(DOMAINS, (2, 4)), 1)
    assert layout.num_tokens == 24
    assert layout.span("depth") == slice(8, 16)
    assert isinstance(model(given, return_all_layers=True)["first"][0], list)


# --- gradients, regularisation, precision


def test_gradients_are_those_of_differences():
    model = tiny(
        image_size=16,
        model_args={"dim": 8, "depth": 1, "num_heads": 2},
        decoders={"dim": 8},
    )
    given, order = pictures(batch=1, height=16, width=16), drawn([4] * 3, 5, batch=1)
    generator = torch.Generator().manual_seed(3)
    names = (
        "global_tokens",
        "input_adapters.depth.proj.bias",
        "encoder.0.attn.qkv.bias",
        "output_adapters.rgb.mask_token",
        "output_adapters.semseg.task_embeddings.depth",
        "output_adapters.norm_rgb.decoder.kv.bias",
        "output_adapters.depth.query_norm.weight",
        "output_adapters.depth.decoder_transformer.0.norm1.bias",
    )
    shapes = {name: x.shape for name, x in model(given, masks=order)[0].items()}
    directions = {
        name: torch.randn(shape, dtype=torch.float64, generator=generator)
        for name, shape in shapes.items()
    }

    def slope(*values: Tensor) -> Tensor:
        replaced = dict(zip(names, values, strict=True))
        predicted, _ = functional_call(model, replaced, (given,), {"masks": order})
        return torch.stack([(x * directions[name]).sum() for name, x in predicted.items()])

    values = [model.get_parameter(name).detach().requires_grad_() for name in names]
    assert torch.autograd.gradcheck(slope, values)


def test_all_that_is_trained_gets_a_gradient_and_positions_none():
    model = tiny(in_domains=["rgb", "semseg"], out_domains=["rgb", "depth"])
    predicted, _ = model(pictures("rgb", "semseg"), masks=drawn([16] * 2, 9))
    sum(x.square().sum() for x in predicted.values()).backward()
    without = {name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()}
    assert without == {name for name, _ in model.named_parameters() if name.endswith("pos_emb")}


def test_dropout_is_after_attention_and_after_the_second_layer_of_an_mlp():
    rates = {"drop_rate": 0.1, "attn_drop_rate": 0.2}
    model = tiny(model_args=TINY | rates)
    found = {n: m.p for n, m in model.named_modules() if isinstance(m, nn.Dropout) and m.p}
    expected = {"attn.attn_drop": 0.2, "attn.proj_drop": 0.1, "mlp.drop2": 0.1}
    assert found == {f"encoder.{n}.{name}": p for n in range(2) for name, p in expected.items()}
    given, order = pictures(), drawn([16] * 3, 11)
    model.eval()
    torch.testing.assert_close(
        model(given, masks=order)[0], model(given, masks=order)[0], rtol=0, atol=0
    )
    assert not torch.equal(
        model.train()(given, masks=order)[0]["rgb"], model(given, masks=order)[0]["rgb"]
    )


def test_blocks_that_drop_everything_pass_their_tokens_on():
    model = tiny(model_args=TINY | {"drop_rate": 1.0})
    tokens = model.with_global(model.embed(pictures()))
    torch.testing.assert_close(model.encoder(tokens), tokens, rtol=0, atol=0)


def test_a_branch_is_dropped_for_an_example_whole_and_its_like_are_scaled():
    model = tiny(drop_path_rate=0.5, model_args=TINY | {"depth": 3})
    rates = [getattr(block.drop_path1, "drop_prob", 0.0) for block in model.encoder]
    assert rates == pytest.approx([0.0, 0.25, 0.5])
    last = model.encoder[2]
    nn.init.zeros_(last.mlp.fc2.weight)
    nn.init.zeros_(last.mlp.fc2.bias)
    generator = torch.Generator().manual_seed(4)
    tokens = torch.randn(32, 7, 24, dtype=torch.float64, generator=generator)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        trained = last.train()(tokens) - tokens
        branch = last.eval()(tokens) - tokens
    dropped = (trained == 0).all(dim=2).all(dim=1)
    assert 0 < int(dropped.sum()) < 32
    torch.testing.assert_close(trained[~dropped], 2 * branch[~dropped])


def test_outputs_named_so_are_decoded_in_float32_outside_autocast():
    model = tiny(decoders={"fp32": ["semseg"]}).float()
    given = {name: x.float() if name != "semseg" else x for name, x in pictures().items()}
    seen = {}
    for name, decoder in model.output_adapters.items():
        decoder.register_forward_pre_hook(
            lambda _, args, name=name: seen.update(
                {name: (args[0], torch.is_autocast_enabled("cpu"))}
            )
        )
    order = drawn([16] * 3, 11)
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        predicted, _ = model(given, masks=order)
    autocast = {name: enabled for name, (_, enabled) in seen.items()}
    assert autocast == {"rgb": True, "depth": True, "semseg": False, "norm_rgb": True}
    assert {name: x.dtype for name, x in predicted.items()} == {
        name: torch.bfloat16 if enabled else torch.float32 for name, enabled in autocast.items()
    }
    decoded = model.output_adapters["semseg"](seen["semseg"][0], order, model.layout(given))
    torch.testing.assert_close(predicted["semseg"], decoded, rtol=0, atol=0)


# --- the user's mistakes


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"masks": {"rgb": torch.zeros(2, 16)}}, "given for rgb; pictures for rgb, depth, semseg"),
        ({"masks": dict.fromkeys(DOMAINS, torch.ones(2, 9))}, "rgb has 16 tokens, its mask 9"),
        ({"masks": dict.fromkeys(DOMAINS, torch.ones(2, 16))}, "masks leave no token visible"),
        ({"masks": dict.fromkeys(DOMAINS, torch.eye(16)[:1])}, "masks are of 1 x 48 .* 2 x 48"),
        ({"masks": TokenOrder(torch.arange(9).expand(2, -1), 3)}, "masks are of 2 x 9 .* 2 x 48"),
        (
            {"masks": drawn([16] * 3, 11), "num_encoded_tokens": 12},
            "masks leave 11 tokens visible, num_encoded_tokens is 12",
        ),
        (
            {"masks": TokenOrder(torch.arange(48).expand(2, -1), 0)},
            "masks leave 0 of 48 tokens visible",
        ),
        (
            {"masks": TokenOrder(torch.arange(48).expand(2, -1), 49)},
            "masks leave 49 of 48 tokens visible",
        ),
        ({"num_encoded_tokens": 5}, "masks are drawn from a generator: give one"),
        ({"num_encoded_tokens": 49, "generator": torch.Generator()}, "from 1 to 48, got 49"),
    ],
)
def test_masks_that_do_not_fit(options, said):
    with pytest.raises(ValueError, match=said):
        tiny()(pictures(), **options)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"edges": torch.zeros(1)}, "the model encodes rgb, depth, semseg; given edges"),
        (pictures("rgb", height=20), "20 x 32 is not a whole number of patches of 8"),
        (pictures("depth", width=20), "32 x 20 is not a whole number of patches of 8"),
        ({"semseg": torch.zeros(1, 7, 8).long()}, "7 x 8 is not a whole number of patches of 2"),
        (
            pictures("rgb", height=16) | pictures("semseg"),
            "different sizes: rgb 16 x 32, semseg 32 x 32",
        ),
        (
            pictures("rgb") | {"depth": pictures("depth")["depth"][:1]},
            "different numbers of examples: rgb 2, depth 1",
        ),
    ],
)
def test_pictures_that_do_not_fit(given, said):
    with pytest.raises(ValueError, match=said):
        tiny()(given)


@pytest.mark.parametrize("name", ["rgb", "semseg"])
def test_an_adapter_alone_refuses_pieces_of_patches_too(name):
    given = pictures(name, width=36)[name]
    with pytest.raises(ValueError, match="is not a whole number of patches"):
        tiny().input_adapters[name](given)
