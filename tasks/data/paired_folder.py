"""Scenes in folders, a folder for each domain: ``root/{rgb,depth,...}/CLASS/STEM.EXTENSION``."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from attent.tasks.data import decode
from attent.tasks.data.multimodal import DOMAINS, check_domains

EXTENSIONS = frozenset(
    {"jpg", "jpeg", "png", "ppm", "bmp", "pgm", "tif", "tiff", "webp", "jp2", "jpx"}
)
"""Of images, in any case."""

KNOWN = (*DOMAINS, "pseudo_depth", "pseudo_semseg", "mask_valid")
"""Domains that may have a folder: pseudo ones are a network's, and a mask is 255 where depth is."""

SHOWN = 5
"""How many files of a kind an error names."""


class PairedFolder:
    """The scenes of one split, paired by path without extension and decoded when asked for.

    Only names are looked at when it is made: no file is opened.

    Args:
        root: the split's folder (ROOT/train); has a folder for each domain, these a folder for each
            class, with images at any depth below it.
        domains: which of `KNOWN`, in the order they are read.
        classes: class names in the order of their labels; None for the folders' names, sorted.
        depth_range: depth, in its unit, that the 16-bit value 65536 would stand for.
        folders: domain -> the name of its folder, where that is another.

    Attributes:
        labels: ``[N]`` int64, the class of each scene.

    Raises:
        ValueError: a domain's folder is missing; a scene is not in every domain exactly once; no
            scenes; a class that is not among ``classes``. Says what was expected and what was
            found.
    """

    def __init__(
        self,
        root: str | Path,
        *,
        domains: Sequence[str],
        classes: Sequence[str] | None = None,
        depth_range: float = 1.0,
        folders: Mapping[str, str] | None = None,
    ) -> None:
        self.root, self.depth_range = Path(root), depth_range
        self.domains = check_domains(domains, KNOWN)
        self._folder = {domain: (folders or {}).get(domain, domain) for domain in self.domains}
        _check_folders(self.root, list(self._folder.values()))
        listings = {domain: _Listing(self.root / self._folder[domain]) for domain in self.domains}
        complaints = [
            complaint
            for domain in self.domains
            for complaint in (*listings[domain].complaints(), *_lacking(domain, listings))
        ]
        if complaints:
            raise ValueError(
                f"{self.root}: expected DOMAIN/CLASS/STEM.EXTENSION, the same stems in each of "
                f"{', '.join(self._folder.values())}; found that " + "; ".join(complaints)
            )
        self.stems = sorted(listings[self.domains[0]].extensions)
        if not self.stems:
            raise ValueError(
                f"{self.root} holds no images; expected {self._folder[self.domains[0]]}/CLASS/"
                f"STEM.EXTENSION ({', '.join(sorted(EXTENSIONS))})"
            )
        self._extensions = {
            domain: [listing.extensions[stem] for stem in self.stems]
            for domain, listing in listings.items()
        }
        found = sorted(set().union(*(listing.classes for listing in listings.values())))
        self.classes = found if classes is None else list(classes)
        unknown = sorted(set(found) - set(self.classes))
        if unknown:
            raise ValueError(
                f"{self.root} has classes that the training split has not: {unknown[:8]}"
            )
        numbers = {name: number for number, name in enumerate(self.classes)}
        self.labels = torch.tensor([numbers[stem.split("/", 1)[0]] for stem in self.stems])

    def __len__(self) -> int:
        return len(self.stems)

    def path(self, domain: str, index: int) -> str:
        """The file of one domain of a scene."""
        name = f"{self.stems[index]}{self._extensions[domain][index]}"
        return f"{self.root / self._folder[domain]}/{name}"

    def locate(self, index: int) -> str:
        """The scene's files, as a shell would expand it."""
        if len(self.domains) == 1:
            return self.path(self.domains[0], index)
        return f"{self.root}/{{{','.join(self._folder.values())}}}/{self.stems[index]}.*"

    def read(self, index: int) -> dict[str, Tensor]:
        """The domains of a scene: rgb uint8, depth float32 ``[1, H, W]``, semseg uint8 ``[H, W]``.

        Depth is the file's 16-bit value / 65536 times ``depth_range``; predicted depth in [0, 1).
        The mask is bool ``[H, W]``.

        Raises:
            ValueError: a file that cannot be read or does not hold what its domain should, or files
                of different sizes; names them.
        """
        scene = {
            domain: decode.domain(domain, self.path(domain, index), self.depth_range)
            for domain in self.domains
        }
        check_sizes({self.path(domain, index): value for domain, value in scene.items()})
        return scene


def check_sizes(files: Mapping[str, Tensor]) -> None:
    """Raise a ValueError that names the files of a scene, path -> pixels, if their sizes differ."""
    if len({value.shape[-2:] for value in files.values()}) > 1:
        sizes = ", ".join(
            f"{path} of {value.shape[-1]} x {value.shape[-2]}" for path, value in files.items()
        )
        raise ValueError(f"expected one size for all domains of a scene; found {sizes}")


class _Listing:
    """What is below a domain's folder; hidden files and files that are no images are passed over.

    Attributes:
        classes: names of the folders in it.
        extensions: path below it without extension -> extension, with its dot.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.classes: list[str] = []
        self.extensions: dict[str, str] = {}
        self._twice: list[str] = []
        self._loose: list[str] = []
        pending = [""]
        while pending:  # by scandir, which tells folders from files without asking for each
            inside = pending.pop()
            with os.scandir(folder / inside) as entries:
                for entry in entries:
                    if entry.name.startswith("."):
                        continue
                    if entry.is_dir():
                        pending.append(f"{inside}{entry.name}/")
                        if not inside:
                            self.classes.append(entry.name)
                    else:
                        self._add(inside, entry.name)

    def _add(self, inside: str, name: str) -> None:
        stem, dot, extension = name.rpartition(".")
        if not stem or extension.lower() not in EXTENSIONS:
            return
        if not inside:
            self._loose.append(name)
            return
        path = inside + stem
        if path in self.extensions:
            self._twice.append(f"{path}{self.extensions[path]} and {inside}{name}")
        # A handful of extensions, each kept once.
        self.extensions[path] = sys.intern(dot + extension)

    def complaints(self) -> Iterator[str]:
        """What is wrong with this domain alone."""
        if self._twice:
            yield f"{self.folder.name} has two files of one stem: {_first(self._twice)}"
        if self._loose:
            yield f"{self.folder.name} has images outside any class folder: {_first(self._loose)}"


def _lacking(domain: str, listings: dict[str, _Listing]) -> Iterator[str]:
    """What other domains hold and this one does not, by the first domain that holds it."""
    folder, own = listings[domain].folder.name, listings[domain].extensions
    lacking: dict[str, str] = {}
    for listing in listings.values():
        for stem in listing.extensions.keys() - own.keys():
            lacking.setdefault(stem, f"{listing.folder.name}/{stem}{listing.extensions[stem]}")
    if lacking:
        total = len(set().union(*(listing.extensions for listing in listings.values())))
        files = [path for _, path in sorted(lacking.items())]
        yield f"{folder} lacks {len(files)} of {total} scenes, the partners of {_first(files)}"


def _first(names: list[str]) -> str:
    """The first few of many names, and how many there are."""
    shown = ", ".join(sorted(names)[:SHOWN])
    return shown if len(names) <= SHOWN else f"{shown}, ... ({len(names)} in all)"


def _check_folders(root: Path, domains: Sequence[str]) -> None:
    missing = [domain for domain in domains if not (root / domain).is_dir()]
    if not missing:
        return
    place = root if root.is_dir() else root.parent
    found = sorted(p.name for p in place.iterdir()) if place.is_dir() else []
    raise ValueError(
        f"no folder {' and no folder '.join(str(root / domain) for domain in missing)}; expected "
        f"ROOT/train/DOMAIN/CLASS/IMAGE for the domains {', '.join(domains)}, with the root given "
        f"as ROOT/train; found {', '.join(found[:8]) or 'nothing'} in {place}"
    )
