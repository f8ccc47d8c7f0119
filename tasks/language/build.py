"""From options to a run of instruction tuning."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from attent.models.adalora import RankAllocatingAdamW
from attent.models.language import (
    LanguageModel,
    build_causal,
    load_tokenizer,
    train_tokenizer,
)
from attent.pipeline import Optimizer, Source
from attent.pipeline.keyed import all_global_generators, fold
from attent.tasks.build import Run, assemble, device_of, optimizer_of
from attent.tasks.config import ConfigError
from attent.tasks.data.harvest import harvest
from attent.tasks.data.instructions import Instructions
from attent.tasks.data.rows import Row, parse_split, part_of
from attent.tasks.language.config import InstructConfig
from attent.tasks.language.task import InstructionTuning
from attent.tasks.text.build import (
    adapted,
    check_words,
    notes_of,
    rows_of_data,
    rows_of_other,
    sample_rows,
)

HARVEST = "harvest"


def build_instruct(config: InstructConfig, *, initial: bool = True) -> Run:
    """Everything `attent instruct` needs, checked before any training.

    Args:
        config: the options.
        initial: not looked at: with adapters the model below them is in no checkpoint, and is
            loaded in any case.

    Raises:
        ValueError: what the options ask for cannot be; the message says why.
    """
    device = device_of(config.device)
    source, held_out = load_data(config)
    tokenizer = source.tokenizer
    with all_global_generators(fold(config.seed, "model")):
        causal = build_causal(
            str(base_of(config) or config.model_name_or_path),
            vocab_size=len(tokenizer),
            bits=config.bits,
            device=device,
        )
    check_words(causal, tokenizer, config)
    causal: Any = adapted(
        config,
        causal,
        initial_rank=config.initial_rank,
        rank_warmup=config.rank_warmup,
        rank_final=config.rank_final,
    )
    if config.activation_checkpointing:
        causal.activation_checkpointing_enable()  # type: ignore[operator]
    model = LanguageModel(causal, chunk=config.logits_chunk)
    if config.bits >= 16:  # what is quantised stays where it was loaded
        model.to(device)
    model.check(packing=config.packing)
    task = InstructionTuning(model, packing=config.packing)
    run = assemble(
        config,
        task,
        source,
        held_out,
        frozen=config.adapter == "full",
        optimizer=_allocating(config, causal) if config.adapter == "adalora" else None,
    )
    return dataclasses.replace(run, notes=run.notes + notes_of(source, held_out))


def _allocating(config: InstructConfig, causal: Any) -> Optimizer:
    """AdamW of the options that allots the ranks of AdaLoRA too."""

    def make(groups: list[dict[str, Any]]) -> RankAllocatingAdamW:
        first, second = config.betas
        return RankAllocatingAdamW(
            groups,
            causal,
            every=config.rank_every,
            orthogonality=config.orthogonality,
            lr=0.0,
            betas=(first, second),
        )

    return dataclasses.replace(optimizer_of(config), name="adamw, allotting ranks", make=make)


def load_data(config: InstructConfig) -> tuple[Instructions, Instructions]:
    """The training and the held-out rows as tokens.

    Raises:
        ValueError: no such data, or not in the form expected.
    """
    train, val = rows_of(config)
    tokenizer = tokenizer_of(config, train)
    options = _options(config)
    return Instructions(train, tokenizer, **options), Instructions(val, tokenizer, **options)


def load_held_out(config: InstructConfig, own: Source) -> Instructions:
    """The held-out rows alone, of data that may have no others: all of them, if they have no split.

    Args:
        config: the options, of the data to be read.
        own: the run's own, whose tokenizer these have.

    Raises:
        ValueError: no such data, or not in the form expected.
    """
    assert isinstance(own, Instructions)
    rows = _harvested(config)[1] if config.data == HARVEST else rows_of_other(config.data, "data")
    return Instructions(rows, own.tokenizer, **_options(config))


def _options(config: InstructConfig) -> dict[str, Any]:
    return {
        "fields": config.fields if config.data != HARVEST else None,
        "prompt": config.prompt,
        "max_length": config.model_max_length,
        "learned": config.supervise,
        "bucketed": not config.packing,
    }


def rows_of(config: InstructConfig) -> tuple[list[Row], list[Row]]:
    """Rows to train on and rows held out.

    Raises:
        ValueError: no such data, or none is left on one side.
    """
    if config.data != HARVEST:
        return rows_of_data(config)
    train, val = _harvested(config)
    if config.held_out_data is not None:
        val = rows_of_other(config.held_out_data)
    return train, sample_rows(val, config.max_held_out, seed=config.seed)


def _harvested(config: InstructConfig) -> tuple[list[Row], list[Row]]:
    name, start, stop = parse_split(config.dataset_split)
    if name != "train":
        raise ConfigError(f"dataset_split: the harvest has train and holds val out, not {name}")
    found = []
    for split in ("train", "val"):
        rows = harvest(split, held_out=config.held_out, seed=config.seed)
        found.append(
            [
                Row(dict(row), f"{row['module']}.{row['name']}", number)
                for number, row in enumerate(rows, start=1)
            ]
        )
    train, val = found
    train = part_of(train, start, stop)
    if not train or not val:
        raise ConfigError(
            f"dataset_split {config.dataset_split} and held_out {config.held_out:g} leave "
            f"{len(train)} functions to train on and {len(val)} held out"
        )
    return train, val


def tokenizer_of(config: InstructConfig, rows: Sequence[Row]) -> Any:
    """The model's tokenizer; of a model made anew, one trained on these rows.

    Raises:
        ValueError: there is none.
    """
    if not config.is_fresh:
        return load_tokenizer(config.model_name_or_path)
    base, own = base_of(config), own_tokenizer(config)
    if base is not None or own is not None:
        return load_tokenizer(str(base or own))
    texts = [text for row in rows for text in row.values.values() if isinstance(text, str)]
    return _trained((config.prompt, *texts), config.vocab_size)


@lru_cache(maxsize=2)
def _trained(texts: tuple[str, ...], vocab_size: int) -> Any:
    return train_tokenizer(texts, vocab_size)


def base_of(config: InstructConfig) -> Path | None:
    """Where a run keeps the model made anew that its adapters are added to; None without one.

    Raises:
        ConfigError: the run has lost it.
    """
    if not has_base(config) or config.output_dir is None:
        return None
    folder = Path(config.output_dir)
    path = folder / "base" / "model"
    if path.is_dir():
        return path
    if (folder / "log.jsonl").exists():
        raise ConfigError(f"model_name_or_path: {path}, to which the adapters belong, is gone")
    return None


def own_tokenizer(config: InstructConfig) -> Path | None:
    """Where a run that trains all of a model made anew keeps its tokenizer, if it is there."""
    path = None if config.output_dir is None else Path(config.output_dir) / "tokenizer"
    return path if path is not None and path.is_dir() else None


def has_base(config: InstructConfig) -> bool:
    """Whether a run has adapters on a model made anew, which it then keeps."""
    return config.is_fresh and config.adapter != "full"
