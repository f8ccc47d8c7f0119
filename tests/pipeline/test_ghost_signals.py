"""Ghost norms: what they leave behind, and the signals made of them."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from tensordict import TensorDict
from torch import nn
from transformers import masking_utils

from attent.pipeline import TensorSource, describe, ghost, score
from attent.pipeline.ghost import GhostError
from attent.pipeline.signals import SIGNALS, per_example, vmap_grad_norms
from tests.pipeline.test_ghost_models import loop_norms, parts
from tests.zoo import (
    IGNORED,
    ZOO,
    MaskToken,
    Mixed,
    Mixer,
    ZooTask,
    llama_task,
    padded,
    regression,
    text_forward,
    token_losses,
)

# Nothing is left behind


def everything(task) -> dict:
    """All that a measurement might change, of a model and around it."""
    found: dict = {
        "generator": torch.get_rng_state().tolist(),
        "gradients": torch.is_grad_enabled(),
        "modes": torch._C._len_torch_function_stack(),
        "tracing": masking_utils.is_tracing,
        "attention": getattr(getattr(task.model, "config", None), "_attn_implementation", None),
    }
    for name, module in task.model.named_modules():
        hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks)
        flags = [getattr(module, f, None) for f in ("gradient_checkpointing", "grad_checkpointing")]
        found["module", name] = (module.training, [len(h) for h in hooks], flags)
    for name, tensor in [*task.model.named_parameters(), *task.model.named_buffers()]:
        kept = (id(tensor), tensor._version, tensor.grad is None, tensor.requires_grad)
        found["tensor", name] = (*kept, tensor.detach().clone().tolist())
    return found


@pytest.mark.parametrize("signal", ["grad_norm", "vmap_grad_norm", "last_layer"])
@pytest.mark.parametrize(
    "name", ["vit", "llama, right padding", "lora, trained", "gpt2", "einsum", "convolutions"]
)
def test_nothing_is_left_behind(name, signal):
    task, batch = ZOO[name].make()
    given, before = batch.clone(), everything(task)
    for _ in range(2):
        measured = SIGNALS[signal].measure(task, *parts(task), batch, None)
        assert not measured.requires_grad
    assert everything(task) == before
    assert bool((given == batch).all())
    assert not any(t.requires_grad for t in batch.values())


def test_nothing_is_left_behind_of_a_checkpointed_model():
    task, batch = ZOO["vit, checkpointed"].make()
    before = everything(task)
    for signal in ("vmap_grad_norm", "grad_norm"):
        SIGNALS[signal].measure(task, *parts(task), batch, None)
        assert everything(task) == before


def test_nothing_is_left_behind_by_a_refusal():
    task, batch = regression(MaskToken(), 4, 5, 5)
    before = everything(task)
    with pytest.raises(GhostError):
        ghost.grad_norms(task, *parts(task), batch)
    with pytest.raises(RuntimeError):
        vmap_grad_norms(task, *parts(task), batch)
    assert everything(task) == before


def test_activations_are_let_go_of_without_a_collection():
    """Cycles would hold a batch's activations until Python looks for cycles."""
    task, batch = ZOO["llama, tied"].make()
    held = []

    def forward(model, given):
        output = text_forward(model, given)
        held.append(weakref.ref(output))
        return output

    task.call = forward
    ghost.grad_norms(task, *parts(task), batch)
    gc.collect()
    held.clear()
    gc.disable()
    try:
        ghost.grad_norms(task, *parts(task), batch)
        assert [ref() is None for ref in held] == [True]
    finally:
        gc.enable()


def test_a_task_is_let_go_of():
    task, batch = ZOO["einsum"].make()
    ghost.grad_norms(task, *parts(task), batch)
    model = weakref.ref(task.model)
    del task
    gc.collect()
    assert model() is None


# Signals made of it


@pytest.mark.parametrize("name", ["grad_norm", "vmap_grad_norm", "last_layer", "loss"])
def test_another_say_for_the_length_of_an_example(name):
    task, _ = llama_task()
    batch = padded([7, 3, 5, 2], 7)
    counts = torch.tensor([6.0, 2, 4, 1])  # the first word of a text is not predicted
    of_mean = SIGNALS[name].measure(task, *parts(task), batch, None)
    assert per_example(name, "mean") is SIGNALS[name]
    for length, factor in (("sqrt", counts.sqrt()), ("sum", counts)):
        signal = per_example(name, length)
        assert (signal.name, signal.backward) == (f"{name}_{length}", SIGNALS[name].backward)
        measured = signal.measure(task, *parts(task), batch, None)
        torch.testing.assert_close(measured, of_mean * factor)


def test_the_norm_of_a_sum_is_that_of_the_summed_losses():
    task, _ = llama_task(tied=True)
    batch = padded([7, 3, 5, 2], 7)
    measured = per_example(SIGNALS["grad_norm"], "sum").measure(task, *parts(task), batch, None)

    def summed(logits, batch):
        return token_losses(logits, batch) * (batch["label"][:, 1:] != IGNORED).sum(1)

    expected = loop_norms(ZooTask(task.model, text_forward, summed), batch)
    torch.testing.assert_close(measured, expected, rtol=1e-4, atol=0)


def test_a_length_needs_targets():
    class Bare:
        name, targets = "bare", None

    with pytest.raises(
        ValueError, match=r"grad_norm_sum needs .* give task 'bare' a method targets"
    ):
        per_example("grad_norm", "sum").measure(Bare(), {}, {}, TensorDict({}), None)
    with pytest.raises(ValueError, match="one of mean, sqrt, sum, got 'tokens'"):
        per_example("grad_norm", "tokens")


def test_describe_says_what_is_mapped():
    for model, told in (
        (nn.Linear(5, 2), "all by ghost norms"),
        (Mixed(Mixer()), "ghost norms, but by vmap: mixer (Mixer)"),
        (nn.Sequential(nn.Linear(5, 5), Mixer(), Mixer()), "by vmap: 1 (Mixer), 2 (Mixer)"),
    ):
        task, batch = regression(model, 5, 5, 5)
        before = everything(task)
        shown = describe(score(task, TensorSource(dict(batch.exclude("index"))), "grad_norm"))
        assert "grad_norm of 5 examples" in shown
        assert told in shown
        assert everything(task) == before


def test_describe_says_what_the_head_is():
    task, batch = ZOO["lora, trained"].make()
    source = TensorSource(dict(batch.exclude("index")))
    task.model.train()
    shown = describe(score(task, source, "last_layer"))
    assert "the head is base_model.model.lm_head.weight]" in shown
    assert task.model.training


def test_describe_surveys_the_model_as_scoring_will():
    task, batch = regression(nn.Sequential(nn.Linear(5, 5), nn.BatchNorm1d(5)), 5, 5)
    task.model.train()  # as between stages
    source = TensorSource(dict(batch.exclude("index")))
    assert "all by ghost norms" in describe(score(task, source, "grad_norm"))
    assert task.model.training
