"""The training commands by name."""

from __future__ import annotations

from attent.tasks.classification.command import CLASSIFY
from attent.tasks.command import Command, Measure
from attent.tasks.depth.command import DEPTH
from attent.tasks.detection.command import DETECT
from attent.tasks.language.command import INSTRUCT
from attent.tasks.pretraining.command import PRETRAIN
from attent.tasks.segmentation.command import SEGMENT

__all__ = ["COMMANDS", "Command", "Measure"]

COMMANDS = {
    command.name: command for command in (CLASSIFY, PRETRAIN, SEGMENT, DEPTH, DETECT, INSTRUCT)
}
"""Every training command by name."""
