"""One self-contained HTML page, its pictures inside and beside it as PNG."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from attent.pipeline.checkpoint import write_atomically
from attent.pipeline.plan import TRAIN_COST
from attent.pipeline.source import Source
from attent.tasks.build import Run
from attent.tasks.command import Passage
from attent.tasks.commands import COMMANDS, Measure
from attent.tasks.config import as_dict
from attent.tasks.folder import RunFolder, make_folder
from attent.tasks.report import figures
from attent.tasks.report.history import History, load_history
from attent.tasks.run import load_trained

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 60rem; margin: 2rem auto;
       padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.2rem; margin-top: 2.2rem; }
img { max-width: 100%; height: auto; display: block; margin: .6rem 0; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
.wide { overflow-x: auto; }
td, th { padding: .25rem .7rem; border-bottom: 1px solid #ddd; text-align: right; }
th:first-child, td:first-child { text-align: left; }
details { margin: .6rem 0; } pre { background: #f5f5f5; padding: .7rem; overflow-x: auto; }
p.note { color: #555; }
"""


def write_report(folders: Sequence[RunFolder], report_dir: str | None) -> Path:
    """Write ``report.html`` and PNGs of one run, or of several compared.

    Args:
        folders: run folders.
        report_dir: where; None for ``report/`` in the first run's folder.

    Returns:
        The page's path.

    Raises:
        ConfigError: a folder has nothing to report.
    """
    runs = _named_apart([load_history(folder) for folder in folders])
    where = Path(report_dir) if report_dir else folders[0].path / "report"
    make_folder(where, "report_dir")
    sections = [
        "<h2>Results</h2>",
        _table(runs),
        '<p class="note">A forward counts 1, a backward 2, scoring included. Cost: in epochs of '
        "plain training, to compare runs by. Compute saved: against as many passes over everything "
        "as this run made, which is not the same as against another run here. Held-out figures of "
        "the last evaluation; best is over all evaluations, and so is optimistic.</p>",
        embedded(
            figures.learning_curves(runs, COMMANDS[runs[0].command].measures[0]),
            "Loss and quality",
            where / "learning_curves.png",
        ),
        *_parts(runs, where),
    ]
    for run in runs:
        sections += _run_section(run, where, prefix="" if len(runs) == 1 else f"{run.name}_")
    title = f"attent: {', '.join(run.name for run in runs)}"
    path = where / "report.html"
    write_page(path, title, sections)
    return path


def write_page(path: Path, title: str, sections: Iterable[str], style: str = "") -> None:
    """Write a self-contained page.

    Args:
        path: of the file.
        title: of the page, as text.
        sections: what is below the title, as HTML.
        style: CSS beside what all pages have.
    """
    name = html.escape(title)
    page = (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{name}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{STYLE}{style}</style>'
        f"<h1>{name}</h1>{''.join(sections)}</html>\n"
    )
    write_atomically(path, page.encode())


def embedded(figure: Figure, description: str, file: Path | None = None) -> str:
    """A figure as an image that a page holds inside.

    Args:
        figure: what is drawn.
        description: for those who do not see it.
        file: a PNG that it is written to as well; None for none.
    """
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    if file is not None:
        file.write_bytes(buffer.getvalue())
    data = base64.b64encode(buffer.getvalue()).decode()
    return f'<img alt="{html.escape(description)}" src="data:image/png;base64,{data}">'


def _run_section(run: History, where: Path, prefix: str) -> list[str]:
    command = COMMANDS[run.command]
    trained, source, gone = _made_again(run)
    parts: list[tuple[str, Figure | None, str]] = [
        ("schedule", figures.schedule(run), "Ratio and interval"),
        ("scores", figures.score_distributions(run), "Distribution of scores at each selection"),
        ("selections", figures.selection_map(run), "Which examples were selected when"),
        (
            "examples",
            figures.extremes(run, source, command.thumbnails)
            if source is not None and command.thumbnails is not None
            else None,
            "Most and least selected examples",
        ),
    ]
    passages = _extremes(run, source, command.text)
    try:
        if trained is not None and command.pictures is not None:
            parts += command.pictures(trained)
        if trained is not None and command.passages is not None:
            passages += command.passages(trained, run.config)
    except (ValueError, RuntimeError) as error:  # out of memory too: the run itself is done
        gone = f"Nothing by the model: {error}"
    section = [f"<h2>{html.escape(run.name)}</h2>"]
    for name, figure, description in parts:
        if figure is not None:
            section.append(embedded(figure, description, where / f"{prefix}{name}.png"))
    section += [_passage(passage) for passage in passages]
    if gone:
        section.append(f'<p class="note">{html.escape(gone)}</p>')
    if not any(selection.is_subset for selection in run.selections):
        section.append('<p class="note">Everything was trained on all the time.</p>')
    options = "\n".join(f"{k}: {v}" for k, v in as_dict(run.config).items())
    section.append(
        f"<details><summary>options</summary><pre>{html.escape(options)}</pre></details>"
    )
    return section


def _made_again(run: History) -> tuple[Run | None, Source | None, str]:
    """What is left of what a run was made of.

    Returns:
        The run with its last checkpoint, where its command shows what the model makes of examples;
        the training examples; and what is missing and why, or nothing.
    """
    command, gone = COMMANDS[run.command], ""
    if command.pictures is not None or command.passages is not None:
        try:
            trained, _ = load_trained(run.folder)
            return trained, trained.source, ""
        except ValueError as error:
            gone = f"Nothing by the model: {error}"
    try:
        return None, command.load_data(run.config)[0], gone
    except ValueError as error:
        return None, None, gone or f"No pictures of examples: {error}"


def _extremes(
    run: History, source: Source | None, text: Callable[[Any, int], str] | None, show: int = 5
) -> list[Passage]:
    """The examples trained on most and least, as texts."""
    if source is None or text is None:
        return []
    rows, index, times = figures.most_and_least(run, show)
    return [
        Passage(
            title=f"{name.capitalize()} selected",
            parts=tuple((f"{times[i]:.0f} passes", text(source, int(index[i]))) for i in chosen),
        )
        for name, chosen in rows
    ]


def _passage(passage: Passage) -> str:
    parts = "".join(
        f"<p>{html.escape(name)}</p><pre>{html.escape(text)}</pre>" for name, text in passage.parts
    )
    return f"<h3>{html.escape(passage.title)}</h3>{parts}"


def _table(runs: Sequence[History]) -> str:
    # A column for each figure that some run has; the first of each command also at its best.
    first = {COMMANDS[run.command].measures[0] for run in runs}
    measures = [
        measure
        for measure in {m: None for run in runs for m in COMMANDS[run.command].measures}
        if measure in first or any(_has(run, measure) for run in runs)
    ]
    texts = any(run.log[-1].get("tokens") for run in runs)
    heads = [
        "run", "method", "examples", *["tokens"] * texts, "scored", "steps", "cost in epochs",
        "compute saved", "seconds",
    ]  # fmt: skip
    for measure in measures:
        heads += [measure.title, "best"] if measure in first else [measure.title]
    return _as_table(heads, [_row(run, measures, first, texts) for run in runs])


def _parts(runs: Sequence[History], where: Path) -> list[str]:
    """The parts of what was measured, where a command has them: a table and a picture."""
    measures = [
        measure
        for measure in {m: None for run in runs for m in COMMANDS[run.command].parts}
        if any(_has(run, measure) for run in runs)
    ]
    figure = figures.parts_of_quality(runs, measures)
    if figure is None:
        return []
    rows = [[run.name, *(_last(run, measure) for measure in measures)] for run in runs]
    return [
        "<h2>Held-out figures by part</h2>",
        _as_table(["run", *(measure.title for measure in measures)], rows),
        embedded(figure, "Held-out figures by part", where / "parts.png"),
    ]


def _as_table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    body = "".join(
        "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows
    )
    head = "".join(f"<th>{html.escape(name)}</th>" for name in heads)
    return f'<div class="wide"><table><tr>{head}</tr>{body}</table></div>'


def _last(run: History, measure: Measure) -> str:
    (values,) = run.series(measure.metric)
    return measure.text(values[-1]) if values.size else "-"


def _has(run: History, measure: Measure) -> bool:
    return any(line.get(measure.metric) is not None for line in run.log)


def _cost(run: History) -> float:
    """Of a run in epochs of plain training: in tokens where its budget is, else in examples."""
    last: dict[str, Any] = run.log[-1]
    tokens = last.get("pass_tokens", 0)
    unit = "_tokens" if tokens else ""
    spent = last["forwarded" + unit] + (TRAIN_COST - 1) * last["backwarded" + unit]
    return spent / (TRAIN_COST * (tokens or run.selections[0].num_examples))


def _row(
    run: History, measures: Sequence[Measure], first: Collection[Measure], texts: bool
) -> list[str]:
    last: dict[str, Any] = run.log[-1]
    held_out = []
    for measure in measures:
        held_out.append(_last(run, measure))
        if measure in first:
            (values,) = run.series(measure.metric)
            best = max if measure.larger_is_better else min
            held_out.append(measure.text(best(values)) if values.size else "-")
    method = run.config.method
    if run.config.has_strategy:
        method += f", {run.config.selection_strategy}"
    return [
        run.name,
        method,
        f"{last['seen']:,}",
        *[f"{last.get('tokens', 0):,}"] * texts,
        f"{last['forwarded'] - last['seen']:,}",
        f"{last['step']:,}",
        f"{_cost(run):.1f}",
        f"{last['saved']:.1%}",
        f"{last['seconds']:.1f}",
        *held_out,
    ]


def _named_apart(runs: list[History]) -> list[History]:
    """Runs of one folder name are told apart by number."""
    seen: dict[str, int] = {}
    apart = []
    for run in runs:
        seen[run.name] = seen.get(run.name, 0) + 1
        name = run.name if seen[run.name] == 1 else f"{run.name} ({seen[run.name]})"
        apart.append(History(name, run.folder, run.command, run.config, run.log, run.selections))
    return apart
