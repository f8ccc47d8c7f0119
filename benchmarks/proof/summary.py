"""Tables over several worlds: the README's, those in short, what was claimed again, the pilot's."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from benchmarks.proof.analysis import Findings
from benchmarks.proof.wording import (
    budget_needed,
    data_name,
    difference,
    difference_called,
    not_worse,
    percent,
    power,
    quality,
    run_at,
    scaled,
    table,
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
    rows = []
    for arm in dict.fromkeys(arm for findings in all_findings for arm in findings.world.arms):
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
            rows.append([arm, *said])
    return (
        "Less full at the same budget, with its standard error; of as few seeds as these twice of "
        f"that is still chance.\n\n{table(['arm', *names], rows)}"
    )


def readme_table(all_findings: Sequence[Findings], arms: Mapping[str, Sequence[str]]) -> str:
    """What comes of the whole budget and what is saved, a line an arm.

    A line is of `FEWEST` seeds or more. Without a line there is no table.

    Args:
        all_findings: of worlds that have runs.
        arms: those that have a line, by world.
    """
    columns = ["data", "arm", "run at", "full", "arm less full, at 1", "not worse", "saves"]
    rows = []
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
                less = difference_called(world, whole.against_short)
            named = [data_name(world), arm, run_at(world, arm), quality(world, full.quality)]
            rows.append([*named, less, said, saves, by_full])
    return table([*columns, "full, shortened, saves"], rows) + "\n" if rows else ""


def in_short(all_findings: Sequence[Findings]) -> list[str]:
    """What is saved, a line a world, and what comes of the whole budget, a line an arm.

    A line is of `FEWEST` seeds or more. A table without a line is left out.
    """
    made = (_saved_in_short(all_findings), _whole_in_short(all_findings))
    kept = [text for text in made if text]
    return ["### In short", *kept] if kept else []


def claimed_again(all_findings: Sequence[Findings]) -> list[str]:
    """What is claimed on several ranges of seeds: what each came to, a line each.

    The same is the same arm in the same world against the same baseline at the same budget; of
    budgets that the same claims have, the largest. What is claimed once has no line.

    Args:
        all_findings: of the protocol as it is, and of those that were replaced.
    """
    claims: dict[tuple[str, str], list[Findings]] = {}
    for findings in all_findings:
        for arm in findings.world.arms:
            claims.setdefault((data_name(findings.world), arm), []).append(findings)
    rows = []
    for (data, arm), them in claims.items():
        them.sort(key=lambda findings: min(findings.world.claim_seeds))
        for budget, again in _shared(arm, them).items():
            rows += [_claim(findings, data, arm, budget) for findings in again]
    if not rows:
        return []
    columns = ["data", "arm", "at", "seeds", "arm less full there", "not worse", "saves"]
    return [
        "### Claimed more than once",
        "On seeds of their own each. p-values are corrected for the arms and budgets of their own "
        "tables, which are not as many.",
        table([*columns, "saved against full, shortened"], rows),
    ]


def _shared(arm: str, claims: Sequence[Findings]) -> dict[float, list[Findings]]:
    """Budgets at which an arm is in several claims, with these; of one set of them, the largest."""
    by_set = {}
    for budget in sorted({budget for it in claims for name, budget in it.cells if name == arm}):
        cells = [(number, it.cells.get((arm, budget))) for number, it in enumerate(claims)]
        there = tuple(number for number, cell in cells if cell and cell.against_short)
        if len(there) > 1:
            by_set[there] = budget
    return {budget: [claims[number] for number in there] for there, budget in by_set.items()}


def _claim(findings: Findings, data: str, arm: str, budget: float) -> list[str]:
    """A line of `claimed_again`."""
    world, cell, saved = findings.world, findings.cells[arm, budget], findings.saved.get(arm)
    seeds = world.seeds_of(findings.stage)
    row = [data, arm, f"{budget:g}", f"{min(seeds)} to {max(seeds)}"]
    row += [difference_called(world, cell.against_short), not_worse(cell)]
    if saved is None:
        return [*row, "", ""]
    return [
        *row,
        percent(saved.against_full, saved.at_floor),
        percent(saved.against_short, saved.at_floor),
    ]


def _whole_in_short(all_findings: Sequence[Findings]) -> str:
    """Of worlds whose arms are run at budget 1: each against full there."""
    columns = ["data", "arm", "measured", "full", "arm less full, at budget 1", "p"]
    rows = []
    for findings in all_findings:
        world = findings.world
        full = findings.cells.get((world.baseline, 1.0))
        for cell in (findings.cells.get((arm, 1.0)) for arm in world.arms):
            if cell is None or full is None or cell.against_short is None:
                continue
            if cell.against_short.num_seeds < FEWEST:
                continue
            named = [data_name(world), cell.arm, unit(world), quality(world, full.quality)]
            compared = [difference(world, cell.against_short), verdict(cell.against_short)]
            seeds = f"{cell.against_short.num_seeds}"
            rows.append([*named, *compared, not_worse(cell), power(cell), seeds])
    return table([*columns, "not worse", "power", "seeds"], rows) if rows else ""


def _saved_in_short(all_findings: Sequence[Findings]) -> str:
    """What the headline arm of a world saves; of worlds without one, the best, said so."""
    columns = ["data", "arm", "run at", "full", "needs of full's budget", "saved"]
    rows = []
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
        named = [data_name(world), f"{arm}{note}", run_at(world, arm)]
        saves = [
            percent(it.against_full, it.at_floor),
            percent(by_full, it.baseline_at_floor),
            percent(it.against_short, it.at_floor),
        ]
        rows.append([*named, quality(world, full.quality), needed, *saves])
    return table([*columns, "full, shortened, saves", "saved against it"], rows) if rows else ""
