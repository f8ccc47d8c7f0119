"""Rows of JSON, one a line, in files too large to be held.

Shapes: N rows, S files.
"""

from __future__ import annotations

import json
import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from attent.tasks.data.inflate import CODECS, codec_of, inflate
from attent.tasks.data.shards.blocks import cut
from attent.tasks.data.shards.cache import Arrays, remembered
from attent.tasks.data.shards.files import Files
from attent.tasks.data.shards.kept import Kept
from attent.tasks.data.shards.paths import Shards, shard_paths

SUFFIXES = (".jsonl", *(f".jsonl{end}" for end in CODECS))

MEMORY = 2**29
"""Bytes of unpacked files that a process keeps, if nothing else is said."""

_PIECE = 2**24  # bytes looked through at once
_BLANK = 16  # bytes: longer lines of nothing but blanks are taken for rows, and refused when read
_READ_AT_ONCE = 4  # files


class LineShards:
    """Rows of JSON lines, by their number; a line is read and understood when it is asked for.

    Where lines begin is found once, and kept beside each file
    (`attent.tasks.data.shards.cache.remembered`); twelve bytes for a row are held in memory. Of a
    plain file exactly the line is read. A compressed one (.gz, .zst) has to be unpacked whole: it
    is when a row of it is first asked for, and the last used stay, up to ``memory`` bytes.

    Args:
        shards: see `attent.tasks.data.shards.paths.Shards`; files of `SUFFIXES`. Blank lines are
            passed over.
        memory: bytes of unpacked files that are kept; the last one is in any case.

    Attributes:
        paths: of the S files.
        blocks: ``[B + 1]`` int64, where files begin; a large plain one is several (`cut`).
        window: blocks that training reads together: few where files are compressed and large.
        unpacked: what is kept; ``unpacked.made`` counts those unpacked in this process.

    Raises:
        ValueError: no such file; one that is cut off or damaged; no rows. Names the file, and where
            a compressed one ends.
    """

    def __init__(self, shards: Shards, *, memory: int = MEMORY) -> None:
        self.paths = shard_paths(shards, SUFFIXES)
        with ThreadPoolExecutor(_READ_AT_ONCE) as pool:
            tables = list(pool.map(_remembered, self.paths))
        self._first = np.concatenate([table["first"] for table in tables])
        self._size = np.concatenate([table["size"] for table in tables])
        counts = [len(table["first"]) for table in tables]
        self._starts = np.cumsum([0, *counts])
        if not len(self):
            raise ValueError(f"{self.paths[0]} and its like hold no rows")
        packed = [codec_of(path) is not None for path in self.paths]
        if any(packed):  # of one of them, all is read for any row of it
            self.blocks = cut(self._starts, part=len(self))
            size = max(1, int(self._size.sum(dtype=np.int64)) // len(self.paths))
            self.window = int(np.clip(memory // (2 * size), 1, 8))
        else:
            self.blocks, self.window = cut(self._starts), 8
        self._files = Files()
        self.unpacked: Kept[bytes] = Kept(memory)

    def __len__(self) -> int:
        return int(self._starts[-1])

    def read(self, index: int) -> dict[str, Any]:
        """A row's fields.

        Raises:
            ValueError: it cannot be read, or is no object of JSON; names file, row and byte.
        """
        try:
            found = json.loads(self.line(index))
        except ValueError as error:
            raise ValueError(f"{self.locate(index)} is not JSON: {error}") from error
        if not isinstance(found, dict):
            raise ValueError(f"{self.locate(index)} is not an object of fields, but {found!r:.40}")
        return found

    def line(self, index: int) -> bytes:
        """A row as it is written.

        Raises:
            ValueError: the file cannot be read, or has become shorter.
        """
        shard, first, size = self._where(index)
        path = self.paths[shard]
        if codec_of(path) is None:
            line = self._files.read(path, first, size)
        else:
            line = self.unpacked.get(shard, lambda: inflate(path), len)[first : first + size]
        if len(line) < size:
            raise ValueError(
                f"{self.locate(index)} is cut off: {len(line)} of {size} bytes are there"
            )
        return line

    def locate(self, index: int) -> str:
        """``FILE row 17 at byte 4711``: rows from 1, blank lines not counted; bytes as unpacked."""
        shard, first, _ = self._where(index)
        return f"{self.paths[shard]} row {index - int(self._starts[shard]) + 1} at byte {first}"

    def _where(self, index: int) -> tuple[int, int, int]:
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        shard = int(np.searchsorted(self._starts, index, side="right")) - 1
        return shard, int(self._first[index]), int(self._size[index])


def _remembered(path: str) -> Arrays:
    return remembered(path, "lines", lambda: _table(path))


def _table(path: str) -> Arrays:
    """Where each row is: ``first`` [N] int64, its first byte, and ``size`` [N] uint32, in bytes."""
    data = _bytes(path)
    ends = [
        np.flatnonzero(data[at : at + _PIECE] == ord("\n")) + at
        for at in range(0, len(data), _PIECE)
    ]
    if len(data) and data[-1] != ord("\n"):
        ends.append(np.array([len(data)]))
    stops = np.concatenate([np.zeros(0, dtype=np.int64), *ends])
    first = np.concatenate([np.zeros(1, dtype=np.int64), stops + 1])[:-1]
    size = stops - first
    kept = size > _BLANK
    for row in np.flatnonzero(~kept).tolist():
        kept[row] = bool(data[first[row] : stops[row]].tobytes().strip())
    if (size >= 2**32).any():
        row = int(np.argmax(size))
        raise ValueError(f"{path} row {row + 1} at byte {first[row]} is longer than 4 GiB")
    return {"first": first[kept], "size": size[kept].astype(np.uint32)}


def _bytes(path: str) -> np.ndarray:
    """A file's bytes ``[L]``, unpacked; of a plain file those that are looked at are read."""
    if codec_of(path) is not None:
        return np.frombuffer(inflate(path), np.uint8)
    try:
        if not os.path.getsize(path):  # cannot be mapped
            return np.zeros(0, np.uint8)
        return np.memmap(path, np.uint8, mode="r")
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
