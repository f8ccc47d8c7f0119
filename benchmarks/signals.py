"""Which cheap signal ranks examples as the exact gradient norm does.

    python benchmarks/signals.py [--seeds 3] [--case vit|llama|lora|all]

Training examples are scored at some steps of a plain training run. A signal is held against the
exact norm of the same weights (`grad_norm`) in two ways: Spearman's rank correlation, and the share
of the 20 % of examples with the highest norm that are also among its own highest 20 % (by chance
0.2). Two more candidates are a checkpoint old: the exact norm and the loss at the step before.

Cases: a vision transformer on scikit-learn's digits; a Llama over bytes on the docstrings of
Python's standard library, packed and one an example; that Llama with LoRA on the library's source
code. A seed decides on the examples, the initial weights and the order of training. What signals
cost is not measured here. The default takes about twelve minutes on one core.
"""

from __future__ import annotations

import argparse
import ast
import functools
import math
import platform
import statistics
import sys
import sysconfig
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from scipy.stats import spearmanr
from tensordict import TensorDict
from torch import Tensor, nn

from attent.models import build_vit
from attent.pipeline import (
    SIGNALS,
    Signal,
    Source,
    Step,
    Task,
    TensorSource,
    adamw,
    fold,
    full,
    generator,
    initial_state,
    initialize,
    run,
    train,
    warmup_cosine,
)
from attent.pipeline.keyed import all_global_generators
from attent.pipeline.score import Frozen
from attent.pipeline.signals import per_example
from attent.pipeline.source import fetch_batch
from attent.tasks.classification import Classification
from attent.tasks.data.digits import digits
from models import Language  # pyright: ignore[reportAttributeAccessIssue]

EXACT, ORACLE = "grad_norm", "vmap_grad_norm"
CHEAP = ("loss", "output_grad_norm", "last_layer")
TOP = 0.2
NUM_GROUPS = 8
LENGTHS = ("mean", "sqrt", "sum")

NUM_BYTES = 128
EDGE, PADDING = 256, 257
"""Tokens above the bytes: the beginning and the end of a text, and what fills up a row."""

IGNORED = -100

Scores = dict[str, Tensor]
"""name -> ``[N]``, of the examples that are scored."""

Figures = dict[tuple[str, str], list[float]]
"""(block, row) of a table -> a figure for each of the steps."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """How a case is trained and scored.

    Attributes:
        title: of its table.
        steps: at which the examples are scored; training ends at the last.
        lr: the peak; a tenth of the steps is warm-up, then a cosine to zero.
        batch_size: of a training step.
        score_batch_size: of a forward in scoring.
        num_scored: examples that are scored.
        num_examples: examples that are trained on; None for all there are.
    """

    title: str
    steps: tuple[int, ...]
    lr: float
    batch_size: int
    score_batch_size: int
    num_scored: int
    num_examples: int | None = None


SETTINGS = {
    "vit": Setting(
        title="vit: vit_digits on scikit-learn's digits",
        steps=(0, 30, 100, 250), lr=3e-3, batch_size=32, score_batch_size=64, num_scored=512,
    ),
    "llama": Setting(
        title="llama: byte Llama on docstrings, packed",
        steps=(0, 50, 200, 400), lr=1e-3, batch_size=8, score_batch_size=8, num_scored=400,
        num_examples=3200,
    ),
    "lengths": Setting(
        title="llama, variable length: byte Llama, one docstring an example",
        steps=(0, 50, 200, 400), lr=1e-3, batch_size=8, score_batch_size=8, num_scored=400,
        num_examples=3200,
    ),
    "lora": Setting(
        title="lora: the Llama of the packed case, LoRA r=8 on all linear layers, source code",
        steps=(0, 30, 150), lr=5e-3, batch_size=8, score_batch_size=8, num_scored=400,
        num_examples=3200,
    ),
}  # fmt: skip


class Bytes(Language):
    """Next-byte prediction; rows are filled up at the right."""

    name = "bytes"

    def view(self, batch: TensorDict, keys: Tensor, *, training: bool) -> TensorDict:
        """As it is, less the columns that are padding in every row."""
        longest = int((batch["labels"] != IGNORED).sum(1).max())
        batch = batch.copy()
        for name in ("tokens", "labels"):
            batch[name] = batch[name][:, :longest]
        return batch

    def targets(self, batch: TensorDict) -> Tensor:
        """The number of bytes that are predicted, ``[B]``."""
        return (batch["labels"][:, 1:] != IGNORED).sum(1)


# Data


def _modules() -> Iterator[tuple[bytes, ast.Module]]:
    """Source and syntax tree of the standard library's modules, its tests left out."""
    root = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(root.rglob("*.py")):
        folders = set(path.relative_to(root).parts)
        if folders & {"site-packages", "test", "tests", "idlelib", "lib2to3"}:
            continue
        source = path.read_bytes()
        try:
            yield source, ast.parse(source)
        except SyntaxError:
            continue


@functools.cache
def texts() -> tuple[tuple[bytes, ...], tuple[bytes, ...]]:
    """The different docstrings of the standard library, and its modules' source code."""
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    docstrings: dict[bytes, None] = {}
    sources = []
    for source, tree in _modules():
        if source:
            sources.append(source)
        for node in ast.walk(tree):
            text = ast.get_docstring(node) if isinstance(node, documented) else None
            if text:
                docstrings[text.encode()] = None
    return tuple(docstrings), tuple(sources)


def tokens_of(text: bytes) -> Tensor:
    """The bytes between two edges."""
    edge = torch.tensor([EDGE])
    return torch.cat([edge, torch.frombuffer(bytearray(text), dtype=torch.uint8).long(), edge])


def packed(pieces: Iterable[bytes]) -> TensorSource:
    """Texts one after another, cut into rows."""
    joined = torch.cat([tokens_of(piece)[:-1] for piece in pieces])
    rows = joined[: len(joined) // NUM_BYTES * NUM_BYTES].view(-1, NUM_BYTES)
    return TensorSource({"tokens": rows, "labels": rows})


def padded(pieces: Sequence[bytes]) -> TensorSource:
    """A text a row, cut off where it is longer."""
    tokens = torch.full((len(pieces), NUM_BYTES), PADDING)
    for row, piece in zip(tokens, pieces, strict=True):
        text = tokens_of(piece)[:NUM_BYTES]
        row[: len(text)] = text
    return TensorSource(
        {"tokens": tokens, "labels": tokens.masked_fill(tokens == PADDING, IGNORED)}
    )


def some(source: TensorSource, count: int, seed: int) -> TensorSource:
    """As many examples of a source, drawn at random."""
    index = torch.randperm(len(source), generator=generator(fold(seed, "some")))[:count]
    return TensorSource({name: value[index] for name, value in source.fields.items()})


# Models


def make_llama(seed: int) -> nn.Module:
    """A Llama over bytes."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=258, hidden_size=160, intermediate_size=432, num_hidden_layers=3,
        num_attention_heads=5, num_key_value_heads=5, max_position_embeddings=NUM_BYTES,
    )  # fmt: skip
    with all_global_generators(seed):
        return LlamaForCausalLM(config)


def add_lora(model: nn.Module, seed: int) -> nn.Module:
    """The model with LoRA on every linear layer, the only weights then trained."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
    with all_global_generators(seed):
        return get_peft_model(model, config)  # pyright: ignore[reportArgumentType]


# Training and scoring


def trained(task: Task, source: Source, setting: Setting, seed: int) -> Iterator[TensorDict]:
    """The state of a plain training run at each of the steps."""
    stage = train(
        task,
        source,
        optimizer=adamw(warmup_cosine(setting.lr, warmup=0.1)),
        step=Step(batch_size=setting.batch_size),
        steps=1,
    )
    examples = setting.steps[-1] * setting.batch_size
    tick = full(source, train=stage, epochs=examples / len(source))
    state = initialize(tick, initial_state(task, source, seed=seed))
    for step in setting.steps:
        while int(state["clock", "step"]) < step:
            state = run(tick, state, donate=True)
        yield state


def measure(
    task: Task,
    state: TensorDict,
    source: Source,
    index: Tensor,
    size: int,
    signals: Iterable[Signal],
) -> Scores:
    """The signals of the examples at an index, in batches of a size."""
    model = Frozen(task, state)
    parts: dict[Signal, list[Tensor]] = {signal: [] for signal in signals}
    for part in index.split(size):
        batch = fetch_batch(source, part)
        for signal, values in parts.items():
            values.append(model.measure(signal, batch, 4))
    return {signal.name: torch.cat(values).double() for signal, values in parts.items()}


def by_length(task: Any, batch: TensorDict, scores: Scores, length: Any) -> Scores:
    """Scores under another convention for the length, by `per_example`."""

    def told(name: str, values: Tensor) -> Tensor:
        known = Signal(name=name, measure=lambda *_: values)
        return per_example(known, length).measure(task, {}, {}, batch, None)

    return {name: told(name, values) for name, values in scores.items()}


@dataclass(frozen=True)
class Outcome:
    """What a case gave with one seed.

    Attributes:
        figures: of the table.
        error: largest relative difference of the exact norm from its definition, of 16 examples.
        told: how the exact norm is computed for this model.
    """

    figures: Figures
    error: float
    told: str


def study(task: Any, source: TensorSource, setting: Setting, seed: int) -> Outcome:
    """Train, score at each of the steps, and compare."""
    index = torch.randperm(len(source), generator=generator(fold(seed, "scored")))
    index = index[: setting.num_scored]
    counts = None
    if isinstance(task, Bytes):
        counts = task.targets(fetch_batch(source, index))
        order = counts.argsort(stable=True)  # rows of like length in a batch: less padding
        index, counts = index[order], counts[order].double()
        if counts[0] == counts[-1]:
            counts = None
    signals = [SIGNALS[name] for name in (*CHEAP, EXACT)]
    history, state = [], TensorDict({})
    for state in trained(task, source, setting, seed):
        history.append(measure(task, state, source, index, setting.score_batch_size, signals))
    few = index[:: len(index) // 16][:16]
    both = (SIGNALS[EXACT], SIGNALS[ORACLE])
    values = measure(task, state, source, few, setting.score_batch_size, both)
    error = float((values[EXACT] / values[ORACLE] - 1).abs().max())
    if counts is None:
        figures = compare(history, "")
    else:
        figures = compare_lengths(task, fetch_batch(source, index), history, counts)
    losses = [float(scores["loss"].mean()) for scores in history]
    figures = {("mean loss, nats", "all scored"): losses} | figures
    explain = SIGNALS[EXACT].explain
    told = "" if explain is None else explain(task, source)
    return Outcome(figures, error, told)


# Comparison


def spearman(a: Tensor, b: Tensor) -> float:
    """Rank correlation."""
    result: Any = spearmanr(a.numpy(), b.numpy())
    return float(result.statistic)


def overlap(a: Tensor, b: Tensor) -> float:
    """The share of the highest by one that are among the highest by the other."""
    k = round(TOP * len(a))
    return float((_highest(a, k) * _highest(b, k)).sum() / k)


def _highest(values: Tensor, k: int) -> Tensor:
    """Of each, how likely it is among the highest k if lots are drawn between equals."""
    least = values.topk(k).values[-1]
    above, equal = values > least, values == least
    return above.double() + equal.double() * (k - above.sum()) / equal.sum()


def within_groups(a: Tensor, b: Tensor, counts: Tensor) -> float:
    """The mean rank correlation within groups of like length, equal in number."""
    groups = counts.argsort(stable=True).tensor_split(NUM_GROUPS)
    return statistics.mean(spearman(a[group], b[group]) for group in groups)


def compare(history: Sequence[Scores], convention: str, counts: Tensor | None = None) -> Figures:
    """Every signal against the exact norm, at every step."""
    figures: Figures = {}
    for at, now in enumerate(history):
        before = history[at - 1] if at else {}
        candidates = {name: values for name, values in now.items() if name != EXACT}
        candidates[f"{EXACT}, checkpoint before"] = before.get(EXACT, now[EXACT] * math.nan)
        candidates["loss, checkpoint before"] = before.get("loss", now["loss"] * math.nan)
        if counts is not None:
            candidates["token count"] = counts
        blocks = {
            f"Spearman with {EXACT}{convention}": spearman,
            f"overlap of the top {TOP:.0%} with {EXACT}{convention}": overlap,
        }
        for block, agreement in blocks.items():
            for name, values in candidates.items():
                known = not bool(values.isnan().any())
                figure = agreement(values, now[EXACT]) if known else math.nan
                figures.setdefault((block, name), []).append(figure)
    return figures


def compare_lengths(
    task: Any, batch: TensorDict, history: Sequence[Scores], counts: Tensor
) -> Figures:
    """The same under each convention for the length, and what the length has to do with it."""
    figures: Figures = {}
    num_top, num_steps = round(TOP * len(counts)), len(history)
    pool, top = ("mean token count", "all scored"), f"top {TOP:.0%} by {EXACT}"
    lengths: Figures = {pool: [float(counts.mean())] * num_steps}
    ranks: Figures = {}
    for length in LENGTHS:
        scaled = [by_length(task, batch, scores, length) for scores in history]
        figures |= compare(scaled, f", {length}", counts)
        block = f"Spearman with {EXACT}, {length}, within {NUM_GROUPS} groups of like token count"
        for name in CHEAP:
            figures[block, name] = [within_groups(s[name], s[EXACT], counts) for s in scaled]
        lengths["mean token count", f"{top}, {length}"] = [
            float(counts[s[EXACT].topk(num_top).indices].mean()) for s in scaled
        ]
        for name in (EXACT, *CHEAP):
            ranks["Spearman with token count", f"{name}, {length}"] = [
                spearman(s[name], counts) for s in scaled
            ]
    return figures | ranks | lengths


# The program


def report(setting: Setting, outcomes: Sequence[Outcome]) -> None:
    """One case as a table: mean over the seeds, and from the least to the greatest."""
    print(f"\n{setting.title}")
    print(
        f"{setting.num_scored} of the training examples scored; AdamW, batches of "
        f"{setting.batch_size}, peak rate {setting.lr:g}; {len(outcomes)} seeds: mean (least to "
        f"greatest)"
    )
    print(
        f"{EXACT}: {outcomes[0].told}; from {ORACLE} it differs by at most "
        f"{max(outcome.error for outcome in outcomes):.0e} (relative; 16 examples, last step)"
    )
    print(f"{'step':32}" + "".join(f"{step:<24}" for step in setting.steps).rstrip())
    block = ""
    for key in outcomes[0].figures:
        if key[0] != block:
            block = key[0]
            print(block)
        columns = zip(*(outcome.figures[key] for outcome in outcomes), strict=True)
        print(f"  {key[1]:30}" + "".join(f"{_cell(values):24}" for values in columns).rstrip())
    sys.stdout.flush()


def _cell(values: Sequence[float]) -> str:
    if any(math.isnan(value) for value in values):
        return "-"
    digits = 2 if abs(max(values, key=abs)) < 10 else 0
    mean, low, high = statistics.mean(values), min(values), max(values)
    return f"{mean:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def examples_of(case: str, seed: int, count: int | None) -> TensorSource:
    """What a case trains on."""
    if case == "vit":
        return digits(seed=seed)[0]
    docstrings, sources = texts()
    if case == "lengths":
        source = padded(docstrings)
    else:
        source = packed(docstrings if case == "llama" else sources)
    return some(source, count or len(source), seed)


def cases_of_seed(
    cases: Sequence[str], settings: Mapping[str, Setting], seed: int
) -> Iterator[tuple[str, Outcome]]:
    """The cases that are asked for, with one seed."""

    def examples(case: str) -> TensorSource:
        return examples_of(case, seed, settings[case].num_examples)

    if "vit" in cases:
        with all_global_generators(seed):
            task: Task = Classification(build_vit("vit_digits", num_classes=10), 10)
        yield "vit", study(task, examples("vit"), settings["vit"], seed)
    if "llama" in cases or "lora" in cases:
        task = Bytes(make_llama(seed))
        if "llama" in cases:
            yield "llama", study(task, examples("llama"), settings["llama"], seed)
        else:
            *_, _ = trained(task, examples("llama"), settings["llama"], seed)
        if "lora" in cases:  # a trained task's model holds the trained weights
            task = Bytes(add_lora(task.model, seed))
            yield "lora", study(task, examples("lora"), settings["lora"], seed)
    if "lengths" in cases:
        task = Bytes(make_llama(seed))
        yield "lengths", study(task, examples("lengths"), settings["lengths"], seed)


CASES = {
    "vit": ("vit",),
    "llama": ("llama", "lengths"),
    "lora": ("lora",),
    "all": ("vit", "llama", "lengths", "lora"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--case", choices=CASES, default="all")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--scale", type=float, default=1.0, help="of all numbers of steps")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    settings = {
        case: replace(setting, steps=tuple(round(args.scale * step) for step in setting.steps))
        for case, setting in SETTINGS.items()
    }
    cases = CASES[args.case]
    outcomes: dict[str, list[Outcome]] = {case: [] for case in cases}
    began = time.perf_counter()
    for seed in range(args.seeds):
        for case, outcome in cases_of_seed(cases, settings, seed):
            outcomes[case].append(outcome)
            spent = time.perf_counter() - began
            print(f"seed {seed}, {case}: done after {spent:.0f} s", file=sys.stderr)
    print(" ".join(["python", *sys.argv]))
    print(
        f"{args.threads} threads, {platform.machine()}, Python {platform.python_version()}, "
        + ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "peft"))
        + f"; {time.perf_counter() - began:.0f} s in all"
    )
    for case in cases:
        report(settings[case], outcomes[case])


if __name__ == "__main__":
    main()
