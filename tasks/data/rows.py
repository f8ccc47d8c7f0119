"""Rows of text: JSON, JSON lines, CSV, parquet, arrow, or what `datasets` reads; each with a place.

A place is ``FILE row 17``, counted from 1, and goes into every message about that row.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from attent.pipeline.keyed import fold
from attent.tasks.data.inflate import CODECS, codec_of, inflate

PLAIN = (".json", ".jsonl", ".csv", ".parquet", ".arrow")

SUFFIXES = (*PLAIN, *(kind + packed for packed in CODECS for kind in (".json", ".jsonl")))
"""What files of rows end in; ``.jsonl.gz`` and the like are unpacked as they are read."""

HELD_OUT = ("validation", "val", "valid", "dev", "eval", "test")
"""Names of splits that are held out, those to be taken first before the others."""

OTHERS = re.compile(rf"({'|'.join(HELD_OUT)})([-_.].*)?$")
"""Files that are another split than ``train``."""


class NoSplit(ValueError):
    """Data that are there do not have the split."""


@dataclass(frozen=True)
class Row:
    """One row of some data.

    Attributes:
        values: field -> what it holds.
        place: where it is kept.
        number: in its file, from 1.
    """

    values: dict[str, Any]
    place: str
    number: int


def read_rows(data: str, *, split: str = "train", sub_task: Sequence[str] = ()) -> list[Row]:
    """The rows of a split.

    Args:
        data: a file (.json: a list of objects, or one object a line; .jsonl; either with .gz or
            .zst; .csv with a line of names, its values texts; .parquet; .arrow), a folder of such
            files (named by split: ``train.json``, ``train-00000.parquet``; else all that no other
            split is named by) or of a data set that `datasets` has saved, or the name of a data set
            of the hub.
        split: ``train``, or a part of a split: ``train[:1000]``, ``train[50%:]``.
        sub_task: folders of the data, each as ``NAME`` or ``NAME:COUNT`` for its first rows; all
            are taken together.

    Raises:
        NoSplit: the data have no such split.
        ValueError: no such data, or not in the form expected; names file and row.
    """
    found: list[Row] = []
    for task in sub_task or ("",):
        name, _, count = task.partition(":")
        if count and not count.isdigit():
            raise ValueError(f"sub_task is NAME or NAME:COUNT, not {task!r}")
        rows = _read(data, split, name)
        found += rows[: int(count)] if count else rows
    if not found:
        raise ValueError(f"data: {data} holds no rows in {split}")
    return found


def are_rows(data: str) -> bool:
    """Whether data are rows by their look: a file of them, a folder of such files, or one saved.

    Tables with a column of pictures are none: they are pictures, with labels.
    """
    from attent.tasks.data.shards.find import hold_pictures

    path = Path(data)
    by_class = (path / "train").is_dir()  # pictures, beside which there may be other files
    alike = path.name.endswith(SUFFIXES) or _is_saved(path) or (not by_class and bool(_files(path)))
    return alike and not hold_pictures(path)


def parse_split(split: str) -> tuple[str, str | None, str | None]:
    """``train[:10%]`` as its name and its bounds, None where there is none.

    Raises:
        ValueError: it is not of that form.
    """
    match = re.fullmatch(r"([\w.-]+)(?:\[(-?\d+%?)?:(-?\d+%?)?\])?", split)
    if not match:
        raise ValueError(f"dataset_split is like train or train[:1000], not {split!r}")
    return match[1], match[2], match[3]


def split_rows(rows: Sequence[Row], held_out: float, *, seed: int) -> tuple[list[Row], list[Row]]:
    """Rows to train on and rows held out, by a key of what each holds: alike ones go together.

    Args:
        rows: of any data.
        held_out: share held out, in (0, 1).
        seed: of the split.

    Raises:
        ValueError: one of the two would be empty.
    """
    sides: tuple[list[Row], list[Row]] = [], []
    for row in rows:
        text = json.dumps(row.values, sort_keys=True, default=str)
        sides[fold(seed, "held out", text) < held_out * 2.0**63].append(row)
    if not all(sides):
        raise ValueError(
            f"held_out {held_out:g} of {len(rows)} rows leaves {len(sides[0])} to train on and "
            f"{len(sides[1])} held out"
        )
    return sides


def _read(data: str, split: str, sub_task: str) -> list[Row]:
    name, start, stop = parse_split(split)
    path = Path(data)
    if path.is_file():
        if sub_task:
            raise ValueError(f"sub_task {sub_task!r} is a folder of the data; {data} is a file")
        if name != "train":
            raise NoSplit(f"dataset_split: {data} is one file, whose split is train, not {name}")
        return part_of(_file(path), start, stop)
    if path.is_dir():
        return part_of(_folder(path / sub_task, name), start, stop)
    if path.name.endswith(SUFFIXES) or path.is_absolute() or data.startswith("."):
        raise ValueError(f"data: there is no file or folder {data}")
    return _hub(data, split, sub_task)


def part_of(rows: list[Row], start: str | None, stop: str | None) -> list[Row]:
    """The rows between two bounds of `parse_split`."""

    def bound(text: str | None) -> int | None:
        if text is None:
            return None
        return round(int(text[:-1]) * len(rows) / 100) if text.endswith("%") else int(text)

    return rows[bound(start) : bound(stop)]


def _file(path: Path) -> list[Row]:
    if path.suffix in (".parquet", ".csv", ".arrow"):
        return _placed(_table(path), path)
    if not path.name.endswith(SUFFIXES):
        raise ValueError(f"data: {path} must end in {', '.join(SUFFIXES)}")
    try:
        packed = codec_of(path.name) is not None
        text = inflate(str(path)).decode() if packed else path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"data: {path} is not UTF-8: {error}") from error
    except ValueError as error:
        raise ValueError(f"data: {error}") from error
    by_line = path.name.endswith((".jsonl", *(f".jsonl{packed}" for packed in CODECS)))
    return _placed(_lines(text, path) if by_line else _json(text, path), path)


def _json(text: str, path: Path) -> list[Any]:
    try:
        found = json.loads(text)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data":  # an object a line, under the other's name
            return _lines(text, path)
        raise ValueError(
            f"data: {path} is not JSON: {error.msg} at line {error.lineno}, column {error.colno}"
        ) from error
    if isinstance(found, dict) and isinstance(found.get("data"), list):
        return found["data"]
    if not isinstance(found, list):
        raise ValueError(f"data: {path} holds {_kind(found)}; it must be a list of objects")
    return found


def _lines(text: str, path: Path) -> list[Any]:
    found = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError as error:
            raise ValueError(
                f"data: {path} row {number} is not JSON: {error.msg} at column {error.colno}"
            ) from error
    return found


def _table(path: Path) -> list[Any]:
    import pyarrow
    from pyarrow import csv, parquet

    from attent.tasks.data.shards.table_files import open_table
    from attent.tasks.data.shards.tables import features_of

    try:
        if path.suffix == ".arrow":
            file = open_table(str(path))
            groups = range(len(file.rows))
            rows = [row for g in groups for row in file.group(g, file.schema.names).to_pylist()]
            return _by_name(rows, features_of(file.schema), path)
        if path.suffix == ".parquet":
            table = parquet.read_table(path)
            return _by_name(table.to_pylist(), features_of(table.schema), path)
        lines = csv.ParseOptions(newlines_in_values=True)
        with csv.open_csv(path, parse_options=lines) as head:
            names = head.schema.names
        # As it is written: of a class 007 or a response True nothing else may be made.
        texts = csv.ConvertOptions(
            column_types=dict.fromkeys(names, pyarrow.string()), strings_can_be_null=False
        )
        return csv.read_csv(path, parse_options=lines, convert_options=texts).to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f"data: {path} cannot be read as {path.suffix[1:]}: {error}") from error


def _folder(folder: Path, split: str) -> list[Row]:
    if not folder.is_dir():
        there = sorted(p.name for p in folder.parent.iterdir() if p.is_dir())
        raise ValueError(
            f"sub_task: there is no folder {folder}; {folder.parent} has "
            f"{', '.join(there[:8]) or 'none'}"
        )
    if _is_saved(folder):
        return _saved(folder, split)
    files = _files(folder)
    named = [p for p in files if re.fullmatch(rf"{re.escape(split)}([-_.].*)?", p.stem)]
    if not named and split == "train":
        named = [p for p in files if not OTHERS.fullmatch(p.stem)]
    if not named:
        raise NoSplit(
            f"data: {folder} has no file of the split {split}; found "
            f"{', '.join(p.name for p in files[:8]) or 'nothing'}"
        )
    return [row for path in named for row in _file(path)]


def _files(folder: Path) -> list[Path]:
    """The files of rows in a folder, in order."""
    return sorted(
        p for where in (folder, folder / "data") if where.is_dir() for p in where.iterdir()
        if p.name.endswith(SUFFIXES) and p.is_file() and not p.name.startswith(".")
    )  # fmt: skip


def _is_saved(folder: Path) -> bool:
    """Whether `datasets` has saved a data set in a folder."""
    return any((folder / name).is_file() for name in ("dataset_dict.json", "dataset_info.json"))


def _saved(folder: Path, split: str) -> list[Row]:
    import datasets

    found: Any = datasets.load_from_disk(str(folder))
    if isinstance(found, dict):
        if split not in found:
            raise NoSplit(f"dataset_split: {folder} has {', '.join(found)}, not {split}")
        found = found[split]
    elif split != "train":
        raise NoSplit(f"dataset_split: {folder} is one split, train, not {split}")
    return _placed(_named(found, folder), folder)


def _hub(data: str, split: str, sub_task: str) -> list[Row]:
    import datasets

    try:
        found = datasets.load_dataset(data, data_dir=sub_task or None, split=split)
    except Exception as error:  # of many kinds: no network, no such name, no such split
        line = " ".join(str(error).split())
        if line.startswith("Unknown split"):
            name = parse_split(split)[0]
            raise NoSplit(f"dataset_split: {data} has no split {name}: {line[:300]}") from error
        raise ValueError(
            f"data: there is no file or folder {data}, and datasets cannot load it: "
            f"{type(error).__name__}: {line[:300]}"
        ) from error
    return _placed(_named(found, data), data)


def _named(found: Any, origin: Path | str) -> list[Any]:
    """The rows of a data set of `datasets`, classes by their names; null where there is none."""
    return _by_name(list(found), found.features.to_dict(), origin)


def _by_name(rows: list[Any], features: dict[str, Any], origin: Path | str) -> list[Any]:
    """Rows with the names of the classes that `datasets` has written of their columns."""
    for column, about in features.items():
        if not isinstance(about, dict) or about.get("_type") != "ClassLabel":
            continue
        names = about["names"]
        for number, row in enumerate(rows, start=1):
            value = row[column]
            if value is not None and value >= len(names):
                raise ValueError(
                    f"data: {origin} row {number} has the {column} {value}; expected 0 to "
                    f"{len(names) - 1}, of {', '.join(names[:8])}"
                )
            row[column] = None if value is None or value < 0 else names[value]
    return rows


def _placed(values: Sequence[Any], origin: Path | str) -> list[Row]:
    rows = []
    for number, value in enumerate(values, start=1):
        place = f"{origin} row {number}"
        if not isinstance(value, dict):
            raise ValueError(f"data: {place} is {_kind(value)}; it must be an object of fields")
        rows.append(Row(value, place, number))
    return rows


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a text", type(None): "null"}
    return names.get(type(value), f"a {type(value).__name__}")
