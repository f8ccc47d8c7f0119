"""The options of ``attent instruct``."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from attent.tasks.config import (
    ConfigError,
    Method,
    RunConfig,
    SelectionConfig,
    TrainingConfig,
    check_shared,
    need,
)
from attent.tasks.data.instructions import PROMPT
from attent.tasks.data.rows import parse_split

FRESH = "llama:"
"""How the name of a model begins that is made anew."""


@dataclass(frozen=True, kw_only=True)
class InstructConfig(SelectionConfig, TrainingConfig, RunConfig):
    """Tune a causal language model on instructions.

    Args:
        data: harvest (functions of this Python's standard library, from signature and docstring to
            body), a file (.json, .jsonl, .parquet), a folder of such files or of a saved data set,
            or the name of a data set of the hub.
        dataset_split: a split, or a part of one, such as train[:1000].
        dataset_field: names of the query and of the response, such as instruction,output; null for
            Alpaca's (instruction, input, output), or messages with the tokenizer's chat template.
        sub_task: folders of the data to take together, such as python:5000,metamath; with a number,
            only the first rows.
        held_out: share held out, in (0, 1): of rows, alike ones together; of data harvest, of
            modules.
        held_out_data: other data to hold out instead; the split validation, or test, or all of it.
        max_held_out: held-out rows at most; null for all.
        prompt: what an instruction is put into, at {instruction}.
        model_max_length: tokens of a row, at least 2; what is beyond is cut off.
        supervise: what is learned of a row: the response, or all of it.
        model_name_or_path: a causal model of transformers, a folder or a name of the hub; or
            llama:dim=256,depth=6,num_heads=8 (num_kv_heads, mlp_dim, max_length), made anew, its
            tokenizer trained on the data.
        vocab_size: words of a tokenizer that is trained, at least 258.
        pretrain_epochs: of a model made anew, train it first on all of every row for so many
            epochs, without adapters and selection; 0 for not at all.
        pretrain_lr: the peak learning rate of that.
        adapter: what is trained: lora, dora, adalora (at a fixed rank), or full, the whole model.
        target_modules: names of the layers that have adapters, q_proj,v_proj; all-linear for all
            but the head.
        lora_rank: of each adapter, at least 1.
        lora_alpha: what an adapter adds is multiplied by lora_alpha / lora_rank.
        lora_dropout: of an adapter's input, in [0, 1).
        orthogonality: of adapter adalora, weight of the penalty on its factors, at least 0.
        bits: of the frozen weights: 32; on a GPU 16 (bfloat16), 8 or 4 (bitsandbytes).
        activation_checkpointing: compute activations again in the backward, to save memory.
        logits_chunk: tokens whose logits are held at once; null for 16 MiB of them.
        num_samples: held-out rows that are answered in the report.
        max_new_tokens: of each such answer.
    """

    data: str = "harvest"
    dataset_split: str = "train"
    dataset_field: str | list[str] | None = None
    sub_task: str | list[str] | None = None
    held_out: float = 0.1
    held_out_data: str | None = None
    max_held_out: int | None = None
    prompt: str = PROMPT
    model_max_length: int = 512
    supervise: Literal["response", "all"] = "response"
    model_name_or_path: str = "llama:dim=128,depth=4,num_heads=4"
    vocab_size: int = 4096
    pretrain_epochs: int = 0
    pretrain_lr: float = 2e-3
    adapter: Literal["lora", "dora", "adalora", "full"] = "lora"
    target_modules: str | list[str] = "all-linear"
    lora_rank: int = 128
    lora_alpha: float = 128.0
    lora_dropout: float = 0.0
    orthogonality: float = 0.5
    bits: int = 32
    activation_checkpointing: bool = False
    logits_chunk: int | None = None
    num_samples: int = 4
    max_new_tokens: int = 96
    method: Method = "attent_simple"
    epochs: int = 3
    batch_size: int = 16
    lr: float | None = 2e-4
    weight_decay: float = 0.0
    clip: float | None = 1.0
    score_batch_size: int = 32

    def __post_init__(self) -> None:
        check_shared(self)
        try:
            parse_split(self.dataset_split)
        except ValueError as error:
            raise ConfigError(str(error)) from error
        for name in ("held_out", "lora_dropout"):
            need(self, name, lambda v: 0 <= v < 1, "in [0, 1)")
        need(self, "held_out", lambda v: v > 0, "above 0")
        need(self, "model_max_length", lambda v: v >= 2, "at least 2")
        need(self, "vocab_size", lambda v: v >= 258, "at least 258")
        for name in ("lora_rank", "max_new_tokens"):
            need(self, name, lambda v: v >= 1, "at least 1")
        for name in ("lora_alpha", "pretrain_lr"):
            need(self, name, lambda v: 0 < v < math.inf, "above 0")
        for name in ("pretrain_epochs", "num_samples", "orthogonality"):
            need(self, name, lambda v: 0 <= v < math.inf, "at least 0")
        for name in ("max_held_out", "logits_chunk"):
            need(self, name, lambda v: v is None or v >= 1, "at least 1, or null")
        need(self, "bits", lambda v: v in (4, 8, 16, 32), "4, 8, 16 or 32")
        need(self, "prompt", lambda v: "{instruction}" in v, "a text that holds {instruction}")
        need(
            self, "compile", lambda v: not v, "false: how many tokens are supervised differs by row"
        )
        need(self, "layer_decay", lambda v: v == 1, "1 for language models")
        if self.fields is not None and len(self.fields) != 2:
            raise ConfigError(f"dataset_field names a query and a response, not {self.fields}")
        if self.adapter == "adalora" and self.asks_norms:
            raise ConfigError(
                "signal: adalora's penalty is of no example, so that gradient norms cannot be "
                "observed in training; use scores fresh, or adapter lora"
            )

    @property
    def fields(self) -> list[str] | None:
        """Names of the query and the response."""
        return None if self.dataset_field is None else _names(self.dataset_field)

    @property
    def sub_tasks(self) -> list[str]:
        """Folders of the data."""
        return [] if self.sub_task is None else _names(self.sub_task)

    @property
    def is_fresh(self) -> bool:
        """Whether the model is made anew."""
        return self.model_name_or_path.startswith(FRESH)

    @property
    def asks_norms(self) -> bool:
        """Whether gradient norms are observed in training."""
        observed = self.method == "attent_complex" and self.scores == "observed"
        return observed and self.signal == "grad_norm"

    def idle(self) -> dict[str, str]:
        """The options that do nothing here, and why."""
        found: dict[str, str] = {}
        if self.data == "harvest":
            names = ("dataset_field", "sub_task")
            found |= dict.fromkeys(names, "the harvest has its own")
        if self.held_out_data is not None:
            found["held_out"] = "held_out_data is set"
        if not self.is_fresh:
            why = f"{self.model_name_or_path} is not made anew"
            found |= dict.fromkeys(("vocab_size", "pretrain_epochs", "pretrain_lr"), why)
        elif self.adapter == "full":
            why = "adapter full trains all of a model made anew"
            found |= dict.fromkeys(("pretrain_epochs", "pretrain_lr"), why)
        if self.adapter == "full":
            names = ("target_modules", "lora_rank", "lora_alpha", "lora_dropout")
            found |= dict.fromkeys(names, "adapter is full")
        if self.adapter != "adalora":
            found["orthogonality"] = f"adapter is {self.adapter}"
        if self.num_samples == 0:
            found["max_new_tokens"] = "num_samples is 0"
        return found


def _names(value: str | Sequence[str]) -> list[str]:
    """A list, or names with commas or blanks between them."""
    return value.replace(",", " ").split() if isinstance(value, str) else list(value)
