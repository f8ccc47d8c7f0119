"""The proof's pictures: quality against budget, and what is saved."""

from __future__ import annotations

import math
from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from attent.tasks.report.figures import STYLE
from benchmarks.proof.analysis import Cell, Comparison, Findings
from benchmarks.proof.statistics import Estimate

BLUE, ORANGE, GREY = "#3b6fb6", "#d1662f", "#6b6b6b"
COLUMNS = 4


def curves(findings: Findings) -> Figure:
    """Quality against what was spent: a picture an arm, each with the shortened full behind it.

    Bars are intervals of the paired difference from full at the same budget, the band those of the
    shortened full from full at budget 1.
    """
    world = findings.world
    scale = 100 if world.percent else 1
    arms = [arm for arm in world.arms if any(cell[0] == arm for cell in findings.cells)]
    columns = min(COLUMNS, max(1, len(arms)))
    lines = max(1, math.ceil(len(arms) / columns))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(2.5 * columns + 1.2, 2.2 * lines + 0.9), layout="constrained")
        axes = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False)
        full = findings.cells.get((world.baseline, 1.0))
        for i, ax in enumerate(axes.flat):
            if i >= max(1, len(arms)):
                ax.set_axis_off()
                continue
            _baseline(ax, _line(findings, world.baseline), world.baseline, scale)
            if full is not None:
                aim = full.quality.value - world.margin * (1 if world.higher_is_better else -1)
                ax.axhline(
                    scale * aim,
                    color=GREY,
                    lw=0.8,
                    ls="--",
                    label=f"{world.baseline} less the margin",
                )
            if arms:
                _arm(ax, _line(findings, arms[i]), scale)
                ax.set_title(arms[i] + (" (headline)" if arms[i] == world.headline else ""))
            if i >= len(arms) - columns:
                ax.tick_params(labelbottom=True)
        unit = f"{world.metric}, %" if world.percent else world.metric
        figure.supylabel(f"test {unit}", fontsize=9)
        figure.supxlabel("spent, scoring included (1 = full training)", fontsize=9)
        handles, labels = axes.flat[0].get_legend_handles_labels()
        figure.legend(
            handles,
            labels,
            loc="outside upper center",
            ncols=3,
            title=f"95 % of differences from {world.baseline}: bars at that budget, band at 1",
            title_fontsize=8,
        )
        return figure


def differences(findings: Findings) -> Figure:
    """Of a world whose arms are run at one budget: each less the shortened full, the best first."""
    world = findings.world
    (budget,) = world.budgets
    scale = 100 if world.percent else 1
    found = {
        arm: cell.against_short.difference
        for (arm, _), cell in findings.cells.items()
        if cell.against_short is not None
    }
    sign = 1 if world.higher_is_better else -1
    order = sorted(found, key=lambda arm: -sign * found[arm].value)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7, 1.0 + 0.22 * len(order)), layout="constrained")
        ax = figure.subplots()
        for y, arm in enumerate(order):
            it = found[arm]
            ax.plot(scale * it.value, y, "o", color=BLUE, ms=4)
            if math.isfinite(it.low):
                ax.plot([scale * it.low, scale * it.high], [y, y], color=BLUE, lw=1.6)
        ax.axvline(0, color=GREY, lw=1)
        names = [arm + (" (headline)" if arm == world.headline else "") for arm in order]
        ax.set_yticks(range(len(order)), names)
        ax.set_ylim(len(order) - 0.4, -0.6)
        unit = f"{world.metric}, points" if world.percent else world.metric
        ax.set_xlabel(f"test {unit}: arm less {world.baseline}, both at {budget:g} of the budget")
        ax.grid(axis="y", visible=False)
        ax.tick_params(axis="y", length=0)
        return figure


def _line(findings: Findings, arm: str) -> list[Cell]:
    found = [cell for (name, _), cell in findings.cells.items() if name == arm]
    return sorted(found, key=lambda cell: cell.units)


def _baseline(ax: Axes, line: Sequence[Cell], name: str, scale: float) -> None:
    units = [cell.units for cell in line]
    values = np.array([scale * cell.quality.value for cell in line])
    below, above = _reach(line, [cell.against_full for cell in line], scale)
    ax.plot(units, values, ".-", color=GREY, lw=1.2, label=f"{name}, shortened")
    ax.fill_between(units, values - below, values + above, color=GREY, alpha=0.18, lw=0)


def _arm(ax: Axes, line: Sequence[Cell], scale: float) -> None:
    ax.errorbar(
        [cell.units for cell in line],
        [scale * cell.quality.value for cell in line],
        _reach(line, [cell.against_short for cell in line], scale),
        fmt="o-",
        ms=3.5,
        lw=1.4,
        elinewidth=1,
        color=BLUE,
        label="the arm",
    )


def _reach(line: Sequence[Cell], compared: Sequence[Comparison | None], scale: float) -> np.ndarray:
    """[2, K] how far the interval of a paired difference reaches below and above its mean.

    Seeds differ more than arms do: the interval of an arm's own mean would hide what pairs show.
    """
    ends = np.zeros((2, len(line)))
    for i, comparison in enumerate(compared):
        if comparison is not None:
            found = comparison.difference
            ends[:, i] = scale * (found.value - found.low), scale * (found.high - found.value)
    return np.nan_to_num(ends).clip(0)


def savings(all_findings: Sequence[Findings]) -> Figure:
    """What every arm saves at full's quality, against full and against the shortened one.

    Of worlds whose arms are run at several budgets.
    """
    rows = [
        (findings.world.name, arm)
        for findings in all_findings
        if findings.world.has_curves
        for arm in _by_saving(findings)
        if arm != findings.world.baseline
    ]
    by_name = {findings.world.name: findings for findings in all_findings if findings.saved}
    with matplotlib.rc_context(STYLE):
        height = 1.3 + 0.2 * (len(rows) + 2 * len(by_name))
        figure = Figure(figsize=(9, height), layout="constrained")
        left, right = figure.subplots(1, 2, sharey=True)
        place, ticks, heads, lines = 0.0, {}, [], []
        for i, (world, arm) in enumerate(rows):
            if i == 0 or rows[i - 1][0] != world:
                place += 1.3
                heads.append(len(ticks))
                ticks[place] = world
            place += 1
            lines.append((place, by_name[world].saved[arm]))
            ticks[place] = arm + (" (headline)" if arm == by_name[world].world.headline else "")
        left.set_yticks(list(ticks), list(ticks.values()))
        for i in heads:
            left.get_yticklabels()[i].set_fontweight("bold")
        left.set_ylim(place + 1, 0.3)
        for ax, color, entry, title in (
            (left, BLUE, "against_full", "against full"),
            (right, ORANGE, "against_short", "against full, shortened"),
        ):
            estimates = [(y, getattr(found, entry)) for y, found in lines]
            for y, estimate in estimates:
                _interval(ax, y, estimate, color)
            ax.axvline(0, color=GREY, lw=1)
            low, high = ax.get_xlim()
            ax.set_xlim(max(-100.0, min(low, -14.0)), max(high, 30.0))
            for y, estimate in estimates:
                _unreached(ax, y, estimate, color)
            ax.set(title=title, xlabel="budget saved at full's quality, %")
            ax.grid(axis="y", visible=False)
            ax.tick_params(axis="y", length=0)
        return figure


def _by_saving(findings: Findings) -> list[str]:
    return sorted(findings.saved, key=lambda arm: -findings.saved[arm].against_full.value)


def _interval(ax: Axes, y: float, estimate: Estimate, color: str) -> None:
    if math.isfinite(estimate.value):
        ax.plot(100 * estimate.value, y, "o", color=color, ms=4)
    if math.isfinite(estimate.low) and math.isfinite(estimate.high):
        ax.plot([100 * estimate.low, 100 * estimate.high], [y, y], color=color, lw=1.6)


def _unreached(ax: Axes, y: float, estimate: Estimate, color: str) -> None:
    """Where full's quality is not reached, by the arm or in its interval, drawn to the edge."""
    edge = ax.get_xlim()[0]
    if estimate.value == -math.inf:
        ax.text(edge, y, " not reached", va="center", color=GREY, fontsize=7.5)
    elif estimate.low == -math.inf and math.isfinite(estimate.high):
        ax.plot([edge, 100 * estimate.high], [y, y], color=color, lw=1.6)
        ax.plot(edge, y, "<", color=color, ms=5, clip_on=False)
