"""The indices of a pass at scale: selected by the real stage, streamed by the real orders.

    python benchmarks/stream_indices.py [--num_examples 100000000] [--threads 1]

Each line is a process of its own that holds the state of N examples (scores, their steps, mask,
weight), selects by `hard` and reads a whole pass of indices: in slices of 2^16, as they come once
the order is made, and in batches of 256 through `IndexBatches`. The reference holds what
`mask.nonzero()` and `torch.randperm` give. Peaks are of the whole process, the interpreter and
torch with it. The last line is a permutation of 10^9 numbers alone.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterable

import torch
from memory import growth, peak
from tensordict import TensorDict
from torch import Tensor

from attent.pipeline import Permutation, fold, hard, run, select
from attent.pipeline.keyed import generator
from attent.pipeline.keys import place, tensor
from attent.pipeline.order import Order, blockwise_order, keyed_order
from attent.pipeline.stream import IndexBatches
from attent.pipeline.task import bare_state, ensure_scores

SLICE = 2**16
BATCH = 256
BLOCK = 10**4
"""Examples of a shard, for the order by blocks."""

KEY = fold(0, "order", 0)


def by_blocks(mask: Tensor) -> Order:
    """Shards of `BLOCK`, a few at a time."""
    bounds = torch.arange(0, len(mask) + BLOCK, BLOCK).clamp(max=len(mask))
    return blockwise_order(mask, KEY, bounds)


def reference(mask: Tensor) -> Order:
    """The order as one tensor."""
    selected = mask.nonzero().squeeze(1)
    return selected[torch.randperm(len(selected), generator=generator(KEY))]


ORDERS: dict[str, Callable[[Tensor], Order]] = {
    "randperm, gather": reference,
    "keyed_order": lambda mask: keyed_order(mask, KEY),
    "blockwise_order": by_blocks,
}


def selected_state(num_examples: int, ratio: float) -> tuple[TensorDict, float]:
    """A state after its selection, and the seconds that took."""
    state = bare_state(num_examples)
    ensure_scores(state, "loss", num_examples)
    tensor(state, "scores", "loss").log_normal_(-3, 2, generator=generator(0))
    tensor(state, "scores", "step").zero_()
    place(state, ("plan", "ratio"), torch.tensor(ratio, dtype=torch.float64))
    began = time.perf_counter()
    state = run(select(hard()), state, donate=True)
    return state, time.perf_counter() - began


def read(parts: Iterable[Tensor]) -> tuple[int, float]:
    """How many indices, and the seconds it took to read them."""
    began = time.perf_counter()
    count = sum(len(part) for part in parts)
    return count, time.perf_counter() - began


def sliced(order: Order) -> Iterable[Tensor]:
    """A whole order in slices."""
    return (order[at : at + SLICE] for at in range(0, len(order), SLICE))


def measure(name: str, num_examples: int, ratio: float) -> dict[str, float]:
    """One line: seconds, indices per second, peak bytes."""
    state, selecting = selected_state(num_examples, ratio)
    after_selection = peak()
    mask = tensor(state, "mask")
    began = time.perf_counter()
    order = ORDERS[name](mask)
    making = time.perf_counter() - began
    count, seconds = read(sliced(order))
    assert count == int(tensor(state, "plan", "size"))
    _, batched = read(IndexBatches(order, BATCH))
    return {
        "selecting": selecting,
        "peak of selection": after_selection,
        "making": making,
        "per second": count / seconds,
        "with making": count / (seconds + making),
        "batches": count / batched,
        "peak": peak(),
    }


def permutation(size: int) -> None:
    """All of a permutation, in constant memory."""
    whole = Permutation(size, KEY)
    rate = 0.0

    def work() -> None:
        nonlocal rate
        began, total = time.perf_counter(), 0
        for start in range(0, size, SLICE):
            total += int(whole(slice(start, start + SLICE)).sum())
        rate = size / (time.perf_counter() - began)
        assert total == size * (size - 1) // 2

    grown = growth(work)
    print(f"Permutation of {size:,}: {rate / 1e6:.1f} million a second, {grown / 1e6:.1f} MB more")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--num_examples", type=int, default=10**8)
    parser.add_argument("--ratios", type=float, nargs="+", default=[0.2, 0.8, 1.0])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--permutation", type=int, default=10**9, help="numbers; 0 for none")
    parser.add_argument("--line", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.line:
        print(json.dumps(measure(args.line[0], args.num_examples, float(args.line[1]))))
        return
    print(
        f"N = {args.num_examples:,}, {args.threads} threads, {platform.machine()}, torch "
        f"{torch.__version__}; millions of indices a second, GB"
    )
    print(
        f"{'ratio':<7}{'order':18}{'select s':>9}{'GB':>6}{'make s':>8}{'slices':>8}"
        f"{'+ make':>8}{'of 256':>8}{'GB':>6}"
    )
    for ratio in args.ratios:
        for name in ORDERS:
            words = [sys.executable, __file__, "--line", name, str(ratio)]
            words += ["--num_examples", str(args.num_examples), "--threads", str(args.threads)]
            found = json.loads(
                subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True).stdout
            )
            print(
                f"{ratio:<7}{name:18}{found['selecting']:9.2f}"
                f"{found['peak of selection'] / 1e9:6.2f}{found['making']:8.2f}"
                f"{found['per second'] / 1e6:8.1f}"
                f"{found['with making'] / 1e6:8.1f}{found['batches'] / 1e6:8.1f}"
                f"{found['peak'] / 1e9:6.2f}",
                flush=True,
            )
    if args.permutation:
        permutation(args.permutation)


if __name__ == "__main__":
    main()
