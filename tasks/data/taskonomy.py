"""Taskonomy's views of buildings: ``root/TASK/BUILDING/point_P_view_V_domain_DOMAIN.png``.

A split is a list, ``root/SPLIT.csv``, of columns building, point, view.

References:
    Zamir et al., Taskonomy: Disentangling Task Transfer Learning, CVPR 2018.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from attent.tasks.data import decode
from attent.tasks.data.multimodal import check_domains

COLUMNS = ("building", "point", "view")
FARTHEST = 8000
"""Depths from this 16-bit value on are taken for it, and are 1."""


class TaskFiles(NamedTuple):
    """Where a task's images are."""

    folder: str
    domain: str  # the end of the files' names


TASKS = {
    "rgb": TaskFiles("rgb", "rgb"),
    "depth_zbuffer": TaskFiles("depth_zbuffer", "depth_zbuffer"),
    "segment_semantic": TaskFiles("segment_semantic", "segmentsemantic"),
    "edge_texture": TaskFiles("edge_texture", "edge_texture"),
    "edge_occlusion": TaskFiles("edge_occlusion", "edge_occlusion"),
    "keypoints2d": TaskFiles("keypoints2d", "keypoints2d"),
    "keypoints3d": TaskFiles("keypoints3d", "keypoints3d"),
    "normal": TaskFiles("normal", "normal"),
    "principal_curvature": TaskFiles("principal_curvature", "principal_curvature"),
    "reshading": TaskFiles("reshading", "reshading"),
    "mask_valid": TaskFiles("mask_valid", "depth_zbuffer"),
}
"""Task -> its folder, and what its files' names end in."""

OF_DOMAIN = {"rgb": "rgb", "depth": "depth_zbuffer", "semseg": "segment_semantic"}
"""Domain of a scene -> the task that it is read from."""

SHOWN = 5
"""How many missing files an error names."""


class Taskonomy:
    """The views of one split, decoded when they are asked for.

    Args:
        root: has a folder for each task, and the split's list.
        split: name of the list, without ``.csv``.
        domains: which of rgb, depth and semseg, in the order they are read.

    Raises:
        ValueError: no such list, or one without its columns or without views; a file of a view that
            is not there. Says what was expected and what was found.
    """

    def __init__(self, root: str | Path, split: str, *, domains: Sequence[str]) -> None:
        self.root = Path(root)
        self.domains = check_domains(domains)
        self.views = _listed(self.root, split)
        self._check_files(split)

    def __len__(self) -> int:
        return len(self.views)

    def path(self, task: str, index: int) -> Path:
        """The file of a view in one of `TASKS`."""
        building, point, view = self.views[index]
        folder, domain = TASKS[task]
        return self.root / folder / building / f"point_{point}_view_{view}_domain_{domain}.png"

    def locate(self, index: int) -> str:
        """The view's file in the first domain."""
        return str(self.path(OF_DOMAIN[self.domains[0]], index))

    def read(self, index: int) -> dict[str, Tensor]:
        """The domains of a view: rgb uint8, depth float32 ``[1, H, W]``, semseg uint8 ``[H, W]``.

        Depth is in [0, 1], where 1 stands for 8000 of the file's 16-bit values and more.

        Raises:
            ValueError: a file that cannot be read or does not hold what its domain should; names
                it.
        """
        return {domain: self._read(domain, index) for domain in self.domains}

    def _read(self, domain: str, index: int) -> Tensor:
        path = self.path(OF_DOMAIN[domain], index)
        if domain == "rgb":
            return decode.rgb(path)
        if domain == "semseg":
            return decode.ids(path)
        # value / 65535, clamped to 8000 / 65535 and rescaled to [0, 1].
        return decode.sixteen_bit(path).clamp(max=FARTHEST) / FARTHEST

    def _check_files(self, split: str) -> None:
        """Each folder is listed once: faster than asking for its files one by one."""
        present: dict[Path, set[str]] = {}
        missing: list[str] = []
        for domain in self.domains:
            for index in range(len(self)):
                path = self.path(OF_DOMAIN[domain], index)
                if path.parent not in present:
                    there = path.parent.is_dir()
                    present[path.parent] = set(os.listdir(path.parent)) if there else set()
                if path.name not in present[path.parent]:
                    missing.append(str(path))
        if missing:
            more = f", ... ({len(missing)} in all)" if len(missing) > SHOWN else ""
            raise ValueError(
                f"{self.root / split}.csv lists views whose files are missing: "
                f"{', '.join(missing[:SHOWN])}{more}"
            )


def _listed(root: Path, split: str) -> list[tuple[str, str, str]]:
    """The building, point and view of each row of a split's list."""
    path = root / f"{split}.csv"
    if not path.is_file():
        lists = sorted(p.name for p in root.glob("*.csv"))
        raise ValueError(
            f"no file {path}; expected ROOT/SPLIT.csv with the columns {', '.join(COLUMNS)}, found "
            f"{', '.join(lists[:8]) or 'no .csv'} in {root}"
        )
    views: list[tuple[str, str, str]] = []
    with path.open(newline="", encoding="utf-8-sig") as file:
        rows = csv.DictReader(file, skipinitialspace=True)
        header = rows.fieldnames or []
        if not set(COLUMNS) <= set(header):
            raise ValueError(
                f"{path} begins with {', '.join(header) or 'nothing'}; expected a header with the "
                f"columns {', '.join(COLUMNS)}"
            )
        for row in rows:
            building, point, view = ((row[column] or "").strip() for column in COLUMNS)
            if not (building and point and view):
                raise ValueError(
                    f"{path}, line {rows.line_num}: expected a building, a point and a view, found "
                    f"{building!r}, {point!r}, {view!r}"
                )
            views.append((building, point, view))
    if not views:
        raise ValueError(f"{path} lists no views; expected a row for each")
    return views
