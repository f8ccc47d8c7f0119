"""Rendered scenes a second, and what the time goes to.

    python benchmarks/scenes.py [--sizes 32 64 128 224] [--threads 1] [--rounds 9]

Every round fetches scenes that were not there before, with no cache and nothing kept in memory;
sizes and references take turns. Of a machine that does other work too, the figure by processor
time is the one to go by: by the clock, a scene also waits for the others (of several threads the
processor time is the sum).

For comparison between machines, in the same process: a large matrix product; products of two
arrays of as many numbers as pixels are traced together, which is most of what rendering does; and
the tracer that the tests hold the pictures against, which walks along each ray in small steps and
finds depth and instances alone.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch

from attent.pipeline.keyed import example_keys
from attent.tasks.data.scenes import SCENE_CLASSES, Scenes, draw, renderer, source

PHASES = {
    "draw": (source, "draw"),
    "ready": (renderer, "make_ready"),
    "look": (renderer, "look"),
    "shade": (renderer, "shade"),
    "smooth": (renderer, "_smooth"),
    "pack": (source, "pack"),
}
"""Functions timed; `_smooth` looks and shades again, which is counted as its own."""

TRACED = 8
"""Side in pixels of the picture that the slow tracer makes."""


class Took(NamedTuple):
    """Seconds, by the clock and of the processor."""

    wall: float
    processor: float


def seconds(work: Callable[[], object]) -> Took:
    wall, processor = time.perf_counter(), time.process_time()
    work()
    return Took(time.perf_counter() - wall, time.process_time() - processor)


def fetches(size: int, count: int) -> Callable[[], object]:
    """Fetches the next scenes each time."""
    data = Scenes(10**6, size=size, memory=0)
    begins = iter(range(0, len(data), count))

    def work() -> None:
        first = next(begins)
        data.fetch(torch.arange(first, first + count))

    return work


def tracer() -> Callable[[], object]:
    """The tests' tracer, on a scene of a few pixels."""
    sys.path.append(str(Path(__file__).parents[1] / "tests" / "tasks"))
    from test_scenes import Reference

    index = torch.arange(1)
    scene = Reference(draw(example_keys(0, index), index % len(SCENE_CLASSES)), 0)
    pixels = [(row, column) for row in range(TRACED) for column in range(TRACED)]
    return lambda: [scene.look(*pixel, TRACED) for pixel in pixels]


@contextlib.contextmanager
def timed(totals: dict[str, float]) -> Iterator[None]:
    """Add up the processor time of each phase, the outermost where one is in another."""
    running: list[str] = []
    kept = {name: getattr(module, function) for name, (module, function) in PHASES.items()}

    def counted(name: str) -> Callable:
        def call(*args: object, **options: object) -> object:
            if running:
                return kept[name](*args, **options)
            running.append(name)
            began = time.process_time()
            try:
                return kept[name](*args, **options)
            finally:
                totals[name] += time.process_time() - began
                running.pop()

        return call

    for name, (module, function) in PHASES.items():
        setattr(module, function, counted(name))
    try:
        yield
    finally:
        for name, (module, function) in PHASES.items():
            setattr(module, function, kept[name])


def shares(work: Callable[[], object], rounds: int) -> dict[str, float]:
    """Shares of the time in each phase, and what is left."""
    totals = dict.fromkeys(PHASES, 0.0)
    with timed(totals):
        whole = sum(seconds(work).processor for _ in range(rounds))
    totals["other"] = whole - sum(totals.values())
    return {name: total / whole for name, total in totals.items()}


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[32, 64, 128, 224])
    parser.add_argument("--batch_size", type=int, default=256, help="scenes fetched together")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=9)
    return parser.parse_args()


def main() -> None:
    chosen = options()
    torch.set_num_threads(chosen.threads)
    # Larger pictures in smaller batches, so that a round of each takes about as long.
    counts = {s: max(8, min(chosen.batch_size, 2**20 // s**2)) for s in chosen.sizes}
    square, row = torch.randn(1536, 1536), torch.randn(renderer.PIXELS)
    out, repeats = torch.empty_like(row), 100
    fetching = {size: fetches(size, count) for size, count in counts.items()}
    works: dict[object, Callable[[], object]] = {
        "product": lambda: square @ square,
        "elements": lambda: [torch.mul(row, row, out=out) for _ in range(repeats)],
        "tracer": tracer(),
        **fetching,
    }
    taken: dict[object, list[Took]] = {name: [] for name in works}
    for work in works.values():
        work()
    for _ in range(chosen.rounds):
        for name, work in works.items():
            taken[name].append(seconds(work))

    def median(name: object) -> Took:
        return Took(*(statistics.median(values) for values in zip(*taken[name], strict=True)))

    by_clock = {name: median(name).wall for name in works}
    traced = TRACED**2 / by_clock["tracer"]
    print(
        f"{torch.get_num_threads()} threads, float32, medians of {chosen.rounds} rounds; "
        f"a matrix product of {len(square)}: {2e-9 * len(square) ** 3 / by_clock['product']:.1f} "
        f"GFLOP/s, products of {len(row)} numbers: "
        f"{1e-9 * repeats * len(row) / by_clock['elements']:.2f} G/s, "
        f"slow tracer: {traced:.0f} pixels/s"
    )
    print(
        f"{'size':>4}{'batch':>7}{'scenes/s':>10}{'by processor':>14}{'Mpixels/s':>11}"
        f"{'/ slow tracer':>15}   " + "".join(f"{name:>8}" for name in (*PHASES, "other"))
    )
    for size, count in counts.items():
        took = median(size)
        parts = shares(fetching[size], max(1, chosen.rounds // 3))
        print(
            f"{size:4d}{count:7d}{count / took.wall:10.0f}{count / took.processor:14.0f}"
            f"{1e-6 * count * size**2 / took.wall:11.2f}"
            f"{count * size**2 / took.wall / traced:15.0f}   "
            + "".join(f"{share:8.1%}" for share in parts.values())
        )


if __name__ == "__main__":
    main()
