"""Instruction tuning: what selection is worth, tokens a second, and memory.

    python benchmarks/language.py selection [--seeds 0 1 2] [--epochs 2] [--out out/language]
    python benchmarks/language.py speed [--rounds 9] [--threads 1]
    python benchmarks/language.py batches [--rounds 9] [--threads 1]
    python benchmarks/language.py memory

``selection``: LoRA on functions of the standard library (harvested; whole modules held out), for
each seed from one small Llama that was trained on all of every row of that seed's split: plain
training, AtteNTSimple 0.7 and a random 0.7, under one budget of tokens. Held-out perplexity after
each epoch's worth of tokens, and the tokens and CPU seconds at which each is as good as plain
training is at its end. The rate of all three decays over the whole budget: at half of it none is at
rest.

``speed``: tokens a second of the `train` stage (losses observed) against a plain `Trainer` of
transformers, on the same model, batches and optimiser, in turn in one process. The Trainer is given
its batches ready; ours are fetched and padded within the time.

``batches``: tokens a second with batches of rows of similar length (the default), with any rows
packed end to end, and with any rows padded, in turn in one process.

``memory``: what training and scoring add to a model with 32,000 words, against transformers' own
loss, each in a process of its own.
"""

from __future__ import annotations

import argparse
import copy
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from memory import growth
from runs import mean, measured, run
from tensordict import TensorDict
from torch.utils.data import Dataset

from attent.models.adapters import with_adapters
from attent.models.language import LanguageModel, build_causal
from attent.pipeline import Stage, Step, adamw, full, initial_state, initialize, train
from attent.pipeline import run as run_stage
from attent.pipeline.keyed import all_global_generators
from attent.tasks.data.instructions import Instructions
from attent.tasks.language import InstructionTuning
from attent.tasks.language.build import load_data
from attent.tasks.language.config import InstructConfig

LAYERS = "q_proj,v_proj,k_proj,o_proj,gate_proj,down_proj,up_proj"

BASE: dict[str, Any] = {
    "data": "harvest",
    "prompt": "{instruction}\n",
    "model_max_length": 256,
    "batch_size": 16,
    "clip": 1.0,
    "num_samples": 0,
    "threads": 1,
}

FRESH: dict[str, Any] = {
    "model_name_or_path": "llama:dim=128,depth=4,num_heads=4,max_length=256",
    "vocab_size": 2048,
    "adapter": "full",
    "supervise": "all",
    "method": "full",
    "epochs": 2,
    "lr": 3e-3,
    "weight_decay": 0.05,
}

LORA: dict[str, Any] = {
    "adapter": "lora",
    "target_modules": LAYERS,
    "lora_rank": 16,
    "lora_alpha": 16.0,
    "lr": 2e-3,
    "weight_decay": 0.0,
}

METHODS: dict[str, dict[str, Any]] = {
    "full": {"method": "full"},
    "AtteNTSimple 0.7": {"method": "attent_simple", "selection_strategy": "hard"},
    "random 0.7": {"method": "attent_simple", "selection_strategy": "random"},
}

METRIC = "val_perplexity"


def selection(chosen: argparse.Namespace) -> None:
    logs: dict[str, list[list[dict[str, Any]]]] = {name: [] for name in METHODS}
    for seed in chosen.seeds:
        run(chosen.out, f"base-{seed}", "instruct", BASE | FRESH | {"seed": seed})
        base = chosen.out / f"base-{seed}" / "model"
        for name, method in METHODS.items():
            given = BASE | LORA | method | {"seed": seed, "epochs": chosen.epochs}
            given |= {"model_name_or_path": str(base), "eval_every": 0.25}
            folder = f"{name.split()[0].lower()}-{seed}"
            logs[name].append(run(chosen.out, folder, "instruct", given))
    aims = [measured(log, METRIC)[-1][METRIC] for log in logs["full"]]
    sizes = [log[-1]["budget"] / chosen.epochs for log in logs["full"]]
    ends = list(range(1, chosen.epochs + 1))
    print(
        f"\n{statistics.fmean(sizes):,.0f} tokens in an epoch, a budget of {chosen.epochs}, "
        f"seeds {chosen.seeds}; {platform.machine()}, one thread\n"
    )
    print(
        "| method | million tokens | CPU seconds | "
        + " | ".join(f"perplexity after {e}" for e in ends)
        + " | against full, paired | as good as full after, of its tokens | of its seconds |"
    )
    print("|" + "---|" * (6 + len(ends)))
    for name, runs in logs.items():
        figures = [
            mean([at(log, epoch * size) for log, size in zip(runs, sizes, strict=True)], 2)
            for epoch in ends
        ]
        apart = [
            measured(log, METRIC)[-1][METRIC] - aim for log, aim in zip(runs, aims, strict=True)
        ]
        tokens, seconds = (
            [reached(log, aim, entry, whole[-1][entry]) for log, aim, whole in
             zip(runs, aims, logs["full"], strict=True)]
            for entry in ("tokens", "cpu_seconds")
        )  # fmt: skip
        print(
            f"| {name} | {mean([log[-1]['tokens'] / 1e6 for log in runs], 2)} "
            f"| {mean([log[-1]['cpu_seconds'] for log in runs], 0)} | {' | '.join(figures)} "
            f"| {mean(apart, 2)} | {shares(tokens)} | {shares(seconds)} |"
        )


def at(log: Sequence[dict[str, Any]], tokens: float) -> float:
    """The perplexity when so many tokens were trained on."""
    return next(
        (line[METRIC] for line in measured(log, METRIC) if line["tokens"] >= tokens),
        measured(log, METRIC)[-1][METRIC],
    )


def reached(log: Sequence[dict[str, Any]], aim: float, entry: str, whole: float) -> float | None:
    """The share of ``whole`` at which the perplexity first is as low as ``aim``; None for never."""
    lines = measured(log, METRIC)
    return next((line[entry] / whole for line in lines if line[METRIC] <= aim), None)


def shares(found: Sequence[float | None]) -> str:
    """Mean shares, and how often there is none."""
    there = [share for share in found if share is not None]
    never = len(found) - len(there)
    if not there:
        return "never"
    return mean(there, 2) + (f" (never for {never} of {len(found)})" if never else "")


# --- speed


class Batches(Dataset):
    """Batches as a Trainer takes them, each an item."""

    def __init__(self, batches: Sequence[TensorDict]) -> None:
        self.batches = [
            {name: batch[name] for name in ("input_ids", "attention_mask", "labels")}
            for batch in batches
        ]

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return self.batches[index]


class Recorded:
    """A source that keeps the batches it gave."""

    def __init__(self, source: Instructions) -> None:
        self.source, self.lengths = source, source.lengths
        self.given: list[TensorDict] = []

    def __len__(self) -> int:
        return len(self.source)

    def fetch(self, index: torch.Tensor) -> TensorDict:
        """The batch, which is kept."""
        batch = self.source.fetch(index)
        self.given.append(batch)
        return batch


def adapted(source: Instructions) -> Any:
    """The same model with adapters each time."""
    with all_global_generators(0):
        causal = build_causal(
            "llama:dim=128,depth=4,num_heads=4,max_length=256", vocab_size=len(source.tokenizer)
        )
        return with_adapters(causal, "lora", rank=16, alpha=16, target_modules=LAYERS)


def tick_of(task: InstructionTuning, source: Any, steps: int) -> Stage:
    """So many steps of plain training, losses observed as AtteNTSimple does it."""
    stage = train(
        task,
        source,
        optimizer=adamw(1e-4, weight_decay=0.0),
        step=Step(batch_size=16, clip=1.0),
        steps=steps,
        observe=True,
    )
    return full(source, train=stage, epochs=1_000_000)


def speed(chosen: argparse.Namespace) -> None:
    from transformers import PrinterCallback, Trainer, TrainingArguments

    torch.set_num_threads(chosen.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    source = Recorded(load_data(InstructConfig(**BASE, vocab_size=2048))[0])
    task = InstructionTuning(LanguageModel(adapted(source.source)).to(device))
    tick = tick_of(task, source, chosen.steps)
    state = initialize(tick, initial_state(task, source))
    theirs = adapted(source.source).to(device)
    ratios, rates = [], []
    for turn in range(chosen.rounds + 1):
        source.given.clear()
        start = time.perf_counter()
        state = run_stage(tick, state, donate=True)
        ours = time.perf_counter() - start
        batches = Batches(source.given)
        tokens = sum(int(batch["attention_mask"].sum()) for batch in source.given)
        with tempfile.TemporaryDirectory() as folder:
            arguments = TrainingArguments(
                output_dir=folder,
                per_device_train_batch_size=1,
                max_steps=len(batches),
                learning_rate=1e-4,
                lr_scheduler_type="constant",
                weight_decay=0.0,
                max_grad_norm=1.0,
                optim="adamw_torch",
                report_to=[],
                disable_tqdm=True,
                save_strategy="no",
                logging_strategy="no",
                use_cpu=device.type == "cpu",
            )
            trainer = Trainer(
                theirs, arguments, train_dataset=batches, data_collator=lambda items: items[0]
            )
            trainer.remove_callback(PrinterCallback)
            start = time.perf_counter()
            trainer.train()
            other = time.perf_counter() - start
        if turn:  # the first is to warm up
            ratios.append(other / ours)
            rates.append(tokens / ours)
    print(
        f"{platform.machine()}, {device.type}, {chosen.threads} thread(s); {chosen.rounds} rounds "
        f"of {chosen.steps} steps of 16 rows\n"
        f"tokens/s: {statistics.median(rates):,.0f}\n"
        f"of a Trainer's: {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
    )


def batches(chosen: argparse.Namespace) -> None:
    torch.set_num_threads(chosen.threads)
    source = load_data(InstructConfig(**BASE, vocab_size=2048))[0]
    ways = {
        "of similar length": {"bucketed": True, "packing": False},
        "any, packed": {"bucketed": False, "packing": True},
        "any, padded": {"bucketed": False, "packing": False},
    }
    ticks, states = {}, {}
    for name, way in ways.items():
        rows = copy.copy(source)
        rows.bucketed = way["bucketed"]
        task = InstructionTuning(LanguageModel(adapted(source)), packing=way["packing"])
        ticks[name] = tick_of(task, rows, chosen.steps)
        states[name] = initialize(ticks[name], initial_state(task, rows))
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(chosen.rounds + 1):
        for name, tick in ticks.items():
            before = int(states[name]["clock", "tokens"])
            start = time.perf_counter()
            states[name] = run_stage(tick, states[name], donate=True)
            seconds = time.perf_counter() - start
            rates[name].append((int(states[name]["clock", "tokens"]) - before) / seconds)
    print("| batches | tokens/s | of the first |\n|---|---|---|")
    first = rates["of similar length"][1:]  # the first round is to warm up
    for name, found in rates.items():
        ratios = [a / b for a, b in zip(found[1:], first, strict=True)]
        print(f"| {name} | {statistics.median(found[1:]):,.0f} | {statistics.median(ratios):.2f} |")


# --- memory

CASE = {"words": 32_000, "rows": 8, "tokens": 512}


def work_of(name: str) -> int:
    """Bytes by which a process grows; the model's own are there before."""
    with all_global_generators(0):
        causal = build_causal("llama:dim=128,depth=2,num_heads=4", vocab_size=CASE["words"])
        causal = with_adapters(causal, "lora", rank=16, alpha=16)
    ids = torch.randint(CASE["words"], (CASE["rows"], CASE["tokens"]))
    model = LanguageModel(causal)

    def ours() -> None:
        model(ids, ids).sum().backward()

    def scoring() -> None:
        with torch.no_grad():
            model(ids, ids)

    def transformers() -> None:
        causal(input_ids=ids, labels=ids).loss.backward()  # type: ignore[operator]

    model(ids[:1, :8], ids[:1, :8]).sum().backward()  # whatever is set up once
    return growth({"ours": ours, "scoring": scoring, "transformers": transformers}[name])


def memory(chosen: argparse.Namespace) -> None:
    if chosen.only:
        print(work_of(chosen.only))
        return
    print(f"{CASE['rows']} rows of {CASE['tokens']} tokens, {CASE['words']:,} words, float32\n")
    print("| what | MiB above the model |")
    print("|---|---|")
    names = {
        "ours": "a step's forward and backward",
        "scoring": "scoring",
        "transformers": "the same step with transformers' own loss",
    }
    for name, title in names.items():
        command = [sys.executable, __file__, "memory", "--only", name]
        told = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        print(f"| {title} | {int(told) / 2**20:.0f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("what", choices=("selection", "speed", "batches", "memory"))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("out/language"))
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", default=None, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    warnings.simplefilter("ignore", FutureWarning)  # of transformers' old names, by peft
    work = {"selection": selection, "speed": speed, "batches": batches, "memory": memory}
    work[chosen.what](chosen)


if __name__ == "__main__":
    main()
