"""What the engine costs: the `full` recipe against a hand-written PyTorch loop.

    python benchmarks/overhead.py [--model vit_digits] [--rounds 30]

Same model, data, batches, optimiser and schedule; both loops train one epoch a round, interleaved
in one process; the ratio of each round's times, and their median. Selection is off: what is
compared is ticks, stages, stream, keys, checks and clock against their absence.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from attent.models import build_vit
from attent.pipeline import (
    Step,
    TensorSource,
    adamw,
    full,
    initial_state,
    initialize,
    run,
    train,
    warmup_cosine,
)
from attent.pipeline.keyed import all_global_generators
from attent.pipeline.optimizer import decays
from attent.tasks.classification import Classification
from attent.tasks.data.digits import digits


def make_model(name: str) -> torch.nn.Module:
    """The same weights each time."""
    with all_global_generators(0):
        if name == "vit_digits":
            return build_vit(name, num_classes=10)
        return build_vit(name, num_classes=10, img_size=64, model_args={"patch_size": 8})


def make_source(name: str, num_examples: int) -> TensorSource:
    """Digits, for larger models blown up to 64 pixels and three channels."""
    fields = {key: value[:num_examples] for key, value in digits()[0].fields.items()}
    if name != "vit_digits":
        fields["image"] = F.interpolate(fields["image"], size=64).expand(-1, 3, -1, -1).contiguous()
    return TensorSource(fields)


def hand_written(
    model: torch.nn.Module, images: Tensor, labels: Tensor, batch_size: int, epochs: int
) -> Callable[[], None]:
    """What anybody would write: an epoch of it."""
    named, decay = list(model.named_parameters()), decays(model)
    groups = [
        {"params": [p for n, p in named if decay(n, p)], "weight_decay": 0.05},
        {"params": [p for n, p in named if not decay(n, p)], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=1e-3)
    schedule = warmup_cosine(1e-3, warmup=0.1)
    budget, state = epochs * len(images), {"seen": 0}

    def epoch() -> None:
        model.train()
        order = torch.randperm(len(images))
        for index in order.split(batch_size):
            state["seen"] += len(index)
            for group in optimizer.param_groups:
                group["lr"] = schedule(state["seen"] / budget)
            loss = F.cross_entropy(model(images[index]), labels[index])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    return epoch


def pipeline(
    model: torch.nn.Module, source: TensorSource, batch_size: int, epochs: int, steps: int
) -> Callable[[], None]:
    """The `full` recipe, ticked for an epoch."""
    task = Classification(model, 10)
    stage = train(
        task,
        source,
        optimizer=adamw(warmup_cosine(1e-3, warmup=0.1)),
        step=Step(batch_size=batch_size),
        steps=steps,
    )
    tick = full(source, train=stage, epochs=epochs)
    holder = {"state": initialize(tick, initial_state(task, source))}

    def epoch() -> None:
        state = holder["state"]
        until = int(state["clock", "passes"]) + 1
        while int(state["clock", "passes"]) < until:
            state = run(tick, state, donate=True)
        holder["state"] = state

    return epoch


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="vit_digits", help="or any ViT of timm, at 64/8")
    parser.add_argument("--num_examples", type=int, default=1437)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--steps", type=int, default=50, help="optimiser steps a tick")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    source = make_source(args.model, args.num_examples)
    epochs = args.rounds + 1
    theirs = hand_written(
        make_model(args.model), source.fields["image"], source.fields["label"], args.batch_size,
        epochs,
    )  # fmt: skip
    ours = pipeline(make_model(args.model), source, args.batch_size, epochs, args.steps)
    loops = {"hand-written": theirs, "pipeline": ours}
    seconds: dict[str, list[float]] = {name: [] for name in loops}
    for round_ in range(epochs):
        # In turn first and second, so that neither has the warmer caches.
        for name in sorted(loops, reverse=bool(round_ % 2)):
            began = time.perf_counter()
            loops[name]()
            if round_:  # the first warms up
                seconds[name].append(time.perf_counter() - began)
    steps = -(-len(source) // args.batch_size)
    ratios = [a / b for a, b in zip(seconds["pipeline"], seconds["hand-written"], strict=True)]
    print(
        f"{args.model}, {len(source):,} examples, batches of {args.batch_size}, {args.steps} steps "
        f"a tick, {args.rounds} rounds, {args.threads} threads, {platform.machine()}, torch "
        f"{torch.__version__}"
    )
    for name, times in seconds.items():
        print(f"{name:14}{1000 * statistics.median(times) / steps:9.3f} ms a step")
    low, high = sorted(ratios)[len(ratios) // 4], sorted(ratios)[-(len(ratios) // 4) - 1]
    print(
        f"pipeline / hand-written: {statistics.median(ratios):.3f} (median of paired rounds; "
        f"quartiles {low:.3f} to {high:.3f})"
    )


if __name__ == "__main__":
    main()
