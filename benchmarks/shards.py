"""Selected pictures out of shards: the masked stream against reading only the selected by hand.

    python benchmarks/shards.py [--shards 20] [--pictures 500] [--ratio 0.2] [--rounds 5]

JPEG photographs of 256 pixels (crops of those that scikit-learn and Matplotlib carry) in tar shards
and in parquet files of row groups of 100. Of each three ways to deliver the same selected pictures
as the same batches of pixels take turns in one process, one thread each:

- by hand: a loop that knows where each selected picture is, in the order of the file: reads it,
  has Pillow decode it (of parquet: reads the row groups that hold one, with pyarrow);
- masked stream: `Stream` over `Images` in the blockwise order, as training reads;
- all, then drop: every picture is read in order and decoded, those not selected are dropped.

Figures are pictures delivered per second of processor time (what is decoded is all there is to do),
medians of the rounds, and as ratios to those by hand; by the clock a shared machine counts too.
"""

from __future__ import annotations

import argparse
import io
import platform
import statistics
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from importlib.resources import files
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from matplotlib import get_data_path
from PIL import Image
from pyarrow import parquet

from attent.pipeline.order import blockwise_order, window_of
from attent.pipeline.stream import Stream
from attent.tasks.data.images import Images
from attent.tasks.data.shards import TableImages, TarImages
from attent.tasks.data.shards.tar_index import members

SIDE, BATCH, GROUP = 256, 64, 100

Way = Callable[[], int]
"""Delivers all that is selected once and says how many that was."""


def batched(items: Iterable[Any], size: int) -> Iterator[tuple[Any, ...]]:
    """So many at a time (of itertools from Python 3.12 on)."""
    left = iter(items)
    while batch := tuple(islice(left, size)):
        yield batch


def jpegs(count: int) -> Iterator[bytes]:
    """Crops of three photographs, of any scale and place."""
    images = files("sklearn.datasets.images")
    paths = [images / "china.jpg", images / "flower.jpg"]
    paths.append(Path(get_data_path()) / "sample_data" / "grace_hopper.jpg")
    photographs = [Image.open(str(path)).convert("RGB") for path in paths]
    draw = np.random.default_rng(0)
    for i in range(count):
        photograph = photographs[i % len(photographs)]
        side = int(draw.integers(200, min(photograph.size) + 1))
        left, top = (int(draw.integers(0, extent - side + 1)) for extent in photograph.size)
        buffer = io.BytesIO()
        crop = photograph.resize((SIDE, SIDE), box=(left, top, left + side, top + side))
        crop.save(buffer, "JPEG", quality=90)
        yield buffer.getvalue()


def write(folder: Path, shards: int, pictures: int) -> None:
    """The same pictures as tar shards and as parquet files."""
    for s, part in enumerate(batched(jpegs(shards * pictures), pictures)):
        with tarfile.open(folder / f"train-{s:05d}.tar", "w") as tar:
            for i, data in enumerate(part):
                for name, content in ((f"{i:06d}.jpg", data), (f"{i:06d}.cls", b"%d" % (i % 10))):
                    about = tarfile.TarInfo(name)
                    about.size = len(content)
                    tar.addfile(about, io.BytesIO(content))
        rows = [{"bytes": data, "path": None} for data in part]
        kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
        table = pa.table(
            {"image": pa.array(rows, kind), "label": [i % 10 for i in range(len(part))]}
        )
        parquet.write_table(table, folder / f"train-{s:05d}.parquet", row_group_size=GROUP)


def decoded(data: bytes) -> torch.Tensor:
    image = Image.open(io.BytesIO(data)).convert("RGB")
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def delivered(source: Images, pictures: Iterable[torch.Tensor]) -> int:
    """Batches of pixels as the source makes them."""
    count = 0
    for batch in batched(pictures, BATCH):
        count += len(source.standardized(torch.stack(batch)))
    return count


def stream(source: Images, mask: torch.Tensor) -> Way:
    """As training reads."""

    def work() -> int:
        assert source.blocks is not None
        order = blockwise_order(mask, 1, source.blocks, window_of(source))
        return sum(len(batch) for batch in Stream(source, order, BATCH))

    return work


def tar_ways(folder: Path, source: Images, mask: torch.Tensor) -> dict[str, Way]:
    paths = sorted(folder.glob("*.tar"))
    places = [[m for m in members(str(path)) if m.name.endswith(".jpg")] for path in paths]
    chosen = masks(mask, [len(part) for part in places])

    def by_hand() -> Iterator[torch.Tensor]:
        for path, part, keep in zip(paths, places, chosen, strict=True):
            with path.open("rb") as file:
                for member, kept in zip(part, keep, strict=True):
                    if kept:
                        file.seek(member.offset)
                        yield decoded(file.read(member.size))

    def everything() -> Iterator[torch.Tensor]:
        for path, part, keep in zip(paths, places, chosen, strict=True):
            with path.open("rb") as file:
                for member, kept in zip(part, keep, strict=True):
                    file.seek(member.offset)
                    picture = decoded(file.read(member.size))
                    if kept:
                        yield picture

    return {
        "by hand": lambda: delivered(source, by_hand()),
        "masked stream": stream(source, mask),
        "all, then drop": lambda: delivered(source, everything()),
    }


def parquet_ways(folder: Path, source: Images, mask: torch.Tensor) -> dict[str, Way]:
    paths = sorted(folder.glob("*.parquet"))
    opened = [parquet.ParquetFile(path) for path in paths]
    groups = [(file, g) for file in opened for g in range(file.num_row_groups)]
    chosen = masks(mask, [f.metadata.row_group(g).num_rows for f, g in groups])

    def rows(file: parquet.ParquetFile, group: int) -> pa.ChunkedArray:
        table = file.read_row_group(group, columns=["image"], use_threads=False)
        return table.column("image")

    def by_hand() -> Iterator[torch.Tensor]:
        for (file, group), keep in zip(groups, chosen, strict=True):
            if any(keep):
                column = rows(file, group)
                for row in np.flatnonzero(keep):
                    yield decoded(column[int(row)]["bytes"].as_py())

    def everything() -> Iterator[torch.Tensor]:
        for (file, group), keep in zip(groups, chosen, strict=True):
            for value, kept in zip(rows(file, group), keep, strict=True):
                picture = decoded(value["bytes"].as_py())
                if kept:
                    yield picture

    return {
        "by hand": lambda: delivered(source, by_hand()),
        "masked stream": stream(source, mask),
        "all, then drop": lambda: delivered(source, everything()),
    }


def masks(mask: torch.Tensor, counts: list[int]) -> list[list[bool]]:
    return [part.tolist() for part in mask.split(counts)]


def seconds(work: Callable[[], object]) -> float:
    """Of the processor."""
    began = time.process_time()
    work()
    return time.process_time() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shards", type=int, default=20)
    parser.add_argument("--pictures", type=int, default=500, help="of a shard")
    parser.add_argument("--ratio", type=float, default=0.2)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(1)
    total = args.shards * args.pictures
    mask = torch.rand(total, generator=torch.Generator().manual_seed(0)) < args.ratio
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write(folder, args.shards, args.pictures)
        index = [seconds(lambda: TarImages(sorted(folder.glob("*.tar")))) for _ in range(2)]
        made, remembered = (1e6 * taken / (2 * total) for taken in index)
        tars = TarImages(sorted(folder.glob("*.tar")))
        # As if of more than fits in memory: what a round reads first is gone when the next begins.
        tables = TableImages(sorted(folder.glob("*.parquet")), memory=2**26)
        size = sum(path.stat().st_size for path in folder.glob("*.tar")) / 2**20
        print(
            f"{args.shards} shards of {args.pictures} JPEGs of {SIDE} pixels ({size:.0f} MiB), "
            f"ratio {args.ratio} ({int(mask.sum())} selected), median of {args.rounds} rounds, "
            f"1 thread, {platform.machine()}, torch {torch.__version__}\n"
            f"index and labels of {2 * total} members: {made:.1f} microseconds of processor "
            f"time a member when they are found, {remembered:.2f} when they are remembered"
        )
        ways = {
            "tar": tar_ways(folder, Images(tars, size=SIDE), mask),
            "parquet": parquet_ways(folder, Images(tables, size=SIDE), mask),
        }
        for kind, of_kind in ways.items():
            measured(kind, of_kind, int(mask.sum()), args.rounds)
        print(f"row groups read: {tables.table.groups.made} of {len(tables.blocks) - 1} a round")


def measured(kind: str, ways: dict[str, Way], count: int, rounds: int) -> None:
    wall: dict[str, list[float]] = {name: [] for name in ways}
    processor: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            began, used = time.perf_counter(), time.process_time()
            assert way() == count
            wall[name].append(time.perf_counter() - began)
            processor[name].append(time.process_time() - used)
    print(f"{kind:16}{'pictures/s':>12}{'/ by hand':>12}{'by the clock':>14}{'/ by hand':>12}")
    for name in ways:
        ratios = [
            statistics.median(a / b for a, b in zip(times["by hand"], times[name], strict=True))
            for times in (processor, wall)
        ]
        print(
            f"{name:16}{count / statistics.median(processor[name]):12.0f}{ratios[0]:12.2f}"
            f"{count / statistics.median(wall[name]):14.0f}{ratios[1]:12.2f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
