"""ADE20K's scene parsing release: ``root/{images,annotations}/{training,validation}/STEM``.

Photographs end in ``.jpg``, annotations in ``.png``.

References:
    Zhou et al., Scene Parsing through ADE20K Dataset, CVPR 2017.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from attent.tasks.data import decode
from attent.tasks.data.multimodal import check_domains
from attent.tasks.data.paired_folder import SHOWN, check_sizes

NUM_CLASSES = 150
"""Of pixels; id 0 is anything else, and they are counted from 1."""

_PLACES = {"rgb": ("images", ".jpg"), "semseg": ("annotations", ".png")}
_SPLITS = {"train": "training", "val": "validation"}


def class_names(root: str | Path) -> tuple[str, ...]:
    """Names of the classes from 1 on, each by the first of its synonyms, as the release lists them.

    The list is ``objectInfo150.txt``: a line of titles, then one for each class, its columns parted
    by tabs, the number first and the synonyms last.

    Args:
        root: the data set's folder.

    Returns:
        `NUM_CLASSES` names; none if there is no such file or it does not name all of them.
    """
    path = Path(root) / "objectInfo150.txt"
    text = path.read_text(errors="replace") if path.is_file() else ""
    rows = [line.strip().split("\t") for line in text.splitlines()[1:] if line.strip()]
    named = {row[0].strip(): re.split("[,;]", row[-1])[0].strip() for row in rows}
    numbers = [str(i) for i in range(1, NUM_CLASSES + 1)]
    return tuple(named[i] for i in numbers) if named.keys() == set(numbers) else ()


class ADE20K:
    """The photographs of one split and what each pixel shows, decoded when asked for.

    Args:
        root: has the folders ``images`` and ``annotations`` (ADEChallengeData2016).
        split: ``train`` or ``val``.
        domains: rgb, semseg or both, in the order they are read.

    Raises:
        ValueError: a folder that is missing or empty; a photograph without its annotation, or the
            other way round. Says what was expected and what was found.
    """

    def __init__(
        self, root: str | Path, split: str, *, domains: Sequence[str] = ("rgb", "semseg")
    ) -> None:
        if split not in _SPLITS:
            raise ValueError(f"split is one of {', '.join(_SPLITS)}; got {split!r}")
        self.root, self.split = Path(root), split
        self.domains = check_domains(domains, _PLACES)
        stems = {domain: self._listed(domain) for domain in self.domains}
        found = set().union(*stems.values())
        missing = sorted(
            str(self._file(domain, stem))
            for domain in self.domains
            for stem in found - stems[domain]
        )
        if missing:
            more = f", ... ({len(missing)} in all)" if len(missing) > SHOWN else ""
            raise ValueError(
                f"{self.root}: every photograph has an annotation of its name; missing are "
                f"{', '.join(missing[:SHOWN])}{more}"
            )
        self.stems = sorted(found)

    def __len__(self) -> int:
        return len(self.stems)

    def path(self, domain: str, index: int) -> Path:
        """The file of one domain of a scene."""
        return self._file(domain, self.stems[index])

    def locate(self, index: int) -> str:
        """The scene's file in the first domain."""
        return str(self.path(self.domains[0], index))

    def read(self, index: int) -> dict[str, Tensor]:
        """The domains of a scene: rgb uint8 ``[3, H, W]``, semseg uint8 ``[H, W]``, ids 0 to 150.

        Raises:
            ValueError: a file that cannot be read or does not hold what its domain should, or files
                of different sizes; names them.
        """
        scene = {
            domain: (decode.rgb if domain == "rgb" else decode.ids)(self.path(domain, index))
            for domain in self.domains
        }
        check_sizes({str(self.path(domain, index)): value for domain, value in scene.items()})
        return scene

    def _folder(self, domain: str) -> Path:
        return self.root / _PLACES[domain][0] / _SPLITS[self.split]

    def _file(self, domain: str, stem: str) -> Path:
        return self._folder(domain) / f"{stem}{_PLACES[domain][1]}"

    def _listed(self, domain: str) -> set[str]:
        """Names of a domain's files, without their ends."""
        folder, end = self._folder(domain), _PLACES[domain][1]
        names = [p.name for p in folder.iterdir()] if folder.is_dir() else []
        stems = {name.removesuffix(end) for name in names if name.endswith(end) and name[0] != "."}
        if not stems:
            there = sorted(p.name for p in self.root.iterdir()) if self.root.is_dir() else []
            raise ValueError(
                f"no *{end} in {folder}; expected {self.root}/{{images,annotations}}/"
                f"{{training,validation}}, found {', '.join(there[:8]) or 'nothing'} in it"
            )
        return stems
