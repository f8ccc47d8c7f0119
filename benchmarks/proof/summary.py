"""Tables over several worlds: the README's, those in short, what was claimed twice, the pilot's."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from benchmarks.proof.analysis import Findings
from benchmarks.proof.wording import (
    budget_needed,
    called,
    data_name,
    difference,
    not_worse,
    percent,
    power,
    quality,
    run_at,
    scaled,
    unit,
    verdict,
)

FEWEST = 6
"""Seeds of a line in the README: of fewer, no sign-flip test can find a p below `SURE`."""


def all_arms(all_findings: Sequence[Findings]) -> str:
    """Each arm less full at the same budget, in every world.

    Args:
        all_findings: a column each.
    """
    names = [findings.world.name for findings in all_findings]
    lines = [f"| arm | {' | '.join(names)} |", "|---|" + "---|" * len(names)]
    rows = dict.fromkeys(arm for findings in all_findings for arm in findings.world.arms)
    for arm in rows:
        said = [
            ", ".join(
                scaled(f.world, it.difference.value, signed=True)
                + ("" if math.isnan(it.error) else f" ± {scaled(f.world, it.error, signed=False)}")
                for (name, _), cell in f.cells.items()
                if name == arm and (it := cell.against_short)
            )
            or ("failed" if arm in {record["arm"] for record in f.failures} else "")
            for f in all_findings
        ]
        if any(said):
            lines.append(f"| {arm} | {' | '.join(said)} |")
    return "\n".join(
        [
            "Less full at the same budget, with its standard error; of as few seeds as these twice "
            "of that is still chance.\n",
            *lines,
        ]
    )


def readme_table(all_findings: Sequence[Findings], arms: Mapping[str, Sequence[str]]) -> str:
    """What comes of the whole budget and what is saved, a line an arm.

    A line is of `FEWEST` seeds or more. Without a line there is no table.

    Args:
        all_findings: of worlds that have runs.
        arms: those that have a line, by world.
    """
    lines = [
        "| data | arm | run at | full | arm less full, at 1 | not worse | saves "
        "| full, shortened, saves |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for findings in all_findings:
        world = findings.world
        full = findings.cells.get((world.baseline, 1.0))
        for arm in arms.get(world.name, ()):
            whole, saved = findings.cells.get((arm, 1.0)), findings.saved.get(arm)
            found = saved or (whole and whole.against_short)
            if full is None or found is None or found.num_seeds < FEWEST:
                continue
            saves = by_full = less = said = ""
            if saved is not None:
                saves = percent(saved.against_full, saved.at_floor)
                alone = findings.saved[world.baseline]
                by_full = percent(alone.against_full, alone.at_floor)
            if whole is not None:
                said = not_worse(whole, with_power=True)
                if compared := whole.against_short:
                    less = f"{difference(world, compared)} {called(compared)}".strip()
            lines.append(
                f"| {data_name(world)} | {arm} | {run_at(world, arm)} "
                f"| {quality(world, full.quality)} | {less} | {said} | {saves} | {by_full} |"
            )
    return "\n".join(lines) + "\n" if len(lines) > 2 else ""


def in_short(all_findings: Sequence[Findings]) -> list[str]:
    """What is saved, a line a world, and what comes of the whole budget, a line an arm.

    A line is of `FEWEST` seeds or more. A table without a line is left out.
    """
    tables = (_saved_in_short(all_findings), _whole_in_short(all_findings))
    kept = [table.strip() for table in tables if table.count("\n") > 2]
    return ["### In short", *kept] if kept else []


def claimed_twice(earlier: Sequence[Findings], later: Sequence[Findings]) -> list[str]:
    """What the headline arm of an earlier protocol came to, beside what the same came to again.

    The same is the same arm in the same world against the same baseline. A line is of the largest
    budget that both have, and of what is saved where both say it; without a line there is nothing.

    Args:
        earlier: of protocols that were replaced.
        later: of those that replaced them; the first that has the same is held beside it.
    """
    lines = []
    for first in earlier:
        arm = first.world.headline
        for again in later:
            both = [
                budget
                for name, budget in first.cells
                if name == arm and (arm, budget) in again.cells
            ]
            if data_name(first.world) != data_name(again.world) or not both:
                continue
            lines.append(_twice(first, again, arm, max(both)))
            break
    if not lines:
        return []
    return [
        "### Claimed twice",
        "What was claimed under an earlier protocol, and again under the present one.",
        "\n".join(
            [
                "| data | arm | seeds | at | arm less full there | again | saves | again |",
                "|---|---|---|---|---|---|---|---|",
                *lines,
            ]
        ),
    ]


def _twice(first: Findings, again: Findings, arm: str, budget: float) -> str:
    """A line of `claimed_twice`."""
    row = [data_name(first.world), arm]
    seeds = [findings.world.seeds_of(findings.stage) for findings in (first, again)]
    row.append(", then ".join(f"{min(them)} to {max(them)}" for them in seeds))
    row.append(f"{budget:g}")
    for findings in (first, again):
        compared = findings.cells[arm, budget].against_short
        said = difference(findings.world, compared)
        row.append(f"{said} {called(compared)}".strip() if compared else "")
    for findings in (first, again):
        saved = findings.saved.get(arm)
        row.append(percent(saved.against_full, saved.at_floor) if saved else "")
    return f"| {' | '.join(row)} |"


def _whole_in_short(all_findings: Sequence[Findings]) -> str:
    """Of worlds whose arms are run at budget 1: each against full there."""
    lines = [
        "| data | arm | measured | full | arm less full, at budget 1 | p | not worse | power "
        "| seeds |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for findings in all_findings:
        world = findings.world
        full = findings.cells.get((world.baseline, 1.0))
        for cell in (findings.cells.get((arm, 1.0)) for arm in world.arms):
            if cell is None or full is None or cell.against_short is None:
                continue
            if cell.against_short.num_seeds < FEWEST:
                continue
            lines.append(
                f"| {data_name(world)} | {cell.arm} | {unit(world)} "
                f"| {quality(world, full.quality)} "
                f"| {difference(world, cell.against_short)} | {verdict(cell.against_short)} "
                f"| {not_worse(cell)} | {power(cell)} | {cell.against_short.num_seeds} |"
            )
    return "\n".join(lines) + "\n"


def _saved_in_short(all_findings: Sequence[Findings]) -> str:
    """What the headline arm of a world saves; of worlds without one, the best, said so."""
    lines = [
        "| data | arm | run at | full | needs of full's budget | saved | full, shortened, saves "
        "| saved against it |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for findings in all_findings:
        world = findings.world
        saved = {arm: it for arm, it in findings.saved.items() if arm != world.baseline}
        full = findings.cells.get((world.baseline, 1.0))
        if not saved or full is None:
            continue
        best = max(saved, key=lambda arm: saved[arm].against_full.value)
        arm = world.headline if world.headline in saved else best
        note = "" if arm == world.headline else f" (best of {len(saved)}, chosen afterwards)"
        it = saved[arm]
        if it.num_seeds < FEWEST:
            continue
        needed = budget_needed(it.needed, it.at_floor, world.budgets_of(arm))
        # Seeds of which the arm has all runs are seeds of which full has: it is there too.
        by_full = findings.saved[world.baseline].against_full
        lines.append(
            f"| {data_name(world)} | {arm}{note} | {run_at(world, arm)} "
            f"| {quality(world, full.quality)} | {needed} "
            f"| {percent(it.against_full, it.at_floor)} "
            f"| {percent(by_full, it.baseline_at_floor)} "
            f"| {percent(it.against_short, it.at_floor)} |"
        )
    return "\n".join(lines) + "\n"
