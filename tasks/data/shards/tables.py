"""Tables of rows in parquet and arrow files, read a row group at a time.

Shapes: N rows, G row groups in all.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from attent.tasks.data.shards.kept import Kept
from attent.tasks.data.shards.paths import Shards, shard_paths
from attent.tasks.data.shards.table_files import TableFile, open_table

if TYPE_CHECKING:
    import pyarrow as pa

SUFFIXES = (".parquet", ".arrow", ".feather")

OPEN = 64
"""Files of which a process keeps the footer, or the mapping, at most."""

MEMORY = 2**29
"""Bytes of row groups that a process keeps, if nothing else is said."""

WIDEST = 64
"""Row groups that are read together at most, however small they are."""

_OPENED_AT_ONCE = 8  # files: reading footers is mostly waiting for the disk


class TableShards:
    """Rows of tables, by their number; nothing of a row group is read before a row of it is.

    Of a row group that is read, the columns asked for stay in memory, the last used up to
    ``memory`` bytes; a thread that finds it being read waits for it.

    Args:
        shards: see `attent.tasks.data.shards.paths.Shards`; each parquet, arrow IPC or feather, or
            an arrow stream as `datasets` saves it.
        columns: to read; None for all. The others are never read.
        memory: bytes of row groups (not compressed) that are kept; the last one is in any case.

    Attributes:
        paths: of the files.
        schema: of the first of them, all columns.
        columns: as above.
        blocks: ``[G + 1]`` int64, where row groups (record batches) begin; empty ones are left out.
        window: row groups that training reads together: as many as half the memory holds, of their
            mean size, from 1 to `WIDEST`.
        groups: what is kept; ``groups.made`` counts those read in this process.

    Raises:
        ValueError: no such file, or one that is cut off, damaged or no table; a column that is not
            in all of them; no rows. Names the file.
    """

    def __init__(
        self, shards: Shards, columns: Sequence[str] | None = None, *, memory: int = MEMORY
    ) -> None:
        self.paths = shard_paths(shards, SUFFIXES)
        self.schema = open_table(self.paths[0]).schema
        self.columns = list(self.schema.names if columns is None else columns)
        with ThreadPoolExecutor(_OPENED_AT_ONCE) as pool:
            known = list(pool.map(self._known, self.paths))
        self._group = np.array(
            [(shard, number) for shard, one in enumerate(known) for number in one.groups],
            dtype=np.int32,
        ).reshape(-1, 2)  # [G, 2], the file and the group in it
        rows = np.concatenate([np.array(one.rows, dtype=np.int64) for one in known])
        if not len(rows):
            raise ValueError(f"{self.paths[0]} and its like hold no rows")
        self._starts = np.cumsum(np.concatenate([[0], rows]))
        self.blocks = torch.from_numpy(self._starts)
        mean = max(1, sum(one.weight for one in known) // len(rows))
        self.window = int(np.clip(memory // (2 * mean), 1, WIDEST))
        self._opened: Kept[TableFile] = Kept(OPEN)
        self.groups: Kept[Any] = Kept(memory)

    def __len__(self) -> int:
        return int(self._starts[-1])

    def read(self, index: int) -> dict[str, Any]:
        """The values of a row in Python's types: column -> value.

        Raises:
            ValueError: its row group cannot be read; names file, row group and row.
        """
        import pyarrow as pa

        group, row = self._where(index)
        try:
            table = self._table(group)
            return {name: table.column(name)[row].as_py() for name in self.columns}
        except (pa.ArrowException, OSError, ValueError) as error:
            raise ValueError(f"{self.locate(index)} cannot be read: {error}") from error

    def locate(self, index: int) -> str:
        """``FILE row group G row R``, both counted from 0, the row in its group."""
        group, row = self._where(index)
        shard, number = self._group[group].tolist()
        return f"{self.paths[shard]} row group {number} row {row}"

    def path_of(self, index: int) -> str:
        """The file of a row."""
        return self.paths[int(self._group[self._where(index)[0], 0])]

    def of_column(self, name: str) -> Iterator[pa.ChunkedArray]:
        """One column of each row group in turn; only that is read, and none of it is kept.

        Raises:
            ValueError: a row group cannot be read; names file and row group.
        """
        import pyarrow as pa

        for group, start in enumerate(self._starts[:-1].tolist()):
            shard, number = self._group[group].tolist()
            try:
                yield self._file(shard).group(number, [name]).column(name)
            except (pa.ArrowException, OSError, ValueError, KeyError) as error:
                place = self.locate(start).rpartition(" row ")[0]
                raise ValueError(f"{place} cannot be read: {error}") from error

    def _where(self, index: int) -> tuple[int, int]:
        """The group of a row, of all G, and its place in it."""
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        group = int(np.searchsorted(self._starts, index, side="right")) - 1
        return group, index - int(self._starts[group])

    def _table(self, group: int) -> pa.Table:
        shard, number = self._group[group].tolist()
        return self.groups.get(
            group,
            lambda: self._file(shard).group(number, self.columns),
            lambda table: table.nbytes,
        )

    def _file(self, shard: int) -> TableFile:
        return self._opened.get(shard, lambda: open_table(self.paths[shard]), lambda _: 1)

    def _known(self, path: str) -> _Known:
        file = open_table(path)
        missing = [name for name in self.columns if name not in file.schema.names]
        if missing:
            raise ValueError(
                f"{path} has no column {missing[0]}; it has {', '.join(file.schema.names[:12])}"
            )
        groups = [number for number, rows in enumerate(file.rows) if rows]
        return _Known(groups, [file.rows[g] for g in groups], file.weight(self.columns))


class _Known(NamedTuple):
    """What is kept of a file when it is closed."""

    groups: list[int]  # those that are not empty
    rows: list[int]  # of each
    weight: int  # bytes in memory of the columns


def features_of(schema: Any) -> dict[str, dict[str, Any]]:
    """What `datasets` has written of the columns: name -> ``{"_type": "ClassLabel", ...}``."""
    try:
        return dict(json.loads(schema.metadata[b"huggingface"])["info"]["features"])
    except (KeyError, TypeError, ValueError):  # somebody else's
        return {}
