"""What a run folder tells: its log, its selections, its figures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from attent.pipeline.observers import read_log
from attent.tasks.config import ConfigError
from attent.tasks.folder import RunFolder


@dataclass(frozen=True)
class Selection:
    """One selection, of the recorded examples.

    Attributes:
        cycle: -1 before the first.
        passes: passes made when it came into force.
        seen: examples trained on by then.
        index: ``[n]`` the recorded examples.
        selected: ``[n]`` bool.
        scores: ``[n]`` float32 that it was made by; empty if there were none.
        num_selected: of all N examples.
        num_examples: N.
    """

    cycle: int
    passes: int
    seen: int
    index: np.ndarray
    selected: np.ndarray
    scores: np.ndarray
    num_selected: int
    num_examples: int

    @property
    def is_subset(self) -> bool:
        """Whether something was left out."""
        return self.num_selected < self.num_examples


@dataclass(frozen=True)
class History:
    """A run as the report sees it."""

    name: str
    folder: RunFolder
    command: str
    config: Any
    log: list[dict[str, Any]]
    selections: list[Selection]

    def series(self, *names: str) -> list[np.ndarray]:
        """The lines of the log that have all of these figures, as one array for each name."""
        lines = [line for line in self.log if all(line.get(name) is not None for name in names)]
        return [np.array([line[name] for line in lines], dtype=float) for name in names]

    def times_trained(self) -> tuple[np.ndarray, np.ndarray]:
        """The recorded examples and how many passes each was selected for."""
        end = self.log[-1]["passes"] + (1 if self.log[-1]["offset"] else 0)
        starts = [selection.passes for selection in self.selections] + [end]
        times = np.zeros(len(self.selections[0].index))
        for selection, begin, stop in zip(self.selections, starts, starts[1:], strict=False):
            times += selection.selected * max(0, stop - begin)
        return self.selections[0].index, times


def load_history(folder: RunFolder) -> History:
    """Read a run folder.

    Raises:
        ConfigError: nothing has been logged there yet.
    """
    command, config = folder.load_config()
    log = read_log(folder.log)
    if not log:
        raise ConfigError(f"{folder.path} has no log yet: nothing to report")
    files = sorted(folder.selections.glob("selection-*.npz"))
    selections = [_read_selection(path) for path in files]
    return History(folder.path.name, folder, command, config, log, selections)


def _read_selection(path: Any) -> Selection:
    with np.load(path, allow_pickle=False) as file:
        return Selection(
            cycle=int(file["cycle"]),
            passes=int(file["passes"]),
            seen=int(file["seen"]),
            index=file["index"],
            selected=file["selected"],
            scores=file["scores"],
            num_selected=int(file["num_selected"]),
            num_examples=int(file["num_examples"]),
        )
