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

import torch
from torch import Tensor
from torch.nn import functional
from torchvision.transforms.v2 import functional as V

from attent.tasks.data import decode
from attent.tasks.data.dense import CHANNELS
from attent.tasks.data.multimodal import check_domains

COLUMNS = ("building", "point", "view")
FARTHEST = 8000
"""Depths from this 16-bit value on (1/512 m) are taken for it, and are 1."""

STRONGEST = 0.25
"""Texture edges from this share of 65535 on are taken for it, and are 1."""

CELL = 4
"""Side in pixels of the cells of which a mask is valid all over or nowhere."""


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

KNOWN = tuple(dict.fromkeys([*OF_DOMAIN, *CHANNELS, "mask_valid"]))
"""What may be read; depth and depth_zbuffer are the same."""

_OF_BYTES = ("normal", "principal_curvature", "reshading")  # kept as pictures of three channels

SHOWN = 5
"""How many missing files an error names."""


class Taskonomy:
    """The views of one split, decoded when they are asked for.

    Args:
        root: has a folder for each task, and the split's list.
        split: name of the list, without ``.csv``.
        domains: which of rgb, depth, semseg, the tasks of `CHANNELS` and mask_valid, in the order
            they are read.

    Raises:
        ValueError: no such list, or one without its columns or without views; a file of a view that
            is not there. Says what was expected and what was found.
    """

    def __init__(self, root: str | Path, split: str, *, domains: Sequence[str]) -> None:
        self.root = Path(root)
        self.domains = check_domains(domains, KNOWN)
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
        return str(self.path(_task(self.domains[0]), index))

    def read(self, index: int) -> dict[str, Tensor]:
        """The domains of a view, as `Dense` has them: measurements are in [0, 1].

        Depth is 1 at 8000 of the file's 16-bit values and more (15.6 m), texture edges at a quarter
        of their range; occlusion edges are blurred by a Gaussian of 3 x 3 pixels. A pixel is valid
        where all of its cell of 4 x 4 is.

        Raises:
            ValueError: a file that cannot be read or does not hold what its domain should; names
                it.
        """
        return {domain: self._read(domain, index) for domain in self.domains}

    def _read(self, domain: str, index: int) -> Tensor:
        task = _task(domain)
        path = self.path(task, index)
        if task == "rgb":
            return decode.rgb(path)
        if task == "segment_semantic":
            return decode.ids(path)
        if task == "mask_valid":
            return _whole_cells(decode.mask(path))
        if task in _OF_BYTES:
            return decode.rgb(path)[: CHANNELS[task]].to(torch.float32) / 255
        if task == "depth_zbuffer":
            # value / 65535, clamped to 8000 / 65535 and rescaled to [0, 1].
            return decode.sixteen_bit(path).clamp(max=FARTHEST) / FARTHEST
        value = decode.sixteen_bit(path) / 65535
        if task == "edge_texture":
            return value.clamp(max=STRONGEST) / STRONGEST
        return V.gaussian_blur(value, [3, 3], [1.0, 1.0]) if task == "edge_occlusion" else value

    def _check_files(self, split: str) -> None:
        """Each folder is listed once: faster than asking for its files one by one."""
        present: dict[Path, set[str]] = {}
        missing: list[str] = []
        for domain in self.domains:
            for index in range(len(self)):
                path = self.path(_task(domain), index)
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


def _task(domain: str) -> str:
    return OF_DOMAIN.get(domain, domain)


def _whole_cells(valid: Tensor) -> Tensor:
    """A mask ``[H, W]``, true where all of a cell is; cells at the edge may be smaller."""
    height, width = valid.shape
    padded = functional.pad(valid, (0, -width % CELL, 0, -height % CELL), value=True)
    cells = padded.unflatten(1, (-1, CELL)).unflatten(0, (-1, CELL)).all(3).all(1)
    return cells.repeat_interleave(CELL, 0).repeat_interleave(CELL, 1)[:height, :width]


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
