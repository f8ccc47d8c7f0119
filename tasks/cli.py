"""The command line: ``attent COMMAND``; the commands are in `parser`."""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Literal, get_type_hints

from jsonargparse import ArgumentParser, Namespace
from rich.console import Console

from attent.pipeline.keys import find
from attent.pipeline.plan import TRAIN_COST, Plan
from attent.pipeline.stream import num_batches
from attent.tasks.config import ConfigError, without_effect
from attent.tasks.words import (
    config_files,
    explain,
    given_options,
    one_name,
    readable,
)

_console = Console(stderr=True)

EXIT_WRONG_INPUT = 2
EXIT_INTERRUPTED = 130


def say(message: str) -> None:
    """Tell the user, on standard error, one line as it is."""
    _console.print(message, highlight=False, markup=False, soft_wrap=True)


def parser() -> ArgumentParser:
    """The whole command line."""
    from attent.tasks.commands import COMMANDS, forms_of

    top = ArgumentParser(
        prog="attent",
        exit_on_error=False,
        allow_abbrev=False,
        description="Train on the examples worth learning from.",
    )
    commands = top.add_subcommands(required=True, dest="command")
    # Only for its help: `main` parses a plan as the command that it is a plan of.
    plan = ArgumentParser(
        exit_on_error=False,
        usage="attent plan [COMMAND] [CONFIG] [options of COMMAND]",
        description="Print what a run would do and cost, without running it. COMMAND is "
        f"{', '.join(COMMANDS)}; left out, it is the one whose options the file CONFIG holds.",
    )
    commands.add_subcommand("plan", plan, help="print steps, cost and expected saving of a run")
    for name, command in COMMANDS.items():
        title = (command.config.__doc__ or name).splitlines()[0]
        told = [title, "Flags win over the file.", *(f"But {w}." for w in forms_of(name).values())]
        sub = _training_parser(command.config, " ".join(told))
        commands.add_subcommand(name, sub, help=title.lower().rstrip("."))
    for name, (make, title) in _PARSERS.items():
        commands.add_subcommand(name, make(), help=title)
    return top


def _resume_parser() -> ArgumentParser:
    sub = ArgumentParser(exit_on_error=False, description="Go on with an interrupted run.")
    sub.add_argument("run", type=str, help="the run folder")
    sub.add_argument(
        "--allow_previous",
        action="store_true",
        help="if the latest checkpoint is damaged, go on from the last good one",
    )
    return sub


def _report_parser() -> ArgumentParser:
    sub = ArgumentParser(
        exit_on_error=False,
        description="Write one self-contained HTML page, and its pictures as PNG, of one run or of "
        "several compared.",
    )
    sub.add_argument("runs", type=str, nargs="+", help="run folders")
    sub.add_argument(
        "--report_dir", type=str | None, default=None,
        help="where to write; by default report/ in the first run's folder",
    )  # fmt: skip
    return sub


def _export_parser() -> ArgumentParser:
    sub = ArgumentParser(
        exit_on_error=False, description="Write a run's weights as other code loads them."
    )
    sub.add_argument("run", type=str, help="the run folder; its last checkpoint is taken")
    sub.add_argument(
        "--format", type=Literal["multimae", "timm"], default="multimae",
        help="multimae: the released weights' names; timm: a vision transformer of timm, of "
        "num_classes=0 from pre-training",
    )  # fmt: skip
    sub.add_argument(
        "--output", type=str | None, default=None,
        help="the file, .pth or .safetensors; by default in export/ of the run folder",
    )  # fmt: skip
    return sub


def _merge_parser() -> ArgumentParser:
    sub = ArgumentParser(
        exit_on_error=False,
        description="Write the model of a run of attent instruct, or of attent classify on text, "
        "its adapters merged into it, and its tokenizer, as from_pretrained of transformers loads "
        "them.",
    )
    sub.add_argument("run", type=str, help="the run folder; its last checkpoint is taken")
    sub.add_argument(
        "--output", type=str | None, default=None,
        help="a folder that is not there yet; by default merged/ in the run's folder",
    )  # fmt: skip
    return sub


def _evaluation_parser() -> ArgumentParser:
    sub = ArgumentParser(
        exit_on_error=False,
        description="Measure a run's model on held-out examples; the figures are printed and "
        "written to evaluation.json in the run's folder.",
    )
    sub.add_argument("run", type=str, help="the run folder")
    sub.add_argument(
        "--data", type=str | None, default=None,
        help="data whose val split is measured (also --data_path); by default the run's own",
    )  # fmt: skip
    sub.add_argument("--batch_size", type=int | None, default=None, help="examples in one forward")
    sub.add_argument("--best", action="store_true", help="the best checkpoint, not the last")
    sub.add_argument("--device", type=str, default="auto", help="auto, cpu, cuda or cuda:N")
    return sub


def _prediction_parser() -> ArgumentParser:
    sub = ArgumentParser(
        exit_on_error=False,
        description="Write what a run's model makes of some photographs: labels over the picture, "
        "depth in colours, the likeliest classes, boxes and masks.",
    )
    sub.add_argument("run", type=str, help="the run folder; its last checkpoint is taken")
    sub.add_argument("images", type=str, nargs="+", help="files of photographs")
    sub.add_argument(
        "--output_dir", type=str | None, default=None,
        help="where to write; by default predictions/ in the run's folder",
    )  # fmt: skip
    return sub


_PARSERS: dict[str, tuple[Callable[[], ArgumentParser], str]] = {
    "resume": (_resume_parser, "go on with an interrupted run"),
    "report": (_report_parser, "make a page of pictures from one or more runs"),
    "export": (_export_parser, "write a run's weights for other code"),
    "merge": (_merge_parser, "write a language model or classifier with adapters in"),
    "evaluate": (_evaluation_parser, "measure a trained run"),
    "predict": (_prediction_parser, "try a trained run on pictures"),
}
"""The commands that do not train, with what the list of commands says of them."""


def _training_parser(config: type, description: str) -> ArgumentParser:
    sub = ArgumentParser(exit_on_error=False, allow_abbrev=False, description=description)
    sub.add_argument("--config", action="config", help="a YAML file of the options below")
    # Evaluated here: jsonargparse looks for their names in the modules of first bases alone, and
    # takes any value for an option whose type it cannot find.
    config.__init__.__annotations__ = get_type_hints(config)
    sub.add_class_arguments(config)
    return sub


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns its exit status.

    0: done. 2: wrong input, explained in a line or two. 130: interrupted, saved.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    warnings.showwarning = _show_warning
    try:
        planning, argv = rewritten(argv)
        top = parser()
        try:
            parsed = top.parse_args(one_name(argv))
        except argparse.ArgumentError as error:
            raise ValueError(readable(str(error), argv, _options(top, argv))) from error
        given = parsed[parsed.command]
        if planning:
            return _plan(given, parsed.command)
        if parsed.command in _OTHERS:
            return _OTHERS[parsed.command](given)
        return _train(given, parsed.command)
    except ValueError as error:
        say("error: " + explain(str(error), argv))
        return EXIT_WRONG_INPUT
    except KeyboardInterrupt:
        say("stopped at once; what was saved last is whole: attent resume RUN goes on from there")
        return EXIT_INTERRUPTED


def _options(top: ArgumentParser, argv: Sequence[str]) -> list[str]:
    """Names of the options that the command of a command line takes."""
    commands = top._subcommands_action
    command = commands.choices.get(argv[0]) if commands is not None and argv else None
    flags = [] if command is None else [a.option_strings for a in command._actions]
    return [names[-1].removeprefix("--") for names in flags if names and "--help" not in names]


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
    known = {
        name: len(given & {field.name for field in dataclasses.fields(command.config)})
        for name, command in COMMANDS.items()
    }
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

    kind = COMMANDS[command].config
    names = {field.name for field in dataclasses.fields(kind)}
    return kind(**{name: parsed[name] for name in names})


def _train(parsed: Namespace, command: str) -> int:
    from attent.tasks.run import start

    config = _config_of(parsed, command)
    for warning in without_effect(config):
        say(f"warning: {warning}")
    return _finish(*start(command, config, say))


def _resume(parsed: Namespace) -> int:
    from attent.tasks.run import resume

    return _finish(*resume(parsed.run, say, allow_previous=parsed.allow_previous))


def _finish(state: object, folder: object) -> int:
    from attent.pipeline.fit import finished
    from attent.tasks.commands import COMMANDS
    from attent.tasks.report.page import write_report

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
    from attent.tasks.report.page import write_report
    from attent.tasks.run import load_runs

    page = write_report(load_runs(parsed.runs), parsed.report_dir)
    say(f"report {page}")
    return 0


def _plan(parsed: Namespace, command: str) -> int:
    from attent.tasks.commands import COMMANDS

    config = _config_of(parsed, command)
    run = COMMANDS[command].build(config, initial=False)
    params = sum(value.numel() * value.element_size() for value in run.state["params"].values())
    held = sum(v.numel() * v.element_size() for v in run.state.flatten_keys().values())
    sys.stdout.write(plan_text(run.plan, config.batch_size))  # type: ignore[attr-defined]
    sys.stdout.write(
        f"state in memory and in each checkpoint: {held / 2**20:.1f} MiB, of which parameters "
        f"{params / 2**20:.1f} MiB\n"
    )
    for warning in [*without_effect(config), *run.plan.warnings()]:
        say(f"warning: {warning}")
    return 0


def plan_text(plan: Plan, batch_size: int) -> str:
    """A plan as a table with its cost, for people."""
    rows = [("cycle", "ratio", "examples", "passes", "steps", "scores")]
    steps = 0
    for phase, spent in plan.spans():
        if not spent:
            continue
        whole, rest = divmod(spent, phase.size)
        phase_steps = whole * num_batches(phase.size, batch_size) + num_batches(rest, batch_size)
        steps += phase_steps
        rows.append(
            (
                "-" if phase.cycle < 0 else str(phase.cycle + 1),
                f"{phase.ratio:.3f}",
                f"{phase.size:,}",
                f"{spent / phase.size:g}",
                f"{phase_steps:,}",
                f"{plan.num_examples:,}" if phase.score else "-",
            )
        )
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
    from attent.tasks.run import load_runs

    say(f"weights {export(load_runs([parsed.run])[0], parsed.format, parsed.output)}")
    return 0


def _merge(parsed: Namespace) -> int:
    from attent.tasks.text.folder import merge

    say(f"model {merge(parsed.run, parsed.output)}")
    return 0


def _evaluate(parsed: Namespace) -> int:
    from attent.tasks.measure import measure
    from attent.tasks.run import load_runs

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
    from attent.tasks.predict import predict
    from attent.tasks.run import load_runs

    for path, words in predict(load_runs([parsed.run])[0], parsed.images, parsed.output_dir):
        say(f"{path}: {words}")
    return 0


_OTHERS: dict[str, Callable[[Namespace], int]] = {
    "resume": _resume,
    "report": _report,
    "export": _export,
    "merge": _merge,
    "evaluate": _evaluate,
    "predict": _predict,
}

if __name__ == "__main__":
    sys.exit(main())
