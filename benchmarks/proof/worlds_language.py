"""A world of instruction tuning: LoRA on functions of the standard library, by held-out loss.

The functions are those of `attent.tasks.data.harvest`, by package. A third of the packages is for
the model below the adapters, a small Llama that is trained once, on all of their text, and kept:
no seed's splits have anything of them. Of the other packages each seed draws which are for
training, for val and for test, so that no function is learned from its neighbours. What a package
may give is bounded, or a few large ones would be most of a split.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch

from attent.models.adapters import with_adapters
from attent.models.language import (
    LanguageModel,
    build_causal,
    load_tokenizer,
    quietly,
    train_tokenizer,
)
from attent.pipeline import Step, adamw, fit, full, initial_state, train, warmup_cosine
from attent.pipeline.keyed import all_global_generators, fold
from attent.pipeline.task import bind
from attent.tasks.data.harvest import fingerprint, functions, is_held_out
from attent.tasks.data.instructions import Instructions
from attent.tasks.data.rows import Row
from attent.tasks.language import InstructionTuning

from .pools import cache_folder
from .world import World, shuffled

NAME = "language"

BASE_SEED = 8
BASE_SHARE = 1 / 3
"""Of the packages, for the model below the adapters."""

BASE_EPOCHS = 3
WORDS = 2048
MODEL = "llama:dim=128,depth=4,num_heads=4,max_length=128"

TRAIN, VAL, TEST = 1200, 300, 600
"""Functions; as many of a split as its packages have, at most these."""

LONGEST = 96
"""Tokens of a row; what is beyond is cut off."""

LEARNED = 16
"""Tokens of its response that must be left of it."""

OF_A_PACKAGE = 120
"""Functions, at most."""

LAYERS = "q_proj,v_proj,k_proj,o_proj,gate_proj,down_proj,up_proj"
PROMPT = "{instruction}\n"


def language_world(seed: int, *, size: int | None = None) -> World:
    """Instruction tuning on functions.

    Args:
        seed: of everything drawn.
        size: see `worlds.world`.
    """
    share = 1.0 if size is None else min(1.0, size / TRAIN)
    base = base_model()
    tokenizer = load_tokenizer(str(base))
    rows = usable(tokenizer)
    parts = drawn(rows, [round(share * n) or 1 for n in (VAL, TEST, TRAIN)], seed)
    val, test, source = (_tokenised(part, tokenizer) for part in parts)
    return World(
        name=NAME,
        seed=seed,
        source=source,
        val=val,
        test=test,
        make_task=_tasks(base, fold(seed, "proof", "model")),
        epochs=3,
        batch_size=16,
        metric="loss",
        higher_is_better=False,
        backward_cost=1.0,  # frozen weights get no gradient
        tokens=True,
        recipe={"clip": 1.0, "weight_decay": 0.0, "warmup": 0.05},
    )


def package_of(row: Row) -> str:
    """The package of a row's module, as the harvest keeps modules together."""
    return row.values["module"].partition(".")[0].removeprefix("_py").strip("_")


def usable(tokenizer: Any) -> list[Row]:
    """The functions that are not the base's, of whose bodies enough is left when they are cut."""
    whole = Instructions(_rows(of_base=False), tokenizer, prompt=PROMPT, max_length=LONGEST)
    enough = (whole.targets >= LEARNED).tolist()
    return [row for row, fits in zip(whole.rows, enough, strict=True) if fits]


def drawn(rows: list[Row], counts: list[int], seed: int) -> list[list[Row]]:
    """Splits of whole packages: each takes packages in turn until it has its count.

    Args:
        rows: to be split.
        counts: of rows in each split, at most; the last may get fewer.
        seed: of the order of packages, and of what is taken of those that are too large.
    """
    by_package: dict[str, list[Row]] = {}
    for row in rows:
        by_package.setdefault(package_of(row), []).append(row)
    names = sorted(by_package)
    order = shuffled(torch.arange(len(names)), fold(seed, "proof", NAME))
    splits: list[list[Row]] = [[] for _ in counts]
    filled = 0
    for name in (names[i] for i in order.tolist()):
        if len(splits[filled]) >= counts[filled] and filled + 1 < len(counts):
            filled += 1
        found = by_package[name]
        picked = shuffled(torch.arange(len(found)), fold(seed, "proof", NAME, name))
        splits[filled] += [found[i] for i in picked[:OF_A_PACKAGE].tolist()]
    return [split[:count] for split, count in zip(splits, counts, strict=True)]


def base_model() -> Path:
    """The folder of the model below the adapters; it is trained now if it is not there."""
    folder = cache_folder() / f"language-{fingerprint()}-{torch.__version__}"
    if not folder.is_dir():
        whole = folder.with_name(f"{folder.name}.{os.getpid()}")
        _train_base(whole)
        try:
            whole.rename(folder)
        except OSError:  # another process has made it meanwhile
            shutil.rmtree(whole)
    return folder


def _train_base(folder: Path) -> None:
    """Train a model on all text of its packages, and write it with its tokenizer."""
    rows = _rows(of_base=True)
    tokenizer = train_tokenizer((text for row in rows for text in _texts(row)), WORDS)
    source = Instructions(rows, tokenizer, prompt=PROMPT, max_length=128, learned="all")
    with all_global_generators(BASE_SEED):
        causal = build_causal(MODEL, vocab_size=len(tokenizer))
    task = InstructionTuning(LanguageModel(causal))
    stage = train(
        task,
        source,
        optimizer=adamw(warmup_cosine(3e-3, warmup=0.05), weight_decay=0.05),
        step=Step(batch_size=16, clip=1.0),
    )
    tick = full(source, train=stage, epochs=BASE_EPOCHS, accounting="tokens")
    bind(task.model, fit(tick, initial_state(task, source, seed=BASE_SEED)))
    with quietly():
        causal.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def _rows(*, of_base: bool) -> list[Row]:
    """The functions of the base's packages, or those of the others that it has not; each once."""
    known: set[str] = set()
    if not of_base:
        known = {row["response"] for row in functions() if is_of_base(row["module"])}
    found = []
    for number, row in enumerate(functions(), start=1):
        if is_of_base(row["module"]) == of_base and row["response"] not in known:
            known.add(row["response"])
            found.append(Row(dict(row), f"{row['module']}.{row['name']}", number))
    return found


def is_of_base(module: str) -> bool:
    """Whether a module is the base's."""
    return is_held_out(module, BASE_SHARE, seed=BASE_SEED)


def _texts(row: Row) -> Iterable[str]:
    return row.values["instruction"], row.values["response"]


def _tokenised(rows: list[Row], tokenizer: Any) -> Instructions:
    return Instructions(rows, tokenizer, prompt=PROMPT, max_length=LONGEST)


def _tasks(base: Path, key: int) -> Callable[..., InstructionTuning]:
    """Options -> the task, its adapters made anew, with the same weights each time."""

    def make(**options: Any) -> InstructionTuning:
        causal = build_causal(str(base))
        with all_global_generators(key):
            causal = with_adapters(causal, "lora", rank=16, alpha=16, target_modules=LAYERS)
        return InstructionTuning(LanguageModel(causal), **options)

    return make
