"""Jobs that are not done yet are run, and what comes of them is stored: tune, pilot, claim."""

from __future__ import annotations

import hashlib
import math
import statistics
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.proof import tuning
from benchmarks.proof.jobs import Job, Record, cells, interleave, runs_at, tune_jobs
from benchmarks.proof.pool import run_jobs
from benchmarks.proof.protocol import Protocol, World, require_committed
from benchmarks.proof.store import Store

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
CODE = [ROOT / "pipeline", ROOT / "models", ROOT / "tasks", HERE]
"""What a run comes of, beside the protocol and the packages."""


@dataclass(kw_only=True)
class Planned:
    """The jobs of one stage of one world.

    Args:
        world, stage: whose they are.
        jobs: all whose learning rate is known.
        left: those to be run now.
        failed: how many have failed.
        untuned: how many runs there are besides, whose rate is not known yet.
    """

    world: World
    stage: str
    jobs: list[Job]
    left: list[Job] = field(default_factory=list)
    failed: int = 0
    untuned: int = 0

    @property
    def done(self) -> int:
        """How many have ended, well or not."""
        return len(self.jobs) - len(self.left)


def results_file(folder: Path, world: World) -> Path:
    """Where a world's results are."""
    return folder / f"{world.results}.jsonl"


def plan(
    world: World,
    stage: str,
    store: Store,
    arms: Sequence[str] | None = None,
    *,
    retry: bool = False,
) -> Planned:
    """What is to be run, given what is there.

    Args:
        world: its part of the protocol.
        stage: "tune", "pilot" or "claim".
        store: the world's results.
        arms: these alone.
        retry: those that failed are to be run again.
    """
    if stage == "tune":
        planned = Planned(world=world, stage=stage, jobs=tune_jobs(world, arms))
    else:
        rates = tuning.rates(world, store.latest.values())
        untuned = sum(cell not in rates for cell in cells(world, arms))
        jobs = runs_at(stage, world, rates, arms)
        planned = Planned(
            world=world, stage=stage, jobs=jobs, untuned=untuned * len(world.seeds_of(stage))
        )
    for job in planned.jobs:
        record = store.latest.get(job.key)
        failed = record is not None and record["status"] == "failed"
        planned.failed += failed
        if record is None or (failed and retry):
            planned.left.append(job)
    return planned


def check_claim(
    protocol: Protocol, world: World, store: Store, *, other_code: bool = False
) -> None:
    """Refuse a claim that would mix two protocols, or runs of two versions of the code.

    Args:
        protocol: must be committed.
        world: its part of the protocol.
        store: the world's results.
        other_code: go on with what other code began; the page will say so.

    Raises:
        ValueError: the protocol is not committed as it is, or the world's results were claimed
            under another, or with other code; or its tuning has changed since.
    """
    require_committed(protocol.path)
    rates = tuning.rates(world, store.latest.values())
    code = code_digest()
    for record in store.latest.values():
        began = record.get("code", code)  # the first results do not have it
        if record["stage"] == "claim" and began != code and not other_code:
            raise ValueError(
                f"{store.path}: the claim was begun with code {began}, and this is {code}: finish "
                f"it with that (commit {record.get('commit')}), or give --other-code, and the page "
                "says that not all runs are of the same code"
            )
    for record in store.records:
        if record["stage"] != "claim":
            continue
        if record["protocol"] != world.hash:
            raise ValueError(
                f"{store.path} has claims under protocol {record['protocol']}, and {world.name} is "
                f"now {world.hash}: a changed protocol needs a new name of its results "
                f"(worlds.{world.name}.results)"
            )
        arm, budget = record["arm"], record["budget"]
        if rates.get((arm, budget), record["lr"]) != record["lr"]:
            raise ValueError(
                f"{store.path}: {arm} at {budget} was claimed at lr {record['lr']}, and tuning now "
                f"says {rates[arm, budget]}: trials were added after the claim began"
            )


def run_stage(
    protocol: Protocol,
    stage: str,
    *,
    results: Path,
    worlds: Sequence[str],
    arms: Sequence[str] | None,
    runner: str,
    workers: int,
    retry: bool,
    limit_minutes: float,
    other_code: bool,
    told: Callable[[Mapping[str, Planned], Job | None, Record | None], None],
) -> int:
    """Run what is left of a stage, and store each run as it ends.

    ``told`` hears what is planned before the first, and of each job that has ended.

    Returns:
        How many jobs have ended.
    """
    commit, code = _commit(), code_digest()
    deadline = time.monotonic() + 60 * limit_minutes
    ended = 0
    with ExitStack() as stack:
        stores: dict[str, Store] = {}
        planned: dict[str, Planned] = {}
        for name in worlds:
            world = protocol.worlds[name]
            stores[name] = Store(results_file(results, world), write=True)
            stack.callback(stores[name].close)
            if stage == "claim":
                check_claim(protocol, world, stores[name], other_code=other_code)
            planned[name] = plan(world, stage, stores[name], arms, retry=retry)
        told(planned, None, None)
        left = interleave(part.left for part in planned.values())
        outcomes = run_jobs(left, runner, workers=workers, deadline=deadline)
        stack.callback(outcomes.close)
        for job, outcome in outcomes:
            world, store = protocol.worlds[job.world], stores[job.world]
            record = made_record(job, outcome, world)
            record.setdefault("commit", commit)
            record.setdefault("code", code)
            record.setdefault("torch", version("torch"))  # without the wait for its import
            if job.key in store.latest:
                record["attempt"] = store.latest[job.key].get("attempt", 1) + 1
            store.append(record)
            ended += 1
            told(planned, job, record)
    return ended


def made_record(job: Job, outcome: Record, world: World) -> Record:
    """What is stored of a run: the job, what came of it, and the protocol.

    A run that did not measure what the world is judged by, or says that it was another, has failed.
    """
    record: Record = {**vars(job), **outcome, "protocol": world.hash}
    if outcome["status"] != "ok":
        record.setdefault("why", "it does not say why")
        return {**record, **vars(job)}
    wrong = [name for name, value in vars(job).items() if record[name] != value]
    why = f"the runner changed {wrong} of its job" if wrong else ""
    for split, metric in [("val", world.metric), ("test", world.metric)]:
        value = (record.get(split) or {}).get(metric)
        if not why and not _is_number(value):
            why = f"{split}.{metric} is not a finite number: {value!r}"
    for name in ("units", "cpu_seconds"):
        if not why and not (_is_number(record.get(name)) and record[name] >= 0):
            why = f"{name} is not a number from 0 on: {record.get(name)!r}"
    if why:
        record |= {"status": "failed", "why": why}
    return {**record, **vars(job)}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def code_digest() -> str:
    """Twelve hexadecimal digits of what the code's files say: of `CODE`, those of Python."""
    digest = hashlib.sha256()
    for folder in CODE:
        for path in sorted(folder.rglob("*.py")):
            digest.update(f"{folder.name}/{path.relative_to(folder)}\0".encode())
            digest.update(path.read_bytes() + b"\0")
    return digest.hexdigest()[:12]


def _commit() -> str:
    """The commit that is run, marked where a file of the code differs from it."""
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=HERE, capture_output=True, text=True)
    if head.returncode:
        return "unknown"
    code = [":/pipeline", ":/models", ":/tasks", ":/benchmarks/proof/*.py"]
    changed = subprocess.run(["git", "diff", "--quiet", "HEAD", "--", *code], cwd=HERE).returncode
    return head.stdout.strip()[:12] + ("-changed" if changed else "")


def seconds_left(jobs: Iterable[Job], records: Sequence[Record]) -> float | None:
    """An estimate of how long jobs take one after another, from runs of the same world.

    Of the same arm and budget if there are any, else of any arm, in proportion to the budget; None
    if nothing of a world has been run.
    """
    same: dict[tuple[str, str, float], list[float]] = {}
    rate: dict[str, list[float]] = {}
    for record in records:
        if record["status"] == "ok" and record.get("wall_seconds"):
            seconds = record["wall_seconds"]
            cell = (record["world"], record["arm"], record["budget"])
            same.setdefault(cell, []).append(seconds)
            rate.setdefault(record["world"], []).append(seconds / record["budget"])
    total = 0.0
    for job in jobs:
        if times := same.get((job.world, job.arm, job.budget)):
            total += statistics.fmean(times)
        elif rates := rate.get(job.world):
            total += job.budget * statistics.fmean(rates)
        else:
            return None
    return total
