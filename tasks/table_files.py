"""Tables as files: parquet, CSV or lines of JSON by the file's ending; whole, or not at all."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa
from pyarrow import csv, parquet

from attent.pipeline.checkpoint import replacing

ENDINGS = (".parquet", ".csv", ".jsonl")


def write_table(path: Path, schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> None:
    """Write rows as they come; what is there is replaced when the last of them is written.

    Args:
        path: of the file, ending in one of `ENDINGS`.
        schema: of the rows; its metadata are kept in parquet alone.
        batches: the rows, some at a time.

    Raises:
        ValueError: another ending.
    """
    kind = ending(path)
    with replacing(path) as file:
        if kind == ".jsonl":
            for batch in batches:
                lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in batch.to_pylist())
                file.write("".join(lines).encode())
            return
        made = parquet.ParquetWriter if kind == ".parquet" else csv.CSVWriter
        with made(file, schema) as writer:
            for batch in batches:
                writer.write(pa.Table.from_batches([batch]))


def ending(path: Path) -> str:
    """What a file's name ends in, one of `ENDINGS`.

    Raises:
        ValueError: something else.
    """
    if path.suffix.lower() not in ENDINGS:
        raise ValueError(f"{path} must end in {', '.join(ENDINGS[:-1])} or {ENDINGS[-1]}")
    return path.suffix.lower()
