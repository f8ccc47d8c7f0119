"""Where rendered scenes are kept: in memory up to a size, and in a file."""

from __future__ import annotations

import os
import threading
import warnings
import weakref
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from attent.tasks.data.scenes.layout import SLOTS

CHECK = 4
"""Bytes of the checksum, at the beginning of a record."""

SLAB = 64
"""Scenes that memory is taken for at a time."""


def record_type(size: int) -> np.dtype:
    """One scene's pictures of ``size`` x ``size`` pixels, and their checksum, as one record."""
    fields: list[tuple] = [
        ("check", "<u4"),
        ("depth", "<f4", (1, size, size)),
        ("boxes", "<f4", (SLOTS, 4)),
        ("box_labels", "u1", (SLOTS,)),
        ("rgb", "u1", (3, size, size)),
        ("semseg", "u1", (size, size)),
        ("instances", "u1", (size, size)),
    ]
    used = np.dtype(fields).itemsize
    return np.dtype([*fields, ("padding", "u1", (-used % 8,))])


def pack(pictures: dict[str, Tensor], kind: np.dtype) -> np.ndarray:
    """What `render` returns of B scenes as ``[B]`` records, without checksums."""
    records = np.zeros(len(pictures["rgb"]), kind)
    for name, value in pictures.items():
        records[name] = value.numpy()
    return records


def unpack(records: np.ndarray) -> dict[str, Tensor]:
    """Records ``[B]`` as `render` returns them: tensors that share their memory."""
    names = ("rgb", "depth", "semseg", "instances", "boxes")
    pictures = {name: torch.from_numpy(records[name]) for name in names}
    pictures["box_labels"] = torch.from_numpy(records["box_labels"].astype(np.int64))
    return pictures


class Memory:
    """Scenes kept in memory: the first that are put there, until it is full.

    None is ever thrown out, so that views of them stay what they are. Of a data set that does not
    fit, passes in any order find the same share in memory; the least recently used would find none
    in passes that go in one order.

    Args:
        count: scenes that there are.
        kind: of the records.
        size: bytes that may be taken.
    """

    def __init__(self, count: int, kind: np.dtype, size: int) -> None:
        self._kind = kind
        self._room = min(count, size // kind.itemsize)
        self._rows = np.full(count, -1, np.int64)
        self._slabs: list[np.ndarray] = []
        self._used = 0
        self._lock = threading.Lock()

    @property
    def free(self) -> int:
        """Scenes that there is room for."""
        return self._room - self._used

    def find(self, index: int) -> np.ndarray | None:
        """The record ``[1]`` of a scene, or None."""
        row = int(self._rows[index])
        return None if row < 0 else self._slabs[row // SLAB][row % SLAB : row % SLAB + 1]

    def put(self, index: int, record: np.ndarray) -> np.ndarray:
        """Keep the record ``[1]`` of a scene if there is room; what is kept, or the one given."""
        with self._lock:
            there = self.find(index)
            if there is not None or not self.free:
                return record if there is None else there
            row = self._used
            if row // SLAB == len(self._slabs):
                self._slabs.append(np.empty(min(SLAB, self._room - row), self._kind))
            kept = self._slabs[row // SLAB][row % SLAB : row % SLAB + 1]
            kept[:] = record
            self._used += 1
            self._rows[index] = row  # last: from here on others find it
            return kept


class File:
    """Scenes kept in a file, one record after another at the place of its index.

    A record is trusted if its checksum is right. One that was never written, that was half written
    when the power failed, or that another process is writing, is as good as absent; processes that
    write the same one write the same bytes.

    Args:
        path: of the file; created with its folder.
        kind: of the records.

    Raises:
        ValueError: the folder is a file.
    """

    def __init__(self, path: Path, kind: np.dtype) -> None:
        if path.parent.exists() and not path.parent.is_dir():
            raise ValueError(f"cache is to be a folder; {path.parent} is a file")
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path, self._kind = path, kind
        self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        self._full = False
        weakref.finalize(self, os.close, self._file)

    def find(self, index: int) -> np.ndarray | None:
        """The record ``[1]`` of a scene, or None if it is not there or damaged."""
        size = self._kind.itemsize
        data = os.pread(self._file, size, index * size)
        if len(data) != size:
            return None
        record = np.frombuffer(bytearray(data), self._kind)
        return record if int(record["check"][0]) == self._checksum(index, record) else None

    def put(self, index: int, record: np.ndarray) -> None:
        """Keep the record ``[1]`` of a scene; if the disk is full, warn once and go on without."""
        if self._full:
            return
        record = record.copy()
        record["check"] = self._checksum(index, record)
        data, offset = record.tobytes(), index * self._kind.itemsize
        try:
            while data:
                written = os.pwrite(self._file, data, offset)
                data, offset = data[written:], offset + written
        except OSError as error:
            self._full = True
            warnings.warn(f"no more scenes are kept in {self._path}: {error}", stacklevel=2)

    def _checksum(self, index: int, record: np.ndarray) -> int:
        """Over the index and all bytes behind the checksum itself."""
        seed = zlib.crc32(f"{self._path.name} {index}".encode())
        return zlib.crc32(record.view(np.uint8)[CHECK:].data, seed)
