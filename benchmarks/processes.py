"""What a second process brings: the pipeline's scaling against that of a plain DDP loop.

    python -m benchmarks.processes [--model vit_tiny_patch16_224 --num_examples 320] [--rounds 10]

One and then two processes (gloo, on the CPU, a thread each) train the same model on the same
batches: the `full` recipe through the stages, which shares out every batch among the processes, and
a hand-written loop over `DistributedDataParallel`. Rounds of the two alternate in the same
processes. What is compared is how much faster two are than one: the pipeline's factor over the
loop's. Scoring, which processes share out by whole batches, is timed beside it.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from attent.pipeline import TensorSource, initial_state, initialize, run, score, warmup_cosine
from attent.pipeline.optimizer import decays
from attent.pipeline.processes import processes
from attent.tasks.classification import Classification
from benchmarks.overhead import make_model, make_source, pipeline


def plain_loop(
    model: torch.nn.Module, source: TensorSource, batch_size: int, epochs: int
) -> Callable[[], None]:
    """What anybody would write with DistributedDataParallel: an epoch of it."""
    images, labels = source.fields["image"], source.fields["label"]
    named, decay, world = list(model.named_parameters()), decays(model), processes()
    groups = [
        {"params": [p for n, p in named if decay(n, p)], "weight_decay": 0.05},
        {"params": [p for n, p in named if not decay(n, p)], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=1e-3)
    schedule = warmup_cosine(1e-3, warmup=0.1)
    wrapped = model if world.alone else DistributedDataParallel(model)
    budget, state = epochs * len(images), {"seen": 0, "epoch": 0}

    def epoch() -> None:
        model.train()
        draw = torch.Generator().manual_seed(state["epoch"])
        state["epoch"] += 1
        for batch in torch.randperm(len(images), generator=draw).split(batch_size):
            state["seen"] += len(batch)
            for group in optimizer.param_groups:
                group["lr"] = schedule(state["seen"] / budget)
            index = batch.tensor_split(world.count)[world.rank]
            loss = F.cross_entropy(wrapped(images[index]), labels[index])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    return epoch


def scoring(model: torch.nn.Module, source: TensorSource) -> Callable[[], None]:
    """All examples scored by their loss."""
    task = Classification(model, 10)
    stage = score(task, source, batch_size=64)
    state = initialize(stage, initial_state(task, source))

    def once() -> None:
        run(stage, state, donate=True)

    return once


def measure(rank: int, count: int, folder: str, args: argparse.Namespace) -> None:
    """Time all loops in one of the processes; the main one writes the seconds down."""
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    if count > 1:
        dist.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=count)
    source = make_source(args.model, args.num_examples)
    epochs = args.rounds + 1
    loops = {
        "plain": plain_loop(make_model(args.model), source, args.batch_size, epochs),
        "pipeline": pipeline(make_model(args.model), source, args.batch_size, epochs, args.steps),
        "scoring": scoring(make_model(args.model), source),
    }
    seconds: dict[str, list[float]] = {name: [] for name in loops}
    for round_ in range(epochs):
        for name in sorted(loops, reverse=bool(round_ % 2)):
            if count > 1:
                dist.barrier()
            began = time.perf_counter()
            loops[name]()
            if count > 1:
                dist.barrier()
            if round_:  # the first warms up
                seconds[name].append(time.perf_counter() - began)
    if rank == 0:
        torch.save(seconds, Path(folder, f"{count}.pt"))
    if count > 1:
        dist.destroy_process_group()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="vit_digits", help="or any ViT of timm, at 64/8")
    parser.add_argument("--num_examples", type=int, default=1437)
    parser.add_argument("--batch_size", type=int, default=64, help="of all processes together")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=3, help="of one and two processes in turn")
    parser.add_argument("--steps", type=int, default=50, help="optimiser steps a tick")
    args = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    found: dict[str, list[tuple[float, float]]] = {}
    for _ in range(args.repeats):
        with tempfile.TemporaryDirectory() as folder:
            for count in (1, 2):
                mp.spawn(measure, (count, folder, args), count)
            one, two = (torch.load(Path(folder, f"{count}.pt")) for count in (1, 2))
            for name in one:
                pair = statistics.median(one[name]), statistics.median(two[name])
                found.setdefault(name, []).append(pair)
    steps = -(-args.num_examples // args.batch_size)
    print(
        f"{args.model}, {args.num_examples:,} examples, batches of {args.batch_size} in all, "
        f"{args.repeats} x {args.rounds} rounds, a thread each, {platform.machine()}, torch "
        f"{torch.__version__}"
    )
    print(f"{'':12}{'1 process':>12}{'2 processes':>14}{'faster':>9}   milliseconds a step")
    factors = {}
    for name, pairs in found.items():
        one, two = (statistics.median(pair[i] for pair in pairs) for i in (0, 1))
        factors[name] = [a / b for a, b in pairs]
        print(
            f"{name:12}{1000 * one / steps:12.2f}{1000 * two / steps:14.2f}"
            f"{statistics.median(factors[name]):9.2f}"
        )
    ratios = [a / b for a, b in zip(factors["pipeline"], factors["plain"], strict=True)]
    print(
        f"scaling of the pipeline / of the plain loop: {statistics.median(ratios):.3f} "
        f"({min(ratios):.3f} to {max(ratios):.3f})"
    )


if __name__ == "__main__":
    main()
