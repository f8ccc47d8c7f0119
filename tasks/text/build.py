"""From options to rows of text, and to what a model of transformers must be for them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import nn

from attent.models.adapters import with_adapters
from attent.pipeline.keyed import all_global_generators, fold, generator
from attent.tasks.config import ConfigError
from attent.tasks.data.dropped import Dropped, told
from attent.tasks.data.rows import HELD_OUT, NoSplit, Row, read_rows, split_rows


class Tokenised(Protocol):
    """A source of rows as tokens."""

    tokenizer: Any
    dropped: list[Dropped]

    def __len__(self) -> int:
        """The number of rows that are left."""
        ...


def rows_of_data(config: Any) -> tuple[list[Row], list[Row]]:
    """Rows to train on and rows held out.

    Args:
        config: with ``data`` and the options of `RowsConfig`.

    Raises:
        ValueError: no such data, or none is left on one side.
    """
    rows = read_rows(config.data, split=config.dataset_split, sub_task=config.sub_tasks)
    if config.held_out_data is not None:
        train, val = rows, rows_of_other(config.held_out_data)
    else:
        train, val = split_rows(rows, config.held_out, seed=config.seed)
    return train, sample_rows(val, config.max_held_out, seed=config.seed)


def sample_rows(rows: Sequence[Row], count: int | None, *, seed: int) -> list[Row]:
    """Rows drawn from all of them, in their own order: data are often sorted by what they teach.

    Args:
        rows: of any data.
        count: how many, at most; None for all.
        seed: of the draw.
    """
    if count is None or count >= len(rows):
        return list(rows)
    draw = generator(fold(seed, "held out sample"))
    return [rows[i] for i in sorted(torch.randperm(len(rows), generator=draw)[:count].tolist())]


def rows_of_other(data: str, option: str = "held_out_data") -> list[Row]:
    """The held-out split of some data; all of it where it has none.

    Args:
        data: as of `read_rows`.
        option: that names them, for the message.

    Raises:
        ConfigError: no such data, or its held-out split is not in the form expected.
    """
    said = ""
    for split in (*HELD_OUT, "train"):
        try:
            return read_rows(data, split=split)
        except ValueError as error:
            said = str(error).removeprefix("data: ")
            if not isinstance(error, NoSplit):  # what is broken is not passed over
                break
    raise ConfigError(f"{option}: {said}")


def adapted(config: Any, model: nn.Module, **more: Any) -> nn.Module:
    """A model with the adapters of the options, their first weights a function of the run's seed.

    Args:
        config: with ``adapter``, ``seed`` and the options of `AdapterConfig`.
        model: of transformers.
        more: what else `with_adapters` takes.

    Raises:
        ValueError: as of `with_adapters`.
    """
    with all_global_generators(fold(config.seed, "adapters")):
        return with_adapters(
            model,
            config.adapter,
            rank=config.lora_rank,
            alpha=config.lora_alpha,
            dropout=config.lora_dropout,
            target_modules=config.target_modules,
            **more,
        )


def notes_of(source: Tokenised, held_out: Tokenised) -> tuple[str, ...]:
    """What is to be said of the rows that were dropped."""
    named = {"data": source, "held-out data": held_out}
    found = {name: told(part.dropped, len(part)) for name, part in named.items()}
    return tuple(f"warning: {name}: {words}" for name, words in found.items() if words)


def check_words(model: Any, tokenizer: Any, config: Any) -> None:
    """Refuse a tokenizer of more words than the model has, and rows beyond its positions.

    Args:
        model: of transformers.
        tokenizer: its own, or meant for it.
        config: with ``model_name_or_path`` and ``model_max_length``.

    Raises:
        ConfigError: says how many there are.
    """
    words = model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > words:
        raise ConfigError(
            f"model_name_or_path: the tokenizer of {config.model_name_or_path} has "
            f"{len(tokenizer)} words, its model {words}"
        )
    longest = _positions(model)
    if longest is not None and config.model_max_length > longest:
        raise ConfigError(
            f"model_max_length {config.model_max_length} is above the {longest} positions of "
            f"{config.model_name_or_path}"
        )


def _positions(model: Any) -> int | None:
    """Tokens that a model has positions for; None where it says nothing of it."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Embedding) and name.endswith("position_embeddings"):
            padding = module.padding_idx  # RoBERTa counts from behind it
            return module.num_embeddings - (0 if padding is None else padding + 1)
    return getattr(model.config, "max_position_embeddings", None)
