"""The resident size of a process over streams of 10^6 examples.

    python benchmarks/stream_memory.py [--num_examples 1000000] [--passes 6] [--batch_size 256]

Each table is of a process of its own that holds a state of N examples (scores, their steps, mask,
weight) and reads passes over all of them, in keyed orders: in the training thread, by two threads,
by two processes. An example is 2 KiB made from its index, so that nothing but what is in flight
need be held. A column is a tenth of a pass: the resident size, in MiB, of the process, and, where
there are some, of its workers together, without files that are mapped, such as libraries; pages
that several share are counted by their share (Linux).
"""

from __future__ import annotations

import argparse
import multiprocessing
import platform
import subprocess
import sys
import time
from pathlib import Path

import torch
from tensordict import TensorDict
from torch import Tensor

from attent.pipeline import Loading, fold
from attent.pipeline.keys import tensor
from attent.pipeline.order import keyed_order
from attent.pipeline.source import reading
from attent.pipeline.stream import Stream
from attent.pipeline.task import bare_state, ensure_scores

LOADINGS = {
    "in the thread": Loading(),
    "2 threads": Loading(workers=2),
    "2 processes": Loading(workers=2, processes=True),
}
LOOKS = 10


class Made:
    """N examples that are nowhere: each is 512 numbers made from its index."""

    def __init__(self, num_examples: int) -> None:
        self._length = num_examples
        self._noise = torch.arange(512.0)

    def __len__(self) -> int:
        return self._length

    def fetch(self, index: Tensor) -> TensorDict:
        """The examples at ``index``."""
        for i in index.tolist():
            reading(i)
        x = index[:, None].float() * 1e-6 + self._noise
        return TensorDict({"x": x, "y": index % 10}, batch_size=[len(index)])


def resident(pid: int | str = "self") -> float:
    """MiB of a process, its own and shared memory, without mapped files."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    sizes = [line.split()[1] for line in lines if line.startswith(("Pss_Anon:", "Pss_Shmem:"))]
    return sum(map(int, sizes)) / 1024


def measure(how: str, num_examples: int, passes: int, batch_size: int) -> None:
    """Read the passes and print the resident size as they go."""
    torch.set_num_threads(1)
    source, state = Made(num_examples), bare_state(num_examples, seed=0)
    ensure_scores(state, "loss", num_examples)
    scores, stamps = tensor(state, "scores", "loss"), tensor(state, "scores", "step")
    print(f"{how}: MiB at each tenth of a pass, of the process + of its workers", flush=True)
    for pass_ in range(passes):
        order = keyed_order(tensor(state, "mask"), fold(0, "order", pass_))
        stream = Stream(source, order, batch_size, loading=LOADINGS[how])
        every, seen, sizes = num_examples // LOOKS, 0, []
        began = time.perf_counter()
        for batch in stream:
            index = batch["index"]
            scores[index] = batch["x"].mean(1)
            stamps[index] = pass_
            seen += len(index)
            if seen // every > len(sizes):
                workers = [resident(p.pid or 0) for p in multiprocessing.active_children()]
                sizes.append(f"{resident():.0f}" + (f"+{sum(workers):.0f}" if workers else ""))
        rate = seen / (time.perf_counter() - began)
        assert bool((stamps == pass_).all())  # each was read
        print(f"  pass {pass_ + 1}: {'  '.join(sizes)}   {rate:,.0f} examples/s", flush=True)


def main() -> None:
    """Measure each way of loading in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--num_examples", type=int, default=10**6)
    parser.add_argument("--passes", type=int, default=6)
    parser.add_argument("--batch_size", type=int, default=256)
    parser.add_argument("--how", choices=LOADINGS, help="this way only, in this process")
    options = parser.parse_args()
    if options.how:
        measure(options.how, options.num_examples, options.passes, options.batch_size)
        return
    print(f"torch {torch.__version__}, {platform.machine()}, N = {options.num_examples:,}")
    for how in LOADINGS:
        subprocess.run([sys.executable, __file__, *sys.argv[1:], "--how", how], check=True)


if __name__ == "__main__":
    main()
