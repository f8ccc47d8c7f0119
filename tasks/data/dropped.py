"""Rows that are left out because they teach nothing: counted, listed and told."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from attent.tasks.data.rows import Row


@dataclass(frozen=True)
class Dropped:
    """A row of which nothing is left to learn."""

    row: Row
    why: str


def told(dropped: Sequence[Dropped], num_left: int) -> str:
    """How many rows were dropped, and which; empty if none was.

    Args:
        dropped: the rows.
        num_left: rows that are left.
    """
    if not dropped:
        return ""
    by_why: dict[str, list[int]] = {}
    for one in dropped:
        by_why.setdefault(one.why, []).append(one.row.number)
    listed = "; ".join(f"{why}: rows {_ranges(numbers)}" for why, numbers in by_why.items())
    total = len(dropped) + num_left
    return f"{len(dropped)} of {total:,} rows leave nothing to learn ({listed})"


def _ranges(numbers: Sequence[int], most: int = 40) -> str:
    """Numbers in order, neighbours together: ``3, 5-7``."""
    ranges: list[list[int]] = []
    for number in sorted(numbers):
        if ranges and number == ranges[-1][1] + 1:
            ranges[-1][1] = number
        else:
            ranges.append([number, number])
    named = [str(a) if a == b else f"{a}-{b}" for a, b in ranges[:most]]
    more = f" and {len(ranges) - most} more" if len(ranges) > most else ""
    return ", ".join(named) + more
