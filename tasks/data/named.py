"""Data that come with the package and go by a name; a folder of that name is not meant by it."""

from __future__ import annotations

from pathlib import Path

from attent.tasks.config import ConfigError

NAMED = {
    "classify": ("digits", "scenes"),
    "pretrain": ("scenes", "photos"),
    "segment": ("scenes",),
    "depth": ("scenes",),
    "detect": ("scenes",),
    "instruct": ("harvest",),
}
"""Command -> the names it knows."""


def is_named(command: str, data: str | None) -> bool:
    """Whether what somebody gave as data is such a name, and no path."""
    return data in NAMED.get(command, ())


def refuse_ambiguous(command: str, data: str | None) -> None:
    """Refuse a name that a folder here has too: it may be the folder that is meant.

    Args:
        command: that trains.
        data: as it was given.

    Raises:
        ConfigError: says how each of them is meant.
    """
    if is_named(command, data) and Path(str(data)).is_dir():
        raise ConfigError(
            f"data: {data} is data that come with the package, and a folder here has that name "
            f"too: give ./{data} for the folder; for the package's own, start where there is no "
            "such folder"
        )
