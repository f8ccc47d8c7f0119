"""The proof, one command: what selection saves, measured under a protocol fixed beforehand.

    python -m benchmarks.proof tune    [--worlds W ...] [--arms A ...] [--workers 2]
    python -m benchmarks.proof pilot   ...        recipes are looked for on seeds of their own
    python -m benchmarks.proof claim   ...        under a committed protocol only
    python -m benchmarks.proof status             what is done, what is left, how long it takes
    python -m benchmarks.proof report             docs/proof.md, its pictures, the README's tables

Each may be stopped and called again: what is in the results is not run again, except with
``--retry`` what has failed. Run from the top of the repository.
"""

from __future__ import annotations

import argparse
import math
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.proof.campaign import plan, results_file, run_stage, seconds_left
from benchmarks.proof.jobs import STAGES
from benchmarks.proof.pool import WorkerError
from benchmarks.proof.progress import Progress, duration
from benchmarks.proof.protocol import Protocol, load
from benchmarks.proof.store import Store

HERE = Path(__file__).parent


def main(arguments: list[str] | None = None) -> int:
    """Run a command; the exit status."""
    chosen = _parser().parse_args(arguments)
    console = Console(stderr=True)
    try:
        protocol = load(chosen.protocol)
        worlds = _worlds(protocol, chosen.worlds)
        _check_arms(protocol, worlds, chosen.arms)
        if chosen.command == "status":
            _status(protocol, worlds, chosen, Console())
        elif chosen.command == "report":
            _report(protocol, worlds, chosen, console)
        else:
            return _run(protocol, worlds, chosen, console)
    except KeyboardInterrupt:
        console.print("Stopped. What has ended is in the results; call it again to go on.")
        return 130
    except (ValueError, WorkerError) as error:
        console.print(f"error: {error}", markup=False, highlight=False, soft_wrap=True)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.proof", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("command", choices=(*STAGES, "status", "report"))
    parser.add_argument("--worlds", nargs="+", help="these alone")
    parser.add_argument("--arms", nargs="+", help="these alone")
    parser.add_argument("--workers", type=int, default=2, help="processes, one thread each")
    parser.add_argument("--limit-minutes", type=float, default=math.inf, help="begin none later")
    parser.add_argument(
        "--other-code", action="store_true", help="go on with a claim that other code began"
    )
    parser.add_argument("--retry", action="store_true", help="run again what has failed")
    parser.add_argument("--stage", choices=("pilot", "claim"), default="claim", help="to report")
    parser.add_argument("--docs", type=Path, help="where the report goes; docs for the claim")
    parser.add_argument("--protocol", type=Path, default=HERE / "protocol.yaml")
    parser.add_argument("--results", type=Path, default=HERE / "results")
    parser.add_argument("--runner", default="benchmarks.proof.job:run_job", help=argparse.SUPPRESS)
    return parser


def _interrupt(*_: Any) -> None:
    raise KeyboardInterrupt


def _worlds(protocol: Protocol, given: list[str] | None) -> list[str]:
    for name in given or []:
        if name not in protocol.worlds:
            raise ValueError(f"--worlds: {name!r} is none of {sorted(protocol.worlds)}")
    return list(dict.fromkeys(given or protocol.worlds))


def _check_arms(protocol: Protocol, worlds: list[str], given: list[str] | None) -> None:
    known = {arm for name in worlds for arm in protocol.worlds[name].all_arms}
    for arm in given or []:
        if arm not in known:
            raise ValueError(f"--arms: {arm!r} is none of {sorted(known)}")


def _run(
    protocol: Protocol, worlds: list[str], chosen: argparse.Namespace, console: Console
) -> int:
    if chosen.workers < 1 or not chosen.limit_minutes > 0:
        raise ValueError("--workers is at least 1, --limit-minutes above 0")
    with Progress(chosen.command, chosen.workers, console) as progress:
        ended = run_stage(
            protocol,
            chosen.command,
            results=chosen.results,
            worlds=worlds,
            arms=chosen.arms,
            runner=chosen.runner,
            workers=chosen.workers,
            retry=chosen.retry,
            limit_minutes=chosen.limit_minutes,
            other_code=chosen.other_code,
            told=progress.tell,
        )
    console.print(f"{ended} runs have ended, {progress.failed} of them failed. {progress.note}")
    return 0


def _status(
    protocol: Protocol, worlds: list[str], chosen: argparse.Namespace, console: Console
) -> None:
    by = f"time left, {chosen.workers} workers"
    table = Table("world", "stage", "done", "failed", "left", by)
    for name in worlds:
        world = protocol.worlds[name]
        store = Store(results_file(chosen.results, world))
        for stage in STAGES:
            part = plan(world, stage, store, chosen.arms)
            seconds = seconds_left(part.left, store.records)
            left = f"{len(part.left)}"
            if part.untuned:
                left += f" + {part.untuned} not tuned"
            unknown = seconds is None or part.untuned
            when = "?" if unknown else duration(seconds / chosen.workers)
            table.add_row(name, stage, str(part.done), str(part.failed), left, when)
    console.print(table)


def _report(
    protocol: Protocol, worlds: list[str], chosen: argparse.Namespace, console: Console
) -> None:
    from benchmarks.proof.report import PAGES, write  # matplotlib: only where it is drawn

    docs = chosen.docs
    if docs is None:
        if chosen.stage != "claim" or chosen.worlds or chosen.arms:
            raise ValueError("give --docs: docs/ is for the whole claim")
        docs = HERE.parent.parent / "docs"
    kept: Mapping[str, Any] = {name: protocol.worlds[name] for name in worlds}
    table = write(
        kept,
        chosen.results,
        docs,
        chosen.stage,
        chosen.arms,
        readme=protocol.readme,
        earlier=protocol.earlier,
    )
    page = docs / PAGES[chosen.stage]
    console.print(f"Written: {page}.md and {page}/", soft_wrap=True)
    sys.stdout.write(table)


if __name__ == "__main__":
    # Both end it alike; a shell may have the latter ignored in what it starts in the background.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _interrupt)
    sys.exit(main())
