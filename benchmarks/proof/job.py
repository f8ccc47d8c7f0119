"""One run, and what is recorded of it."""

from __future__ import annotations

import math
import time
from typing import Any

import torch
from tensordict import TensorDict

from attent.pipeline import Observer, Source, Task, evaluate, fit, run
from attent.pipeline.source import lengths_of

from .arms import ARMS
from .jobs import Job
from .setting import Setting, Spent, spent
from .world import World
from .worlds import base_name
from .worlds import world as world_of


class Shares(Observer):
    """Which of the examples that are trained on are of a kind: by number, and of all."""

    def __init__(self, kinds: dict[str, torch.Tensor]) -> None:
        self.kinds = kinds
        self.counts = dict.fromkeys(kinds, 0.0)
        self.seen = 0

    def tick(self, state: TensorDict) -> None:
        """Take in what a tick has trained on: all of one selection, since ticks end with it."""
        seen, mask = int(state["clock", "seen"]), state["mask"]
        for kind, among in self.kinds.items():
            share = float(among[mask].double().mean())
            self.counts[kind] += share * (seen - self.seen)
        self.seen = seen

    def shares(self) -> dict[str, float]:
        """By kind, of all that was trained on."""
        return {f"{kind}_share": count / max(1, self.seen) for kind, count in self.counts.items()}


def run_job(job: Job) -> dict[str, Any]:
    """Run a job: its world, its arm to the end of the budget, then both held-out splits.

    Returns:
        What `record_of` says.
    """
    name = base_name(job.world)
    world = world_of(name, job.seed, size=job.size)
    return record_of(world, job.arm, budget=job.budget, lr=job.lr)


def record_of(world: World, arm: str, *, budget: float, lr: float) -> dict[str, Any]:
    """Run an arm in a world, and measure what came of it.

    Args:
        world: its model is trained.
        arm: of `ARMS`.
        budget: share of what full costs at budget 1.
        lr: peak learning rate.

    Returns:
        What is recorded beside the job itself: ``val`` and ``test`` by metric, ``units`` (its cost
        as a share of full's at budget 1), ``forwarded``, ``backwarded``, ``cpu_seconds`` (without
        making the world and measuring), ``extra``.
    """
    began = time.process_time()
    built = ARMS[arm](Setting(world=world, budget=budget, lr=lr))
    watch = Shares(_kinds(world, built.source))
    state = fit(built.tick, built.state(world.seed), observers=[watch], donate=True)
    seconds = time.process_time() - began
    total = spent(state, world) + built.before
    found = _measured(world, built.task, state)
    return {
        "val": found["val"],
        "test": found["test"],
        "units": round(_units(world, total, built.dearer), 4),
        "forwarded": total.forwarded,
        "backwarded": total.backwarded,
        "cpu_seconds": round(seconds, 2),
        "extra": {name: round(value, 4) for name, value in watch.shares().items()},
    }


def _units(world: World, total: Spent, dearer: float) -> float:
    """A cost as a share of that of plain training over all the world's epochs."""
    size = _size(world)
    whole = size * world.epochs * (1 + world.backward_cost)
    return (total.cost(world.backward_cost) + dearer * total.backwarded) / whole


def _size(world: World) -> int:
    lengths = lengths_of(world.source)
    return int(lengths.sum()) if world.tokens and lengths is not None else len(world.source)


def _kinds(world: World, source: Source) -> dict[str, torch.Tensor]:
    """Of which kinds of examples it is told how often they were trained on.

    Rare are those of the third of the classes with the fewest, where the last of them has less than
    half as many as the most frequent class.
    """
    if source is not world.source:
        return {}
    kinds = {}
    if "noisy" in world.extra:
        kinds["noisy"] = world.extra["noisy"].bool()
    if world.labels is not None:
        counts = torch.bincount(world.labels)
        most = counts.sort().values[max(1, len(counts) // 3) - 1]
        if 2 * most < counts.max():
            kinds["rare"] = counts[world.labels] <= most
    return kinds


def _measured(world: World, task: Task, state: TensorDict) -> dict[str, dict[str, float]]:
    """Both held-out splits, under the state's weights; what the world's own probe finds too."""
    found: dict[str, dict[str, float]] = {"val": {}, "test": {}}
    for split, source in (("val", world.val), ("test", world.test)):
        stage = evaluate(task, source, split=split)
        measured = run(stage, stage.init(state))
        for name in task.metrics():
            found[split][name] = float(measured["metrics", f"{split}_{name}"])
    if world.probe is not None:
        for name, value in world.probe(state).items():
            split, _, metric = name.partition("_")
            found[split][metric] = value
    for split, values in found.items():
        if not all(map(math.isfinite, values.values())):
            raise ValueError(f"{split}: not finite: {values}")
    return found
