"""Tar shards in WebDataset's convention: members that share a key are one example.

Shapes: N examples, S shards, M members of a shard.

References:
    WebDataset, "The WebDataset Format" (keys, extensions, brace patterns).
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from attent.tasks.data.shards.blocks import cut
from attent.tasks.data.shards.cache import Arrays, remembered
from attent.tasks.data.shards.files import Files
from attent.tasks.data.shards.paths import Shards, shard_paths
from attent.tasks.data.shards.tar_index import BLOCK, members, name_at

SUFFIXES = (".tar",)

_NAME = re.compile(r"((?:.*/)?[^./][^./]*)\.([^/]+)", re.DOTALL)
_SCANNED_AT_ONCE = 8  # shards: reading headers is mostly waiting for the disk
_MOST = 2**32  # a place in blocks and a size in bytes are kept in 32 bits


class Column(NamedTuple):
    """Where one member of each example is, in its shard."""

    block: np.ndarray  # [N] uint32, its first byte / 512; 0 where there is none
    size: np.ndarray  # [N] uint32, bytes


def members_of(path: str) -> Arrays:
    """What a shard's headers say, from beside it where that is known.

    Raises:
        ValueError: it is cut off, damaged or no plain tar; names file and byte.
    """
    return remembered(path, "members", lambda: _table(path))


class TarShards:
    """Examples in tar shards, each read alone: exactly its bytes, at their place.

    ``KEY.EXTENSION`` is split at the first dot of the file's name; members of one key follow each
    other. Hidden ones, those without extension and those of ``__KEY__`` are passed over. Only the
    headers are read when it is made, and what they say is kept beside each shard
    (`attent.tasks.data.shards.cache.remembered`): eight bytes for an example and column are held in
    memory.

    Args:
        shards: see `attent.tasks.data.shards.paths.Shards`.
        columns: name -> extensions (in lower case, ``jpg``, ``depth.png``), the first there is.
        optional: columns that examples may be without.

    Attributes:
        paths: of the S shards.
        blocks: ``[B + 1]`` int64, where shards begin; a large one is several (`cut`).

    Raises:
        ValueError: no such shard; one that is cut off, damaged or no plain tar; an example with a
            member twice or without one that it must have; no examples. Names file, member and byte.
    """

    def __init__(
        self,
        shards: Shards,
        columns: Mapping[str, Sequence[str]],
        *,
        optional: Sequence[str] = (),
    ) -> None:
        self.paths = shard_paths(shards, SUFFIXES)
        self._files = Files()

        def picked(path: str) -> list[Column]:
            table = members_of(path)
            picks = [_pick(table, extensions) for extensions in columns.values()]
            for (name, extensions), column in zip(columns.items(), picks, strict=True):
                if name not in optional and not column.block.all():
                    raise ValueError(self._lacking(path, table, column, name, extensions))
            return picks

        with ThreadPoolExecutor(_SCANNED_AT_ONCE) as pool:
            parts = list(pool.map(picked, self.paths))
        counts = [len(part[0].block) for part in parts]
        self._starts = np.cumsum([0, *counts])
        if not self._starts[-1]:
            raise ValueError(f"{self.paths[0]} and its like hold no members named KEY.EXTENSION")
        self._columns = {
            name: Column(*(np.concatenate(arrays) for arrays in zip(*column, strict=True)))
            for name, column in zip(columns, zip(*parts, strict=True), strict=True)
        }
        self.blocks = cut(self._starts)

    def __len__(self) -> int:
        return int(self._starts[-1])

    def has(self, column: str) -> int:
        """How many examples have a member of a column."""
        return int(np.count_nonzero(self._columns[column].block))

    def drop(self, column: str) -> None:
        """Forget a column."""
        del self._columns[column]

    def data(self, index: int, column: str) -> bytes:
        """The bytes of a member.

        Raises:
            ValueError: there is none, or the shard has become shorter; names file, member and byte.
        """
        shard, offset, size = self._where(index, column)
        if not offset:
            raise ValueError(f"{self.locate(index)} has no {column}")
        data = self._files.read(self.paths[shard], offset, size)
        if len(data) < size:
            raise ValueError(
                f"{self.place(index, column)} is cut off: {len(data)} of {size} bytes are there"
            )
        return data

    def read(self, index: int) -> dict[str, bytes]:
        """The bytes of all columns that an example has."""
        return {
            name: self.data(index, name)
            for name, column in self._columns.items()
            if column.block[index]
        }

    def place(self, index: int, column: str) -> str:
        """``SHARD member NAME at byte OFFSET``, of its first byte."""
        shard, offset, _ = self._where(index, column)
        return f"{self.paths[shard]} member {self._name(shard, offset)} at byte {offset}"

    def locate(self, index: int) -> str:
        """The place of the first member an example has, of the columns."""
        for name, column in self._columns.items():
            if column.block[index]:
                return self.place(index, name)
        return self.paths[self._shard(index)]

    def of_shards(self) -> list[tuple[str, range]]:
        """Each shard's path and its examples."""
        bounds = self._starts.tolist()
        return [(p, range(bounds[s], bounds[s + 1])) for s, p in enumerate(self.paths)]

    def _shard(self, index: int) -> int:
        if not 0 <= index < len(self):
            raise IndexError(f"example {index} of {len(self)}")
        return int(np.searchsorted(self._starts, index, side="right")) - 1

    def _where(self, index: int, column: str) -> tuple[int, int, int]:
        shard, where = self._shard(index), self._columns[column]
        return shard, int(where.block[index]) * BLOCK, int(where.size[index])

    def _name(self, shard: int, offset: int) -> str:
        """As the header before its bytes has it: names are not held."""
        try:
            return name_at(self._files.read(self.paths[shard], offset - BLOCK, BLOCK))
        except ValueError:
            return "(unread)"

    def _lacking(
        self, path: str, table: Arrays, column: Column, name: str, extensions: Sequence[str]
    ) -> str:
        example = int(np.flatnonzero(column.block == 0)[0])
        first, stop = table["first"][example : example + 2]
        header = int(table["block"][first] - 1) * BLOCK
        key = name_at(self._files.read(path, header, BLOCK))
        there = sorted({str(table["extensions"][kind]) for kind in table["kind"][first:stop]})
        missing = int(np.count_nonzero(column.block == 0))
        return (
            f"{path}: {missing} of {len(column.block)} examples have no {name} "
            f"({'|'.join(extensions)}), the first of them at byte {header} with the member {key} "
            f"({', '.join(there)}); the members of an example share a key and follow each other"
        )


def _table(path: str) -> Arrays:
    """The members of a shard by example: ``first`` [N + 1]; ``kind``, ``block``, ``size`` [M]."""
    first, kind, block, size = array("I"), array("H"), array("I"), array("I")
    kinds: dict[str, int] = {}
    current, seen = None, set()
    for member in members(path):
        match = _NAME.fullmatch(member.name)
        if match is None or match[1].rpartition("/")[2].startswith("__"):
            continue
        key, extension = match[1], match[2].lower()
        if member.offset // BLOCK >= _MOST or member.size >= _MOST:
            raise ValueError(
                f"{path}: the member {member.name} at byte {member.offset} of {member.size} bytes "
                "is too large, or too far in; 4 GiB and 2 TiB are the most"
            )
        if key != current:
            current, seen = key, set()
            first.append(len(kind))
        number = kinds.setdefault(extension, len(kinds))
        if number in seen:
            raise ValueError(
                f"{path}: {member.name} at byte {member.offset} is the second .{extension} of its "
                "example"
            )
        seen.add(number)
        kind.append(number)
        block.append(member.offset // BLOCK)
        size.append(member.size)
    first.append(len(kind))
    return {
        "extensions": np.array(list(kinds), dtype=np.str_),
        "first": np.array(first, dtype=np.uint32),
        "kind": np.array(kind, dtype=np.uint16),
        "block": np.array(block, dtype=np.uint32),
        "size": np.array(size, dtype=np.uint32),
    }


def _pick(table: Arrays, extensions: Sequence[str]) -> Column:
    """The first of some extensions that each example of a shard has."""
    first = table["first"].astype(np.int64)
    count = len(first) - 1
    example = np.repeat(np.arange(count), np.diff(first))
    column = Column(np.zeros(count, np.uint32), np.zeros(count, np.uint32))
    names = table["extensions"].tolist()
    for extension in reversed(extensions):  # so that the first is written last
        if extension in names:
            of_it = table["kind"] == names.index(extension)
            column.block[example[of_it]] = table["block"][of_it]
            column.size[example[of_it]] = table["size"][of_it]
    return column
