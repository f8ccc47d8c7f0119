"""What a `Teacher` costs a training loop: against the same loop without it, and against others.

    python benchmarks/loop.py [--examples 1000000] [--workers 4] [--rounds 60] [--batches 20]

Two tables, in about four minutes on two quiet cores.

**Loop.** A perceptron of one hidden layer is trained on pictures of 3 x 32 x 32 that are drawn as
they are read, by AdamW, in one thread: a step as short as they come, beside which bookkeeping shows
most. The reference is the loop that anybody would write over ``DataLoader(data, batch_size,
shuffle=True, num_workers=4)``, with losses of ``reduction="none"`` and their mean; the other is
over ``teacher.batches``, with ``teacher.observe`` in the mean's place. Both take turns of some
batches in one process, each with workers of its own, and each first every other time. The first
batches of a turn were read ahead in the other's, and are not counted. Time is that of the clock,
and the CPU time of the training thread and of its workers together (Linux), which other work on the
machine disturbs less.

**Bookkeeping.** No model and no loader: whole passes over N examples, half of them selected, of
which every batch is told its losses. *A batch* is what gives it out, notes its losses and makes one
loss of them; *a selection* is all between two passes: scores, choice, the new order. It is CPU
time; *of the loop* is both, as a share of the reference's training thread for as many batches.

- teacher: `hard`; and `infobatch`, where examples have weights.
- InfoBatch's rule (Qin et al., ICLR 2024) in as few lines as it takes: each loss is written to its
  place and the mean is weighted; before a pass all at or above the mean score stay, of the others a
  share of ``1 - r`` by chance, with weight ``1 / (1 - r)``. It checks nothing, cannot be resumed,
  and knows neither parts of batches nor other processes.
- DataCull's, as its package (1.0.2) describes it: each loss is a line of JSON in a file of the
  epoch, which is read back after it. Then RCAP (Hassan et al., UAI 2025): classes get shares by the
  root of their prior times their loss, and within them examples are drawn without replacement, by
  the softmax of losses clipped at the logarithm of the number of classes. Here the file is opened
  once a batch; the package opens it for every line.

Ratios are of paired rounds: median, quartiles, least and greatest.
"""

from __future__ import annotations

import argparse
import json
import math
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

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from attent.pipeline import Rule, Teacher, constant, hard, infobatch

CLASSES = 10
KEEP = 0.5
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


def plain(data: Pictures, batch_size: int, workers: int, hidden: int) -> Iterator[None]:
    """The reference: trains on a batch whenever it is asked."""
    training = Training(hidden)
    loader = DataLoader(
        data, batch_size, shuffle=True, num_workers=workers, persistent_workers=workers > 0
    )
    while True:
        for x, y in loader:
            training.step(training.losses(x, y).mean())
            yield


def taught(data: Pictures, batch_size: int, workers: int, hidden: int) -> Iterator[None]:
    """The same by a teacher."""
    training = Training(hidden)
    teacher = Teacher(len(data), ratio=constant(KEEP), budget=10**4 * len(data))
    loader = DataLoader(
        teacher.with_index(data),
        batch_sampler=teacher.batches(batch_size),
        num_workers=workers,
        persistent_workers=workers > 0,
    )
    for index, (x, y) in teacher.loop(loader):
        training.step(teacher.observe(index, training.losses(x, y)))
        yield


class Spent(NamedTuple):
    """Milliseconds a batch: by the clock, of the training thread, of that and its workers."""

    clock: float
    thread: float
    cpu: float


class Running:
    """A loop that is asked for some batches at a time."""

    def __init__(self, loop: Iterator[None]) -> None:
        self.loop = loop
        before = set(active_children())
        next(loop)  # starts its workers
        self.workers = [child.pid for child in active_children() if child not in before]

    def turn(self, batches: int) -> Spent:
        """What some batches took."""
        for _ in range(AHEAD):
            next(self.loop)
        began = self._now()
        for _ in range(batches):
            next(self.loop)
        return Spent(*(1000 * (b - a) / batches for a, b in zip(began, self._now(), strict=True)))

    def _now(self) -> Spent:
        thread = time.thread_time()
        # The clock of another process's CPU time, as Linux numbers them.
        workers = sum(time.clock_gettime(~pid << 3 | 2) for pid in self.workers if pid)
        return Spent(time.perf_counter(), thread, thread + workers)


class Bookkeeping(Protocol):
    """What a way to select does beside training."""

    def select(self) -> Iterator[list[int]]:
        """Begin a pass: its batches."""
        ...

    def tell(self, index: Tensor, losses: Tensor) -> Tensor:
        """Note the losses of a batch; what is to be minimised."""
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


class InfoBatch:
    """The published rule, and nothing more."""

    def __init__(self, num_examples: int, batch_size: int) -> None:
        self.scores = torch.full((num_examples,), 3.0)  # as published; none is below their mean
        self.weights = torch.ones(num_examples)
        self.batch_size = batch_size

    def select(self) -> Iterator[list[int]]:
        """What is at or above the mean, and a share of the rest."""
        below = self.scores < self.scores.mean()
        drawn = below.nonzero().squeeze(1)
        drawn = drawn[torch.randperm(len(drawn))[: int(KEEP * len(drawn))]]
        self.weights.fill_(1)
        self.weights[drawn] = 1 / KEEP
        kept = torch.cat([(~below).nonzero().squeeze(1), drawn])
        kept = kept[torch.randperm(len(kept))]
        return (batch.tolist() for batch in kept.split(self.batch_size))

    def tell(self, index: Tensor, losses: Tensor) -> Tensor:
        """Each score is the last loss."""
        self.scores[index] = losses.detach()
        return (losses * self.weights[index]).mean()


class DataCull:
    """Lines of JSON, and RCAP by them."""

    def __init__(self, num_examples: int, batch_size: int, folder: Path) -> None:
        self.clip, self.batch_size = math.log(CLASSES), batch_size
        self.losses = np.full(num_examples, self.clip)
        self.classes = [np.arange(c, num_examples, CLASSES) for c in range(CLASSES)]
        self.file = folder / "epoch.jsonl"
        self.draw = np.random.default_rng(0)

    def select(self) -> Iterator[list[int]]:
        """By what was logged."""
        if not self.file.exists():  # the first epoch is whole
            kept = self.draw.permutation(len(self.losses))
        else:
            self._read()
            kept = self._rcap()
            self.draw.shuffle(kept)
        starts = range(0, len(kept), self.batch_size)
        return (kept[at : at + self.batch_size].tolist() for at in starts)

    def tell(self, index: Tensor, losses: Tensor) -> Tensor:
        """A line each."""
        rows = zip(index.tolist(), losses.tolist(), strict=True)
        with self.file.open("a") as file:
            file.writelines(f"{json.dumps({str(i): loss})}\n" for i, loss in rows)
        return losses.mean()

    def _read(self) -> None:
        """What was logged; of the others the loss stays what it was."""
        with self.file.open() as file:
            for line in file:
                ((index, loss),) = json.loads(line).items()
                self.losses[int(index)] = loss
        self.file.unlink()
        np.clip(self.losses, 0, self.clip, out=self.losses)

    def _rcap(self) -> np.ndarray:
        odds = [np.exp(self.losses[of] - self.losses[of].max()) for of in self.classes]
        roots = [
            math.sqrt(float(self.losses[of].sum()) * len(of) / len(self.losses))
            for of in self.classes
        ]
        chosen = []
        for of, odd, root in zip(self.classes, odds, roots, strict=True):
            size = min(len(of), math.ceil(KEEP * len(self.losses) * root / sum(roots)))
            chosen.append(self.draw.choice(of, size, replace=False, p=odd / odd.sum()))
        return np.concatenate(chosen)


class Pass(NamedTuple):
    """The CPU time of a pass: seconds of its selection, milliseconds a batch, and their number."""

    selection: float
    batch: float
    batches: int


def whole_pass(books: Bookkeeping, draw: torch.Generator) -> Pass:
    """One pass, every batch of it told some losses."""
    began = time.thread_time()
    batches = books.select()
    own = next(batches, None)
    selection = time.thread_time() - began
    spent, number = 0.0, 0
    while own is not None:
        # As a loader and a model would have made them.
        index, losses = torch.tensor(own), torch.rand(len(own), generator=draw).requires_grad_()
        began = time.thread_time()
        books.tell(index, losses)
        own = next(batches, None)
        spent += time.thread_time() - began
        number += 1
    return Pass(selection, 1000 * spent / number, number)


def bookkeeping(
    num_examples: int, batch_size: int, rounds: int, folder: Path
) -> dict[str, list[Pass]]:
    """Passes by every way, in turn; the first of each, which is whole, is not counted."""
    ways: dict[str, Bookkeeping] = {
        "teacher, hard": Taught(num_examples, batch_size, hard()),
        "teacher, infobatch": Taught(num_examples, batch_size, infobatch(KEEP)),
        "InfoBatch's rule": InfoBatch(num_examples, batch_size),
        "DataCull, RCAP": DataCull(num_examples, batch_size, folder),
    }
    draw = torch.Generator().manual_seed(1)
    found: dict[str, list[Pass]] = {name: [] for name in ways}
    for round_ in range(rounds + 1):
        for name in sorted(ways, reverse=bool(round_ % 2)):
            spent = whole_pass(ways[name], draw)
            if round_:
                found[name].append(spent)
    return found


def loops(args: argparse.Namespace) -> dict[str, list[Spent]]:
    """Turns of both loops."""
    data = Pictures(args.examples)
    options = (data, args.batch_size, args.workers, args.hidden)
    running = {"plain": Running(plain(*options)), "teacher": Running(taught(*options))}
    found: dict[str, list[Spent]] = {name: [] for name in running}
    for round_ in range(args.rounds + 1):
        for name in sorted(running, reverse=bool(round_ % 2)):
            spent = running[name].turn(args.batches)
            if round_:
                found[name].append(spent)
    return found


def ratio(ours: Sequence[float], theirs: Sequence[float], digits: int = 3) -> str:
    """Of paired rounds."""
    ratios = sorted(a / b for a, b in zip(ours, theirs, strict=True))
    low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
    shown = (f"{value:.{digits}f}" for value in (middle, low, high, ratios[0], ratios[-1]))
    return "{} ({} to {}; {} to {})".format(*shown)


def column(rows: Sequence[Any], name: str) -> list[float]:
    return [getattr(row, name) for row in rows]


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--examples", type=int, default=10**6, help="N")
    parser.add_argument("--batch_size", type=int, default=128)
    parser.add_argument("--hidden", type=int, default=512, help="width of the perceptron")
    parser.add_argument("--workers", type=int, default=4, help="of each loader")
    parser.add_argument("--rounds", type=int, default=60, help="turns of each loop")
    parser.add_argument("--batches", type=int, default=20, help="of a turn that are counted")
    parser.add_argument("--passes", type=int, default=5, help="of each bookkeeping")
    args = parser.parse_args(words)
    if min(args.rounds, args.passes) < 2:
        parser.error("ratios are of paired rounds: --rounds and --passes are at least 2")
    warnings.filterwarnings("ignore", "This DataLoader will create")  # more workers than cores
    torch.set_num_threads(1)
    print(
        f"N = {args.examples:,}, batches of {args.batch_size}, {args.workers} workers, "
        f"{args.hidden} hidden units, {args.rounds} turns of {args.batches} batches; "
        f"{os.cpu_count()} CPUs, {platform.machine()}, load {os.getloadavg()[0]:.1f}, torch "
        f"{torch.__version__}\n"
    )
    found = loops(args)
    thread = statistics.median(column(found["plain"], "thread"))
    print(
        "| loop | ms a batch | / plain | CPU of the thread | / plain | and of workers | / plain |\n"
        "|---|---|---|---|---|---|---|"
    )
    for name, spent in found.items():
        cells = [name]
        for part in Spent._fields:
            cells.append(f"{statistics.median(column(spent, part)):.2f}")
            cells.append(ratio(column(spent, part), column(found["plain"], part)))
        print(f"| {' | '.join(cells)} |", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        passes = bookkeeping(args.examples, args.batch_size, args.passes, Path(folder))
    print(
        "\n| bookkeeping | ms a batch | / hard | s a selection | / hard | of the loop |\n"
        "|---|---|---|---|---|---|"
    )
    reference = passes["teacher, hard"]
    for name, spent in passes.items():
        cells = [name]
        for part, digits in (("batch", 4), ("selection", 3)):
            cells.append(f"{statistics.median(column(spent, part)):.{digits}f}")
            cells.append(ratio(column(spent, part), column(reference, part), 2))
        shares = [(one.selection * 1000 / one.batches + one.batch) / thread for one in spent]
        cells.append(f"{statistics.median(shares):.2%}")
        print(f"| {' | '.join(cells)} |", flush=True)
    print(f"\nload at the end {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
