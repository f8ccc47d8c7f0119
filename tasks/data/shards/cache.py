"""What has been found out about a file, kept beside it for the next run."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np

from attent.pipeline.checkpoint import write_atomically

VERSION = 1
"""Of what is kept; raised when an array changes its meaning."""

Arrays = dict[str, np.ndarray]


def remembered(path: str, kind: str, make: Callable[[], Arrays]) -> Arrays:
    """Arrays about a file, from what is kept of it if that is whole and of this very file.

    They are kept in ``.NAME.KIND.npz`` beside the file, or where that cannot be written in the
    user's folder of caches (``$XDG_CACHE_HOME/attent/shards``), or nowhere. What is kept counts for
    a file of the same size and time of change only.

    Args:
        path: of the file.
        kind: of the arrays; goes into the name.
        make: finds them out.

    Raises:
        ValueError: there is no such file.
        Exception: whatever ``make`` raises.
    """
    try:
        known = os.stat(path)
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    stamp = np.array([VERSION, known.st_size, known.st_mtime_ns], dtype=np.int64)
    places = _places(path, kind)
    for place in places:
        found = _load(place)
        if found is not None and np.array_equal(found.pop("stamp", np.zeros(0)), stamp):
            return found
    made = make()
    buffer = io.BytesIO()
    np.savez(buffer, stamp=stamp, **made)  # type: ignore[arg-type]
    for place in places:
        try:
            write_atomically(place, buffer.getvalue())
        except OSError:  # it is only a matter of time saved
            continue
        break
    return made


def _places(path: str, kind: str) -> list[Path]:
    file = Path(os.path.abspath(path))
    name = f".{file.name}.{kind}.npz"
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    digest = hashlib.blake2b(str(file).encode(), digest_size=8).hexdigest()
    return [file.parent / name, Path(home) / "attent" / "shards" / f"{digest}{name}"]


def _load(place: Path) -> Arrays | None:
    """The arrays of a file; None where there is none or it is damaged."""
    try:
        with place.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except Exception:  # a damaged archive leads into errors of any kind
        return None
