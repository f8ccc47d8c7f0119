"""A tiny Llama and its rows, trained by a Trainer with a Teacher and by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

from attent.loops.transformers import Selective
from attent.pipeline import Teacher, constant

# PEFT asks transformers for something by its old name.
OLD_NAME = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")

N = 21  # in batches of 4: 4, 4, 4, 4, 5; of 0.48 of them: 4, 4, 2
BUDGET = 4 * N + 2
WORDS, LENGTH = 13, 6
SIZES: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
}
"""Of every transformer in these tests."""

PLAIN: dict[str, Any] = {
    "optim": "sgd",
    "learning_rate": 0.5,
    "lr_scheduler_type": "constant",
    "max_grad_norm": 0.0,
    "use_cpu": True,
    "report_to": [],
    "disable_tqdm": True,
    "save_strategy": "no",
}
"""Arguments of a trainer: gradient descent by 0.5, and nothing written."""


class SelectiveTrainer(Selective, Trainer):
    """As a user writes it."""


class Noting(Teacher):
    """A teacher that notes what it is told: the examples of each call and step, their losses."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.noted: list[list[int]] = []
        self.losses: list[Tensor] = []
        self.steps: list[list[int]] = []
        self._last = -1

    def observe(self, index: Any, losses: Tensor) -> Tensor:
        step = int(self.state["clock", "step"])
        found = super().observe(index, losses)
        self.noted.append(torch.as_tensor(index).tolist())
        self.losses.append(losses.detach().clone())
        if step != self._last:
            self._last = step
            self.steps.append([])
        self.steps[-1] += self.noted[-1]
        return found


def teacher(**options: Any) -> Noting:
    return Noting(N, **({"ratio": constant(0.48), "budget": BUDGET, "seed": 3} | options))


def rows(count: int = N, seed: int = 0) -> list[dict[str, Tensor]]:
    """Of which the first ids are not learned from, in some rows more than in others."""
    draw = torch.Generator().manual_seed(seed)
    found = []
    for row in range(count):
        ids = torch.randint(0, WORDS, (LENGTH,), generator=draw)
        labels = ids.clone()
        labels[: row % 3] = -100
        found.append({"input_ids": ids, "labels": labels})
    return found


def llama(dropout: float = 0.0) -> LlamaForCausalLM:
    config = LlamaConfig(vocab_size=WORDS, attention_dropout=dropout, pad_token_id=0, **SIZES)
    draw = torch.Generator().manual_seed(1)
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=draw) / 4)
    return model


def arguments(folder: Path | str, **options: Any) -> TrainingArguments:
    """Plain gradient descent by 0.5, in batches of 4."""
    defaults = {
        "per_device_train_batch_size": 4,
        "logging_strategy": "no",
    }
    return TrainingArguments(str(folder), **(PLAIN | defaults | options))


def trained(folder: Path | str, taught: Teacher, *, model: Any = None, **options: Any) -> Trainer:
    """A trainer after its training."""
    args = arguments(folder, **options)
    trainer = SelectiveTrainer(model or llama(), args, train_dataset=rows(), teacher=taught)
    trainer.train()
    return trainer


def by_hand(taught: Noting, batch_size: int = 4) -> LlamaForCausalLM:
    """The same in a plain loop over the teacher."""
    model = llama().train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    loader = DataLoader(taught.with_index(rows()), batch_sampler=taught.batches(batch_size))
    for index, batch in taught.loop(loader):
        logits, labels = model(batch["input_ids"]).logits[:, :-1], batch["labels"][:, 1:]
        each = F.cross_entropy(logits.transpose(1, 2), labels, reduction="none")
        losses = each.sum(1) / (labels != -100).sum(1)
        optimizer.zero_grad()
        taught.observe(index, losses).backward()
        optimizer.step()
    return model


def assert_weights_close(one: Any, other: Any, *, atol: float) -> None:
    for mine, theirs in zip(one.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=atol)
