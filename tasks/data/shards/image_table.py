"""Labelled pictures in tables, as the data sets of the hub keep them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from torch import Tensor

from attent.tasks.data import decode
from attent.tasks.data.shards.damaged import Damaged
from attent.tasks.data.shards.labels import Coded, numbered
from attent.tasks.data.shards.paths import Shards, shard_paths
from attent.tasks.data.shards.table_files import open_table
from attent.tasks.data.shards.tables import MEMORY, SUFFIXES, TableShards, features_of

PICTURES = ("image", "img", "jpg", "png", "picture", "photo", "webp")
"""Names of columns of pictures, where there are several or nothing says that they are, those to be
taken first first."""

LABELS = ("label", "labels", "cls", "class", "target", "fine_label")
"""Names of columns of labels, likewise."""


class TableImages:
    """A reader of labelled images in parquet or arrow files.

    A picture is ``{"bytes", "path"}``, as `datasets` keeps it (a path alone is of a file, from the
    table's folder), or bytes; a label is a number or a name. Labels are all read when it is made,
    of the pictures' column nothing.

    Args:
        shards: see `attent.tasks.data.shards.paths.Shards`.
        classes: names of classes in the order of their labels; None for those the table says, or
            those found.
        image: the column of pictures; None for the one there is (`picture_column`).
        label: the column of labels; None for the one there is.
        memory: as of `TableShards`.

    Attributes:
        classes: the same; None where labels are numbers and nothing says what they stand for.
        labels: ``[N]`` int64.
        blocks: as of `TableShards`.
        window: as of `TableShards`.
        table: the rows.

    Raises:
        ValueError: as of `TableShards`; no such column, or several that may be meant; a label that
            is none. Names the file, and the row group and row where there is one.
    """

    domains = ("rgb",)
    damaged: tuple[Damaged, ...] = ()
    """Shards that were left out."""

    def __init__(
        self,
        shards: Shards,
        *,
        classes: Sequence[str] | None = None,
        image: str | None = None,
        label: str | None = None,
        memory: int = MEMORY,
    ) -> None:
        paths = shard_paths(shards, SUFFIXES)
        schema, path = open_table(paths[0]).schema, paths[0]
        pictures = image or picture_column(schema)
        if pictures is None:
            raise ValueError(
                f"{path} has no column of pictures, bytes or {{bytes, path}}; it has "
                f"{', '.join(schema.names[:12])}"
            )
        label = label or _label_column(schema, path)
        self._image = pictures
        self.table = TableShards(paths, [pictures], memory=memory)
        self.blocks, self.window = self.table.blocks, self.table.window
        names = features_of(schema).get(label, {}).get("names")
        parts = _coded(self.table, label, names)
        self.labels, self.classes = numbered(
            parts, names if classes is None else classes, self.table.locate
        )

    def __len__(self) -> int:
        return len(self.table)

    def locate(self, index: int) -> str:
        """The image's file, row group and row."""
        return self.table.locate(index)

    def read(self, index: int) -> dict[str, Tensor]:
        """``rgb`` of one image at its own size, upright, uint8 ``[3, H, W]``.

        Raises:
            ValueError: a row that cannot be read, has no picture, or one of more than 8 bits a
                channel; names file, row group and row.
        """
        return {"rgb": decode.rgb(self._file(index), upright=True)}

    def _file(self, index: int) -> decode.File:
        value = self.table.read(index)[self._image]
        data, path = value, None
        if isinstance(value, dict):
            data, path = value.get("bytes"), value.get("path")
        if data is not None:
            return decode.Encoded(data, partial(self.locate, index))
        if not path:
            raise ValueError(f"{self.locate(index)} has no picture")
        return os.path.join(os.path.dirname(self.table.path_of(index)), path)


def picture_column(schema: Any) -> str | None:
    """The column of pictures: what `datasets` says is one, else by its type and name.

    Args:
        schema: of a table.

    Returns:
        Its name: of several the first of `PICTURES`, else the first; None if there is none.
    """
    said = [n for n, about in features_of(schema).items() if about.get("_type") == "Image"]
    if not said:
        said = [field.name for field in schema if _is_picture(field)]
    return next((name for name in PICTURES if name in said), said[0] if said else None)


def _label_column(schema: Any, path: str) -> str:
    import pyarrow as pa

    said = [n for n, about in features_of(schema).items() if about.get("_type") == "ClassLabel"]
    kinds = {field.name: field.type for field in schema}
    known = [
        name
        for name in LABELS
        if name in kinds and (pa.types.is_integer(kinds[name]) or _is_text(kinds[name]))
    ]
    meant = said if len(said) == 1 else [n for n in known if n in said or not said][:1]
    if not meant:
        raise ValueError(
            f"{path} has no column of labels ({', '.join(LABELS)}: numbers or names, or the one "
            f"that datasets says is a ClassLabel); it has {', '.join(schema.names[:12])}"
        )
    return meant[0]


def _coded(table: TableShards, label: str, names: list[str] | None) -> list[Coded]:
    """Labels as places in a list of the different ones, one part for each row group."""
    import pyarrow as pa

    parts: list[Coded] = []
    start = 0
    for column in table.of_column(label):
        if column.null_count:
            row = column.is_null().to_numpy().nonzero()[0][0]
            raise ValueError(f"{table.locate(start + int(row))} has no {label}")
        if not (pa.types.is_integer(column.type) or _is_text(column.type)):
            raise ValueError(
                f"{table.locate(start)}: the column {label} holds {column.type}; expected whole "
                "numbers or names"
            )
        encoded = column.combine_chunks().dictionary_encode()
        if isinstance(encoded, pa.ChunkedArray):
            encoded = encoded.combine_chunks()
        values = [_named(value, names) for value in encoded.dictionary.to_pylist()]
        parts.append(Coded(values, np.asarray(encoded.indices, dtype=np.int64)))
        start += len(column)
    return parts


def _named(value: int | str, names: list[str] | None) -> str:
    """A label as the name it stands for, or its number where there is none."""
    if names is not None and isinstance(value, int) and 0 <= value < len(names):
        return names[value]
    return str(value)


def _is_picture(field: Any) -> bool:
    """Whether a column's type is that of pictures: bytes alone can be anything but for the name."""
    import pyarrow as pa

    if pa.types.is_struct(field.type):
        return {"bytes", "path"} <= {part.name for part in field.type}
    binary = pa.types.is_binary(field.type) or pa.types.is_large_binary(field.type)
    return binary and field.name in PICTURES


def _is_text(kind: Any) -> bool:
    import pyarrow as pa

    return pa.types.is_string(kind) or pa.types.is_large_string(kind)
