"""The options of each command, as the command line takes them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_type_hints

from jsonargparse import ArgumentParser


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
    _add_measuring(sub, "data whose val split is measured")
    return sub


def _add_measuring(sub: ArgumentParser, data: str) -> None:
    """Add the options of what measures examples by a run's model.

    Args:
        sub: of the command.
        data: what its option of that name is.
    """
    sub.add_argument(
        "--data", type=str | None, default=None,
        help=f"{data} (also --data_path); by default the run's own",
    )  # fmt: skip
    sub.add_argument("--batch_size", type=int | None, default=None, help="examples in one forward")
    sub.add_argument("--best", action="store_true", help="the best checkpoint, not the last")
    sub.add_argument("--device", type=str, default="auto", help="auto, cpu, cuda or cuda:N")


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


def _score_parser() -> ArgumentParser:
    from attent.pipeline.signals import SIGNALS

    sub = ArgumentParser(
        exit_on_error=False,
        description="Score every example of a data set once by a run's model: a table, and a page "
        "of the hardest, the easiest and, of a classifier, the labels that are likely wrong. Of "
        "what a model was trained on it finds fewer of those: it has learned some by heart.",
    )
    sub.add_argument("model", type=str, help="the run folder")
    _add_measuring(sub, "what is scored")
    sub.add_argument(
        "--split", type=Literal["train", "val"], default="train",
        help="of the data; of rows of text other than the run's, train is all of them",
    )  # fmt: skip
    sub.add_argument(
        "--signals", type=str, nargs="+", default=["loss"], help=f"of {', '.join(SIGNALS)}"
    )
    sub.add_argument(
        "--out", type=str | None, default=None,
        help="the table, .parquet, .csv or .jsonl; by default scores.parquet in the run's folder",
    )  # fmt: skip
    sub.add_argument("--overwrite", action="store_true", help="replace what is there")
    sub.add_argument(
        "--page", type=bool, default=True, help="write an .html page beside the table too"
    )
    sub.add_argument(
        "--skip_unreadable", action="store_true",
        help="leave examples that cannot be read without scores; also where the run does",
    )  # fmt: skip
    return sub


_PARSERS: dict[str, tuple[Callable[[], ArgumentParser], str]] = {
    "resume": (_resume_parser, "go on with an interrupted run"),
    "report": (_report_parser, "make a page of pictures from one or more runs"),
    "export": (_export_parser, "write a run's weights for other code"),
    "merge": (_merge_parser, "write a language model or classifier with adapters in"),
    "evaluate": (_evaluation_parser, "measure a trained run"),
    "predict": (_prediction_parser, "try a trained run on pictures"),
    "score": (_score_parser, "score a data set by a trained run"),
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
