"""Options of rows of text, and of the adapters that a model of transformers is tuned by."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from attent.tasks.config import ConfigError, need
from attent.tasks.data.rows import parse_split


@dataclass(frozen=True, kw_only=True)
class RowsConfig:
    """Rows of text, and which of them are held out.

    Args:
        dataset_split: a split, or a part of one, such as train[:1000].
        sub_task: folders of the data to take together, such as python:5000,metamath; with a number,
            only the first rows.
        held_out: share held out, in (0, 1), alike rows together.
        held_out_data: other data to hold out instead; the split validation, or test, or all of it
            where it has no such split.
        max_held_out: held-out rows at most, drawn from all of them; null for all.
        model_max_length: tokens of a row, at least 2; what is beyond is cut off.
    """

    dataset_split: str = "train"
    sub_task: str | list[str] | None = None
    held_out: float = 0.1
    held_out_data: str | None = None
    max_held_out: int | None = None
    model_max_length: int = 512

    @property
    def sub_tasks(self) -> list[str]:
        """Folders of the data."""
        return [] if self.sub_task is None else names(self.sub_task)


@dataclass(frozen=True, kw_only=True)
class AdapterConfig:
    """Adapters by peft.

    Args:
        target_modules: names of the layers that have adapters, such as q_proj,v_proj or
            query,value; all-linear for all but the head.
        lora_rank: of each adapter, at least 1.
        lora_alpha: what an adapter adds is multiplied by lora_alpha / lora_rank.
        lora_dropout: of an adapter's input, in [0, 1).
    """

    target_modules: str | list[str] = "all-linear"
    lora_rank: int = 128
    lora_alpha: float = 128.0
    lora_dropout: float = 0.0


def check_text(config: Any) -> None:
    """Refuse values out of range, of the options of `RowsConfig` and `AdapterConfig`.

    Raises:
        ConfigError: names the option and what is accepted.
    """
    try:
        parse_split(config.dataset_split)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    for name in ("held_out", "lora_dropout"):
        need(config, name, lambda v: 0 <= v < 1, "in [0, 1)")
    need(config, "held_out", lambda v: v > 0, "above 0")
    need(config, "model_max_length", lambda v: v >= 2, "at least 2")
    need(config, "lora_rank", lambda v: v >= 1, "at least 1")
    need(config, "lora_alpha", lambda v: 0 < v < math.inf, "above 0")
    need(config, "max_held_out", lambda v: v is None or v >= 1, "at least 1, or null")
    need(config, "compile", lambda v: not v, "false: rows of text are of different lengths")


def idle_text(config: Any) -> dict[str, str]:
    """Of these options those that do nothing, and why."""
    found: dict[str, str] = {}
    if config.held_out_data is not None:
        found["held_out"] = "held_out_data is set"
    if config.adapter == "full":
        options = ("target_modules", "lora_rank", "lora_alpha", "lora_dropout")
        found |= dict.fromkeys(options, "adapter is full")
    return found


def names(value: str | Sequence[str]) -> list[str]:
    """A list, or names with commas or blanks between them."""
    return value.replace(",", " ").split() if isinstance(value, str) else list(value)
