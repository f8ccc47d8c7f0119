"""The learning rate of every arm at every budget, chosen by the validation split alone."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from dataclasses import dataclass

from benchmarks.proof.jobs import Record, cells
from benchmarks.proof.protocol import World


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What tuning says of one arm at one budget.

    Args:
        lr: the rate with the best mean over the seeds of tuning, the smaller of two that are equal;
            None while a trial is missing, or if every rate has failed.
        means: rate -> mean of the metric on the validation split; None: a trial of it failed.
        missing: trials that are not in the results.
        at_edge: the rate chosen is the smallest or largest tried: a better one may lie beyond.
    """

    lr: float | None
    means: dict[float, float | None]
    missing: int
    at_edge: bool = False


def choose(world: World, records: Iterable[Record]) -> dict[tuple[str, float], Choice]:
    """(arm, budget) -> the choice, from the latest record of every trial.

    A rate of which a trial failed is never chosen: the others' mean would be over fewer seeds.
    """
    found = {
        (r["arm"], r["budget"], r["lr"], r["seed"]): r
        for r in records
        if r["stage"] == "tune" and r.get("size") == world.size
    }
    return {(arm, budget): _choice(world, arm, budget, found) for arm, budget in cells(world)}


def _choice(
    world: World, arm: str, budget: float, found: dict[tuple[str, float, float, int], Record]
) -> Choice:
    if len(world.lrs) == 1:
        return Choice(lr=world.lrs[0], means={}, missing=0)
    means: dict[float, float | None] = {}
    missing = 0
    for lr in sorted(world.lrs):
        trials = [found.get((arm, budget, lr, seed)) for seed in world.tune_seeds]
        done = [trial for trial in trials if trial is not None]
        missing += len(trials) - len(done)
        ok = len(done) == len(trials) and all(trial["status"] == "ok" for trial in done)
        means[lr] = statistics.fmean(t["val"][world.metric] for t in done) if ok else None
    sign = 1 if world.higher_is_better else -1
    scored = [(sign * mean, -lr) for lr, mean in means.items() if mean is not None]
    if missing or not scored:
        return Choice(lr=None, means=means, missing=missing)
    lr = -max(scored)[1]
    return Choice(lr=lr, means=means, missing=0, at_edge=lr in (min(world.lrs), max(world.lrs)))


def rates(world: World, records: Iterable[Record]) -> dict[tuple[str, float], float]:
    """(arm, budget) -> the rate chosen, where tuning is finished."""
    return {
        cell: choice.lr for cell, choice in choose(world, records).items() if choice.lr is not None
    }
