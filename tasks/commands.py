"""The training commands by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from attent.tasks.classification.command import CLASSIFY
from attent.tasks.command import Command, Measure
from attent.tasks.depth.command import DEPTH
from attent.tasks.detection.command import DETECT
from attent.tasks.language.command import INSTRUCT
from attent.tasks.pretraining.command import PRETRAIN
from attent.tasks.segmentation.command import SEGMENT
from attent.tasks.text_classification.command import CLASSIFY_TEXT

__all__ = ["COMMANDS", "Command", "Measure", "forms_of", "meant"]

COMMANDS = {
    command.name: command
    for command in (CLASSIFY, PRETRAIN, SEGMENT, DEPTH, DETECT, INSTRUCT, CLASSIFY_TEXT)
}
"""Every training command by name."""


def meant(name: str, given: Mapping[str, Any]) -> str:
    """The name of the command that is meant: of text, ``classify`` is ``classify_text``.

    Args:
        name: of a command, as somebody gave it.
        given: the options beside it.
    """
    for command in COMMANDS.values():
        form = command.form
        if form is not None and form.of == name and form.holds(given):
            return command.name
    return name


def forms_of(name: str) -> dict[str, str]:
    """The commands that go by the name of another too, and when they are meant, for people."""
    return {
        c.name: f"{c.form.when}, it is attent {c.name}"
        for c in COMMANDS.values()
        if c.form is not None and c.form.of == name
    }
