"""Shards that cannot be read at all, left out where that is asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from attent.pipeline import Source

_TRIED_AT_ONCE = 8  # mostly waiting for the disk


@dataclass(frozen=True)
class Damaged:
    """A shard that is left out.

    Attributes:
        path: of its file.
        reason: what is wrong with it, and where.
    """

    path: str
    reason: str


def sound(
    paths: Sequence[str], read: Callable[[str], object], damaged: list[Damaged] | None
) -> list[str]:
    """The shards that can be read, in their order.

    A shard is left out whole, also where only its end is missing: how many examples it would have
    had nobody knows.

    Args:
        paths: of all of them.
        read: reads what there is to know of one before its examples; an OSError or a ValueError
            says that it is damaged.
        damaged: those left out are added; None for none of them to be: whoever reads them says so.

    Raises:
        ValueError: none of them can be read.
    """
    if damaged is None:
        return list(paths)

    def tried(path: str) -> Damaged | None:
        try:
            read(path)
        except (OSError, ValueError) as error:
            return Damaged(path, str(error))
        return None

    with ThreadPoolExecutor(_TRIED_AT_ONCE) as pool:
        found = list(pool.map(tried, paths))
    left_out = [one for one in found if one is not None]
    if paths and len(left_out) == len(paths):
        raise ValueError(f"none of {len(paths)} shards can be read: {left_out[0].reason}")
    damaged += left_out
    return [path for path, one in zip(paths, found, strict=True) if one is None]


def damaged_of(source: Source) -> tuple[Damaged, ...]:
    """The shards that were left out of a source."""
    return tuple(getattr(getattr(source, "reader", None), "damaged", ()))
