"""The options of ``attent instruct``."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from attent.tasks.config import (
    ConfigError,
    RunConfig,
    SelectionConfig,
    TrainingConfig,
    check_shared,
    need,
)
from attent.tasks.data.instructions import PROMPT
from attent.tasks.selection import PACED
from attent.tasks.text.config import AdapterConfig, RowsConfig, check_text, idle_text, names

FRESH = "llama:"
"""How the name of a model begins that is made anew."""

PACKED_SIGNALS = ("loss", "relative_loss", "loss_drop", "output_grad_norm")
"""What can be measured of rows that are packed together."""


@dataclass(frozen=True, kw_only=True)
class InstructConfig(RowsConfig, AdapterConfig, SelectionConfig, TrainingConfig, RunConfig):
    """Tune a causal language model on instructions.

    Args:
        data: harvest (functions of this Python's standard library, from signature and docstring to
            body; whole modules are held out), a file (.json, .jsonl, either with .gz or .zst,
            .csv, .parquet, .arrow), a folder of such files or of a saved data set, or the name of a
            data set of the hub.
        dataset_field: names of the query and of the response, such as instruction,output; null for
            Alpaca's (instruction, input, output), or messages with the tokenizer's chat template.
        prompt: what an instruction is put into, at {instruction}.
        supervise: what is learned of a row: the response, or all of it.
        model_name_or_path: a causal model of transformers, a folder or a name of the hub; or
            llama:dim=256,depth=6,num_heads=8 (num_kv_heads, mlp_dim, max_length), made anew, its
            tokenizer trained on the data.
        vocab_size: words of a tokenizer that is trained, at least 258.
        pretrain_epochs: of a model made anew, train it first on all of every row for so many
            epochs, without adapters and selection; 0 for not at all.
        pretrain_lr: the peak learning rate of that.
        score_length: what the length of a response has to say in its score: mean (nothing: the mean
            over its tokens), sqrt (times the square root of their number) or sum (times it).
        adapter: what is trained: lora, dora, adalora (lora_rank is the mean rank in the end), or
            full, the whole model.
        initial_rank: of each matrix with adapter adalora; null for one and a half times lora_rank.
        rank_warmup: of adapter adalora, share of the budget in which no rank is given up.
        rank_final: of adapter adalora, share of the budget, at its end, in which none is any more.
        rank_every: of adapter adalora, steps from one allocation of ranks to the next.
        orthogonality: of adapter adalora, weight of the penalty on its factors, at least 0.
        bits: of the frozen weights: 32; on a GPU 16 (bfloat16), 8 or 4 (bitsandbytes).
        activation_checkpointing: compute activations again in the backward, to save memory.
        logits_chunk: tokens whose logits are held at once; null for 16 MiB of them.
        packing: put the rows of a batch, of any lengths, end to end in fewer rows, none of them
            seeing another, instead of building batches of rows of similar length; with signals
            loss and output_grad_norm.
        num_samples: held-out rows that are answered in the report.
        max_new_tokens: of each such answer.
    """

    data: str = "harvest"
    dataset_field: str | list[str] | None = None
    prompt: str = PROMPT
    supervise: Literal["response", "all"] = "response"
    model_name_or_path: str = "llama:dim=128,depth=4,num_heads=4"
    vocab_size: int = 4096
    pretrain_epochs: int = 0
    pretrain_lr: float = 2e-3
    adapter: Literal["lora", "dora", "adalora", "full"] = "lora"
    initial_rank: int | None = None
    rank_warmup: float = 0.1
    rank_final: float = 0.3
    rank_every: int = 10
    orthogonality: float = 0.5
    bits: int = 32
    activation_checkpointing: bool = False
    logits_chunk: int | None = None
    packing: bool = False
    num_samples: int = 4
    max_new_tokens: int = 96
    score_length: Literal["mean", "sqrt", "sum"] = "mean"
    budget: Literal["examples", "tokens", "passes"] = "tokens"
    epochs: int = 3
    batch_size: int = 16
    lr: float | None = 2e-4
    weight_decay: float = 0.0
    clip: float | None = 1.0
    score_batch_size: int = 32

    def __post_init__(self) -> None:
        check_shared(self)
        check_text(self)
        need(self, "vocab_size", lambda v: v >= 258, "at least 258")
        for name in ("max_new_tokens", "rank_every"):
            need(self, name, lambda v: v >= 1, "at least 1")
        for name in ("rank_warmup", "rank_final"):
            need(self, name, lambda v: 0 <= v < 1, "in [0, 1)")
        need(self, "pretrain_lr", lambda v: 0 < v < math.inf, "above 0")
        for name in ("pretrain_epochs", "num_samples", "orthogonality"):
            need(self, name, lambda v: 0 <= v < math.inf, "at least 0")
        need(self, "logits_chunk", lambda v: v is None or v >= 1, "at least 1, or null")
        need(self, "bits", lambda v: v in (4, 8, 16, 32), "4, 8, 16 or 32")
        need(self, "prompt", lambda v: "{instruction}" in v, "a text that holds {instruction}")
        need(self, "layer_decay", lambda v: v == 1, "1 for language models")
        if self.fields is not None and len(self.fields) != 2:
            raise ConfigError(f"dataset_field names a query and a response, not {self.fields}")
        if self.score_length != "mean" and self.observed:
            how = "scores: fresh" if self.method not in PACED else "another method"
            raise ConfigError(
                f"score_length: {self.score_length} is of scores that are measured apart: give "
                f"{how}"
            )
        if self.packing and self.asks_scores and self.selected_by not in PACKED_SIGNALS:
            raise ConfigError(
                f"packing: in packed rows there is no gradient of one example, which {self.signal} "
                f"is made of; take signal {' or '.join(PACKED_SIGNALS)}, or leave packing false"
            )
        if self.adapter == "adalora" and self.optimizer != "adamw":
            raise ConfigError(f"adapter adalora goes with optimizer adamw, not {self.optimizer}")
        if self.adapter == "adalora" and self.ema is not None:
            raise ConfigError(
                "ema: averages of ranks that are given up never reach 0; leave it out"
            )
        if self.adapter == "full" and self.bits != 32:
            raise ConfigError(f"bits: {self.bits} is of frozen weights; adapter full trains all")

    @property
    def fields(self) -> list[str] | None:
        """Names of the query and the response."""
        return None if self.dataset_field is None else names(self.dataset_field)

    @property
    def is_fresh(self) -> bool:
        """Whether the model is made anew."""
        return self.model_name_or_path.startswith(FRESH)

    def idle(self) -> dict[str, str]:
        """The options that do nothing here, and why."""
        found = idle_text(self)
        if self.data == "harvest":
            options = ("dataset_field", "sub_task")
            found |= dict.fromkeys(options, "the harvest has its own")
        if not self.is_fresh:
            why = f"{self.model_name_or_path} is not made anew"
            found |= dict.fromkeys(("vocab_size", "pretrain_epochs", "pretrain_lr"), why)
        elif self.adapter == "full":
            why = "adapter full trains all of a model made anew"
            found |= dict.fromkeys(("pretrain_epochs", "pretrain_lr"), why)
        if self.adapter != "adalora":
            options = ("orthogonality", "initial_rank", "rank_warmup", "rank_final", "rank_every")
            found |= dict.fromkeys(options, f"adapter is {self.adapter}")
        if not self.asks_scores:
            found["score_length"] = "no scores are asked"
        if self.num_samples == 0:
            found["max_new_tokens"] = "num_samples is 0"
        return found
