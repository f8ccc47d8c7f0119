"""The losses of rows against what models themselves say of each row alone."""

from __future__ import annotations

import pytest
import torch
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertForTokenClassification,
    GPT2Config,
    GPT2LMHeadModel,
    MixtralConfig,
    MixtralForCausalLM,
)

from attent.loops import row_losses as module
from attent.loops.row_losses import check_row_losses, kind_of, row_losses
from tests.loops.training import LENGTH, SIZES, WORDS, llama, rows


def bert(cls: type, **options):
    config = BertConfig(vocab_size=WORDS, initializer_range=0.5, **SIZES, **options)
    torch.manual_seed(2)
    return cls(config)


def gpt2():
    torch.manual_seed(2)
    return GPT2LMHeadModel(
        GPT2Config(vocab_size=WORDS, n_embd=16, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0)
    )


def words(count: int) -> torch.Tensor:
    return torch.stack([row["input_ids"] for row in rows(count)])


def tokens() -> torch.Tensor:
    return torch.stack([row["labels"] for row in rows(4)])


def tags() -> torch.Tensor:
    return torch.where(tokens() < 0, -100, tokens() % 3)


def several() -> torch.Tensor:
    return torch.tensor([[1.0, 0, 1], [0, 0, 0], [1, 1, 1], [0, 1, 0]])


def numbers(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(3))


CASES = {
    "llama": (llama, tokens, "causal"),
    "gpt2": (gpt2, tokens, "causal"),
    "masked": (lambda: bert(BertForMaskedLM), tokens, "tokens"),
    "tags": (lambda: bert(BertForTokenClassification, num_labels=3), tags, "tokens"),
    "classes": (
        lambda: bert(BertForSequenceClassification, num_labels=3),
        lambda: torch.tensor([0, 2, 1, 0]),
        "classes",
    ),
    "several": (lambda: bert(BertForSequenceClassification, num_labels=3), several, "classes"),
    "number": (
        lambda: bert(BertForSequenceClassification, num_labels=1),
        lambda: numbers(4),
        "classes",
    ),
    "numbers": (
        lambda: bert(BertForSequenceClassification, num_labels=3, problem_type="regression"),
        lambda: numbers(4, 3),
        "classes",
    ),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("chunk", [None, 5], ids=["whole", "chunks of 5 tokens"])
def test_each_is_what_the_model_says_of_that_row_alone(name, chunk, monkeypatch):
    build, labelled, kind = CASES[name]
    model, labels = build(), labelled()
    ids = words(4)
    if chunk:
        monkeypatch.setattr(module, "LOGITS", chunk * WORDS)
    assert kind_of(model) == kind
    problem = getattr(model.config, "problem_type", None)
    before = torch.get_rng_state()
    check_row_losses(kind, model.train(), {"input_ids": ids, "labels": labels}, problem)
    assert model.training
    assert torch.equal(torch.get_rng_state(), before)
    model.eval()
    found = row_losses(kind, model, {"input_ids": ids, "labels": labels}, problem)
    found.sum().backward()
    grads = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    alone = [model(input_ids=ids[k, None], labels=labels[k, None]).loss for k in range(4)]
    torch.stack(alone).sum().backward()
    torch.testing.assert_close(found, torch.stack(alone))
    assert len({round(loss.item(), 4) for loss in alone}) == 4
    expected = [p.grad for p in model.parameters() if p.grad is not None]
    for mine, theirs in zip(grads, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6)


def test_a_row_without_labels_is_no_loss():
    ids = words(2)
    labels = ids.clone()
    labels[0] = -100
    found = row_losses("causal", llama(), {"input_ids": ids, "labels": labels})
    assert found[0].item() == 0.0
    assert found[1].item() > 1.0


def test_logits_are_held_in_their_own_precision(monkeypatch):
    """What goes from the forward to the backward in float32 is of no more tokens than a chunk."""
    monkeypatch.setattr(module, "LOGITS", 2 * WORDS)
    saved: list[torch.Tensor] = []
    logits = torch.randn(4, LENGTH, WORDS, dtype=torch.bfloat16, requires_grad=True)
    keep = torch.autograd.graph.saved_tensors_hooks(
        lambda value: saved.append(value) or value, lambda value: value
    )
    with keep:
        module._token_means(logits, torch.ones(4, LENGTH, dtype=torch.int64))
    wide = [t for t in saved if t.dtype == torch.float32 and t.shape[-1:] == (WORDS,)]
    assert wide == []


def test_what_is_not_known():
    config = MixtralConfig(vocab_size=WORDS, num_key_value_heads=2, num_local_experts=2, **SIZES)
    assert kind_of(MixtralForCausalLM(config)) == "causal"
    config.output_router_logits = True  # whose loss is of a batch
    assert kind_of(MixtralForCausalLM(config)) is None
    assert kind_of(llama().model) is None


def test_labels_that_do_not_fit():
    ids = words(4)
    with pytest.raises(ValueError, match="the batch has no labels, only input_ids"):
        row_losses("causal", llama(), {"input_ids": ids})
    with pytest.raises(ValueError, match=r"labels of \[4, 5\] do not go with logits of \[4, 6, 13"):
        row_losses("causal", llama(), {"input_ids": ids, "labels": ids[:, 1:]})
    model = bert(BertForSequenceClassification, num_labels=3)
    with pytest.raises(ValueError, match=r"labels of \[4\] do not go .* 'multi_label_class"):
        row_losses("classes", model, {"input_ids": ids, "labels": torch.rand(4)})


def test_a_model_with_a_loss_of_another_kind_is_found_out():
    """A causal model whose labels were taken to be in place."""
    ids = words(4)
    with pytest.raises(ValueError, match=r"own loss of a row is \d.* which is what .*\(tokens\)"):
        check_row_losses("tokens", llama(), {"input_ids": ids, "labels": ids})
    # It is of a row with a label, where the first has none.
    labels = torch.where(torch.arange(4)[:, None] < 2, -100, ids)
    with pytest.raises(ValueError, match="own loss of a row is"):
        check_row_losses("tokens", llama(), {"input_ids": ids, "labels": labels})
    unlabelled = torch.full_like(ids, -100)
    check_row_losses("causal", llama(), {"input_ids": ids, "labels": unlabelled})
