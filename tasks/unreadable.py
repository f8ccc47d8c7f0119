"""Examples that a run could not read and passed over, listed in a file of the run folder."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tensordict import TensorDict

from attent.pipeline import Observer, Source
from attent.pipeline.checkpoint import write_atomically
from attent.pipeline.observers import Reason, read_log
from attent.pipeline.skipped import SkippedList
from attent.tasks.data.shards.damaged import damaged_of


class UnreadableExamples(Observer):
    """Writes a JSON line for each example that is passed over: split, index, place, reason.

    A shard that was left out whole is a line too, without an index. A resumed run adds to what it
    had found before; an example is there once. No file is made where everything can be read.

    Args:
        path: of the ``.jsonl`` file.
        skipped: filled by the streams; None where an unreadable example is an error.
        splits: what the sources are called.
    """

    def __init__(
        self, path: str | Path, skipped: SkippedList | None, splits: Mapping[str, Source]
    ) -> None:
        self.path = Path(path)
        self._skipped = SkippedList() if skipped is None else skipped
        self._split_of = {id(source): name for name, source in splits.items()}
        self._shards = [
            {"split": name, "index": None, "place": one.path, "reason": one.reason}
            for name, source in splits.items()
            for one in damaged_of(source)
        ]
        self._written: set[tuple[str, int | str]] = set()

    @property
    def summary(self) -> str | None:
        """What is to be said at the end; None where all could be read."""
        count = sum(isinstance(which, int) for _, which in self._written)
        shards = len(self._written) - count
        if shards:
            what = f"{shards:,} shard{'s' * (shards > 1)}"
            what += f" and {count:,} example{'s' * (count > 1)}" * (count > 0)
            they_are = "they are" if shards + count > 1 else "it is"
            return f"{what} could not be read; {they_are} listed in {self.path}"
        if not count:
            return None
        examples, were, they_are = (
            ("example", "was", "it is") if count == 1 else ("examples", "were", "they are")
        )
        return (
            f"{count:,} {examples} could not be read and {were} passed over; {they_are} listed in "
            f"{self.path}"
        )

    def start(self, state: TensorDict) -> None:
        """Learn what was found before."""
        lines = read_log(self.path)
        self._written = {_which(line) for line in lines}
        if lines:
            # Without a last line that a kill cut short.
            text = "".join(json.dumps(line) + "\n" for line in lines)
            write_atomically(self.path, text.encode())
        self.add(self._shards)

    def tick(self, state: TensorDict) -> None:
        """List what was found since."""
        self.add(self.found())

    def found(self) -> list[dict[str, Any]]:
        """A line for each example that this process has passed over."""
        return [
            {
                "split": self._split_of.get(id(entry.source), type(entry.source).__name__),
                "index": entry.index,
                "place": entry.place,
                "reason": entry.reason,
            }
            for entry in self._skipped
        ]

    def add(self, lines: Iterable[Mapping[str, Any]]) -> None:
        """List some examples, those that are not yet."""
        fresh = []
        for line in lines:
            which = _which(line)
            if which not in self._written:
                self._written.add(which)
                fresh.append(json.dumps(line) + "\n")
        if fresh:
            with self.path.open("a") as file:
                file.writelines(fresh)

    def stop(self, state: TensorDict, reason: Reason) -> None:
        """List the rest: a tick that failed may have found some."""
        self.tick(state)


def _which(line: Mapping[str, Any]) -> tuple[str, int | str]:
    """What a line is about: an example by its index, a shard by its path."""
    index = line["index"]
    return line["split"], line["place"] if index is None else index
