"""One file of a table, by its row groups: parquet, or arrow's IPC as a file or as a stream."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow as pa

_PARQUET, _ARROW = b"PAR1", b"ARROW1"  # what files begin with; a stream begins with its schema


class TableFile:
    """A file of rows in groups: parquet's row groups, arrow's record batches.

    Attributes:
        path: of the file.
        schema: of all columns.
        rows: of each group.
    """

    path: str
    schema: Any
    rows: list[int]

    def group(self, number: int, columns: Sequence[str]) -> pa.Table:
        """Some columns of one group."""
        raise NotImplementedError

    def weight(self, columns: Sequence[str]) -> int:
        """Bytes in memory of some columns of all groups."""
        raise NotImplementedError


def open_table(path: str) -> TableFile:
    """A file by what it begins with; its footer or the heads of its batches are read.

    Raises:
        ValueError: it cannot be read, or is none of the three; names it.
    """
    import pyarrow as pa

    try:
        with open(path, "rb") as file:
            head = file.read(len(_ARROW))
        if head.startswith(_PARQUET):
            return _Parquet(path)
        return _Arrow(path, stream=head != _ARROW)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as a table: {error}") from error


class _Parquet(TableFile):
    """The footer is held, the file is opened for each group: its reader is not for many threads."""

    def __init__(self, path: str) -> None:
        from pyarrow import parquet

        self.path = path
        with parquet.ParquetFile(path) as file:
            self.metadata, self.schema = file.metadata, file.schema_arrow
        groups = range(self.metadata.num_row_groups)
        self.rows = [self.metadata.row_group(number).num_rows for number in groups]

    def group(self, number: int, columns: Sequence[str]) -> pa.Table:
        from pyarrow import parquet

        with parquet.ParquetFile(
            self.path, metadata=self.metadata, page_checksum_verification=True
        ) as file:
            return file.read_row_group(number, columns=list(columns), use_threads=False)

    def weight(self, columns: Sequence[str]) -> int:
        total = 0
        for number in range(len(self.rows)):
            group = self.metadata.row_group(number)
            for place in range(group.num_columns):
                column = group.column(place)
                if column.path_in_schema.partition(".")[0] in columns:
                    total += column.total_uncompressed_size
        return total


class _Arrow(TableFile):
    """The file is mapped into memory: what is not looked at is not read, unless it is compressed.

    A compressed stream is all in memory while it is open; a compressed file is not.
    """

    def __init__(self, path: str, *, stream: bool) -> None:
        import pyarrow as pa

        self.path = path
        self._lock = threading.Lock()  # nothing is said of readers in several threads
        self._batches: list[Any] = []
        self._reader: Any = None
        mapped = pa.memory_map(path)
        if stream:
            with pa.ipc.open_stream(mapped) as reader:
                self.schema = reader.schema
                while True:
                    at = mapped.tell()
                    try:
                        self._batches.append(reader.read_next_batch())
                    except StopIteration:
                        break
                    except (pa.ArrowException, OSError) as error:
                        raise ValueError(
                            f"record batch {len(self._batches)} at byte {at}: {error}"
                        ) from error
            self.rows = [batch.num_rows for batch in self._batches]
        else:
            self._reader = pa.ipc.open_file(mapped)
            self.schema = self._reader.schema
            count = self._reader.num_record_batches
            self.rows = [self._batch(number).num_rows for number in range(count)]

    def group(self, number: int, columns: Sequence[str]) -> pa.Table:
        import pyarrow as pa

        batch = self._batch(number).select(list(columns))
        batch.validate(full=True)  # nothing else looks whether places are inside the file
        return pa.Table.from_batches([batch])

    def weight(self, columns: Sequence[str]) -> int:
        numbers = range(len(self.rows))
        return sum(self._batch(number).select(list(columns)).nbytes for number in numbers)

    def _batch(self, number: int) -> Any:
        if self._reader is None:
            return self._batches[number]
        with self._lock:
            return self._reader.get_batch(number)
