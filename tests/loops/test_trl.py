"""A selective SFTTrainer: rows of prompts and completions, a tokenizer made here."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import LlamaConfig, LlamaForCausalLM
from trl import SFTConfig, SFTTrainer

from attent.loops.transformers import selective
from attent.models.language import train_tokenizer
from attent.pipeline import constant
from tests.loops.training import Noting

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


def llama() -> LlamaForCausalLM:
    torch.manual_seed(1)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(TOKENIZER),
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            pad_token_id=TOKENIZER.pad_token_id,
            eos_token_id=TOKENIZER.eos_token_id,
            bos_token_id=None,
        )
    )


def arguments(folder: Any, **options: Any) -> SFTConfig:
    defaults = {
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "optim": "sgd",
        "learning_rate": 0.5,
        "lr_scheduler_type": "constant",
        "max_grad_norm": 0.0,
        "use_cpu": True,
        "bf16": False,
        "report_to": [],
        "disable_tqdm": True,
        "save_strategy": "no",
        "logging_steps": 1,
    }
    return SFTConfig(str(folder), **(defaults | options))


def teacher() -> Noting:
    return Noting(N, ratio=constant(0.5), budget=4 * N, seed=3)


def made(folder: Any, taught: Any, **options: Any) -> Any:
    return selective(SFTTrainer)(
        llama(),
        arguments(folder, **options),
        train_dataset=Dataset.from_list(ROWS),
        processing_class=TOKENIZER,
        teacher=taught,
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
