"""The options of ``attent classify`` on text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from attent.tasks.config import (
    RunConfig,
    SelectionConfig,
    TrainingConfig,
    check_shared,
    need,
)
from attent.tasks.text.config import AdapterConfig, RowsConfig, check_text, idle_text


@dataclass(frozen=True, kw_only=True)
class TextClassifyConfig(RowsConfig, AdapterConfig, SelectionConfig, TrainingConfig, RunConfig):
    """Train a text classifier.

    Args:
        data: rows of texts with their classes: a file (.json, .jsonl, either with .gz or .zst,
            .csv, .parquet, .arrow), a folder of such files or of a saved data set, or the name of a
            data set of the hub.
        text_field: the field that holds the text.
        pair_field: the field of a second text, such as a hypothesis beside its premise; null for
            one text a row.
        label_field: the field of the class, a text or a whole number.
        model_name_or_path: an encoder of transformers, or a classifier already (BERT, RoBERTa,
            DistilBERT, ModernBERT and others): a folder or a name of the hub.
        adapter: what is trained beside the head: lora, dora, or full, the whole model.
        label_smoothing: share of the target spread over all classes, in [0, 1).
        num_shown: held-out texts that the report shows, of the hardest and of the easiest each.
    """

    data: str | None = None
    text_field: str = "text"
    pair_field: str | None = None
    label_field: str = "label"
    model_name_or_path: str | None = None
    adapter: Literal["lora", "dora", "full"] = "lora"
    lora_rank: int = 8
    lora_alpha: float = 16.0
    label_smoothing: float = 0.0
    num_shown: int = 5
    epochs: int = 3
    batch_size: int = 16
    lr: float | None = 5e-4
    weight_decay: float = 0.0
    clip: float | None = 1.0
    score_batch_size: int = 64

    def __post_init__(self) -> None:
        check_shared(self)
        check_text(self)
        need(self, "label_smoothing", lambda v: 0 <= v < 1, "in [0, 1)")
        need(self, "num_shown", lambda v: v >= 0, "at least 0")
        need(self, "layer_decay", lambda v: v == 1, "1 for text, whose layers learn at one rate")

    @property
    def fields(self) -> list[str]:
        """Names of the texts of a row."""
        return [self.text_field] if self.pair_field is None else [self.text_field, self.pair_field]

    def idle(self) -> dict[str, str]:
        """The options that do nothing here, and why."""
        return idle_text(self)
