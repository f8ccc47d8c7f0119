"""The masked stream against torch's DataLoader over the same selected examples.

    python benchmarks/stream.py [--rounds 7] [--pictures 3000] [--rows 40000] [--kinds files rows]

A table in Markdown, in about three minutes on two cores. A fifth of the examples is selected, of
each of three kinds of data:

- files: JPEG photographs in folders (crops of those that scikit-learn and Matplotlib carry), which
  take their time to decode;
- shards: the same in tar files, of which the stream reads a few at a time (blockwise);
- rows: 64 numbers each, in memory: all the time goes into handing them over.

Three ways to have batches of the selected:

- stream: as training opens it, for each pass another (`OpenStream`: the mask in keyed order,
  examples fetched by source and workers);
- subset: ``DataLoader(dataset, batch_size, sampler=SubsetRandomSampler(selected))`` with its
  default collate. The data set reads an example by the very code of the stream's source (rows:
  `TensorDataset`), and batches hold the same entries, the index among them;
- drop: the same DataLoader over all examples, shuffled; those of a batch that are not selected are
  dropped from it.

Workers are none, processes against as many processes, and threads against as many processes (a
DataLoader has no threads). Processes are kept from pass to pass on both sides (`KeptWorkers`,
``persistent_workers``), or, where it says *anew*, started for each pass and ended with it on both.

Nobody does anything with a batch. All ways take turns in one process of one thread, forwards in one
round and backwards in the next; the first round is not counted. Selected examples are counted per
second by the clock, twice: *steady*, from the first batch to the last, and *whole*, from before the
pass is opened until it is over and what was started for it has ended. A ratio is of two rates of
one round, above 1 where the stream is faster: the median of the rounds, and the quartiles (of what
is many times slower, of the first rounds; of *anew*, against a DataLoader that keeps its processes
and drops).
"""

from __future__ import annotations

import argparse
import io
import os
import platform
import statistics
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib import get_data_path
from PIL import Image
from torch import Tensor
from torch.utils.data import (
    DataLoader,
    Dataset,
    RandomSampler,
    Sampler,
    SubsetRandomSampler,
    TensorDataset,
)

from attent.pipeline import Loading, TensorSource
from attent.pipeline.passes import OpenStream, Room
from attent.pipeline.source import Source
from attent.pipeline.task import bare_state
from attent.pipeline.workers import KeptWorkers
from attent.tasks.data.folder import ImageFolder
from attent.tasks.data.images import Images
from attent.tasks.data.shards import TarImages

KINDS = ("files", "shards", "rows")
CLASSES, SHARDS, WIDTH = 10, 20, 64
DROP_ROUNDS = 3  # reading everything takes five times as long as all the others


class Workers(NamedTuple):
    """Of the stream; and how many processes the DataLoader beside it has.

    Attributes:
        options: of `Loading`.
        processes: of the DataLoader.
        kept: processes are kept from pass to pass, by both.
    """

    options: dict[str, Any]
    processes: int
    kept: bool = True


WORKERS = {
    "none": Workers({}, 0),
    "1 process": Workers({"workers": 1, "processes": True}, 1),
    "2 processes": Workers({"workers": 2, "processes": True}, 2),
    "1 process, anew": Workers({"workers": 1, "processes": True}, 1, kept=False),
    "2 processes, anew": Workers({"workers": 2, "processes": True}, 2, kept=False),
    "1 thread": Workers({"workers": 1}, 1),
    "2 threads": Workers({"workers": 2}, 2),
}

Way = Callable[[int], Iterator[int]]
"""A pass, by its number: how many selected examples each batch brings."""


class Rates(NamedTuple):
    """Selected examples a second in one pass."""

    steady: float
    whole: float


def write(folder: Path, count: int, side: int) -> None:
    """The same pictures as files in a folder for each class, and as tar shards."""
    encoded = enumerate(jpegs(count, side))
    for shard in range(SHARDS):
        with tarfile.open(folder / f"train-{shard:05d}.tar", "w") as tar:
            for _ in range(count // SHARDS):
                i, data = next(encoded)
                label = i % CLASSES
                path = folder / "files" / str(label) / f"{i:06d}.jpg"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(data)
                for name, content in ((f"{i:06d}.jpg", data), (f"{i:06d}.cls", b"%d" % label)):
                    about = tarfile.TarInfo(name)
                    about.size = len(content)
                    tar.addfile(about, io.BytesIO(content))


def jpegs(count: int, side: int) -> Iterator[bytes]:
    """Crops of three photographs at any place."""
    images = files("sklearn.datasets.images")
    paths = [str(images / "china.jpg"), str(images / "flower.jpg")]
    paths.append(str(Path(get_data_path()) / "sample_data" / "grace_hopper.jpg"))
    photographs = [Image.open(path).convert("RGB") for path in paths]
    draw = np.random.default_rng(0)
    for i in range(count):
        photograph = photographs[i % len(photographs)]
        left, top = (int(draw.integers(0, extent - side + 1)) for extent in photograph.size)
        buffer = io.BytesIO()
        photograph.crop((left, top, left + side, top + side)).save(buffer, "JPEG", quality=90)
        yield buffer.getvalue()


class Pictures(Dataset[dict[str, Any]]):
    """A source's pictures one by one, decoded and standardised by its own code."""

    def __init__(self, source: Images) -> None:
        self.source, self.labels = source, source.labels.tolist()

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """The entries of the source's batches."""
        picture = self.source.standardized(self.source.picture(index))
        return {"image": picture, "label": self.labels[index], "index": index}


def index_of(batch: Any) -> Tensor:
    """The examples of a DataLoader's batch."""
    return batch["index"] if isinstance(batch, dict) else batch[-1]


def kept(batch: Any, keep: Tensor) -> Any:
    """Those rows of a DataLoader's batch."""
    if isinstance(batch, dict):
        return {name: value[keep] for name, value in batch.items()}
    return [value[keep] for value in batch]


def stream(source: Source, mask: Tensor, batch_size: int, loading: Loading) -> Way:
    """As `attent.pipeline.train` opens and reads it."""
    state = bare_state(len(source))
    state["mask"] = mask
    state["plan", "size"].fill_(int(mask.sum()))
    state["plan", "budget"].fill_(2**62)
    streams = OpenStream(source, batch_size, loading)

    def epoch(number: int) -> Iterator[int]:
        state["clock", "passes"].fill_(number)
        opened, room = streams.at(state, Room.of(state, streams.lengths))
        while not room.ended:
            count = len(next(opened))
            room = room.after(count, 0)
            yield count
        del opened
        streams.left_at(room)

    return epoch


def loader(data: Dataset[Any], sampler: Sampler[int], batch_size: int, workers: Workers) -> Any:
    """As anybody would make one."""
    return DataLoader(
        data,
        batch_size,
        sampler=sampler,
        num_workers=workers.processes,
        persistent_workers=workers.kept and workers.processes > 0,
    )


def subset(data: Dataset[Any], mask: Tensor, batch_size: int, workers: Workers) -> Way:
    """The selected only."""
    # A list: of a tensor the sampler would make a tensor of each index.
    sampler = SubsetRandomSampler(mask.nonzero().squeeze(1).tolist())
    batches = loader(data, sampler, batch_size, workers)

    def epoch(number: int) -> Iterator[int]:
        for batch in batches:
            yield len(index_of(batch))

    return epoch


def drop(data: Any, mask: Tensor, batch_size: int, workers: Workers) -> Way:
    """Everything, less what is not selected."""
    batches = loader(data, RandomSampler(data), batch_size, workers)

    def epoch(number: int) -> Iterator[int]:
        for batch in batches:
            yield len(index_of(kept(batch, mask[index_of(batch)])))

    return epoch


def rates(way: Way, number: int, expected: int) -> Rates:
    """Of one pass."""
    began = time.perf_counter()
    times, counts = [], []
    for count in way(number):
        times.append(time.perf_counter())
        counts.append(count)
    ended = time.perf_counter()
    assert sum(counts) == expected, (sum(counts), expected)
    return Rates(sum(counts[1:]) / (times[-1] - times[0]), expected / (ended - began))


def measure(
    source: Source, data: Dataset[Any], mask: Tensor, batch_size: int, rounds: int
) -> dict[tuple[str, Any], list[Rates]]:
    """The rates of all ways, by what and by its workers as `table` looks them up."""
    ways: dict[tuple[str, Any], Way] = {}
    kept = KeptWorkers()
    for name, workers in WORKERS.items():
        loading = Loading(**workers.options, kept=kept if workers.kept else None)
        ways["stream", name] = stream(source, mask, batch_size, loading)
        beside = ("subset", (workers.processes, workers.kept))
        if beside not in ways:
            ways[beside] = subset(data, mask, batch_size, workers)
        if workers.kept and ("drop", workers.processes) not in ways:
            ways["drop", workers.processes] = drop(data, mask, batch_size, workers)
    found: dict[tuple[str, Any], list[Rates]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        for name in list(ways)[:: -1 if number % 2 else 1]:
            if name[0] == "drop" and number > DROP_ROUNDS:
                continue
            rate = rates(ways[name], number, int(mask.sum()))
            if number:  # the first warms up, and starts the workers that are kept
                found[name].append(rate)
    kept.close()
    return found


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> str:
    """Of paired rounds: the median, and the quartiles."""
    ratios = [a / b for a, b in zip(ours, theirs, strict=False)]  # of the rounds that both had
    low, _, high = statistics.quantiles(ratios, n=4, method="inclusive")
    return f"{statistics.median(ratios):.2f} ({low:.2f} to {high:.2f})"


def table(kind: str, found: dict[tuple[str, Any], list[Rates]]) -> None:
    """A row for each kind of workers."""
    for name, workers in WORKERS.items():
        ours = found["stream", name]
        theirs = found["subset", (workers.processes, workers.kept)]
        all_read = found["drop", workers.processes]
        cells = [kind, name, f"{workers.processes}"]
        for part in range(2):
            mine, other = ([r[part] for r in way] for way in (ours, theirs))
            cells.append(f"{statistics.median(mine):,.0f}")
            cells.append(f"{statistics.median(other):,.0f}")
            cells.append(ratio(mine, other))
        cells.append(ratio([r.whole for r in ours], [r.whole for r in all_read]))
        print(f"| {' | '.join(cells)} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--pictures", type=int, default=3000, help=f"a multiple of {SHARDS}")
    parser.add_argument("--side", type=int, default=128, help="of a picture, in pixels")
    parser.add_argument("--rows", type=int, default=40_000)
    parser.add_argument("--ratio", type=float, default=0.2)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    if args.pictures % SHARDS:
        parser.error(f"--pictures is a multiple of {SHARDS}, got {args.pictures}")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    print(
        f"{args.pictures:,} JPEGs of {args.side} pixels, {args.rows:,} rows of {WIDTH} numbers, "
        f"ratio {args.ratio}, batches of {args.batch_size}, {args.rounds} rounds; "
        f"{os.cpu_count()} CPUs, {platform.machine()}, load "
        f"{os.getloadavg()[0]:.1f}, torch {torch.__version__}\n\n"
        "| data | stream's workers | DataLoader's processes "
        "| steady: stream, examples/s | subset | stream / subset "
        "| whole: stream | subset | stream / subset | stream / drop |\n"
        "|---|---|---|---|---|---|---|---|---|---|"
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if {"files", "shards"} & set(args.kinds):
            write(folder, args.pictures, args.side)
        for kind in args.kinds:
            source, data = made(kind, folder, args)
            mask = torch.rand(len(source), generator=torch.Generator().manual_seed(0)) < args.ratio
            table(kind, measure(source, data, mask, args.batch_size, args.rounds))
    print(f"\nload at the end {os.getloadavg()[0]:.1f}")


def made(kind: str, folder: Path, args: argparse.Namespace) -> tuple[Source, Dataset[Any]]:
    """A source, and the same as a data set of examples."""
    if kind == "rows":
        x = torch.rand(args.rows, WIDTH, generator=torch.Generator().manual_seed(1))
        y, index = torch.arange(args.rows) % CLASSES, torch.arange(args.rows)
        return TensorSource({"x": x, "y": y}), TensorDataset(x, y, index)
    if kind == "files":
        source = Images(ImageFolder(folder / "files"), size=args.side)
    else:
        source = Images(TarImages(sorted(folder.glob("*.tar"))), size=args.side)
    return source, Pictures(source)


if __name__ == "__main__":
    main()
