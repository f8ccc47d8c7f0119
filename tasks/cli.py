"""The command line: ``attent COMMAND``; its options are in `attent.tasks.parsers`."""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import os
import sys
import warnings
from collections.abc import Callable, Sequence

from jsonargparse import ArgumentParser, Namespace
from rich.console import Console

from attent.pipeline import AgreedError
from attent.pipeline.keys import find
from attent.pipeline.plan import TRAIN_COST, Plan
from attent.pipeline.stream import num_batches
from attent.tasks.config import ConfigError, without_effect
from attent.tasks.launch import is_main
from attent.tasks.lost import LostProcessError, noticing_the_lost, terminable
from attent.tasks.parsers import parser
from attent.tasks.words import (
    asked_for,
    config_files,
    explain,
    given_options,
    one_name,
    readable,
)

_console = Console(stderr=True)

EXIT_WRONG_INPUT = 2
EXIT_LOST = 3
EXIT_INTERRUPTED = 130


def say(message: str) -> None:
    """Tell the user, on standard error, one line as it is."""
    _console.print(message, highlight=False, markup=False, soft_wrap=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns its exit status.

    0: done. 2: wrong input, explained in a line or two. 3: another process of
    the run is gone. 130: interrupted, saved.
    """
    warnings.showwarning = _show_warning
    with terminable():  # also while it says what has gone wrong
        return _done(list(sys.argv[1:] if argv is None else argv))


def _done(argv: list[str]) -> int:
    """Run a command, and say what goes wrong with it; its exit status."""
    try:
        planning, argv = rewritten(argv)
        top = parser()
        try:
            parsed = top.parse_args(one_name(argv))
        except argparse.ArgumentError as error:
            raise ValueError(readable(str(error), argv, _options(top, argv))) from error
        given = parsed[parsed.command]
        if planning:
            return _plan(given, parsed.command, argv)
        if parsed.command in _OTHERS:
            return _OTHERS[parsed.command](given)
        return _train(given, parsed.command, argv)
    except AgreedError as error:
        if is_main():  # it speaks for all
            say("error: " + explain(str(error), argv))
        return EXIT_WRONG_INPUT
    except LostProcessError as error:
        say(f"error: {_which()}{error}")
        return EXIT_LOST
    except ValueError as error:
        say(f"error: {_which()}{explain(str(error), argv)}")
        return EXIT_WRONG_INPUT
    except KeyboardInterrupt as stop:
        goes_on = str(stop) or "attent resume RUN"
        say(
            f"{_which()}stopped at once; what was saved last is whole: {goes_on} goes on from there"
        )
        return EXIT_INTERRUPTED


def _which() -> str:
    """Which process speaks, where it is not the main one."""
    return "" if is_main() else f"process {os.environ['RANK']}: "


def _options(top: ArgumentParser, argv: Sequence[str]) -> list[str]:
    """Names of the options that the command of a command line takes."""
    commands = top._subcommands_action
    command = commands.choices.get(argv[0]) if commands is not None and argv else None
    flags = [] if command is None else [a.option_strings for a in command._actions]
    # A list may be added to, by its name with a plus.
    named = [[name for name in names if not name.endswith("+")] for names in flags]
    return [names[-1].removeprefix("--") for names in named if names and "--help" not in names]


def rewritten(argv: Sequence[str]) -> tuple[bool, list[str]]:
    """Whether a plan is asked for, and the command line as the parser wants it.

    ``plan [COMMAND] [FILE]`` is the command line of that COMMAND; ``classify`` with the options of
    text that of ``classify_text``.
    """
    from attent.tasks.commands import COMMANDS

    if list(argv[:1]) != ["plan"] or list(argv[1:]) in (["--help"], ["-h"]):
        return False, _files_first(_as_meant(argv))
    named = argv[1] if argv[1:] and argv[1] in COMMANDS else None
    rest = list(argv[2:] if named else argv[1:])
    if rest and not rest[0].startswith("-"):
        rest = ["--config", *rest]
    return True, _files_first(_as_meant([named or _command_of(rest), *rest]))


def _as_meant(argv: Sequence[str]) -> list[str]:
    """The command line with the command that its options mean in place of the one it names."""
    from attent.tasks.commands import meant

    return [meant(argv[0], given_options(argv)), *argv[1:]] if argv else []


def _command_of(argv: Sequence[str]) -> str:
    """The command that knows most of the options given; the first of several.

    Raises:
        ConfigError: they fit two that do other things with the same texts.
    """
    from attent.tasks.commands import COMMANDS

    given = set(given_options(argv))
    known = {name: len(given & command.options) for name, command in COMMANDS.items()}
    # The one that knows most of them, so that its error names the key that is wrong.
    best = [name for name, count in known.items() if count == max(known.values())]
    if set(best) == {"instruct", "classify_text"}:
        raise ConfigError(
            f"the options fit attent {' and '.join(best)} alike: name the one that is meant, such "
            f"as attent plan {best[0]} {' '.join(config_files(argv))}"
        )
    return best[0]


def _files_first(argv: list[str]) -> list[str]:
    """The command line with ``--config FILE`` first: flags win over it wherever it stood."""
    files, others = [], []
    words = iter(argv)
    for word in words:
        if word == "--config":
            files += [word, *itertools.islice(words, 1)]
        elif word.startswith("--config="):
            files.append(word)
        else:
            others.append(word)
    return [*others[:1], *files, *others[1:]]


def _show_warning(message: Warning | str, category: type, filename: str, *rest: object) -> None:
    say(f"warning: {message}")


def _config_of(parsed: Namespace, command: str) -> object:
    from attent.tasks.commands import COMMANDS

    named = COMMANDS[command]
    return named.config(**{name: parsed[name] for name in named.options})


def _train(parsed: Namespace, command: str, argv: Sequence[str]) -> int:
    from attent.tasks.run import start

    config = _config_of(parsed, command)
    for warning in without_effect(config, asked_for(argv)) if is_main() else ():
        say(f"warning: {warning}")
    return _finish(*start(command, config, say))


def _resume(parsed: Namespace) -> int:
    from attent.tasks.run import resume

    return _finish(*resume(parsed.run, say, allow_previous=parsed.allow_previous))


def _finish(state: object, folder: object) -> int:
    with noticing_the_lost(str(folder.path)):  # type: ignore[attr-defined]
        return _told(state, folder)


def _told(state: object, folder: object) -> int:
    """What came of a run; its exit status."""
    from attent.pipeline.fit import finished
    from attent.tasks.commands import COMMANDS
    from attent.tasks.report.page import write_report

    if not is_main():
        return 0 if finished(state) else EXIT_INTERRUPTED  # type: ignore[arg-type]
    if not finished(state):  # type: ignore[arg-type]
        say(f"stopped and saved; go on with: attent resume {folder.path}")  # type: ignore[attr-defined]
        return EXIT_INTERRUPTED
    measure = COMMANDS[folder.load_config()[0]].measures[0]  # type: ignore[attr-defined]
    value = find(state, ("metrics", measure.metric))  # type: ignore[arg-type]
    if value is not None:
        say(f"{measure.title} {measure.text(float(value))}")  # type: ignore[arg-type]
    page = write_report([folder], None)  # type: ignore[list-item]
    say(f"run folder {folder.path}\nreport {page}")  # type: ignore[attr-defined]
    return 0


def _report(parsed: Namespace) -> int:
    from attent.tasks.folder import load_runs
    from attent.tasks.report.page import write_report

    page = write_report(load_runs(parsed.runs), parsed.report_dir)
    say(f"report {page}")
    return 0


def _plan(parsed: Namespace, command: str, argv: Sequence[str]) -> int:
    from attent.tasks.commands import COMMANDS
    from attent.tasks.data.named import refuse_ambiguous
    from attent.tasks.selection import OWN_RULE

    config = _config_of(parsed, command)
    refuse_ambiguous(command, config.data)  # type: ignore[attr-defined]
    run = COMMANDS[command].build(config, initial=False)
    params = sum(value.numel() * value.element_size() for value in run.state["params"].values())
    held = sum(v.numel() * v.element_size() for v in run.state.flatten_keys().values())
    sys.stdout.write(plan_text(run.plan, config.batch_size))  # type: ignore[attr-defined]
    sys.stdout.write(
        f"state in memory and in each checkpoint: {held / 2**20:.1f} MiB, of which parameters "
        f"{params / 2**20:.1f} MiB\n"
    )
    for warning in [*without_effect(config, asked_for(argv)), *run.plan.warnings()]:
        say(f"warning: {warning}")
    for note in run.notes:
        say(note)
    if config.method in OWN_RULE and run.plan.name != "full":  # type: ignore[attr-defined]
        say(
            "note: how many examples a pass is of is decided by the losses, as training goes; the "
            "ratios, passes and steps above are only an example, the budget is as it says"
        )
    return 0


def plan_text(plan: Plan, batch_size: int) -> str:
    """A plan as a table with its cost, for people."""
    rows = [("cycle", "ratio", "examples", "passes", "steps", "scores")]
    steps = 0
    for phase, spent in plan.spans():
        if not spent:
            continue
        ratio, size, passes = f"{phase.ratio:.3f}", f"{phase.size:,}", f"{spent / phase.size:g}"
        if phase.pace is None:
            whole, rest = divmod(spent, phase.size)
            made = whole * num_batches(phase.size, batch_size) + num_batches(rest, batch_size)
        else:
            sizes = plan.passes_of(phase)
            made = sum(num_batches(each, batch_size) for each in sizes)
            ratio = f"{phase.ratio:.3f} to {phase.pace(1.0):.3f}"
            size, passes = f"{sizes[0]:,} to {max(sizes):,}", f"{len(sizes)}"
        steps += made
        cycle = "-" if phase.cycle < 0 else str(phase.cycle + 1)
        scored = f"{plan.num_examples:,}" if phase.score else "-"
        rows.append((cycle, ratio, size, passes, f"{made:,}", scored))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(c.rjust(w) for c, w in zip(row, widths, strict=True)) for row in rows]
    scored = plan.scorings * plan.num_examples
    trained = f"{plan.examples:,} examples trained on"
    if plan.unit == "tokens":
        trained = f"{plan.budget:,} tokens trained on, about {plan.examples:,} examples"
    return (
        "\n".join(lines) + "\n\n"
        f"{plan.name}: {trained} in {steps:,} steps of {batch_size}, {scored:,} scored\n"
        f"cost: {TRAIN_COST} x {plan.examples:,} + {plan.score_cost} x {scored:,} = {plan.cost:,} "
        "forwards of one example\n"
        f"compute saved against as many passes ({plan.passes:g}) over everything: "
        f"{plan.saving:.1%}\n"
    )


def _export(parsed: Namespace) -> int:
    from attent.tasks.export import export
    from attent.tasks.folder import load_runs

    say(f"weights {export(load_runs([parsed.run])[0], parsed.format, parsed.output)}")
    return 0


def _merge(parsed: Namespace) -> int:
    from attent.tasks.text.folder import merge

    say(f"model {merge(parsed.run, parsed.output)}")
    return 0


def _evaluate(parsed: Namespace) -> int:
    from attent.tasks.folder import load_runs
    from attent.tasks.measure import measure

    found, step = measure(
        load_runs([parsed.run])[0],
        parsed.data,
        batch_size=parsed.batch_size,
        best=parsed.best,
        device=parsed.device,
    )
    say(f"step {step}")
    width = max(map(len, found))
    for name, value in found.items():
        sys.stdout.write(f"{name.ljust(width)}  {value:.6g}\n")
    return 0


def _predict(parsed: Namespace) -> int:
    from attent.tasks.folder import load_runs
    from attent.tasks.predict import predict

    for path, words in predict(load_runs([parsed.run])[0], parsed.images, parsed.output_dir):
        say(f"{path}: {words}")
    return 0


def _score(parsed: Namespace) -> int:
    from attent.tasks.folder import load_runs
    from attent.tasks.score_run import ScoreConfig, counting, score_run

    (folder,) = load_runs([parsed.model])
    names = [field.name for field in dataclasses.fields(ScoreConfig)]
    try:
        with counting() as tell:
            scored, files = score_run(
                folder, ScoreConfig(**{name: parsed[name] for name in names}), tell
            )
    except KeyboardInterrupt:
        say("stopped: no file was left half written, and what was there before is whole")
        return EXIT_INTERRUPTED
    for line in scored.summary():
        say(line)
    for kind, path in zip(("scores", "page"), files, strict=False):
        say(f"{kind} {path}")
    return 0


_OTHERS: dict[str, Callable[[Namespace], int]] = {
    "resume": _resume,
    "report": _report,
    "export": _export,
    "merge": _merge,
    "evaluate": _evaluate,
    "predict": _predict,
    "score": _score,
}

if __name__ == "__main__":
    sys.exit(main())
