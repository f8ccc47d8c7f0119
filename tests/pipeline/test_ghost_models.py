"""Gradient norms of every model of the zoo: against a loop of plain gradients, and against vmap."""

from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict

from attent.pipeline import ghost
from attent.pipeline.signals import output_grad_norms, vmap_grad_norms
from tests.zoo import (
    IGNORED,
    ZOO,
    Autocast,
    Mixer,
    gpt2_task,
    llama_task,
    lora_task,
    mae_task,
    padded,
    regression,
    text_forward,
    vit_task,
)


def parts(task) -> tuple[dict, dict]:
    """Trainable parameters and buffers, as scoring is given them."""
    params = {k: p.detach() for k, p in task.model.named_parameters() if p.requires_grad}
    return params, dict(task.model.named_buffers())


def loop_norms(task, batch: TensorDict, only: list[str] | None = None) -> torch.Tensor:
    """The definition: one example, one backward, at a time; ``only`` some of the parameters."""
    params = {k: p for k, p in task.model.named_parameters() if p.requires_grad}
    wanted = [params[name] for name in (params if only is None else only)]
    norms = []
    for i in range(len(batch)):
        one = batch[i : i + 1]
        loss = task.losses(task.forward(task.model, one), one)[0]
        found = torch.autograd.grad(loss, wanted, allow_unused=True)
        squares = [g.double().square().sum() for g in found if g is not None]
        norms.append(torch.stack(squares).sum().sqrt())
    return torch.stack(norms).float()


@pytest.mark.parametrize("name", ZOO)
def test_norms_equal_a_loop(name):
    case = ZOO[name]
    task, batch = case.make()
    expected = loop_norms(task, batch)
    measured = ghost.grad_norms(task, *parts(task), batch)
    assert (measured.dtype, measured.shape) == (torch.float32, (len(batch),))
    torch.testing.assert_close(measured, expected, rtol=1e-4, atol=0)
    assert len(batch) == 1 or measured.std() > 0.01 * measured.mean()  # not all alike
    if case.mappable:
        by_vmap = vmap_grad_norms(task, *parts(task), batch)
        torch.testing.assert_close(measured, by_vmap, rtol=1e-4, atol=0)
    if case.by_vmap is not None:
        assert set(ghost.coverage_of(task, *parts(task), batch).mapped) == case.by_vmap


def test_a_module_that_merges_positions_is_mapped_by_name():
    task, batch = gpt2_task()
    coverage = ghost.coverage_of(task, *parts(task), batch)
    of_first = {name for name in coverage.mapped_names if name.startswith("transformer.h.0.")}
    layers = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
    assert of_first == {f"transformer.h.0.{m}.{p}" for m in layers for p in ("weight", "bias")}
    assert "transformer.wte.weight" not in coverage.mapped_names


def cropped(batch: TensorDict, width: int, side: str) -> TensorDict:
    """The batch with less padding."""
    span = slice(0, width) if side == "right" else slice(batch["x"].shape[1] - width, None)
    entries = {name: batch[name][:, span] for name in ("x", "label", "attention_mask")}
    return TensorDict(entries | {"index": batch["index"]}, batch_size=[len(batch)])


@pytest.mark.parametrize("order", ["alone first", "all first"])
@pytest.mark.parametrize("name", ["vit", "masked autoencoder", "convolutions", "gpt2", "einsum"])
def test_a_score_does_not_depend_on_the_others_in_the_batch(name, order):
    task, batch = ZOO[name].make()
    spans = [slice(0, 1), slice(0, 2), slice(0, 6)]
    measured = [
        ghost.grad_norms(task, *parts(task), batch[span])[0]
        for span in (spans if order == "alone first" else spans[::-1])
    ]
    torch.testing.assert_close(torch.stack(measured), measured[0].expand(3), rtol=1e-5, atol=0)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("side", ["right", "left"])
def test_a_score_does_not_depend_on_the_padding(side, attention):
    task, _ = llama_task(attention=attention)
    batch = padded([4, 7, 5, 9, 2, 3], 12, side=side)
    given = [
        batch,
        cropped(batch[:2], 7, side),
        cropped(batch[:1], 4, side),
        cropped(batch[:1], 6, side),
    ]
    measured = [ghost.grad_norms(task, *parts(task), b)[0] for b in given]
    # That one needs no mask at all.
    bare = given[2].exclude("attention_mask")
    if side == "right":
        measured.append(ghost.grad_norms(task, *parts(task), bare)[0])
        given.append(bare)
    expected = measured[0].expand(len(measured))
    torch.testing.assert_close(torch.stack(measured), expected, rtol=1e-5, atol=0)


def test_a_batch_may_be_of_another_length_than_the_first():
    task, _ = llama_task(tied=True)
    for lengths, width in (([3, 4], 4), ([9, 2, 7], 9), ([16], 16)):
        batch = padded(lengths, width)
        measured = ghost.grad_norms(task, *parts(task), batch)
        torch.testing.assert_close(measured, loop_norms(task, batch), rtol=1e-4, atol=0)


def test_the_given_weights_count_not_the_modules():
    task, batch = llama_task(tied=True)
    expected = loop_norms(task, batch)
    params = {k: p.detach().clone() for k, p in task.model.named_parameters()}
    with torch.no_grad():
        for parameter in task.model.parameters():
            parameter.mul_(0.5)
    assert (loop_norms(task, batch) / expected - 1).abs().min() > 0.01
    measured = ghost.grad_norms(task, params, dict(task.model.named_buffers()), batch)
    torch.testing.assert_close(measured, expected, rtol=1e-4, atol=0)


@pytest.mark.parametrize("name", ["vit", "llama, tied", "gpt2", "lora, trained"])
def test_frozen_parameters_are_not_in_the_norm(name):
    task, batch = ZOO[name].make()
    whole = ghost.grad_norms(task, *parts(task), batch)
    trained = [p for p in task.model.parameters() if p.requires_grad]
    for parameter in trained[: len(trained) // 2]:
        parameter.requires_grad_(False)
    measured = ghost.grad_norms(task, *parts(task), batch)
    torch.testing.assert_close(measured, loop_norms(task, batch), rtol=1e-4, atol=0)
    assert bool((measured < 0.999 * whole).all())


HALF = {
    "vit": vit_task,
    "masked autoencoder": mae_task,
    "llama": llama_task,
    "llama, tied": lambda: llama_task(tied=True),
    "llama, padded": lambda: llama_task(padded([7, 3, 5, 2], 7)),
    "lora": lora_task,
    "dora": ZOO["dora"].make,
    "gpt2": gpt2_task,
    "multimae": ZOO["multimae"].make,
    "convnext head": ZOO["convnext head"].make,
    "dpt head, values": ZOO["dpt head, values"].make,
    "convolutions": ZOO["convolutions"].make,
    "einsum": ZOO["einsum"].make,
    "attention": ZOO["attention"].make,
}


@pytest.mark.parametrize("name", HALF)
def test_in_bfloat16_norms_are_near_those_in_float32(name):
    task, batch = HALF[name]()
    half = Autocast(task)
    measured = ghost.grad_norms(half, *parts(half), batch)
    assert measured.dtype == torch.float32
    torch.testing.assert_close(measured, loop_norms(task, batch), rtol=1e-2, atol=0)
    torch.testing.assert_close(measured, loop_norms(half, batch), rtol=1e-2, atol=0)


def test_parameters_in_float64_give_the_same():
    task, batch = llama_task(tied=True)
    expected = loop_norms(task, batch)
    task.model.double()
    measured = ghost.grad_norms(task, *parts(task), batch)
    torch.testing.assert_close(measured, expected, rtol=1e-4, atol=0)


# The head alone

HEADS = {
    "vit": ["head.weight", "head.bias"],
    "vit, registers, layer scale, average": ["head.weight", "head.bias"],
    "masked autoencoder": [
        f"heads.{name}.{part}" for name in ("rgb", "depth") for part in ("weight", "bias")
    ],
    "llama, sdpa": ["lm_head.weight"],
    "llama, left padding": ["lm_head.weight"],
    "convolutions": ["head.weight", "head.bias"],  # some of its convolutions are mapped
    "einsum": ["head.weight", "head.bias"],
    "lora, trained": ["base_model.model.lm_head.weight"],  # though it is not trained
}


@pytest.mark.parametrize("name", HEADS)
def test_last_layer_norms_equal_a_loop_over_the_head(name):
    task, batch = ZOO[name].make()
    measured = ghost.last_layer_norms(task, *parts(task), batch)
    for head in HEADS[name]:
        task.model.get_parameter(head).requires_grad_()
    expected = loop_norms(task, batch, HEADS[name])
    torch.testing.assert_close(measured, expected, rtol=1e-4, atol=0)
    if "lora" not in name:
        assert bool((measured < 0.999 * loop_norms(task, batch)).all())


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_of_a_tied_table_the_last_layer_is_the_use_as_head(kind):
    task, batch = llama_task(tied=True) if kind == "llama" else gpt2_task()
    measured = ghost.last_layer_norms(task, *parts(task), batch)
    head = task.model.lm_head
    head.weight = torch.nn.Parameter(head.weight.detach().clone())  # untied
    expected = loop_norms(task, batch, ["lm_head.weight"])
    torch.testing.assert_close(measured, expected, rtol=1e-4, atol=0)


def test_a_last_layer_without_a_rule_is_refused():
    task, batch = ZOO["recurrent"].make()
    with pytest.raises(ghost.GhostError, match="head"):
        ghost.last_layer_norms(task, *parts(task), batch)


def test_the_layer_before_an_uncovered_head_does_not_pass_for_it():
    model = torch.nn.Sequential(torch.nn.Linear(5, 5), torch.nn.Tanh(), Mixer())
    task, batch = regression(model, 5, 5, 5)
    with pytest.raises(ghost.GhostError, match="head"):
        ghost.last_layer_norms(task, *parts(task), batch)


# The output alone


@pytest.mark.parametrize("name", ["vit", "masked autoencoder", "llama, tied", "gpt2"])
def test_output_grad_norms_equal_a_loop(name):
    task, batch = ZOO[name].make()
    expected = []
    for i in range(len(batch)):
        one = batch[i : i + 1]
        with torch.no_grad():
            output = task.forward(task.model, one)
        leaves = list(output.values()) if isinstance(output, dict) else [output]
        for leaf in leaves:
            leaf.requires_grad_()
        grads = torch.autograd.grad(task.losses(output, one)[0], leaves)
        expected.append(sum(g.square().sum() for g in grads).sqrt())
    measured = output_grad_norms(task, *parts(task), batch)
    torch.testing.assert_close(measured, torch.stack(expected), rtol=1e-4, atol=0)
    assert measured.std() > 1e-3 * measured.mean()


def test_an_output_gradient_by_hand():
    # Of a token: (softmax - onehot) / n, over the n tokens that are predicted.
    task, batch = llama_task(padded([7, 3, 5, 2], 7))
    with torch.no_grad():
        p = text_forward(task.model, batch)[:, :-1].softmax(-1)
    label = batch["label"][:, 1:]
    real = (label != IGNORED)[:, :, None]
    left = (p - torch.nn.functional.one_hot(label.clamp_min(0), p.shape[-1])) * real
    expected = left.flatten(1).norm(dim=1) / real.sum((1, 2))
    measured = output_grad_norms(task, *parts(task), batch)
    torch.testing.assert_close(measured, expected, rtol=1e-4, atol=0)


def test_a_text_without_targets_has_no_gradient():
    task, _ = llama_task(tied=True)
    batch = padded([4, 5, 3], 5)
    batch["label"][1] = IGNORED
    measured = ghost.grad_norms(task, *parts(task), batch)
    assert float(measured[1]) == 0
    others = torch.tensor([0, 2])
    expected = loop_norms(task, batch[others])
    torch.testing.assert_close(measured[others], expected, rtol=1e-4, atol=0)
