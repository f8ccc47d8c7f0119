"""Where the members of a tar are: its headers read one after the other, and nothing else of it.

Python's own tarfile takes about three times as long, which at 10^8 members is most of an hour, and
a damaged header in the middle for the end: all that follows is lost without a word. Whatever is no
plain file is passed over.

References:
    POSIX.1-2017, pax interchange format (ustar and its extended headers); GNU tar manual, "Basic
    Tar Format" (long names, sizes in base 256).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import NamedTuple

BLOCK = 512
"""Bytes; headers and data begin at multiples of it."""

_AHEAD = 8 * BLOCK  # read at a time: most headers with their extensions, and no more than two pages
_PLAIN = b"0\x007"  # types of members that are files
_TELLING = b"xLKg"  # types that tell something of the member that follows, or of all
_WITHOUT_DATA = b"123456"  # links, folders, devices: no data follow, whatever their size says
_SPARSE = ord("S")
_ENDED = bytes(BLOCK)


class Member(NamedTuple):
    """A plain file in a tar."""

    name: str
    offset: int  # of its bytes in the tar
    size: int  # of them


class _Header(NamedTuple):
    name: bytes
    size: int
    kind: int


def members(path: str) -> Iterator[Member]:
    """The plain files of a tar in their order.

    Raises:
        ValueError: a tar that is cut off or damaged, is compressed, or is none; names the file, the
            member and the byte.
    """
    try:
        number = os.open(path, os.O_RDONLY)
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    try:
        yield from _members(path, _Reader(path, number))
    finally:
        os.close(number)


def name_at(header: bytes) -> str:
    """The name in the header of a member, ``[512]``: of a long one the part that fits there."""
    return _text(_name(header))


def _members(path: str, file: _Reader) -> Iterator[Member]:
    at, last = 0, ""
    told: dict[str, str] = {}
    while True:
        block = file.read(at, BLOCK)
        if len(block) < BLOCK:
            raise ValueError(_cut(path, file.size, last))
        if block == _ENDED:
            return
        header = _header(path, block, at, last)
        start, size = at + BLOCK, 0 if header.kind in _WITHOUT_DATA else header.size
        name = told.get("path") or _text(header.name)
        if header.kind in _PLAIN:
            size = int(told.get("size", size))
        if start + size > file.size:
            raise ValueError(
                f"{path} is cut off in the member {name} at byte {start}: it has {size} bytes, and "
                f"the file ends at byte {file.size}"
            )
        at = start + -(-size // BLOCK) * BLOCK
        if header.kind in _TELLING:
            told |= _told(path, header.kind, file.read(start, size), start)
            continue
        if header.kind == _SPARSE or any(key.startswith("GNU.sparse") for key in told):
            raise ValueError(f"{path}: the member {name} at byte {start} is sparse; pack it whole")
        if header.kind in _PLAIN:
            last = name
            yield Member(name, start, size)
        told = {}


class _Reader:
    """A file read a few blocks at a time."""

    def __init__(self, path: str, number: int) -> None:
        self.path, self.number = path, number
        self.size = os.fstat(number).st_size
        self._start, self._held = 0, b""

    def read(self, at: int, size: int) -> bytes:
        """``size`` bytes from ``at``, fewer where the file ends."""
        begin = at - self._start
        if not 0 <= begin <= len(self._held) - size:
            try:
                self._held = os.pread(self.number, max(size, _AHEAD), at)
            except OSError as error:
                raise ValueError(f"{self.path} cannot be read at byte {at}: {error}") from error
            self._start, begin = at, 0
        return self._held[begin : begin + size]


def _header(path: str, block: bytes, at: int, last: str) -> _Header:
    try:
        # The sum of all bytes, those of the sum itself taken for blanks.
        right = sum(block) - sum(block[148:156]) + 8 * 32 == _number(block[148:156])
        size = _number(block[124:136])
    except ValueError:
        right, size = False, 0
    if not right:
        raise ValueError(_no_header(path, block, at, last))
    return _Header(_name(block), size, block[156])


def _name(block: bytes) -> bytes:
    name = block[:100].partition(b"\0")[0]
    if block[257:263] == b"ustar\0":  # GNU's own magic has no prefix
        prefix = block[345:500].partition(b"\0")[0]
        return prefix + b"/" + name if prefix else name
    return name


def _number(field: bytes) -> int:
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    return int(field.partition(b"\0")[0].strip() or b"0", 8)


def _text(name: bytes) -> str:
    return name.decode("utf-8", "surrogateescape")


def _told(path: str, kind: int, data: bytes, at: int) -> dict[str, str]:
    """What a member that is an extension says of the one that follows."""
    if kind == ord("L"):
        return {"path": _text(data.partition(b"\0")[0])}
    if kind != ord("x"):  # of a link, or of all members: nothing that matters here
        return {}
    found: dict[str, str] = {}
    while data:
        length, blank, _ = data.partition(b" ")
        record = data[len(length) + 1 : int(length)] if length.isdigit() else b""
        key, equals, value = record.partition(b"=")
        sized = key != b"size" or value[:-1].isdigit()
        if not blank or not equals or not record.endswith(b"\n") or not sized:
            raise ValueError(f"{path} is damaged at byte {at}: an extended header that is none")
        found[_text(key)] = _text(value[:-1])
        data = data[int(length) :]
    return found


def _cut(path: str, size: int, last: str) -> str:
    after = f"after the member {last}" if last else "with no member in it"
    return f"{path} is cut off: it ends at byte {size}, {after}, without the zeros that end a tar"


def _no_header(path: str, block: bytes, at: int, last: str) -> str:
    if at == 0:
        packed = {b"\x1f\x8b": "gzip", b"\x28\xb5": "zstd", b"BZ": "bzip2", b"\xfd7": "xz"}
        found = packed.get(block[:2])
        if found:
            return (
                f"{path} is compressed by {found}, and one member of it cannot be read without all "
                "before it; unpack it to a plain .tar (pictures are compressed already)"
            )
        return f"{path} is no tar: it does not begin with the header of a member"
    after = f"after the member {last}" if last else "before the first member"
    return f"{path} is damaged at byte {at}, {after}: expected the header of a member"
