"""What a `Teacher` costs a training loop: against the same loop without it, and against others.

    python -m benchmarks.loop [--examples 1000000] [--workers 4] [--rounds 40] [--batches 20]

Two tables, in five to ten minutes on two cores.

**Loop.** A perceptron of one hidden layer is trained on pictures of 3 x 32 x 32 that are drawn as
they are read, by AdamW, in one thread: a step as short as they come, beside which bookkeeping shows
most. The reference is the loop that anybody would write, over ``DataLoader(data, batch_size,
shuffle=True, num_workers=4)`` with losses of ``reduction="none"`` and their mean. The others take
their batches from a batch sampler, with the examples' numbers, and make the loss themselves:

- teacher: `Teacher` by `hard`; and by `infobatch`, where examples have weights.
- InfoBatch's rule, and DataCull's: see `benchmarks.rivals`, which has them as they were published.

All take turns of some batches in one process, each with workers of its own, forwards and backwards
in turn. The first batches of a turn were read ahead in the others', and are not counted. Time is
that of the clock, which needs a quiet machine; the CPU time of the training thread and its workers
together (Linux); and, of the CPU time of the training thread, what it takes to get a batch and to
make one loss of its losses: *added* is that less the reference's, and its share of the reference's
whole batch. What is timed there is cold, as it is in a loop: called again and again without a model
in between it would be five times as fast.

**Selection.** All between two passes over half of the N examples, whose losses were all told: what
was observed is noted, chosen from, and put into a new order; no model, no loader. CPU time; *of the
loop* is that, over the batches of the pass, beside the reference's CPU time for as many.

Ratios are of paired turns: median, quartiles, least and greatest.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from multiprocessing import active_children
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from attent.pipeline import Rule, Teacher, constant, hard, infobatch
from benchmarks.rivals import CLASSES, KEEP, DataCull, InfoBatch

AHEAD = 10
"""Batches of a turn that are not counted; a loader reads two ahead for each of its workers."""


class Pictures(Dataset[tuple[Tensor, int]]):
    """Noise over one of ten patterns, drawn by the example's number."""

    def __init__(self, num_examples: int) -> None:
        self.num_examples = num_examples
        draw = torch.Generator().manual_seed(0)
        self.patterns = torch.randn(CLASSES, 3, 32, 32, generator=draw)

    def __len__(self) -> int:
        return self.num_examples

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        noise = torch.randn(3, 32, 32, generator=torch.Generator().manual_seed(index))
        return noise.add_(self.patterns[index % CLASSES]), index % CLASSES


class Training:
    """A model and its optimiser: losses of a batch, and a step by one of them."""

    def __init__(self, hidden: int) -> None:
        torch.manual_seed(0)
        layers = (nn.Linear(3 * 32 * 32, hidden), nn.ReLU(), nn.Linear(hidden, CLASSES))
        self.model = nn.Sequential(nn.Flatten(), *layers)
        self.criterion = nn.CrossEntropyLoss(reduction="none")
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-3)

    def losses(self, x: Tensor, y: Tensor) -> Tensor:
        """One each."""
        return self.criterion(self.model(x), y)

    def step(self, loss: Tensor) -> None:
        """Of the optimiser."""
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()


class Bookkeeping(Protocol):
    """What a way to select does beside training."""

    def select(self) -> Iterator[list[int]]:
        """Begin a pass: its batches."""
        ...

    def tell(self, index: Tensor, losses: Tensor) -> Tensor:
        """Note the losses of a batch; what is to be minimised."""
        ...

    def read(self, data: Pictures, **options: Any) -> Iterator[Any]:
        """Batches with their indices, pass after pass."""
        ...


class Taught:
    """A teacher's."""

    def __init__(self, num_examples: int, batch_size: int, rule: Rule) -> None:
        self.teacher = Teacher(
            num_examples, rule=rule, ratio=constant(KEEP), budget=10**4 * num_examples
        )
        self.batches = self.teacher.batches(batch_size)
        self.tell = self.teacher.observe

    def select(self) -> Iterator[list[int]]:
        """As a loader begins a pass."""
        return iter(self.batches)

    def read(self, data: Pictures, **options: Any) -> Iterator[Any]:
        """As in the README."""
        data_ = self.teacher.with_index(data)
        return iter(self.teacher.loop(DataLoader(data_, batch_sampler=self.batches, **options)))


class Plain:
    """No bookkeeping: the reference."""

    def __init__(self, batch_size: int) -> None:
        self.batch_size = batch_size

    def tell(self, index: None, losses: Tensor) -> Tensor:
        """Their mean."""
        return losses.mean()

    @staticmethod
    def numbered(batch: Any) -> tuple[None, Any]:
        """A batch as the others have it."""
        return None, batch

    def read(self, data: Pictures, **options: Any) -> Iterator[Any]:
        """All, shuffled; without indices."""
        loader = DataLoader(data, self.batch_size, shuffle=True, **options)
        while True:  # who holds a batch frees it while the next one is timed
            yield from map(self.numbered, loader)


class Spent(NamedTuple):
    """Milliseconds a batch.

    Attributes:
        clock: by the clock.
        cpu: of the training thread and its workers.
        thread: of the training thread.
        books: of that, to get a batch and to make one loss.
    """

    clock: float
    cpu: float
    thread: float
    books: float


class Running:
    """A loop that is asked for some batches at a time."""

    def __init__(self, way: Any, data: Pictures, workers: int, hidden: int) -> None:
        self.training, self.tell = Training(hidden), way.tell
        self.batches = way.read(data, num_workers=workers, persistent_workers=workers > 0)
        before = set(active_children())
        self._train()  # starts its workers
        self.workers = [child.pid for child in active_children() if child not in before]

    def _train(self) -> float:
        """On a batch; the milliseconds of bookkeeping."""
        began = time.thread_time()
        index, (x, y) = next(self.batches)
        read = time.thread_time()
        losses = self.training.losses(x, y)
        computed = time.thread_time()
        loss = self.tell(index, losses)
        told = time.thread_time()
        self.training.step(loss)
        return 1000 * (read - began + told - computed)

    def turn(self, batches: int) -> Spent:
        """What some batches took; of bookkeeping the median."""
        for _ in range(AHEAD):
            self._train()
        began = self._now()
        books = statistics.median(self._train() for _ in range(batches))
        clock, cpu, thread = ((b - a) / batches for a, b in zip(began, self._now(), strict=True))
        return Spent(1000 * clock, 1000 * cpu, 1000 * thread, books)

    def _now(self) -> tuple[float, float, float]:
        thread = time.thread_time()
        # The clock of another process's CPU time, as Linux numbers them.
        workers = sum(time.clock_gettime(~pid << 3 | 2) for pid in self.workers if pid)
        return time.perf_counter(), thread + workers, thread


def loops(ways: dict[str, Any], args: argparse.Namespace) -> dict[str, list[Spent]]:
    """Turns of all loops."""
    data = Pictures(args.examples)
    running = {name: Running(way, data, args.workers, args.hidden) for name, way in ways.items()}
    found: dict[str, list[Spent]] = {name: [] for name in running}
    for round_ in range(args.rounds + 1):
        for name in list(running)[:: -1 if round_ % 2 else 1]:
            spent = running[name].turn(args.batches)
            if round_:  # the first warms up
                found[name].append(spent)
    return found


class Selection(NamedTuple):
    """Seconds of CPU time, and the batches of the pass that follows."""

    seconds: float
    batches: int


def select(books: Bookkeeping, draw: torch.Generator) -> Selection:
    """A selection, and the pass that it begins: every batch is told some losses."""
    began = time.thread_time()
    batches = books.select()
    own = next(batches, None)
    seconds, number = time.thread_time() - began, 0
    while own is not None:
        losses = torch.rand(len(own), generator=draw).requires_grad_()
        books.tell(torch.tensor(own), losses)
        own = next(batches, None)
        number += 1
    return Selection(seconds, number)


def selections(ways: dict[str, Any], passes: int) -> dict[str, list[Selection]]:
    """Of every way in turn; the first, before which nothing was told, is not counted."""
    draw = torch.Generator().manual_seed(1)
    found: dict[str, list[Selection]] = {name: [] for name in ways}
    for round_ in range(passes + 1):
        for name in list(ways)[:: -1 if round_ % 2 else 1]:
            spent = select(ways[name], draw)
            if round_:
                found[name].append(spent)
    return found


def made(num_examples: int, batch_size: int, folder: Path) -> dict[str, Any]:
    """All ways but the reference."""
    folder.mkdir()
    return {
        "teacher, hard": Taught(num_examples, batch_size, hard()),
        "teacher, infobatch": Taught(num_examples, batch_size, infobatch(KEEP)),
        "InfoBatch's rule": InfoBatch(num_examples, batch_size),
        "DataCull, RCAP": DataCull(num_examples, batch_size, folder),
    }


def spread(values: Sequence[float], digits: int = 3, unit: str = "") -> str:
    """Median, quartiles, least and greatest."""
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    shown = (f"{v:.{digits}{unit}}" for v in (middle, low, high, min(values), max(values)))
    return "{} ({} to {}; {} to {})".format(*shown)


def ratio(ours: Sequence[float], theirs: Sequence[float], digits: int = 3) -> str:
    """Of paired turns."""
    return spread([a / b for a, b in zip(ours, theirs, strict=True)], digits, "f")


def column(rows: Sequence[Any], name: str) -> list[float]:
    """One figure of all turns."""
    return [getattr(row, name) for row in rows]


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--examples", type=int, default=10**6, help="N")
    parser.add_argument("--batch_size", type=int, default=128)
    parser.add_argument("--hidden", type=int, default=512, help="width of the perceptron")
    parser.add_argument("--workers", type=int, default=4, help="of each loader")
    parser.add_argument("--rounds", type=int, default=40, help="turns of each loop")
    parser.add_argument("--batches", type=int, default=20, help="of a turn that are counted")
    parser.add_argument("--passes", type=int, default=5, help="selections of each way")
    args = parser.parse_args(words)
    if min(args.rounds, args.passes) < 2:
        parser.error("ratios are of paired turns: --rounds and --passes are at least 2")
    warnings.filterwarnings("ignore", "This DataLoader will create")  # more workers than cores
    torch.set_num_threads(1)
    print(
        f"N = {args.examples:,}, batches of {args.batch_size}, {args.workers} workers, "
        f"{args.hidden} hidden units, {args.rounds} turns of {args.batches} batches; "
        f"{os.cpu_count()} CPUs, {platform.machine()}, load {os.getloadavg()[0]:.1f}, torch "
        f"{torch.__version__}\n"
    )
    with tempfile.TemporaryDirectory() as folder:
        ways = made(args.examples, args.batch_size, Path(folder, "loops"))
        found = loops({"plain": Plain(args.batch_size)} | ways, args)
        show_loops(found)
        ways = made(args.examples, args.batch_size, Path(folder, "selections"))
        show_selections(selections(ways, args.passes), column(found["plain"], "thread"))
    print(f"\nload at the end {os.getloadavg()[0]:.1f}")


def show_loops(found: dict[str, list[Spent]]) -> None:
    """The first table."""
    plain = found["plain"]
    print(
        "| loop | ms a batch | / plain | CPU, ms | / plain | added, ms | of a batch |\n"
        "|---|---|---|---|---|---|---|"
    )
    for name, turns in found.items():
        cells = [name]
        for part in ("clock", "cpu"):
            cells.append(f"{statistics.median(column(turns, part)):.2f}")
            cells.append(ratio(column(turns, part), column(plain, part)))
        added = [a.books - b.books for a, b in zip(turns, plain, strict=True)]
        cells.append(spread(added, 3, "f"))
        cells.append(spread([a / b.thread for a, b in zip(added, plain, strict=True)], 2, "%"))
        print(f"| {' | '.join(cells)} |", flush=True)


def show_selections(found: dict[str, list[Selection]], thread: Sequence[float]) -> None:
    """The second table.

    Args:
        found: of all ways.
        thread: milliseconds a batch of the reference's training thread.
    """
    print("\n| selection | s | / teacher, hard | of the loop |\n|---|---|---|---|")
    reference, batch = column(found["teacher, hard"], "seconds"), statistics.median(thread)
    for name, spent in found.items():
        seconds = column(spent, "seconds")
        shares = [1000 * one.seconds / one.batches / batch for one in spent]
        cells = [f"{statistics.median(seconds):.3f}", ratio(seconds, reference, 2)]
        print(f"| {' | '.join([name, *cells, f'{statistics.median(shares):.2%}'])} |", flush=True)


if __name__ == "__main__":
    main()
