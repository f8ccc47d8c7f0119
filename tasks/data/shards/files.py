"""Bytes of files at any place, read by many threads and processes at once."""

from __future__ import annotations

import os

from attent.tasks.data.shards.kept import Kept

OPEN = 128
"""Files that a process keeps open, of one set of shards."""


class _File:
    """An open file, closed when nobody has it any more."""

    def __init__(self, path: str) -> None:
        self.number = -1
        self.number = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))

    def __del__(self) -> None:
        if self.number >= 0:
            os.close(self.number)


class Files:
    """Reads of exactly the bytes asked for; at most `OPEN` files stay open.

    A read has its own place in the file, so threads and forked processes do not disturb each other.
    """

    def __init__(self) -> None:
        self._open: Kept[_File] = Kept(OPEN)

    def read(self, path: str, offset: int, size: int) -> bytes:
        """``size`` bytes from ``offset``; fewer where the file ends.

        Raises:
            ValueError: the file cannot be opened or read; says which, and where.
        """
        try:
            file = self._open.get(path, lambda: _File(path), lambda _: 1)
            data = os.pread(file.number, size, offset)
            while 0 < len(data) < size:  # a read may stop half-way, at 2 GiB or for a signal
                more = os.pread(file.number, size - len(data), offset + len(data))
                if not more:
                    break
                data += more
            return data
        except OSError as error:
            raise ValueError(f"{path} cannot be read at byte {offset}: {error}") from error
