"""The results page: tables between two marks of docs/proof.md, pictures beside it, and a README's.

That of the pilot is docs/pilot.md.

All figures come from the results files; what is around the marks is left alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.proof import figures
from benchmarks.proof.analysis import Findings, analyse
from benchmarks.proof.campaign import results_file
from benchmarks.proof.jobs import Record, cells
from benchmarks.proof.protocol import BASELINE, World, headlines
from benchmarks.proof.store import Store
from benchmarks.proof.summary import all_arms, claimed_again, in_short, readme_table
from benchmarks.proof.tuning import Choice
from benchmarks.proof.wording import (
    arm_name,
    budget_needed,
    difference,
    not_worse,
    percent,
    power,
    quality,
    scaled,
    signed,
    table,
    unit,
    verdict,
)

BEGIN, END = "<!-- proof:begin (made by a command, do not edit) -->", "<!-- proof:end -->"
PAGES = {"claim": "proof", "pilot": "pilot"}
"""The page of a stage, and the folder of its pictures."""


def write(
    worlds: Mapping[str, World],
    results: Path,
    docs: Path,
    stage: str = "claim",
    arms: Sequence[str] | None = None,
    readme: Mapping[str, Sequence[str]] | None = None,
    earlier: Mapping[str, World] | None = None,
) -> str:
    """Write ``docs/proof.md`` (what is between the marks) and ``docs/proof/*.png``; or the pilot's.

    Args:
        worlds: parts of the protocol, by name.
        results: the folder of results files.
        docs: the folder that is written to.
        stage: "claim" or "pilot".
        arms: these alone, and the baseline.
        readme: the arms that have a line in the README, by world; the headlines if not given.
        earlier: what was claimed before, by name; see `summary.claimed_again`.

    Returns:
        A short table for the README, see `readme_table`.

    Raises:
        ValueError: the page is there without the marks, or claims are of another protocol.
    """
    found, before = (
        [analyse(world, Store(results_file(results, world)), stage, arms) for world in them]
        for them in (worlds.values(), (earlier or {}).values())
    )
    shown = [findings for findings in found if findings.cells]
    kind = PAGES[stage]
    page = docs / f"{kind}.md"
    above, below = _around(page)
    (docs / kind).mkdir(parents=True, exist_ok=True)
    parts = [_how_to_read(stage), *in_short(shown), *claimed_again([*shown, *before])]
    if stage == "pilot" and shown:
        parts += ["### All arms in all worlds", all_arms(shown)]
    if any(
        set(findings.saved) - {findings.world.baseline}
        for findings in shown
        if findings.world.has_curves
    ):
        figures.savings(shown).savefig(docs / kind / "savings.png", dpi=150)
        parts.append(f"![Budget saved at full's quality]({kind}/savings.png)")
    for findings in shown:
        name = findings.world.name
        if findings.world.shortens:
            draw = figures.curves if findings.world.has_curves else figures.differences
            draw(findings).savefig(docs / kind / f"{name}.png", dpi=150)
        parts.append(world_section(findings))
    if empty := [findings.world.name for findings in found if not findings.cells]:
        parts.append(f"No runs yet: {', '.join(empty)}.")
    text = "\n\n".join([above + BEGIN, *parts, END + below])
    page.write_text(text)
    return readme_table(shown, headlines(worlds) if readme is None else readme)


def _around(page: Path) -> tuple[str, str]:
    """What is before and after the marks."""
    if not page.is_file():
        return "# Proof\n\n", "\n"
    text = page.read_text()
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise ValueError(f"{page}: the lines {BEGIN!r} and {END!r} are needed once each, in order")
    return text[: text.index(BEGIN)], text[text.index(END) + len(END) :]


def _how_to_read(stage: str) -> str:
    kind = "" if stage == "claim" else "**Pilot runs: recipes were looked for on them.** "
    return (
        f"{kind}In brackets are 95 % bootstrap intervals over seeds, not corrected for the number "
        "of arms. p-values are of sign-flip tests of differences paired by seed, corrected by Holm "
        "over all arms and budgets of the table; *better* and *worse* stand where p < 0.05. "
        '"Not worse" is one-sided: full at budget 1 is lower than the arm plus the margin. Its '
        "power is the chance of a yes for an arm that is exactly full's equal, at the spread that "
        "was seen, before that correction. Costs are shares of full's: a forward 1, a backward 2 "
        "(`language`: 1, its frozen weights have no gradient), scoring included. `full` below "
        "budget 1 is the shortened one, its schedule compressed. "
        "What an arm needs is read off its curve, made to rise (isotonic regression) and straight "
        "between budgets, where it meets the end of full's curve less the margin; every resample "
        "has its own curves and aim."
    )


def world_section(findings: Findings) -> str:
    """All tables of one world."""
    world = findings.world
    name = world.name
    commits = ", ".join(findings.commits) or "unknown"
    seeds = world.seeds_of(findings.stage)
    head = (
        f"### {name}\n\n"
        f"Test {unit(world)}, {'higher' if world.higher_is_better else 'lower'} is better; margin "
        f"{scaled(world, world.margin, signed=False)}; {len(seeds)} seeds ({min(seeds)} to "
        f"{max(seeds)}); {findings.num_runs} of {findings.num_planned} runs. Protocol "
        f"{world.hash}, code {commits}."
    )
    if findings.num_codes > 1:
        head += " **Not all of these runs are of the same code.**"
    if world.baseline != BASELINE:
        head += (
            f"\n\n*Full* stands for **{world.baseline}** here: all is held against that arm, "
            "shortened and at budget 1."
        )
    parts = [head]
    if world.shortens:
        folder = PAGES[findings.stage]
        parts.append(f"![Quality against budget: {name}]({folder}/{name}.png)")
    parts += [_saved_table(findings), _budget_table(findings)]
    if findings.stage == "claim":
        parts.append(_anew_table(findings))
    parts += [_rates_table(findings), _failures(findings)]
    if over := [c for c in findings.cells.values() if c.units > 1.01 * c.budget]:
        said = ", ".join(f"{c.arm} at {c.budget:g}: {c.units:.3f}" for c in over)
        parts.append(f"Spent over 1 % more than their budget: {said}.")
    return "\n\n".join(part for part in parts if part)


def _saved_table(findings: Findings) -> str:
    if not findings.world.shortens:
        return ""
    world = findings.world
    order = sorted(findings.saved, key=lambda arm: -findings.saved[arm].against_full.value)
    if not order:
        return "No arm has all its budgets yet: nothing is said of what is saved."
    if not world.has_curves:
        there = [arm for arm in order if arm != world.baseline and findings.saved[arm].at_floor]
        return (
            f"Arms are run at {world.budgets[0]:g} of the budget, and there "
            f"{', '.join(there) if there else 'none'} is at full's quality at 1, less the margin."
        )
    columns = ["arm", "needs", "saved against full", "saved against full, shortened"]
    rows = []
    for arm in order:
        saved = findings.saved[arm]
        needed = budget_needed(saved.needed, saved.at_floor, world.budgets_of(arm))
        short = "" if arm == world.baseline else percent(saved.against_short, saved.at_floor)
        if short and saved.baseline_at_floor:
            short += " (full is there at its smallest budget: perhaps less)"
        full = percent(saved.against_full, saved.at_floor)
        reached = f"{100 * saved.reached:.0f} %"
        rows.append([arm_name(arm, findings), needed, full, short, reached, f"{saved.num_seeds}"])
    made = table([*columns, "resamples that reach it", "seeds"], rows)
    return f"**Budget saved at full's quality**\n\n{made}"


def _budget_table(findings: Findings) -> str:
    world = findings.world
    columns = ["budget", "arm", unit(world), "against full at the same budget", "p"]
    columns += ["against full at 1", "not worse (p)", "power"]
    rows = []
    order = sorted(findings.cells.values(), key=lambda c: (c.budget, c.arm != world.baseline))
    for cell in order:
        also = [f"{cell.also[name]:.4g}" if name in cell.also else "-" for name in world.also]
        failed = f", {cell.num_failed} failed" if cell.num_failed else ""
        row = [f"{cell.budget:g}", arm_name(cell.arm, findings), quality(world, cell.quality)]
        row += [difference(world, cell.against_short), verdict(cell.against_short)]
        row += [difference(world, cell.against_full), not_worse(cell), power(cell), *also]
        spent = [f"{cell.units:.3f}", f"{cell.cpu_seconds:.1f}", f"{cell.num_seeds}{failed}"]
        rows.append([*row, *spent])
    made = table([*columns, *world.also, "spent", "CPU s", "runs"], rows)
    return f"**Quality at equal budget**\n\n{made}"


def _anew_table(findings: Findings) -> str:
    """What differences and savings may be for examples that are in no seed's splits."""
    world = findings.world
    compared = {
        (cell.arm, cell.budget): it.anew
        for cell in findings.cells.values()
        if (it := cell.against_short) and it.anew is not None
    }
    if not compared:
        return ""
    budgets = sorted({budget for _, budget in compared})
    curves = world.shortens and world.has_curves
    columns = ["arm", *(f"less full, at {budget:g}" for budget in budgets)]
    columns += ["saved against full", "saved against full, shortened"] * curves
    rows = []
    for arm in dict.fromkeys(arm for arm, _ in compared):
        found = (compared.get((arm, budget)) for budget in budgets)
        row = [arm_name(arm, findings)]
        row += [signed(world, it) if it else "" for it in found]
        if curves and (saved := findings.saved_anew.get(arm)):
            row += [percent(it, saved.at_floor) for it in (saved.against_full, saved.against_short)]
        elif curves:
            row += ["", ""]
        rows.append(row)
    return (
        "**For other examples than these**: every seed splits the same pool anew, and what is true "
        "of its splits need not be of others. Intervals by the variance of Nadeau and Bengio "
        f"(2003)\n\n{table(columns, rows)}"
    )


def _rates_table(findings: Findings) -> str:
    """The rates chosen; those at an end of what was tried are marked."""
    world = findings.world
    if len(world.lrs) == 1:
        return f"All at a learning rate of {world.lrs[0]:g}."
    budgets = sorted({budget for _, budget in cells(world)})
    trials = len(world.lrs) * len(world.tune_seeds)
    tried = ", ".join(f"{lr:g}" for lr in sorted(world.lrs))
    head = (
        f"**Learning rates** of {tried}, by the validation split, {trials} trials each; * is at an "
        "end of what was tried"
    )
    rows = []
    for arm in dict.fromkeys(arm for arm, _ in findings.cells):
        chosen = (findings.choices.get((arm, budget)) for budget in budgets)
        rows.append([arm, *(_rate(choice) for choice in chosen)])
    return f"{head}\n\n{table(['arm', *(f'{budget:g}' for budget in budgets)], rows)}"


def _rate(choice: Choice | None) -> str:
    if choice is None or choice.lr is None:
        return ""
    return f"{choice.lr:g}{'*' if choice.at_edge else ''}"


def _failures(findings: Findings) -> str:
    if not findings.failures:
        return "No run has failed."
    grouped: dict[tuple[str, ...], list[Record]] = {}
    for record in findings.failures:
        named = (record["stage"], record["arm"], f"{record['budget']:g}", f"{record['lr']:g}")
        grouped.setdefault((*named, str(record["why"])), []).append(record)
    rows = []
    for (stage, arm, budget, lr, why), records in grouped.items():
        seeds = ", ".join(str(record["seed"]) for record in records)
        why = " ".join(why.replace("|", "\\|").split())
        rows.append([stage, arm, budget, lr, seeds, why])
    made = table(["stage", "arm", "budget", "lr", "seeds", "why"], rows)
    return f"**Failed runs**, earlier attempts included\n\n{made}"
