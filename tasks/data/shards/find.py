"""What a folder of shards holds, by the split that is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from attent.tasks.data.shards import tables, tar
from attent.tasks.data.shards.damaged import Damaged, sound
from attent.tasks.data.shards.image_table import TableImages, picture_column
from attent.tasks.data.shards.image_tar import TarImages, TarScenes
from attent.tasks.data.shards.labels import listed_classes
from attent.tasks.data.shards.paths import shards_of_split
from attent.tasks.data.shards.table_files import open_table


def labelled_shards(
    root: str | Path,
    split: str,
    classes: Sequence[str] | None = None,
    *,
    leave_out: bool = False,
) -> TarImages | TableImages | None:
    """A reader of the labelled images of a split that is kept in shards.

    Args:
        root: has ``train-*.tar`` or ``train/*.tar`` (``.parquet``, ``.arrow``), and the same for
            what is held out; the classes' names may be in ``classes.txt``.
        split: ``train`` or ``val``.
        classes: names of classes in the order of their labels; None for those the folder tells.
        leave_out: shards that cannot be read are left out; the reader's ``damaged`` names them.

    Returns:
        None where there are no shards of the split, or only tables without pictures.

    Raises:
        ValueError: as of `TarImages` and `TableImages`.
    """
    listed = listed_classes(root) if classes is None else classes
    damaged: list[Damaged] | None = [] if leave_out else None
    tars = sound(shards_of_split(root, split, tar.SUFFIXES), tar.members_of, damaged)
    if tars:
        return _told(TarImages(tars, classes=listed), damaged)
    found = sound(shards_of_split(root, split, tables.SUFFIXES), open_table, damaged)
    if found and picture_column(open_table(found[0]).schema) is not None:
        return _told(TableImages(found, classes=listed), damaged)
    return None


def _told(reader: Any, damaged: list[Damaged] | None) -> Any:
    reader.damaged = tuple(damaged or ())
    return reader


def scene_shards(
    root: str | Path,
    split: str,
    domains: Sequence[str],
    classes: Sequence[str] | None = None,
    *,
    leave_out: bool = False,
) -> TarScenes | None:
    """A reader of the scenes of a split that is kept in tar shards; None where there are none.

    Args:
        root: as of `labelled_shards`.
        split: ``train`` or ``val``.
        domains: as of `TarScenes`.
        classes: as of `labelled_shards`.
        leave_out: as of `labelled_shards`.

    Raises:
        ValueError: as of `TarScenes`.
    """
    damaged: list[Damaged] | None = [] if leave_out else None
    tars = sound(shards_of_split(root, split, tar.SUFFIXES), tar.members_of, damaged)
    if not tars:
        return None
    listed = listed_classes(root) if classes is None else classes
    return _told(TarScenes(tars, domains=domains, classes=listed), damaged)


def hold_pictures(data: str | Path) -> bool:
    """Whether the tables that some data are hold pictures; False for what cannot be told.

    Args:
        data: a table, or a folder of them.
    """
    path = Path(data)
    try:
        if path.suffix in tables.SUFFIXES:
            return picture_column(open_table(str(path)).schema) is not None
        for split in ("train", "val"):
            found = shards_of_split(path, split, tables.SUFFIXES)
            if found:
                return picture_column(open_table(found[0]).schema) is not None
        # One split, as `datasets` saves it: pictures still, whoever misses a split says so.
        for table in sorted(path.glob("data-*.arrow"))[:1]:
            return picture_column(open_table(str(table)).schema) is not None
    except (OSError, ValueError):  # whoever reads it says what is wrong
        pass
    return False
