"""A selective SFTTrainer: rows of prompts and completions, a tokenizer made here."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import LlamaConfig, LlamaForCausalLM, MixtralConfig, MixtralForCausalLM
from trl import SFTConfig, SFTTrainer

from attent.loops.transformers import selective
from attent.models.language import train_tokenizer
from attent.pipeline import constant
from tests.loops.training import OLD_NAME, PLAIN, SIZES, Noting, assert_weights_close

# TRL's own default has, in transformers, a new name.
pytestmark = pytest.mark.filterwarnings(
    "ignore:`gradient_checkpointing` is deprecated and will be removed in v6:FutureWarning"
)

N = 12
ROWS = [
    {"prompt": f"{a} plus {b} is", "completion": f" {a + b}" + " indeed" * (a % 3)}
    for a in range(3)
    for b in range(4)
]
TOKENIZER = train_tokenizer([row["prompt"] + row["completion"] for row in ROWS], 280)
SPECIAL: dict[str, Any] = {
    "vocab_size": len(TOKENIZER),
    "pad_token_id": TOKENIZER.pad_token_id,
    "eos_token_id": TOKENIZER.eos_token_id,
    "bos_token_id": None,
}
"""What a model is told of the tokenizer."""


def llama() -> LlamaForCausalLM:
    torch.manual_seed(1)
    return LlamaForCausalLM(
        LlamaConfig(
            **SIZES,
            **SPECIAL,
        )
    )


def arguments(folder: Any, **options: Any) -> SFTConfig:
    defaults = {
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "bf16": False,
        "logging_steps": 1,
    }
    return SFTConfig(str(folder), **(PLAIN | defaults | options))


def teacher() -> Noting:
    return Noting(N, ratio=constant(0.5), budget=4 * N, seed=3)


def made(folder: Any, taught: Any, *, model: Any = None, rows: Any = ROWS, **options: Any) -> Any:
    """A trainer; what is none of its arguments' options is its own."""
    own = {
        name: options.pop(name) for name in ("peft_config", "per_example_loss") if name in options
    }
    return selective(SFTTrainer)(
        model or llama(),
        arguments(folder, **options),
        train_dataset=Dataset.from_list(rows),
        processing_class=TOKENIZER,
        teacher=taught,
        **own,
    )


def row_loss(model: Any, row: dict[str, str]) -> float:
    """The mean loss of a completion's tokens and its end, given its prompt, by hand."""
    prompt = TOKENIZER(row["prompt"])["input_ids"]
    whole = TOKENIZER(row["prompt"] + row["completion"])["input_ids"] + [TOKENIZER.eos_token_id]
    logits = model(input_ids=torch.tensor([whole])).logits[0].log_softmax(-1)
    losses = [-logits[t - 1, whole[t]] for t in range(len(prompt), len(whole))]
    return torch.stack(losses).mean().item()


def test_it_is_told_the_loss_of_each_completion(tmp_path):
    """Before the first step they are those of the model as it was made, row for row."""
    taught = teacher()
    trainer = made(tmp_path, taught)
    trainer.train()
    model = llama().eval()
    (first, second), losses = taught.noted[:2], taught.losses[:2]
    expected = [row_loss(model, ROWS[i]) for i in [*first, *second]]
    torch.testing.assert_close(torch.cat(losses), torch.tensor(expected))
    assert len({round(loss, 4) for loss in expected}) > 2
    assert taught.finished
    sizes = [len(step) for step in taught.steps]
    assert sum(sizes) == 4 * N
    assert trainer.state.global_step == len(sizes)


def counted(model: Any) -> list[int]:
    """The numbers of rows of the forwards that a model makes from now on."""
    calls: list[int] = []
    forward = model.forward

    def counting(**given: Any) -> Any:
        calls.append(len(given["input_ids"]))
        return forward(**given)

    model.forward = counting
    return calls


def test_its_logs_are_those_of_one_forward(tmp_path):
    """SFTTrainer's accuracy, entropy and number of tokens, of the first step by hand.

    Of each of two micro-batches the share of the labelled tokens that are the likeliest, and their
    mean entropy; then the mean of the two.
    """
    taught = teacher()
    trainer = made(tmp_path, taught)
    calls = counted(trainer.model)
    trainer.train()
    assert calls == [len(noted) for noted in taught.noted]
    model, data = llama().eval(), trainer.train_dataset
    found, read = [], 0
    for noted in taught.noted[:2]:
        right, entropies = [], []
        for row in (data[i] for i in noted):
            ids, labels = torch.tensor(row["input_ids"]), torch.tensor(row["labels"])[1:]
            logs = model(input_ids=ids[None]).logits[0, :-1].detach().log_softmax(-1)[labels >= 0]
            right += (logs.argmax(-1) == labels[labels >= 0]).tolist()
            entropies += (-(logs.exp() * logs).sum(-1)).tolist()
            read += len(ids)
        found.append([sum(right) / len(right), sum(entropies) / len(entropies)])
    accuracy, entropy = torch.tensor(found).mean(dim=0).tolist()
    log = trainer.state.log_history[0]
    assert log["mean_token_accuracy"] == pytest.approx(accuracy)
    assert log["entropy"] == pytest.approx(entropy, rel=1e-5)
    assert log["num_tokens"] == read
    last = trainer.state.log_history[-2]
    assert last["mean_token_accuracy"] > accuracy
    assert {"selection_ratio", "budget_spent"} <= last.keys()


CHAT = (
    "{% for message in messages %}{{ message['role'] }} "
    "{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] }}"
    "{% endgeneration %}{% else %}{{ message['content'] }}{% endif %} {% endfor %}"
)


def spoken(row: dict[str, str]) -> dict[str, Any]:
    turns = {"user": row["prompt"], "assistant": row["completion"]}
    return {"messages": [{"role": role, "content": said} for role, said in turns.items()]}


@pytest.mark.parametrize(
    ("options", "shape"),
    [
        ({"completion_only_loss": False}, dict),
        ({}, lambda row: {"text": row["prompt"] + row["completion"]}),
        ({"assistant_only_loss": True}, spoken),
        ({"max_length": 6}, dict),
        ({"pad_to_multiple_of": 8}, dict),
    ],
    ids=["whole rows", "texts", "assistant", "cut", "padded"],
)
def test_what_counts_of_a_row_is_what_sfttrainer_labels(tmp_path, options, shape, monkeypatch):
    monkeypatch.setattr(TOKENIZER, "chat_template", CHAT)
    taught = teacher()
    trainer = made(tmp_path, taught, rows=[shape(row) for row in ROWS], **options)
    trainer.train()
    model, data = llama().eval(), trainer.train_dataset
    told = torch.cat(taught.losses[:2])
    chosen = [data[i] for noted in taught.noted[:2] for i in noted]
    labels = [row.get("labels") or row["input_ids"] for row in chosen]
    expected = [
        model(input_ids=torch.tensor([row["input_ids"]]), labels=torch.tensor([label])).loss
        for row, label in zip(chosen, labels, strict=True)
    ]
    torch.testing.assert_close(told, torch.stack(expected).detach())
    counts = {sum(at >= 0 for at in label) for label in labels}
    assert len(counts) > 1 or "max_length" in options
    assert taught.finished


@OLD_NAME
def test_adapters(tmp_path):
    taught = teacher()
    adapter = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    trainer = made(tmp_path, taught, peft_config=adapter)
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    trainer.train()
    moved = {n for n, p in trainer.model.named_parameters() if not torch.equal(p, before[n])}
    assert moved
    assert all("lora" in name for name in moved)
    assert taught.finished
    assert "mean_token_accuracy" in trainer.state.log_history[0]


def test_losses_of_ones_own(tmp_path):
    """They take the place of SFTTrainer's in training, which then has nothing to log of tokens."""

    def losses(model: Any, inputs: Any) -> Any:
        return model(input_ids=inputs["input_ids"]).logits.square().mean(dim=(1, 2))

    taught = teacher()
    trainer = made(tmp_path, taught, per_example_loss=losses, loss_type="dft")
    trainer.train()
    assert taught.finished
    assert taught.losses[-1].mean() < taught.losses[0].mean()
    assert "mean_token_accuracy" not in trainer.state.log_history[0]


def mixture() -> MixtralForCausalLM:
    options = {"num_key_value_heads": 2, "num_local_experts": 2}
    return MixtralForCausalLM(MixtralConfig(**SIZES, **SPECIAL, **options))


def test_mixtures_of_experts(tmp_path):
    """SFTTrainer trains a router by default, and does so by a loss of a batch."""
    with pytest.raises(ValueError, match=r"trains its router, .* router_aux_loss_coef=0\.0"):
        made(tmp_path, teacher(), model=mixture())
    taught = teacher()
    made(tmp_path, taught, model=mixture(), router_aux_loss_coef=0.0).train()
    assert taught.finished


def test_a_version_whose_models_tell_no_log_probabilities(tmp_path, monkeypatch):
    """The losses of rows are those of logits then, and there are no logs of tokens."""
    plain = teacher()
    expected = made(tmp_path, plain)
    expected.train()
    monkeypatch.delattr("trl.trainer.utils.add_fused_lm_head")
    taught = teacher()
    trainer = made(tmp_path, taught)
    trainer.train()
    assert taught.steps == plain.steps
    assert_weights_close(trainer.model, expected.model, atol=1e-4)
    assert "mean_token_accuracy" not in trainer.state.log_history[0]


def test_it_selects_the_hardest(tmp_path):
    """Of the second pass: the six rows whose losses in the first were the highest."""
    taught = teacher()
    made(tmp_path, taught).train()
    steps = [0, *torch.tensor([len(step) for step in taught.steps]).cumsum(0).tolist()]
    told = [i for noted in taught.noted for i in noted]
    losses = torch.cat(taught.losses)
    assert sorted(told[:N]) == list(range(N))
    assert 18 in steps
    by_row = {i: loss.item() for i, loss in zip(told[:N], losses[:N], strict=True)}
    hardest = sorted(by_row, key=by_row.__getitem__)[-6:]
    assert sorted(told[N:18]) == sorted(hardest)


def test_a_stopped_run_goes_on(tmp_path):
    whole = teacher()
    expected = made(tmp_path / "whole", whole)
    expected.train()
    first = made(tmp_path / "parts", teacher(), save_strategy="steps", save_steps=4)
    first.train()
    second = teacher()
    resumed = made(tmp_path / "parts", second, save_strategy="steps", save_steps=4)
    resumed.train(resume_from_checkpoint=str(tmp_path / "parts" / "checkpoint-4"))
    assert second.steps == whole.steps[4:]
    for mine, theirs in zip(resumed.model.parameters(), expected.model.parameters(), strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"packing": True, "max_length": 32}, "packing and padding_free"),
        ({"packing": True, "packing_strategy": "wrapped", "max_length": 32}, "packing and padding"),
        ({"padding_free": True, "max_length": None}, "packing and padding_free"),
        ({"loss_type": "dft"}, "loss_type='dft': give it as per_example_loss"),
    ],
)
@pytest.mark.filterwarnings("ignore")  # of what is refused, TRL has advice of its own
def test_what_cannot_be_told_apart(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        made(tmp_path, teacher(), **options)
