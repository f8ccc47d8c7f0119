"""Records of a world -> all figures that are reported of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from benchmarks.proof import statistics, tuning
from benchmarks.proof.jobs import Record, cells
from benchmarks.proof.protocol import World
from benchmarks.proof.statistics import Estimate, Saved
from benchmarks.proof.store import Store
from benchmarks.proof.worlds import base_name, test_to_train


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Paired differences of the metric: an arm less another.

    Args:
        difference: their mean, in the metric's unit and direction.
        p: of the sign-flip test, corrected for all comparisons of its kind in the world.
        better: the arm's mean is on the better side.
        num_seeds: seeds that both have.
        error: the standard error of that mean; NaN of one seed.
        power: see `statistics.power`, of the margin; of a test of being no worse.
        anew: their mean as it may be for examples that are not in the pool, where all seeds split
            one: see `statistics.resplit`; else None.
    """

    difference: Estimate
    p: float
    better: bool
    num_seeds: int
    error: float
    power: float
    anew: Estimate | None


@dataclass(frozen=True, kw_only=True)
class Cell:
    """An arm at a budget.

    Args:
        quality: the metric on the test split.
        also: further metrics' means.
        units: mean cost, everything included, in shares of full's.
        cpu_seconds: mean.
        against_short: against the baseline at the same budget; None for the baseline.
        against_full: against the baseline at budget 1, one-sided: a small p says that the arm is
            not worse by the margin.
        num_seeds, num_failed: runs that ended well, and not.
    """

    arm: str
    budget: float
    lr: float
    quality: Estimate
    also: Mapping[str, float]
    units: float
    cpu_seconds: float
    against_short: Comparison | None
    against_full: Comparison | None
    num_seeds: int
    num_failed: int


@dataclass(frozen=True, kw_only=True)
class Findings:
    """All that is reported of one world.

    Args:
        world: its part of the protocol.
        stage: "claim" or "pilot".
        cells: by arm and budget, those with runs.
        saved: by arm, the baseline among them; those of which every budget has runs. None where
            arms are run at budget 1 alone.
        saved_anew: the same with intervals as they may be for examples that are not in the pool,
            where all seeds split one; else empty.
        choices: what tuning says, by arm and budget.
        failures: every record of a failure, of any stage.
        num_runs: records of the stage.
        num_planned: runs that the protocol asks for.
        commits: that the stage's runs were made with.
        num_codes: versions of the code that they were made with, as far as they say; see
            `campaign.code_digest`.
    """

    world: World
    stage: str
    cells: Mapping[tuple[str, float], Cell]
    saved: Mapping[str, Saved]
    saved_anew: Mapping[str, Saved]
    choices: Mapping[tuple[str, float], tuning.Choice]
    failures: Sequence[Record]
    num_runs: int
    num_planned: int
    commits: Sequence[str]
    num_codes: int


Runs = dict[tuple[str, float], dict[int, Record]]


def analyse(
    world: World, store: Store, stage: str = "claim", arms: Sequence[str] | None = None
) -> Findings:
    """The figures of a world.

    Args:
        world: its part of the protocol.
        store: its results.
        stage: "claim" or "pilot".
        arms: these alone, and the baseline.

    Raises:
        ValueError: claims were made under another protocol.
    """
    choices = tuning.choose(world, store.latest.values())
    shown = None if arms is None else [world.baseline, *arms]
    runs: Runs = {cell: {} for cell in cells(world, shown)}
    found: list[Record] = []
    for record in store.latest.values():
        cell = (record["arm"], record["budget"])
        if record["stage"] != stage or cell not in runs:
            continue
        if stage == "claim" and record["protocol"] != world.hash:
            raise ValueError(
                f"{store.path} has claims under protocol {record['protocol']}; {world.name} is now "
                f"{world.hash}"
            )
        current = record["seed"] in world.seeds_of(stage) and record.get("size") == world.size
        if current and record["lr"] == choices[cell].lr:
            runs[cell][record["seed"]] = record
            found.append(record)
    good: Runs = {
        cell: {seed: r for seed, r in of_cell.items() if r["status"] == "ok"}
        for cell, of_cell in runs.items()
    }
    pool = test_to_train(base_name(world.name))
    return Findings(
        world=world,
        stage=stage,
        cells=_cells(world, runs, good),
        saved=_saved(world, good) if world.shortens else {},
        saved_anew=_saved(world, good, pool) if world.shortens and pool is not None else {},
        choices=choices,
        failures=[r for r in store.records if r["status"] == "failed"],
        num_runs=len(found),
        num_planned=len(runs) * len(world.seeds_of(stage)),
        commits=sorted({str(r["commit"]) for r in found if r.get("commit")}),
        num_codes=len({r["code"] for r in found if r.get("code")}),
    )


def _quality(record: Record, world: World) -> float:
    return record["test"][world.metric]


def _cells(world: World, runs: Runs, good: Runs) -> dict[tuple[str, float], Cell]:
    short: dict[tuple[str, float], Comparison] = {}
    full: dict[tuple[str, float], Comparison] = {}
    for (arm, budget), of_cell in good.items():
        for kept, other in ((short, (world.baseline, budget)), (full, (world.baseline, 1.0))):
            if (arm, budget) == other or (arm == world.baseline and kept is short):
                continue
            above = None if kept is short else -world.margin
            if compared := _compared(world, (arm, budget), of_cell, good[other], above):
                kept[arm, budget] = compared
    shorts, fulls = _corrected(world, short), _corrected(world, full)
    result: dict[tuple[str, float], Cell] = {}
    for cell, of_cell in good.items():
        if not of_cell:
            continue
        records = list(of_cell.values())
        values = np.array([_quality(r, world) for r in records])
        also = {
            name: float(np.mean([r["test"][name] for r in records]))
            for name in world.also
            if all(r["test"].get(name) is not None for r in records)
        }
        result[cell] = Cell(
            arm=cell[0],
            budget=cell[1],
            lr=records[0]["lr"],
            quality=statistics.mean(values, statistics.generator(world.name, *map(str, cell))),
            also=also,
            units=float(np.mean([r["units"] for r in records])),
            cpu_seconds=float(np.mean([r["cpu_seconds"] for r in records])),
            against_short=shorts.get(cell),
            against_full=fulls.get(cell),
            num_seeds=len(records),
            num_failed=len(runs[cell]) - len(records),
        )
    return result


def _compared(
    world: World,
    cell: tuple[str, float],
    ours: Mapping[int, Record],
    theirs: Mapping[int, Record],
    above: float | None,
) -> Comparison | None:
    """The paired differences, p not corrected; None with no seed in common."""
    seeds = sorted(set(ours) & set(theirs))
    if not seeds:
        return None
    sign = 1 if world.higher_is_better else -1
    values = np.array([_quality(ours[s], world) - _quality(theirs[s], world) for s in seeds])
    rng = statistics.generator(world.name, *map(str, cell), str(above))
    p = statistics.sign_flip_p(sign * values, rng, above=above)
    pool = test_to_train(base_name(world.name))
    mean = statistics.mean(values, rng)
    return Comparison(
        difference=mean,
        p=p,
        better=(mean.value > 0) == world.higher_is_better and mean.value != 0,
        num_seeds=len(seeds),
        error=statistics.standard_error(values),
        power=statistics.power(values, world.margin),
        anew=None if pool is None else statistics.resplit(values, pool),
    )


def _corrected(
    world: World, compared: Mapping[tuple[str, float], Comparison]
) -> dict[tuple[str, float], Comparison]:
    """Holm's correction over the arms at all budgets; the baseline's own are another family."""
    result: dict[tuple[str, float], Comparison] = {}
    for family in (
        [cell for cell in compared if cell[0] != world.baseline],
        [cell for cell in compared if cell[0] == world.baseline],
    ):
        corrected = statistics.holm([compared[cell].p for cell in family])
        for cell, p in zip(family, corrected, strict=True):
            result[cell] = replace(compared[cell], p=p)
    return result


def _saved(world: World, good: Runs, test_to_train: float = 0.0) -> dict[str, Saved]:
    """By arm, over the seeds of which no run of the arm and of the baseline is missing.

    Args:
        world: its part of the protocol.
        good: runs that ended well.
        test_to_train: see `statistics.widened`.
    """
    result: dict[str, Saved] = {}
    sign = 1 if world.higher_is_better else -1
    ours = [(world.baseline, budget) for budget in sorted(world.baseline_budgets)]
    for arm in dict.fromkeys(arm for arm, _ in good):
        theirs = [(arm, budget) for budget in sorted(world.budgets_of(arm))]
        seeds = sorted(set.intersection(*(set(good[cell]) for cell in [*ours, *theirs])))
        if not seeds:
            continue

        def table(
            wanted: list[tuple[str, float]], seeds: list[int] = seeds
        ) -> tuple[np.ndarray, np.ndarray]:
            cost = np.array([[good[cell][s]["units"] for s in seeds] for cell in wanted])
            quality = np.array([[_quality(good[cell][s], world) for s in seeds] for cell in wanted])
            order = np.argsort(cost.mean(1), kind="stable")
            return cost[order], sign * quality[order]

        # The same seeds are drawn for every arm.
        rng = statistics.generator(world.name, "saved")
        widen = statistics.widened(len(seeds), test_to_train)
        result[arm] = statistics.saved(table(theirs), table(ours), world.margin, rng, widen=widen)
    return result
