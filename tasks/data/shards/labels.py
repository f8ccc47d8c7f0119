"""Labels as shards have them, numbers or names of classes, as numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

LISTS = ("classes.txt", "classnames.txt")
"""Files beside shards with the names of the classes, one a line in the order of their numbers."""


class Coded(NamedTuple):
    """Texts, each kept once."""

    names: list[str]  # [K], all different
    codes: np.ndarray  # [N] int64, of names


def coded(texts: Iterable[str]) -> Coded:
    """Texts as places in a list of the different ones, in the order they are met."""
    known: dict[str, int] = {}
    codes = [known.setdefault(text, len(known)) for text in texts]
    return Coded(list(known), np.array(codes, dtype=np.int64))


def numbered(
    parts: Sequence[Coded], classes: Sequence[str] | None, place: Callable[[int], str]
) -> tuple[Tensor, list[str] | None]:
    """Labels as numbers of classes, and the names of the classes where they are known.

    Where any is among the names of ``classes``, all are names. Otherwise whole numbers are the
    classes' own; without ``classes`` labels that are not all whole numbers are names, numbered in
    their sorted order.

    Args:
        parts: labels, of one shard after the other; N in all.
        classes: names in the order of their numbers; None for those that are found.
        place: of an example, for messages.

    Returns:
        ``[N]`` int64, and the names.

    Raises:
        ValueError: a label that is no class; says where and what was expected.
    """
    names = sorted(set().union(*(part.names for part in parts)))
    numbers = {name: int(name) for name in names if _is_number(name)}
    by_name = len(numbers) < len(names) if classes is None else set(names) & set(classes)
    if by_name:
        classes = names if classes is None else classes
        numbers = {name: number for number, name in enumerate(classes)}
    most = len(classes) if classes is not None else 2**31
    wrong = {name for name in names if not 0 <= numbers.get(name, -1) < most}
    start = 0
    for part in parts:
        found = [code for code, name in enumerate(part.names) if name in wrong]
        if found:
            row = int(np.flatnonzero(np.isin(part.codes, found))[0])
            expected = (
                f"one of {most} classes ({', '.join(classes[:8])}{', ...' * (most > 8)}) or 0 to "
                f"{most - 1}"
                if classes is not None
                else "class numbers from 0, or names of classes"
            )
            raise ValueError(
                f"{place(start + row)} has the label {part.names[part.codes[row]]!r}; expected "
                f"{expected}"
            )
        start += len(part.codes)
    of_part = [np.array([numbers[n] for n in p.names], dtype=np.int64)[p.codes] for p in parts]
    return torch.from_numpy(np.concatenate(of_part)), None if classes is None else list(classes)


def listed_classes(root: str | Path) -> list[str] | None:
    """The names of classes in a folder's `LISTS`; None where there is none."""
    for name in LISTS:
        path = Path(root) / name
        if path.is_file():
            return [line.strip() for line in path.read_text("utf-8").splitlines() if line.strip()]
    return None


def _is_number(text: str) -> bool:
    return text.removeprefix("-").isdecimal() and text.isascii()
