"""Results: one file a world, a line of JSON a run, appended to and never rewritten.

A run that failed is a line too. It may be tried again, as the next ``attempt`` on a line of its
own; the last attempt counts, and the others stay to be read.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.proof.jobs import Key, Record, key_of


class Store:
    """The results of one world.

    Args:
        path: the file; it need not be there.
        write: take the file for this process alone until `close`.

    Raises:
        ValueError: a line cannot be read, a run is there twice, or another process is writing.
    """

    def __init__(self, path: Path, *, write: bool = False) -> None:
        self.path = path
        self.records: list[Record] = []
        self.latest: dict[Key, Record] = {}
        self._file: int | None = None
        if write:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                self.close()
                raise ValueError(f"{path}: another process is writing to it") from None
        try:
            self._read()
        except BaseException:
            self.close()
            raise

    def append(self, record: Mapping[str, Any]) -> None:
        """Add a run; it is on the disk when this returns.

        Raises:
            ValueError: the run is there already, and this is not the next attempt at a failed one.
        """
        assert self._file is not None, "the store was opened to be read"
        record = dict(record)
        self._enter(record, "the new record")
        line = json.dumps(record, allow_nan=False) + "\n"
        data = line.encode()
        # One write of a whole line: a kill leaves it there or not.
        if os.write(self._file, data) < len(data):
            raise OSError(f"{self.path}: only a part of a record could be written")
        os.fsync(self._file)

    def close(self) -> None:
        """Give the file up."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _read(self) -> None:
        data = self.path.read_bytes() if self.path.is_file() else b""
        end = data.rfind(b"\n") + 1
        if self._file is not None and end < len(data):
            os.ftruncate(self._file, end)  # a line that was cut short: the run was not recorded
        for number, line in enumerate(data[:end].splitlines(), 1):
            where = f"{self.path}, line {number}"
            try:
                record = json.loads(line)
                key_of(record)
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(f"{where}: not a record: {error!r}") from None
            self._enter(record, where)

    def _enter(self, record: Record, where: str) -> None:
        key = key_of(record)
        before = self.latest.get(key)
        attempt = record.get("attempt", 1)
        expected = 1 if before is None else before.get("attempt", 1) + 1
        if (before is not None and before["status"] == "ok") or attempt != expected:
            raise ValueError(
                f"{where}: {'/'.join(map(str, key))} is in the results already "
                f"({'attempt ' + str(expected - 1) if before else 'no attempt'}; this is {attempt})"
            )
        self.records.append(record)
        self.latest[key] = record
