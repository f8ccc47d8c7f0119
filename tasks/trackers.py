"""Experiment trackers, by accelerate: TensorBoard, Weights & Biases, and what else it knows."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tensordict import TensorDict

from attent.pipeline import Observer, summary
from attent.pipeline.checkpoint import write_atomically
from attent.pipeline.keys import number
from attent.pipeline.observers import Reason
from attent.tasks.config import TRACKERS, ConfigError

if TYPE_CHECKING:
    from accelerate.tracking import GeneralTracker

PROJECT = "attent"
"""What runs are filed under where a tracker has projects."""


def check_trackers(names: Sequence[str]) -> None:
    """Refuse trackers whose package is not there.

    Raises:
        ConfigError: names the package.
    """
    if not names:
        return
    from accelerate.tracking import get_available_trackers

    there = {str(name.value) for name in get_available_trackers()}
    for name in names:
        if name not in there:
            package = TRACKERS[name]
            raise ConfigError(
                f"report_to: {name} needs the package {package}: pip install {package}"
            )


class Trackers(Observer):
    """Tells trackers what the log is told: clock, plan, ledger and metrics after each tick.

    A resumed run goes on where it was: TensorBoard shows a step that was made twice as it was made
    last, Weights & Biases goes on with the run of the same id (kept in ``wandb.id``). Where
    ``WANDB_MODE=offline`` is set, the latter stays in the run folder until ``wandb sync``.

    Args:
        names: of trackers, as `attent.tasks.config.TRACKERS` has them.
        folder: of the run, where files go.
        options: of the run.
    """

    def __init__(self, names: Sequence[str], folder: Path, options: Mapping[str, Any]) -> None:
        self.names, self.folder = tuple(names), folder
        self.options = {
            name: value if isinstance(value, bool | int | float | str) else str(value)
            for name, value in options.items()
        }
        self._trackers: list[GeneralTracker] = []
        self._step = -1

    def start(self, state: TensorDict) -> None:
        """Begin a run with each."""
        self._step = number(state, "clock", "step")
        for name in self.names:
            tracker = self._made(name)
            tracker.start()
            if self._step == 0:
                tracker.store_init_configuration(self.options)
            self._trackers.append(tracker)

    def tick(self, state: TensorDict) -> None:
        """Tell them, if the tick trained."""
        if number(state, "clock", "step") > self._step:
            self._step = number(state, "clock", "step")
            told = {name: value for name, value in summary(state).items() if value is not None}
            for tracker in self._trackers:
                tracker.log(told, step=self._step)

    def stop(self, state: TensorDict, reason: Reason) -> None:
        """End the run with each."""
        for tracker in self._trackers:
            tracker.finish()

    def _made(self, name: str) -> GeneralTracker:
        from accelerate import PartialState
        from accelerate.tracking import LOGGER_TYPE_TO_CLASS

        PartialState()  # trackers ask it which process they are in
        kind = LOGGER_TYPE_TO_CLASS[name]
        if name == "wandb":
            id_file = self.folder / "wandb.id"
            if not id_file.is_file():
                write_atomically(id_file, uuid.uuid4().hex.encode())
            about = {"id": id_file.read_text(), "resume": "allow", "name": self.folder.name}
            return kind(PROJECT, dir=str(self.folder), **about)
        if kind.requires_logging_directory:
            return kind(name, str(self.folder))
        return kind(PROJECT)
