"""Language models: losses of tokens against those of transformers, chunks, adapters, tokenizers."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from attent.models.adapters import with_adapters
from attent.models.language import (
    IGNORED,
    LanguageModel,
    build_causal,
    load_tokenizer,
    train_tokenizer,
)
from attent.models.packing import pack
from attent.models.token_losses import (
    plain_token_losses,
    token_errors,
    token_losses,
    token_losses_of,
)
from attent.pipeline.keyed import generator

SMALL = {
    "vocab_size": 50, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
    "num_attention_heads": 2, "num_key_value_heads": 1, "pad_token_id": 0, "bos_token_id": 1,
    "eos_token_id": 2,
}  # fmt: skip

FAMILIES = {
    "llama": lambda: build_causal("llama:dim=16,depth=2,num_heads=2", vocab_size=50),
    "mistral": lambda: MistralForCausalLM(MistralConfig(**SMALL, sliding_window=3)),
    "gemma2, softcapped": lambda: Gemma2ForCausalLM(Gemma2Config(**SMALL, head_dim=8)),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**SMALL)),
    "cohere, scaled": lambda: CohereForCausalLM(CohereConfig(**SMALL, logit_scale=0.3)),
    "granite, scaled": lambda: GraniteForCausalLM(GraniteConfig(**SMALL, logits_scaling=3.0)),
    "gpt2": lambda: GPT2LMHeadModel(
        GPT2Config(vocab_size=50, n_embd=16, n_layer=2, n_head=2, n_positions=32)
    ),
}


def made(name: str = "llama", **options) -> LanguageModel:
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        torch.manual_seed(0)
        model = LanguageModel(FAMILIES[name](), **options)
        for p in model.parameters():  # far from even shares, so that losses tell models apart
            if p.ndim > 1:
                nn.init.normal_(p, std=0.4)
    return model.eval()


def texts(lengths=(9, 5, 7), prompts=(3, 1, 4)):
    ids = torch.randint(3, 50, (len(lengths), max(lengths)), generator=generator(1))
    labels = ids.clone()
    for i, (length, prompt) in enumerate(zip(lengths, prompts, strict=True)):
        ids[i, length:] = 0
        labels[i, length:] = IGNORED
        labels[i, :prompt] = IGNORED
    return ids, labels


# --- losses


@pytest.mark.parametrize("name", FAMILIES)
def test_losses_are_those_of_the_models_own_logits(name):
    model = made(name, chunk=4)
    ids, labels = texts()
    mask = torch.arange(9) < torch.tensor([9, 5, 7])[:, None]
    logits = model.causal(input_ids=ids, attention_mask=mask.long()).logits
    expected = plain_token_losses(logits[:, :-1], labels[:, 1:], IGNORED)
    found = model(ids, labels)
    assert found.shape == (3, 8)
    assert torch.equal(found != 0, labels[:, 1:] != IGNORED)
    assert float(found.detach().std()) > 0.3
    torch.testing.assert_close(found, expected)
    model.check()


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("frozen_head", [True, False])
def test_gradients_are_those_of_the_models_own_logits(name, frozen_head):
    model = made(name, chunk=3)
    head = model.inner.get_output_embeddings().weight
    head.requires_grad_(not frozen_head)
    ids, labels = texts()
    scale = torch.tensor([1.0, -2.0, 0.5])[:, None]
    trained = [p for p in model.parameters() if p.requires_grad]
    logits = model.causal(input_ids=ids).logits
    plain = plain_token_losses(logits[:, :-1], labels[:, 1:], IGNORED)
    expected = torch.autograd.grad((scale * plain).sum(), trained, allow_unused=True)
    found = torch.autograd.grad((scale * model(ids, labels)).sum(), trained, allow_unused=True)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", FAMILIES)
def test_packed_texts_have_the_losses_and_gradients_that_they_have_alone(name):
    model = made(name, chunk=4)
    lengths = (9, 5, 4, 2, 6)
    ids, labels = texts(lengths, (3, 1, 2, 1, 4))
    model.check(packing=True)
    plain, packed = model(ids, labels), model(ids, labels, lengths=torch.tensor(lengths))
    assert pack(torch.tensor(lengths), 9).rows == 3
    torch.testing.assert_close(packed, plain, rtol=1e-4, atol=1e-5)
    scale = torch.tensor([1.0, -2.0, 0.5, 3.0, -1.0])[:, None]
    trained = [p for p in model.parameters() if p.requires_grad]
    expected = torch.autograd.grad((scale * plain).sum(), trained, allow_unused=True)
    found = torch.autograd.grad((scale * packed).sum(), trained, allow_unused=True)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)
    errors = model(ids, labels, "error", lengths=torch.tensor(lengths))
    torch.testing.assert_close(errors, model(ids, labels, "error"), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("fresh", [True, False])
def test_a_model_whose_packed_texts_see_each_other_is_refused(fresh):
    model = LanguageModel(FAMILIES["llama"]()) if fresh else made()
    own = model.inner.model.forward

    def deaf(*args, position_ids=None, **kwargs):
        return own(*args, **kwargs)

    model.inner.model.forward = deaf
    model.check()
    with pytest.raises(ValueError, match="packing: LlamaForCausalLM lets the texts of a row see"):
        model.check(packing=True)


def test_a_model_whose_logits_are_unknown_is_refused():
    model = made()
    head = model.inner.lm_head
    head.register_forward_hook(lambda module, args, output: output * 3 if model.own else output)
    own = model.inner.forward

    def forward(*args, **kwargs):
        model.own = True
        try:
            return own(*args, **kwargs)
        finally:
            model.own = False

    model.own = False
    model.inner.forward = forward
    with pytest.raises(ValueError, match="LlamaForCausalLM makes its logits in a way"):
        model.check()


def test_nothing_supervised_is_no_loss_and_no_gradient():
    model = made()
    ids, labels = texts()
    found = model(ids, torch.full_like(labels, IGNORED))
    assert torch.equal(found, torch.zeros(3, 8))
    found.sum().backward()
    assert not any(p.grad is not None and p.grad.any() for p in model.parameters())


@pytest.mark.parametrize("chunk", [1, 2, 5, 7, 100])
def test_a_chunk_of_any_size_gives_the_same(chunk):
    draw = generator(4)
    hidden, weight = torch.randn(7, 6, generator=draw), torch.randn(11, 6, generator=draw)
    target = torch.randint(11, (7,), generator=draw)
    upstream = torch.randn(7, generator=draw)
    results = []
    for how in ("plain", "kept", "again", "checkpointed"):
        h = hidden.clone().requires_grad_()
        w = weight.clone().requires_grad_(how != "kept")
        if how == "plain":
            losses = F.cross_entropy(h @ w.T, target, reduction="none")
        elif how == "checkpointed":
            losses = token_losses_of(lambda x, w=w: x @ w.T, h, target, chunk=chunk)
        else:
            losses = token_losses(h, w, target, chunk=chunk)
        (losses * upstream).sum().backward()
        results.append((losses.detach(), h.grad, w.grad))
    for losses, by_hidden, by_weight in results[1:]:
        torch.testing.assert_close(losses, results[0][0])
        torch.testing.assert_close(by_hidden, results[0][1])
        assert by_weight is None or torch.allclose(by_weight, results[0][2], atol=1e-5)
    assert results[1][2] is None
    assert results[2][2] is not None
    assert torch.autograd.gradcheck(
        lambda h, w: token_losses(h, w, target, chunk=chunk).double(),
        (hidden.double().requires_grad_(), weight.double().requires_grad_()),
        eps=1e-3,
        atol=1e-2,
    )


def test_errors_are_the_squares_of_gradients_by_the_logits():
    draw = generator(5)
    logits = (3 * torch.randn(6, 9, generator=draw)).requires_grad_()
    target = torch.randint(9, (6,), generator=draw)
    (grad,) = torch.autograd.grad(F.cross_entropy(logits, target, reduction="none").sum(), logits)
    found = token_errors(lambda x: x, logits.detach(), target, chunk=4)
    torch.testing.assert_close(found, grad.square().sum(1))


def test_errors_of_tokens_that_are_nearly_sure_are_not_lost():
    """p_y = 1 - 1e-5: (1e-5)^2 twice; 1 - 2 p_y + p_y^2 would be nothing, or below."""
    logits = torch.tensor([[0.0, 11.512915]], dtype=torch.float32)
    found = token_errors(lambda x: x, logits, torch.tensor([1]), chunk=1)
    assert float(found) == pytest.approx(2e-10, rel=0.05)


class Largest(TorchDispatchMode):
    """The most rows that a floating tensor of this width has had."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width, self.rows = width, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        wide = isinstance(found, torch.Tensor) and found.shape[-1:] == (self.width,)
        if wide and found.is_floating_point():
            self.rows = max(self.rows, found.numel() // self.width)
        return found


@pytest.mark.parametrize("name", ["llama", "gemma2, softcapped"])
@pytest.mark.parametrize("measure", ["loss", "error"])
@pytest.mark.parametrize("frozen_head", [True, False])
def test_no_more_logits_are_held_than_of_a_chunk(name, measure, frozen_head):
    """37 words: nothing else is so wide but the head itself, transposed for a product."""
    model = made(name, chunk=4)
    model.inner.resize_token_embeddings(37)
    model.inner.get_output_embeddings().weight.requires_grad_(not frozen_head)
    ids = labels = texts()[0] % 37
    with Largest(37) as seen:
        found = model(ids, labels, measure)
        if measure == "loss":
            found.sum().backward()
    assert 0 < seen.rows <= 16  # of 24 tokens; 16 are the features of the head, transposed
    plain = Largest(37)
    with plain:
        model.causal(input_ids=ids)
    assert plain.rows == 27


def test_under_autocast_losses_are_float32_and_near():
    model = made(chunk=4)
    ids, labels = texts()
    exact = model(ids, labels)
    for frozen in (True, False):
        model.inner.get_output_embeddings().weight.requires_grad_(not frozen)
        with torch.autocast("cpu", torch.bfloat16):
            found = model(ids, labels)
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, exact, rtol=0.1, atol=0.15)
        found.sum().backward()


# --- models


def test_a_llama_has_the_sizes_asked_for():
    model = build_causal(
        "llama:dim=32, depth=3,num_heads=4,num_kv_heads=2,mlp_dim=40,max_length=64", vocab_size=70
    )
    config = model.config
    assert isinstance(model, LlamaForCausalLM)
    assert (config.hidden_size, config.num_hidden_layers, config.num_attention_heads) == (32, 3, 4)
    assert (config.num_key_value_heads, config.intermediate_size) == (2, 40)
    assert (config.max_position_embeddings, config.vocab_size) == (64, 70)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("llama:dims=32", "there is no 'dims'; did you mean 'dim'"),
        ("llama:dim=3.5", "dim is a whole number, at least 1, not '3.5'"),
        ("llama:dim=0", "at least 1, not '0'"),
        ("llama:dim=30,num_heads=4", "dim 30 must be an even multiple of num_heads 4"),
    ],
)
def test_a_llama_that_cannot_be_is_refused(spec, message):
    with pytest.raises(ValueError, match=message):
        build_causal(spec, vocab_size=50)


def test_a_path_that_holds_no_model_is_told(tmp_path):
    (tmp_path / "notes.txt").write_text("nothing")
    with pytest.raises(ValueError, match=r"cannot be loaded \(the folder holds notes\.txt\)"):
        build_causal(str(tmp_path))
    with pytest.raises(ValueError, match=r"cannot be loaded"):
        load_tokenizer(str(tmp_path))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("bits", [4, 8, 16])
def test_few_bits_need_a_gpu(bits, tmp_path):
    with pytest.raises(ValueError, match=f"bits: {bits} needs a GPU, which there is not here"):
        build_causal(str(tmp_path), bits=bits, device=torch.device("cpu"))


def test_numbers_of_bits_that_there_are_not():
    with pytest.raises(ValueError, match="bits are 4, 8, 16 or 32, got 5"):
        build_causal("llama:", bits=5)


def test_a_saved_model_is_loaded_with_its_weights(tmp_path):
    model = made()
    model.causal.save_pretrained(tmp_path)
    loaded = LanguageModel(build_causal(str(tmp_path))).eval()
    ids, labels = texts()
    torch.testing.assert_close(loaded(ids, labels), model(ids, labels))


# --- adapters


@pytest.mark.parametrize("adapter", ["lora", "dora", "adalora"])
def test_adapters_alone_are_trained_and_begin_at_the_model(adapter):
    plain, other = made(), made()
    model = LanguageModel(
        with_adapters(other.causal, adapter, rank=2, alpha=4, target_modules="q_proj, v_proj")
    ).eval()
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained
    assert all("lora_" in name for name in trained)
    assert {name.split(".lora_")[0].rpartition(".")[2] for name in trained} == {"q_proj", "v_proj"}
    ids, labels = texts()
    torch.testing.assert_close(model(ids, labels), plain(ids, labels), rtol=1e-4, atol=1e-4)
    model(ids, labels).sum().backward()
    assert any(p.grad is not None and p.grad.any() for p in model.parameters())
    model.check()


def test_full_is_the_model_itself():
    model = made().causal
    assert with_adapters(model, "full") is model


def test_a_layer_that_there_is_not_is_refused():
    """One beside others too, which peft would pass over."""
    for names in (["no_proj"], "q_proj,no_proj"):
        with pytest.raises(ValueError, match="no layer 'no_proj'; its linear layers are down"):
            with_adapters(made().causal, "lora", rank=2, target_modules=names)


# --- tokenizers


TEXTS = ["def f(x):\n    return x + 1\n", "for i in range(3):\n    print(i)\n"] * 20


def test_a_tokenizer_gives_back_every_text():
    tokenizer = train_tokenizer(TEXTS, 300)
    assert len(tokenizer) <= 300
    for text in [*TEXTS[:2], "tabs\tand  spaces", "ünïcode ✓ 字", ""]:
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert len(tokenizer(TEXTS[0])["input_ids"]) < len(TEXTS[0]) / 2
    assert tokenizer.eos_token_id is not None
    assert tokenizer.pad_token_id not in (None, tokenizer.eos_token_id)


def test_a_tokenizer_is_the_same_every_time_and_survives_a_file(tmp_path):
    first, second = train_tokenizer(TEXTS, 300), train_tokenizer(iter(TEXTS), 300)
    assert first.get_vocab() == second.get_vocab()
    first.save_pretrained(tmp_path)
    loaded = load_tokenizer(str(tmp_path))
    assert loaded(TEXTS[1])["input_ids"] == first(TEXTS[1])["input_ids"]
    assert loaded.eos_token == first.eos_token


def test_too_few_words_are_refused():
    with pytest.raises(ValueError, match=r"vocab_size is at least 258 .* got 100"):
        train_tokenizer(TEXTS, 100)
