"""Selection at scale: hard, soft and random against one torch.topk and one torch.sort.

    python benchmarks/selection.py [--num_examples 100000000] [--ratio 0.2]

Times are medians of interleaved rounds in one process, as ratios to `torch.topk` over the same
tensor. Peak memory is what the process grew by, above the scores, in a process of its own, in
float32 arrays of N.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import torch
from memory import growth

from attent.pipeline import hard, random, soft
from attent.pipeline.keyed import generator

Method = Callable[[torch.Tensor, float], object]


def _rule(make: Callable) -> Method:
    return lambda scores, ratio: make().choose(scores, ratio, 1)[0]


METHODS: dict[str, Method] = {
    "torch.topk": lambda scores, ratio: torch.topk(scores, int(ratio * len(scores)), sorted=False),
    "torch.sort": lambda scores, ratio: torch.sort(scores),
    "hard": _rule(hard),
    "soft (softmax)": _rule(soft),
    "soft (sigmoid)": _rule(lambda: soft(normalization="sigmoid")),
    "random": _rule(random),
}


def make_scores(num_examples: int) -> torch.Tensor:
    """Losses as a trained model has them: most small, a long tail."""
    return torch.empty(num_examples).log_normal_(-3, 2, generator=generator(0))


def peak_arrays(method: str, num_examples: int, ratio: float) -> float:
    """Growth of the peak resident size over the scores, in float32 arrays of N."""
    scores = make_scores(num_examples)
    METHODS[method](make_scores(10_000), ratio)  # whatever is loaded on first use
    return growth(lambda: METHODS[method](scores, ratio)) / (4 * num_examples)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--num_examples", type=int, default=10**8)
    parser.add_argument("--ratio", type=float, default=0.2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--memory_of", help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.memory_of:
        print(peak_arrays(args.memory_of, args.num_examples, args.ratio))
        return
    scores = make_scores(args.num_examples)
    seconds: dict[str, list[float]] = {name: [] for name in METHODS}
    for _ in range(args.rounds):
        for name, method in METHODS.items():
            began = time.perf_counter()
            method(scores, args.ratio)
            seconds[name].append(time.perf_counter() - began)
    del scores
    print(
        f"N = {args.num_examples:,}, ratio {args.ratio}, median of {args.rounds} rounds, "
        f"{args.threads} threads, {platform.machine()}, torch {torch.__version__}"
    )
    print(f"{'':16}{'seconds':>9}{'/ topk':>9}{'/ sort':>9}{'peak arrays of N':>18}")
    median = {name: statistics.median(times) for name, times in seconds.items()}
    for name in METHODS:
        words = [sys.executable, __file__, "--memory_of", name, "--threads", str(args.threads)]
        words += ["--num_examples", str(args.num_examples), "--ratio", str(args.ratio)]
        peak = float(subprocess.run(words, check=True, capture_output=True, text=True).stdout)
        print(
            f"{name:16}{median[name]:9.2f}{median[name] / median['torch.topk']:9.2f}"
            f"{median[name] / median['torch.sort']:9.2f}{peak:18.2f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
