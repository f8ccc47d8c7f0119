"""The results page: tables between two marks of docs/proof.md, pictures beside it, and a README's.

That of the pilot is docs/pilot.md.

All figures come from the results files; what is around the marks is left alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from benchmarks.proof import figures
from benchmarks.proof.analysis import Cell, Comparison, Findings, analyse
from benchmarks.proof.campaign import results_file
from benchmarks.proof.jobs import Record, cells
from benchmarks.proof.protocol import BASELINE, World
from benchmarks.proof.statistics import SURE, Estimate
from benchmarks.proof.store import Store

BEGIN, END = "<!-- proof:begin (made by a command, do not edit) -->", "<!-- proof:end -->"
PAGES = {"claim": "proof", "pilot": "pilot"}
"""The page of a stage, and the folder of its pictures."""
FEWEST = 6
"""Seeds of a line in the README: of fewer, no sign-flip test can find a p below `SURE`."""


def write(
    worlds: Mapping[str, World],
    results: Path,
    docs: Path,
    stage: str = "claim",
    arms: Sequence[str] | None = None,
    readme: Mapping[str, Sequence[str]] | None = None,
) -> str:
    """Write ``docs/proof.md`` (what is between the marks) and ``docs/proof/*.png``; or the pilot's.

    Args:
        worlds: parts of the protocol, by name.
        results: the folder of results files.
        docs: the folder that is written to.
        stage: "claim" or "pilot".
        arms: these alone, and the baseline.
        readme: the arms that have a line in the README, by world; the headlines if not given.

    Returns:
        A short table for the README, see `readme_table`.

    Raises:
        ValueError: the page is there without the marks, or claims are of another protocol.
    """
    found = [
        analyse(world, Store(results_file(results, world)), stage, arms)
        for world in worlds.values()
    ]
    shown = [findings for findings in found if findings.cells]
    kind = PAGES[stage]
    page = docs / f"{kind}.md"
    before, after = _around(page)
    (docs / kind).mkdir(parents=True, exist_ok=True)
    parts = [_how_to_read(stage), *in_short(shown)]
    if stage == "pilot" and shown:
        parts += ["### All arms in all worlds", all_arms(shown)]
    if any(
        set(findings.saved) - {findings.world.baseline}
        for findings in shown
        if len(findings.world.budgets) > 1
    ):
        figures.savings(shown).savefig(docs / kind / "savings.png", dpi=150)
        parts.append(f"![Budget saved at full's quality]({kind}/savings.png)")
    for findings in shown:
        name = findings.world.name
        if findings.world.shortens:
            draw = figures.curves if len(findings.world.budgets) > 1 else figures.differences
            draw(findings).savefig(docs / kind / f"{name}.png", dpi=150)
        parts.append(world_section(findings))
    if empty := [findings.world.name for findings in found if not findings.cells]:
        parts.append(f"No runs yet: {', '.join(empty)}.")
    text = "\n\n".join([before + BEGIN, *parts, END + after])
    page.write_text(text)
    if readme is None:
        readme = {name: (world.headline,) for name, world in worlds.items() if world.headline}
    return readme_table(shown, readme)


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
                _scaled(f.world, it.difference.value, signed=True)
                + ("" if math.isnan(it.error) else f" ± {_scaled(f.world, it.error, signed=False)}")
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
        "was seen, before that correction. Costs are shares of full's: a forward 1, a backward 2, "
        "scoring included. `full` below budget 1 is the shortened one, its schedule compressed. "
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
        f"Test {_unit(world)}, {'higher' if world.higher_is_better else 'lower'} is better; margin "
        f"{_scaled(world, world.margin, signed=False)}; {len(seeds)} seeds ({min(seeds)} to "
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
    parts += [_saved_table(findings), _budget_table(findings), _rates_table(findings)]
    parts.append(_failures(findings))
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
    if len(world.budgets) == 1:
        there = [arm for arm in order if arm != world.baseline and findings.saved[arm].at_floor]
        return (
            f"Arms are run at {world.budgets[0]:g} of the budget, and there "
            f"{', '.join(there) if there else 'none'} is at full's quality at 1, less the margin."
        )
    lines = [
        "**Budget saved at full's quality**\n",
        "| arm | needs | saved against full | saved against full, shortened | resamples that reach "
        "it | seeds |",
        "|---|---|---|---|---|---|",
    ]
    for arm in order:
        saved = findings.saved[arm]
        needed = _needed(saved.needed, saved.at_floor, world.budgets_of(arm))
        short = "" if arm == world.baseline else _percent(saved.against_short, saved.at_floor)
        if short and saved.baseline_at_floor:
            short += " (full is there at its smallest budget: perhaps less)"
        lines.append(
            f"| {_arm(arm, findings)} | {needed} | {_percent(saved.against_full, saved.at_floor)} "
            f"| {short} | {100 * saved.reached:.0f} % | {saved.num_seeds} |"
        )
    return "\n".join(lines)


def _budget_table(findings: Findings) -> str:
    world = findings.world
    also = "".join(f" {name} |" for name in world.also)
    lines = [
        "**Quality at equal budget**\n",
        f"| budget | arm | {_unit(world)} | against full at the same budget | p |"
        f" against full at 1 | not worse (p) | power |{also} spent | CPU s | runs |",
        "|---|---|---|---|---|---|---|---|" + "---|" * len(world.also) + "---|---|---|",
    ]
    order = sorted(findings.cells.values(), key=lambda c: (c.budget, c.arm != world.baseline))
    for cell in order:
        also = "".join(
            f" {cell.also[name]:.4g} |" if name in cell.also else " - |" for name in world.also
        )
        failed = f", {cell.num_failed} failed" if cell.num_failed else ""
        lines.append(
            f"| {cell.budget:g} | {_arm(cell.arm, findings)} | {_quality(world, cell.quality)} "
            f"| {_difference(world, cell.against_short)} | {_verdict(cell.against_short)} "
            f"| {_difference(world, cell.against_full)} | {_not_worse(cell)} | {_power(cell)} "
            f"|{also} {cell.units:.3f} | {cell.cpu_seconds:.1f} | {cell.num_seeds}{failed} |"
        )
    return "\n".join([*lines, *_anew(findings)])


def _anew(findings: Findings) -> list[str]:
    """What the headline's differences may be for examples that are in no seed's splits."""
    world = findings.world
    said = [
        f"{_bracketed(it.anew, lambda v: _scaled(world, v, signed=True))} at {cell.budget:g}"
        for cell in findings.cells.values()
        if cell.arm == world.headline and (it := cell.against_short) and it.anew is not None
    ]
    if not said:
        return []
    return [
        f"\nEvery seed splits the same pool anew. For other images than these {world.headline} is "
        f"against full at the same budget, by the variance of Nadeau and Bengio (2003): "
        f"{'; '.join(said)}."
    ]


def _rates_table(findings: Findings) -> str:
    """The rates chosen; those at an end of what was tried are marked."""
    world = findings.world
    if len(world.lrs) == 1:
        return f"All at a learning rate of {world.lrs[0]:g}."
    budgets = sorted({budget for _, budget in cells(world)})
    trials = len(world.lrs) * len(world.tune_seeds)
    tried = ", ".join(f"{lr:g}" for lr in sorted(world.lrs))
    lines = [
        f"**Learning rates** of {tried}, by the validation split, {trials} trials each; * is at an "
        "end of what was tried\n",
        "| arm | " + " | ".join(f"{budget:g}" for budget in budgets) + " |",
        "|---|" + "---|" * len(budgets),
    ]
    for arm in dict.fromkeys(arm for arm, _ in findings.cells):
        row = []
        for budget in budgets:
            choice = findings.choices.get((arm, budget))
            if choice is None or choice.lr is None:
                row.append("")
            else:
                row.append(f"{choice.lr:g}{'*' if choice.at_edge else ''}")
        lines.append(f"| {arm} | " + " | ".join(row) + " |")
    return "\n".join(lines)


def _failures(findings: Findings) -> str:
    if not findings.failures:
        return "No run has failed."
    grouped: dict[tuple[str, ...], list[Record]] = {}
    for record in findings.failures:
        named = (record["stage"], record["arm"], f"{record['budget']:g}", f"{record['lr']:g}")
        grouped.setdefault((*named, str(record["why"])), []).append(record)
    lines = [
        "**Failed runs**, earlier attempts included\n",
        "| stage | arm | budget | lr | seeds | why |",
        "|---|---|---|---|---|---|",
    ]
    for (stage, arm, budget, lr, why), records in grouped.items():
        seeds = ", ".join(str(record["seed"]) for record in records)
        why = " ".join(why.replace("|", "\\|").split())
        lines.append(f"| {stage} | {arm} | {budget} | {lr} | {seeds} | {why} |")
    return "\n".join(lines)


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
            saves = by_full = difference = verdict = ""
            if saved is not None:
                saves = _percent(saved.against_full, saved.at_floor)
                alone = findings.saved[world.baseline]
                by_full = _percent(alone.against_full, alone.at_floor)
            if whole is not None:
                verdict = _not_worse(whole)
                difference = _difference(world, whole.against_short)
                if whole.against_short and whole.against_short.p < SURE:
                    difference += " better" if whole.against_short.better else " worse"
                if verdict.startswith("no"):
                    verdict = f"{verdict[:-1]}; power {_power(whole)})"
            budgets = ", ".join(f"{budget:g}" for budget in world.budgets_of(arm))
            lines.append(
                f"| {_data(world)} | {arm} | {budgets} | {_quality(world, full.quality)} "
                f"| {difference} | {verdict} | {saves} | {by_full} |"
            )
    return "\n".join(lines) + "\n" if len(lines) > 2 else ""


def in_short(all_findings: Sequence[Findings]) -> list[str]:
    """What is saved, a line a world, and what comes of the whole budget, a line an arm.

    A line is of `FEWEST` seeds or more. A table without a line is left out.
    """
    tables = (_saved_in_short(all_findings), _whole_in_short(all_findings))
    kept = [table.strip() for table in tables if table.count("\n") > 2]
    return ["### In short", *kept] if kept else []


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
                f"| {_data(world)} | {cell.arm} | {_unit(world)} | {_quality(world, full.quality)} "
                f"| {_difference(world, cell.against_short)} | {_verdict(cell.against_short)} "
                f"| {_not_worse(cell)} | {_power(cell)} | {cell.against_short.num_seeds} |"
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
        budgets = world.budgets_of(arm)
        # Seeds of which the arm has all runs are seeds of which full has: it is there too.
        by_full = findings.saved[world.baseline].against_full
        lines.append(
            f"| {_data(world)} | {arm}{note} | {', '.join(f'{budget:g}' for budget in budgets)} "
            f"| {_quality(world, full.quality)} | {_needed(it.needed, it.at_floor, budgets)} "
            f"| {_percent(it.against_full, it.at_floor)} "
            f"| {_percent(by_full, it.baseline_at_floor)} "
            f"| {_percent(it.against_short, it.at_floor)} |"
        )
    return "\n".join(lines) + "\n"


def _data(world: World) -> str:
    """A world's name, and what stands for full in it."""
    known, _, _ = world.name.partition("-")
    return known if world.baseline == BASELINE else f"{known}, full being {world.baseline}"


def _arm(arm: str, findings: Findings) -> str:
    return f"**{arm}**" if arm == findings.world.headline else arm


def _unit(world: World) -> str:
    return f"{world.metric}, %" if world.percent else world.metric


def _scaled(world: World, value: float, *, signed: bool) -> str:
    value = 100 * value if world.percent else value
    digits = 2 if world.percent else 4
    return f"{value:+.{digits}f}" if signed else f"{value:.{digits}f}"


def _quality(world: World, estimate: Estimate) -> str:
    return _bracketed(estimate, lambda value: _scaled(world, value, signed=False))


def _difference(world: World, comparison: Comparison | None) -> str:
    if comparison is None:
        return ""
    return _bracketed(comparison.difference, lambda value: _scaled(world, value, signed=True))


def _bracketed(estimate: Estimate, say: Callable[[float], str]) -> str:
    if math.isnan(estimate.low):
        return say(estimate.value)
    return f"{say(estimate.value)} [{say(estimate.low)}, {say(estimate.high)}]"


def _verdict(comparison: Comparison | None) -> str:
    if comparison is None:
        return ""
    word = ("better" if comparison.better else "worse") if comparison.p < SURE else ""
    return f"{_p(comparison.p)} {word}".strip()


def _not_worse(cell: Cell) -> str:
    if cell.against_full is None:
        return ""
    p = cell.against_full.p
    return f"{'yes' if p < SURE else 'no'} ({_p(p)})"


def _power(cell: Cell) -> str:
    if cell.against_full is None or math.isnan(cell.against_full.power):
        return ""
    return f"{cell.against_full.power:.2f}"


def _p(p: float) -> str:
    return f"{p:.3f}" if p >= 0.001 else "<0.001"


def _percent(estimate: Estimate, at_floor: bool) -> str:
    """A share saved, in percent."""
    return _reached(estimate, "at least " * at_floor, lambda v: f"{100 * v:.0f}", " %")


def _needed(estimate: Estimate, at_floor: bool, budgets: Sequence[float]) -> str:
    """A share of the budget; where it is not reached, that it is over the largest that was run."""
    never = "not reached" if max(budgets) >= 1 else f"over {max(budgets):.2f}"
    return _reached(estimate, "at most " * at_floor, lambda v: f"{v:.2f}", never=never)


def _reached(
    estimate: Estimate,
    more: str,
    form: Callable[[float], str],
    unit: str = "",
    never: str = "not reached",
) -> str:
    """An estimate; it, or an end, at which full's quality is not reached is said to be so."""
    if not math.isfinite(estimate.value):
        return never
    if more and estimate.low == estimate.high:  # at the least that was run in all resamples
        return f"{more}{form(estimate.value)}{unit}"

    def say(value: float) -> str:
        return form(value) if math.isfinite(value) else never

    return f"{more}{_bracketed(estimate, say)}{unit}"
