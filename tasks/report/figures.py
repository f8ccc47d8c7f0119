"""The report's pictures, by matplotlib."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from tensordict import TensorDict

from attent.pipeline.source import Source, fetch_one_by_one
from attent.tasks.commands import Measure
from attent.tasks.report.history import History, Selection

Thumbnails = Callable[[TensorDict], Sequence[tuple[torch.Tensor, str]]]

COLORS = ["#3b6fb6", "#d1662f", "#3d9a6b", "#8d5bb0", "#b8324e", "#6b6b6b"]
FLOOR = 1e-6
"""Scores below are drawn there where the axis is logarithmic."""
STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "legend.frameon": False,
}


def learning_curves(runs: Sequence[History], measure: Measure) -> Figure:
    """Training loss and held-out quality, against what was trained on and against seconds."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9, 5.6), layout="constrained")
        axes = figure.subplots(2, 2, sharex="col", sharey="row")
        against = [_trained(runs), ("seconds", "seconds")]
        rows = [
            ("train_loss", "training loss (running mean)"),
            (measure.metric, measure.title),
        ]
        for i, (metric, metric_name) in enumerate(rows):
            for j, (entry, entry_name) in enumerate(against):
                ax: Axes = axes[i, j]
                for run, color in zip(runs, _cycle(len(runs)), strict=True):
                    x, y = run.series(entry, metric)
                    ax.plot(x, y, color=color, lw=1.4, label=run.name)
                if not measure.percent or metric == "train_loss":
                    _scaled(ax)
                if i == 1:
                    ax.set_xlabel(entry_name)
                if j == 0:
                    ax.set_ylabel(metric_name)
        if len(runs) > 1:
            axes[0, 0].legend()
        return figure


def parts_of_quality(runs: Sequence[History], measures: Sequence[Measure]) -> Figure | None:
    """Further held-out figures, each in a picture of its own, against what was trained on."""
    if not measures:
        return None
    entry, entry_name = _trained(runs)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9, 2.6), layout="constrained")
        axes = figure.subplots(1, len(measures), squeeze=False)[0]
        for ax, measure in zip(axes, measures, strict=True):
            for run, color in zip(runs, _cycle(len(runs)), strict=True):
                x, y = run.series(entry, measure.metric)
                ax.plot(x, y, color=color, lw=1.4, label=run.name)
            if not measure.percent:
                _scaled(ax)
            ax.set_title(measure.title)
            ax.set_xlabel(entry_name)
        return figure


def _trained(runs: Sequence[History]) -> tuple[str, str]:
    """The entry of the logs that says what was trained on, and its name: tokens if all have any."""
    if all(run.log[-1].get("tokens") for run in runs):
        return "tokens", "tokens trained on"
    return "seen", "examples trained on"


def _scaled(ax: Axes) -> None:
    """A logarithmic axis for curves that span more than a power of ten; plain numbers otherwise."""
    drawn = np.concatenate([np.asarray(line.get_ydata(), float) for line in ax.lines])
    drawn = drawn[drawn > 0]
    if drawn.size and drawn.max() > 10 * drawn.min():
        ax.set_yscale("log")


def schedule(run: History) -> Figure | None:
    """The share selected over examples trained on, and the passes of each cycle; None without."""
    cycles = sorted({s.cycle for s in run.selections if s.cycle >= 0})
    if not cycles:
        return None
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9, 2.8), layout="constrained")
        left, right = figure.subplots(1, 2, width_ratios=[2, 1])
        starts = [s.seen for s in run.selections] + [run.log[-1]["seen"]]
        shares = [s.num_selected / s.num_examples for s in run.selections]
        left.stairs(shares, starts, baseline=0, fill=True, color=COLORS[0], alpha=0.35)
        left.stairs(shares, starts, baseline=None, color=COLORS[0], lw=1.4)
        left.set(ylim=(0, 1.05), xlabel="examples trained on", ylabel="share selected")
        left.set_title("ratio in force")
        passes = _passes(run)
        subset = [passes.get((c, True), 0) for c in cycles]
        full = [passes.get((c, False), 0) for c in cycles]
        names = [c + 1 for c in cycles]
        right.bar(names, subset, color=COLORS[0], label="on the subset")
        right.bar(names, full, bottom=subset, color=COLORS[0], alpha=0.3, label="on everything")
        right.set(xlabel="cycle", ylabel="passes")
        right.set_title("interval")
        right.set_ylim(0, 1.35 * max(a + b for a, b in zip(subset, full, strict=True)))
        right.legend(loc="upper left", ncols=2, fontsize=7)
        right.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
        return figure


def score_distributions(run: History) -> Figure | None:
    """The distribution of scores at each selection, and the lowest score selected."""
    scored = _of_subsets(run, need_scores=True)
    if not scored:
        return None
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9, 3.2), layout="constrained")
        ax: Axes = figure.subplots()
        values = [s.scores for s in scored]
        # Scores of much the same size are shown as they are, others by their logarithm.
        lowest = min(map(np.min, values))
        logarithmic = lowest >= 0 and max(map(np.max, values)) >= 100 * lowest
        if logarithmic:
            values = [np.log10(np.maximum(x, FLOOR)) for x in values]
        places = np.arange(1, len(scored) + 1)
        parts = ax.violinplot(values, places, widths=0.85, showextrema=False, points=200)
        for body in parts["bodies"]:  # type: ignore[union-attr]
            body.set(facecolor=COLORS[0], alpha=0.35, edgecolor=COLORS[0])
        medians = [np.median(x) for x in values]
        ax.plot(places, medians, ".-", color=COLORS[0], lw=1, label="median")
        cuts = [x[s.selected].min() for x, s in zip(values, scored, strict=True)]
        ax.plot(places, cuts, "_", color=COLORS[1], ms=16, mew=2, label="lowest selected")
        title = "scores at each selection"
        if logarithmic:
            low = int(np.floor(min(map(np.min, values))))
            high = int(np.ceil(max(map(np.max, values))))
            ax.set_yticks(range(low, high + 1), [f"{10.0**e:g}" for e in range(low, high + 1)])
            title += f" (below {FLOOR:g} drawn there)"
        ax.set_xticks(places, [_label(s, scored) for s in scored], fontsize=7)
        ax.set(xlabel="selection (cycle)", ylabel=f"score: {_signal(run)}")
        ax.set_title(title)
        ax.legend(loc="upper right", ncols=2)
        return figure


def selection_map(run: History) -> Figure | None:
    """Which examples were selected when: a row an example, those trained on most at the top."""
    subsets = _of_subsets(run)
    if not subsets:
        return None
    with matplotlib.rc_context({**STYLE, "axes.grid": False}):
        figure = Figure(figsize=(9, 4.2), layout="constrained")
        left, right = figure.subplots(1, 2, width_ratios=[3, 1])
        chosen = np.stack([s.selected for s in subsets], 1).astype(float)
        order = np.lexsort((*chosen.T[::-1], chosen.sum(1)))[::-1]
        left.imshow(chosen[order], aspect="auto", interpolation="nearest", cmap="Blues", vmax=1.25)
        places = np.arange(len(subsets))
        left.set_xticks(places, [_label(s, subsets) for s in subsets], fontsize=7)
        left.set(xlabel="selection (cycle)", ylabel="examples, most selected first")
        left.set_title("selected (blue) or not")
        counts = np.bincount(chosen.sum(1).astype(int), minlength=len(subsets) + 1)
        right.barh(np.arange(len(counts)), counts, color=COLORS[0])
        right.set(xlabel="examples", ylabel="selections it was in")
        right.set_title("how often")
        right.yaxis.get_major_locator().set_params(integer=True)
        return figure


def extremes(run: History, source: Source, thumbnails: Thumbnails, show: int = 20) -> Figure | None:
    """The examples trained on most and least, as pictures with label and passes."""
    rows, index, times = most_and_least(run, show)
    if not rows:
        return None
    columns = len(rows[0][1])
    with matplotlib.rc_context({**STYLE, "axes.grid": False}):
        per_row = min(10, columns)
        lines = -(-columns // per_row)
        figure = Figure(figsize=(9, 2.5 * lines + 0.4), layout="constrained")
        parts: Any = figure.subfigures(2, 1)
        for part, (name, chosen) in zip(parts, rows, strict=True):
            part.suptitle(f"{name} selected", fontweight="bold", fontsize=10)
            chosen = _readable(source, index, chosen)
            small = thumbnails(source.fetch(torch.from_numpy(index[chosen]))) if len(chosen) else []
            axes = part.subplots(lines, per_row, squeeze=False)
            for ax in axes.flat:
                ax.set_axis_off()
            for ax, (image, words), i in zip(axes.flat, small, chosen, strict=False):
                ax.imshow(*_picture(image))
                ax.set_title(f"{words} · {times[i]:.0f}x", fontsize=7, fontweight="normal")
        return figure


def _readable(source: Source, index: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """The chosen places whose examples can be read; a run may have passed over others."""
    torn = [i for i, _ in fetch_one_by_one(source, torch.from_numpy(index[chosen]), None)]
    return chosen[~np.isin(index[chosen], torn)]


def most_and_least(
    run: History, show: int
) -> tuple[list[tuple[str, np.ndarray]], np.ndarray, np.ndarray]:
    """Places of the examples trained on most and least among those recorded.

    Returns:
        ``most`` and ``least`` with their places, empty if nothing was left out; and of the recorded
        examples their indices and passes.
    """
    if not _of_subsets(run):
        return [], np.empty(0), np.empty(0)
    index, times = run.times_trained()
    # Of those trained on equally often, the ones with the highest (lowest) last score.
    last = next((s.scores for s in reversed(run.selections) if s.scores.size), times)
    order = np.lexsort((last, times))
    count = min(show, len(order))
    return [("most", order[::-1][:count]), ("least", order[:count])], index, times


def _picture(image: torch.Tensor) -> tuple:
    """An image scaled to [0, 1] by its own range, channels last; grey ones with a grey map."""
    low, high = image.amin(), image.amax()
    pixels = ((image - low) / (high - low).clamp_min(1e-6)).permute(1, 2, 0).numpy()
    return (pixels, None) if pixels.shape[-1] == 3 else (pixels[..., 0], "gray_r")


def _of_subsets(run: History, *, need_scores: bool = False) -> list[Selection]:
    """The selections that left something out, at most forty of them, spread evenly."""
    found = [s for s in run.selections if s.is_subset and (s.scores.size or not need_scores)]
    if len(found) > 40:
        found = [found[i] for i in np.linspace(0, len(found) - 1, 40).astype(int)]
    return found


def _passes(run: History) -> dict[tuple[int, bool], int]:
    """(cycle, on a subset) -> passes."""
    last = run.log[-1]
    end = last["passes"] + (1 if last["offset"] else 0)
    starts = [s.passes for s in run.selections] + [end]
    total: dict[tuple[int, bool], int] = {}
    for s, begin, stop in zip(run.selections, starts, starts[1:], strict=False):
        total[s.cycle, s.is_subset] = total.get((s.cycle, s.is_subset), 0) + stop - begin
    return total


def _label(selection: Selection, among: Sequence[Selection]) -> str:
    """The cycle; where a cycle selects several times, on the first of them only."""
    first = next(s for s in among if s.cycle == selection.cycle)
    return str(selection.cycle + 1) if first is selection else ""


def _signal(run: History) -> str:
    observed = run.config.observed
    return run.config.selected_by if observed is None else f"{observed} (observed)"


def _cycle(count: int) -> list[str]:
    return [COLORS[i % len(COLORS)] for i in range(count)]
