"""Folders of scenes with something to predict: which layout one has, and readers of its splits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from attent.tasks.config import ConfigError
from attent.tasks.data import ade20k, nyuv2
from attent.tasks.data.dense import MASK, PSEUDO
from attent.tasks.data.multimodal import Reader
from attent.tasks.data.paired_folder import PairedFolder
from attent.tasks.data.taskonomy import Taskonomy

LAYOUTS = {
    "ade20k": "{images,annotations}/{training,validation}/NAME.{jpg,png}",
    "nyuv2": "{train,test}/{rgb,depth,semseg,mask}/data/NAME.png",
    "taskonomy": "{train,val}.csv and TASK/BUILDING/point_P_view_V_domain_TASK.png",
    "folders": "{train,val}/{rgb,depth,semseg,mask_valid}/CLASS/NAME.EXT",
}
"""Layout -> what a folder of it holds."""


class DenseData(NamedTuple):
    """What a folder holds."""

    layout: str  # one of `LAYOUTS`
    train: Reader  # the held-out split once more where that alone was asked for
    val: Reader
    num_classes: int | None  # of semseg, where the layout settles it
    reduce_zero_label: bool  # whether id 0 is no class
    class_names: tuple[str, ...] = ()  # of semseg, where they are known


def find_dense(
    path: str | Path,
    *,
    inputs: Sequence[str],
    target: str,
    pseudo: Sequence[str] = (),
    layout: str | None = None,
    train: str | None = None,
    val: str | None = None,
    held_out_only: bool = False,
) -> DenseData:
    """The readers of a folder's splits, of the domains that a `Dense` source needs.

    ``mask_valid`` is read with what a sensor measures, if the folder has it.

    Args:
        path: the folder.
        inputs: as of `Dense`.
        target: as of `Dense`.
        pseudo: as of `Dense`.
        layout: one of `LAYOUTS`; None for what the folder looks like. NYUv2 whose masks are in
            ``mask_valid`` looks like ``folders``, whose depth is in [0, 1) and not in metres.
        train: name of the training split; None for the usual one (``train``; of Taskonomy the list
            with that in its name).
        val: name of the held-out split; None for the usual one (``val``, else ``test``).
        held_out_only: no training split is looked for.

    Raises:
        ConfigError: no such layout, or a folder that does not hold what it should; says what was
            expected and what was found.
    """
    root = Path(path)
    if layout is None:
        layout = _recognised(root)
    if layout not in LAYOUTS:
        raise ConfigError(f"layout is one of {', '.join(LAYOUTS)}; got {layout!r}")
    given = [PSEUDO + name if name in pseudo else name for name in inputs]
    measured = target != "semseg" or "depth" in given
    domains = list(dict.fromkeys([*given, target]))
    try:
        if layout == "ade20k":
            splits = [val or "val"] if held_out_only else [train or "train", val or "val"]
            photos = [ade20k.ADE20K(root, split, domains=domains) for split in splits]
            names = ade20k.class_names(root)
            return DenseData(layout, photos[0], photos[-1], ade20k.NUM_CLASSES, True, names)
        splits = _splits(root, layout, train, val, held_out_only)
        masks = [root / MASK] if layout == "taskonomy" else _masks(root, layout, splits)
        if measured and any(folder.is_dir() for folder in masks):
            domains.append(MASK)
        readers = [_reader(root, layout, domains)(split) for split in splits]
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(f"data of layout {layout} ({LAYOUTS[layout]}): {error}") from error
    if layout == "nyuv2":
        known = nyuv2.NUM_CLASSES, True, nyuv2.CLASSES
        return DenseData(layout, readers[0], readers[-1], *known)
    return DenseData(layout, readers[0], readers[-1], None, False)


def _recognised(root: Path) -> str:
    """The layout that a folder's own folders are of."""
    if (root / "images").is_dir() and (root / "annotations").is_dir():
        return "ade20k"
    splits = [root / name for name in ("train", "val", "test") if (root / name).is_dir()]
    if splits:
        return "nyuv2" if (splits[0] / "mask").is_dir() else "folders"
    if root.is_dir() and any(root.glob("*.csv")):
        return "taskonomy"
    expected = "; ".join(f"{name}: {holds}" for name, holds in LAYOUTS.items())
    raise ConfigError(f"data: {root} is of no known layout ({expected}); found {_found(root)}")


def _found(root: Path) -> str:
    if not root.is_dir():
        return "no such folder"
    names = sorted(p.name for p in root.iterdir())
    more = f", ... ({len(names)} in all)" if len(names) > 8 else ""
    return (", ".join(names[:8]) or "nothing") + more


def _splits(
    root: Path, layout: str, train: str | None, val: str | None, held_out_only: bool
) -> list[str]:
    """Names of the training split, if it is asked for, and of the held-out one."""
    asked = {"val": val} if held_out_only else {"train": train, "val": val}
    if layout == "taskonomy":
        lists = sorted(p.stem for p in root.glob("*.csv"))
        return [given or _only(root, split, lists) for split, given in asked.items()]
    tested = not (root / "val").is_dir() and (root / "test").is_dir()
    usual = {"train": "train", "val": "test" if tested else "val"}
    return [given or usual[split] for split, given in asked.items()]


def _only(root: Path, split: str, lists: list[str]) -> str:
    """The list of a split: called so, or the only one with that in its name."""
    named = [name for name in lists if split in name]
    if split in named:
        return split
    if len(named) != 1:
        raise ConfigError(
            f"data: expected {root / split}.csv, or one list with {split} in its name; found "
            f"{', '.join(lists) or 'no .csv'}"
        )
    return named[0]


def _masks(root: Path, layout: str, splits: Sequence[str]) -> list[Path]:
    """Where masks may be."""
    names = (MASK, "mask") if layout == "nyuv2" else (MASK,)
    return [root / split / name for split in splits for name in names]


def _reader(root: Path, layout: str, domains: Sequence[str]) -> Callable[[str], Reader]:
    """Split -> its reader."""
    if layout == "taskonomy":
        return lambda split: Taskonomy(root, split, domains=domains)
    kind = nyuv2.NYUv2 if layout == "nyuv2" else PairedFolder
    return lambda split: kind(root / split, domains=domains)
