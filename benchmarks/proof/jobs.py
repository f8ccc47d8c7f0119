"""The protocol as jobs: one run each, in an order in which any beginning of it is balanced."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.proof.protocol import World

Record = dict[str, Any]
"""One run, as a line of a results file: the job's fields and what came of it."""

STAGES = ("tune", "pilot", "claim")

Key = tuple[Any, ...]


@dataclass(frozen=True, kw_only=True)
class Job:
    """One run.

    Args:
        stage: "tune", "pilot" or "claim".
        world, arm: by name.
        budget: share of the cost of full at budget 1, everything that the arm spends included.
        lr: peak learning rate.
        seed: of the split, the initial weights and all draws; arms of one seed are paired.
        size: passed on to the world.
    """

    stage: str
    world: str
    arm: str
    budget: float
    lr: float
    seed: int
    size: int | None = None

    @property
    def key(self) -> Key:
        """What makes it this run and no other."""
        return key_of(vars(self))


def key_of(record: Mapping[str, Any]) -> Key:
    """A record's job, to be compared with other jobs' keys."""
    names = ("stage", "world", "arm", "budget", "lr", "seed")
    return (*(record[name] for name in names), record.get("size"))


def tune_jobs(world: World, arms: Sequence[str] | None = None) -> list[Job]:
    """Every learning rate for every arm at every budget on every seed of tuning: equal trials."""
    if len(world.lrs) == 1:
        return []
    return [
        _job("tune", world, arm, budget, lr, seed)
        for seed in world.tune_seeds
        for arm, budget in cells(world, arms)
        for lr in world.lrs
    ]


def runs_at(
    stage: str,
    world: World,
    rates: Mapping[tuple[str, float], float],
    arms: Sequence[str] | None = None,
) -> list[Job]:
    """Every arm at every budget on every seed of a stage, at the rates chosen for them.

    Args:
        stage: "pilot" or "claim".
        world: its part of the protocol.
        rates: (arm, budget) -> learning rate; those without one are left out.
        arms: these alone.
    """
    return [
        _job(stage, world, arm, budget, rates[arm, budget], seed)
        for seed in world.seeds_of(stage)
        for arm, budget in cells(world, arms)
        if (arm, budget) in rates
    ]


def cells(world: World, arms: Sequence[str] | None = None) -> Iterator[tuple[str, float]]:
    """(arm, budget) of all that is run in a world."""
    for arm in world.all_arms:
        if arms is None or arm in arms:
            for budget in world.budgets_of(arm):
                yield arm, budget


def interleave(lists: Iterable[list[Job]]) -> list[Job]:
    """Jobs of several worlds, first seeds first: wherever it is stopped, all have come as far."""
    order: list[tuple[int, int, Job]] = []
    for place, jobs in enumerate(lists):
        seeds = list(dict.fromkeys(job.seed for job in jobs))
        order += [(seeds.index(job.seed), place, job) for job in jobs]
    return [job for _, _, job in sorted(order, key=lambda entry: entry[:2])]


def _job(stage: str, world: World, arm: str, budget: float, lr: float, seed: int) -> Job:
    return Job(
        stage=stage, world=world.name, arm=arm, budget=budget, lr=lr, seed=seed, size=world.size
    )
