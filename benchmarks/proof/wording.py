"""What is reported, in words: numbers with their intervals, verdicts, names."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from benchmarks.proof.analysis import Cell, Comparison, Findings
from benchmarks.proof.protocol import BASELINE, World
from benchmarks.proof.statistics import SURE, Estimate
from benchmarks.proof.worlds import base_name


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown, without a line end after its last row."""
    lines = [f"| {' | '.join(row)} |" for row in (columns, *rows)]
    return "\n".join([lines[0], "|" + "---|" * len(columns), *lines[1:]])


def data_name(world: World) -> str:
    """A world's name, and what stands for full in it."""
    known = base_name(world.name)
    return known if world.baseline == BASELINE else f"{known}, full being {world.baseline}"


def run_at(world: World, arm: str) -> str:
    """The budgets at which an arm is run."""
    return ", ".join(f"{budget:g}" for budget in world.budgets_of(arm))


def arm_name(arm: str, findings: Findings) -> str:
    """An arm; the headline in bold."""
    return f"**{arm}**" if arm == findings.world.headline else arm


def unit(world: World) -> str:
    """What is measured, and in what."""
    return f"{world.metric}, %" if world.percent else world.metric


def scaled(world: World, value: float, *, signed: bool) -> str:
    """A figure of the metric, in percent where that is its unit."""
    value = 100 * value if world.percent else value
    digits = 2 if world.percent else 4
    return f"{value:+.{digits}f}" if signed else f"{value:.{digits}f}"


def quality(world: World, estimate: Estimate) -> str:
    """The metric with its interval."""
    return bracketed(estimate, lambda value: scaled(world, value, signed=False))


def difference(world: World, comparison: Comparison | None) -> str:
    """A paired difference with its interval; nothing if there is none."""
    if comparison is None:
        return ""
    return signed(world, comparison.difference)


def signed(world: World, estimate: Estimate) -> str:
    """A difference of the metric with its interval, signs in front."""
    return bracketed(estimate, lambda value: scaled(world, value, signed=True))


def bracketed(estimate: Estimate, say: Callable[[float], str]) -> str:
    """An estimate with its interval, each as ``say`` says it."""
    if math.isnan(estimate.low):
        return say(estimate.value)
    return f"{say(estimate.value)} [{say(estimate.low)}, {say(estimate.high)}]"


def verdict(comparison: Comparison | None) -> str:
    """The p-value, and what the difference is called."""
    if comparison is None:
        return ""
    return f"{p_value(comparison.p)} {called(comparison)}".strip()


def called(comparison: Comparison) -> str:
    """What a difference is called, if it is sure."""
    return ("better" if comparison.better else "worse") if comparison.p < SURE else ""


def difference_called(world: World, comparison: Comparison | None) -> str:
    """A paired difference with its interval, and what it is called; nothing if there is none."""
    if comparison is None:
        return ""
    return f"{difference(world, comparison)} {called(comparison)}".strip()


def not_worse(cell: Cell, *, with_power: bool = False) -> str:
    """Whether an arm is no worse than full, and its p; beside a no its power, if that is asked."""
    if cell.against_full is None:
        return ""
    p = cell.against_full.p
    if p < SURE:
        return f"yes ({p_value(p)})"
    return f"no ({p_value(p)}; power {power(cell)})" if with_power else f"no ({p_value(p)})"


def power(cell: Cell) -> str:
    """The power of the test of being no worse; nothing if there is none."""
    if cell.against_full is None or math.isnan(cell.against_full.power):
        return ""
    return f"{cell.against_full.power:.2f}"


def p_value(p: float) -> str:
    """A p-value to three places."""
    return f"{p:.3f}" if p >= 0.001 else "<0.001"


def percent(estimate: Estimate, at_floor: bool) -> str:
    """A share saved, in percent."""
    return reached(estimate, "at least " * at_floor, lambda v: f"{100 * v:.0f}", " %")


def budget_needed(estimate: Estimate, at_floor: bool, budgets: Sequence[float]) -> str:
    """A share of the budget; where it is not reached, that it is over the largest that was run."""
    never = "not reached" if max(budgets) >= 1 else f"over {max(budgets):.2f}"
    return reached(estimate, "at most " * at_floor, lambda v: f"{v:.2f}", never=never)


def reached(
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

    return f"{more}{bracketed(estimate, say)}{unit}"
