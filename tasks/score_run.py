"""``attent score``: a data set scored by a run's model, as a table and a page to look at."""

from __future__ import annotations

import contextlib
import dataclasses
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)

from attent.pipeline import ExampleError, Signal, Source, Task, processes
from attent.pipeline.signals import SIGNALS
from attent.tasks.build import Run, loading_of
from attent.tasks.classification.config import ClassifyConfig
from attent.tasks.commands import COMMANDS
from attent.tasks.config import ConfigError, need
from attent.tasks.data.dropped import Dropped, told
from attent.tasks.data.named import is_named, refuse_ambiguous
from attent.tasks.data.scenes import SCENE_CLASSES
from attent.tasks.data.shards.damaged import damaged_of
from attent.tasks.detection import Detection
from attent.tasks.folder import RunFolder, make_folder
from attent.tasks.language import InstructionTuning
from attent.tasks.language.config import PACKED_SIGNALS
from attent.tasks.launch import session
from attent.tasks.lost import noticing_the_lost
from attent.tasks.measure import same_form
from attent.tasks.report.scores import write_scores_page
from attent.tasks.run import load_trained
from attent.tasks.scored import Scored
from attent.tasks.scoring import Tell, score_dataset, signals_of
from attent.tasks.table_files import ending, write_table

Split = Literal["train", "val"]


@dataclass(frozen=True, kw_only=True)
class ScoreConfig:
    """What is scored, and where it is written.

    Attributes:
        data: another data set; None for the run's own.
        split: train, or val; of rows of text that are not the run's own, train is all of them.
        signals: names of what is measured.
        out: the table, ending in .parquet, .csv or .jsonl; None for scores.parquet in the run's
            folder. The page lies beside it and has its name, but for the ending.
        overwrite: replace what is there.
        page: write the page.
        batch_size: examples in one forward; None for the run's own.
        best: the best checkpoint instead of the last.
        device: auto, cpu, cuda or cuda:N.
        skip_unreadable: leave examples that cannot be read without scores; also where the run does.
    """

    data: str | None = None
    split: Split = "train"
    signals: Sequence[str] = ("loss",)
    out: str | None = None
    overwrite: bool = False
    page: bool = True
    batch_size: int | None = None
    best: bool = False
    device: str = "auto"
    skip_unreadable: bool = False


def score_run(
    folder: RunFolder, config: ScoreConfig, tell: Tell | None = None
) -> tuple[Scored, list[Path]]:
    """Score a data set by a run's model and write what was found.

    Args:
        folder: of the run.
        config: what is scored.
        tell: told after each batch how many examples are measured, and of how many.

    Where a launcher has started several processes, all of them call it: they share the batches out,
    and the main one alone writes and speaks.

    Returns:
        The scores, and the files that this process has written: the table, and the page if one was
        asked for.

    Raises:
        ConfigError: an option that cannot be, a file that is there already, or a run that cannot be
            built again.
        CheckpointError: the run has no usable checkpoint.
        ExampleError: an example that cannot be read, or whose score is not finite.
        ValueError: data that are not as the run's are.
    """
    command, options = folder.load_config()
    refuse_ambiguous(command, config.data)
    signals_of(config.signals)
    need(config, "batch_size", lambda v: v is None or v >= 1, "at least 1, or null")
    skip = config.skip_unreadable or options.skip_unreadable
    options = dataclasses.replace(options, skip_unreadable=skip, device=config.device)
    with noticing_the_lost(), session(options):
        world = processes()
        # Before the work, of which they are the end.
        files = world.on_main(lambda: _files(folder, options, config))
        run, step = world.main_first(lambda: _trained(folder, config))
        source = world.main_first(lambda: _source(command, options, run, config))
        about = {
            "model": str(folder.path),
            "step": step,
            "checkpoint": "best" if config.best else "last",
            "data": config.data or options.data,
            "split": config.split,
        }
        with _saying_how_to_skip(skip):
            scored = score_dataset(
                run.task,
                source,
                _measurable(run.task, config.signals),
                state=run.state,
                batch_size=config.batch_size or options.score_batch_size,
                chunk=options.score_chunk,
                loading=loading_of(options),
                classes=_classes(source, options, config),
                about=about,
                trained_on=_trained_on(command, options, config),
                tell=tell,
            )
        scored = dataclasses.replace(scored, notes=_left_out(source))

        def write() -> None:
            write_table(files[0], scored.schema, scored.batches())
            if config.page:
                named = COMMANDS[command]
                write_scores_page(files[1], scored, thumbnails=named.thumbnails, text=named.text)

        world.on_main(write)
        return scored, files if world.main else []


def _trained(folder: RunFolder, config: ScoreConfig) -> tuple[Run, int]:
    """The run with its checkpoint's weights, and the step of that."""
    try:
        return load_trained(folder, best=config.best, device=config.device)
    except ConfigError as error:
        if config.data is None or not str(error).startswith("data: "):
            raise
        why = str(error).removeprefix("data: ")
        raise ConfigError(
            f"model: {folder.path} is built again of what it was trained on too: {why}"
        ) from error


def _trained_on(command: str, options: Any, config: ScoreConfig) -> bool | None:
    """Whether the run was trained on what is scored; None if nobody knows."""
    if config.data is not None and not _same(config.data, options.data):
        return None
    if config.data is not None and hasattr(options, "held_out_data"):
        whole = config.split == "val" and not is_named(command, config.data)
        return None if whole else config.split == "train"  # val may be all of the rows
    return config.split == "train"


def _same(data: str, other: str | None) -> bool:
    """Whether two names of data are of the same file or folder."""
    return other is not None and (data == other or Path(data).resolve() == Path(other).resolve())


def _left_out(source: Source) -> list[str]:
    """What is not scored, as it is not among the examples."""
    rows = [one for one in getattr(source, "dropped", ()) if isinstance(one, Dropped)]
    notes = [told(rows, len(source))] if rows else []
    shards = damaged_of(source)
    return notes + [f"a shard cannot be read and is left out: {one.reason}" for one in shards]


def _measurable(task: Task, names: Sequence[str]) -> list[Signal]:
    """The signals of these names, as training takes them for this task."""
    signals = signals_of(names)
    if isinstance(task, Detection):
        for name in ("vmap_grad_norm", "last_layer"):
            if name in names:
                raise ConfigError(
                    f"signals: {name} needs a model whose rows are examples, and regions are not; "
                    "take loss, output_grad_norm or grad_norm (one example at a time)"
                )
        looped = dataclasses.replace(SIGNALS["looped_grad_norm"], name="grad_norm")
        return [looped if signal.name == "grad_norm" else signal for signal in signals]
    if isinstance(task, InstructionTuning) and task.packing:
        for name in names:
            if name not in PACKED_SIGNALS:
                raise ConfigError(
                    f"signals: the run is packed, and in packed rows there is no gradient of one "
                    f"example, which {name} is made of; take loss or output_grad_norm"
                )
    return signals


@contextlib.contextmanager
def _saying_how_to_skip(skips: bool) -> Iterator[None]:
    """Add to the error of an example that cannot be read what can be done about it."""
    try:
        yield
    except ExampleError as error:
        if skips or "cannot be fetched" not in str(error):
            raise
        hint = "with --skip_unreadable it is left without scores"
        raise type(error)(f"{error}; {hint}") from error


def _files(folder: RunFolder, options: Any, config: ScoreConfig) -> list[Path]:
    """What is to be written, and can be."""
    out = Path(config.out) if config.out else folder.path / "scores.parquet"
    try:
        ending(out)
    except ValueError as error:
        raise ConfigError(f"out: {error}") from error
    files = [out, out.with_suffix(".html")] if config.page else [out]
    inputs = [config.data, options.data, getattr(options, "held_out_data", None)]
    inputs += [str(folder.log), str(folder.path / "skipped.jsonl")]
    for path in files:
        if path.is_dir():
            raise ConfigError(f"out: {path} is a folder")
        if any(_same(str(path), other) for other in inputs):
            raise ConfigError(f"out: {path} is what the run or its data are read from")
        if path.exists() and not config.overwrite:
            raise ConfigError(f"out: {path} is there already; name another file, or --overwrite it")
    make_folder(out.parent, "out")
    try:
        with tempfile.TemporaryFile(dir=out.parent):
            pass
    except OSError as error:
        raise ConfigError(f"out: nothing can be written in {out.parent}: {error}") from error
    return files


def _source(command: str, options: Any, run: Run, config: ScoreConfig) -> Source:
    """The examples that are asked for."""
    if config.data is None:
        return run.source if config.split == "train" else run.held_out
    options = dataclasses.replace(options, data=config.data)
    try:
        return _other(command, options, run, config.split)
    except ValueError as error:
        why = str(error).removeprefix("data: ")
        said = f"data: {why}" if config.data in why else f"data: {config.data}: {why}"
        raise ConfigError(said + _instead(command, options, run, config.split)) from error


def _other(command: str, options: Any, run: Run, split: Split) -> Source:
    """Other data than the run's own, of its form."""
    if split == "val":
        source = COMMANDS[command].load_held_out(options, run.held_out)
    else:
        source = COMMANDS[command].load_data(_whole(command, options))[0]
    same_form(run, source, options.data)
    return source


def _instead(command: str, options: Any, run: Run, split: Split) -> str:
    """What can be scored of data that cannot be as they were asked for."""
    if not options.skip_unreadable:
        with contextlib.suppress(ValueError):
            skipping = dataclasses.replace(options, skip_unreadable=True)
            _other(command, skipping, run, split)
            return " (--skip_unreadable leaves out what cannot be read)"
    if split == "train":
        with contextlib.suppress(ValueError):
            count = len(_other(command, options, run, "val"))
            return f" (--split val can be scored: {count:,} examples)"
    return ""


def _whole(command: str, options: Any) -> Any:
    """The options of data with nothing held out of their training split, where that can be."""
    if not hasattr(options, "held_out_data") or is_named(command, options.data):
        return options
    # What is held out then are the same rows, or others: they are not looked at.
    whole = {"dataset_split": "train", "sub_task": None, "held_out_data": options.data}
    return dataclasses.replace(options, **whole)


def _classes(source: Source, options: Any, config: ScoreConfig) -> Sequence[str] | None:
    if isinstance(options, ClassifyConfig) and (config.data or options.data) == "scenes":
        return SCENE_CLASSES
    return getattr(source, "classes", None)


@contextlib.contextmanager
def counting(console: Console | None = None) -> Iterator[Tell]:
    """What `score_run` is to tell: a bar on a terminal; elsewhere a line for each tenth.

    Args:
        console: where to; standard error by default.
    """
    console = console or Console(stderr=True)
    columns = (
        TextColumn("[bold]scored"), BarColumn(bar_width=None), MofNCompleteColumn(),
        TimeRemainingColumn(),
    )  # fmt: skip
    said = 0
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("scored", total=None)

        def tell(done: int, total: int) -> None:
            nonlocal said
            bar.update(task, completed=done, total=total)
            if not console.is_terminal and 10 * done // total > said:
                said = 10 * done // total
                # Not `print`: rich would fold it at the width of a terminal that is not there.
                console.file.write(f"{done / total:4.0%} scored {done:,} of {total:,}\n")
                console.file.flush()

        yield tell
