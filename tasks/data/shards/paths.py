"""Which files are meant: by a path, a folder, a pattern, or the name of a split in a folder."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Sequence
from pathlib import Path

from attent.tasks.data.rows import HELD_OUT

Shards = str | Path | Sequence[str | Path]
"""A file, a folder of them, a pattern (``train-{000..009}.tar``, ``train-*.tar``), or several."""

SPLITS = {"train": ("train", "training"), "val": HELD_OUT}
"""Split -> what its files or its folder may be called, those to be taken first first."""

_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
_CHOICE = re.compile(r"\{([^{}]*,[^{}]*)\}")


def shard_paths(shards: Shards, suffixes: Sequence[str]) -> list[str]:
    """The files that are meant, each once: in the order given, those of a folder or glob sorted.

    Args:
        shards: see `Shards`.
        suffixes: of the files of a folder, ``.tar``.

    Raises:
        ValueError: a path or pattern that stands for nothing, or a file that is meant twice.
    """
    given = [shards] if isinstance(shards, str | Path) else list(shards)
    found = [path for one in given for path in _meant(os.fspath(one), suffixes)]
    if not found:
        raise ValueError("no shards are given")
    if len(set(found)) < len(found):
        twice = next(path for path in found if found.count(path) > 1)
        raise ValueError(f"the shard {twice} is given more than once")
    return found


def expand_braces(pattern: str) -> list[str]:
    """``a-{00..02}.tar`` as ``a-00.tar``, ``a-01.tar``, ``a-02.tar``; ``{train,val}`` likewise.

    Raises:
        ValueError: a range that ends before it begins.
    """
    match = _RANGE.search(pattern) or _CHOICE.search(pattern)
    if match is None:
        return [pattern]
    if match.re is _RANGE:
        first, last = match.groups()
        numbers = range(int(first), int(last) + 1)
        if not numbers:
            raise ValueError(f"{pattern}: the range {match[0]} ends before it begins")
        # As shells do, of a constant width where one of the two begins with a zero.
        padded = any(len(bound) > 1 and bound[0] == "0" for bound in (first, last))
        width = max(len(first), len(last)) if padded else 0
        parts = [str(number).zfill(width) for number in numbers]
    else:
        parts = match[1].split(",")
    head, tail = pattern[: match.start()], pattern[match.end() :]
    return [path for part in parts for path in expand_braces(f"{head}{part}{tail}")]


def shards_of_split(root: str | Path, split: str, suffixes: Sequence[str]) -> list[str]:
    """The shards of one split of a folder: ``train-*.tar`` in it, or the files of ``train/``.

    Both are looked for in the folder itself and in its ``data``; hidden files are passed over.
    Where there is a ``train/`` of folders (classes, or modalities), a ``train.tar`` beside it is
    what it was unpacked from: there are no shards.

    Args:
        root: the folder.
        split: ``train``, or ``val`` for the first there is of what is called so (`HELD_OUT`).
        suffixes: of the files, ``.tar``.

    Returns:
        Their paths, sorted; none if there are none.
    """
    names, places = SPLITS[split], (Path(root), Path(root) / "data")
    if any(_has_folders(place / name) for name in names for place in places):
        return []
    for name in names:
        for place in places:
            named = re.compile(rf"{re.escape(name)}([-_.].*)?")
            own = [p for p in _files(place, suffixes) if named.fullmatch(os.path.basename(p))]
            found = own or _files(place / name, suffixes)
            if found:
                return found
    return []


def _meant(path: str, suffixes: Sequence[str]) -> list[str]:
    if os.path.isfile(path):  # whatever its name looks like
        return [path]
    if os.path.isdir(path):
        inside = _files(Path(path), suffixes)
        if not inside:
            raise ValueError(f"the folder {path} has no file that ends in {', '.join(suffixes)}")
        return inside
    found: list[str] = []
    for one in expand_braces(path):
        matches = sorted(glob.glob(one)) if glob.has_magic(one) else [one]
        missing = [match for match in matches or [one] if not os.path.isfile(match)]
        if missing:
            raise ValueError(
                f"there is no file {missing[0]}"
                + (f", one of {path}" if path != missing[0] else "; expected a shard or a folder")
            )
        found += matches
    return found


def _files(folder: Path, suffixes: Sequence[str]) -> list[str]:
    if not folder.is_dir():
        return []
    with os.scandir(folder) as entries:
        return sorted(
            entry.path
            for entry in entries
            if entry.name.endswith(tuple(suffixes)) and entry.name[0] != "." and entry.is_file()
        )


def _has_folders(folder: Path) -> bool:
    if not folder.is_dir():
        return False
    with os.scandir(folder) as entries:
        return any(entry.is_dir() and entry.name[0] != "." for entry in entries)
