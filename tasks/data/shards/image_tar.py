"""Pictures in tar shards: labelled ones, and scenes of several modalities."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
from torch import Tensor

from attent.tasks.data import decode
from attent.tasks.data.multimodal import check_domains
from attent.tasks.data.paired_folder import EXTENSIONS, KNOWN, check_sizes
from attent.tasks.data.shards.cache import Arrays, remembered
from attent.tasks.data.shards.damaged import Damaged
from attent.tasks.data.shards.labels import Coded, coded, numbered
from attent.tasks.data.shards.paths import Shards
from attent.tasks.data.shards.tar import TarShards

IMAGES = ("jpg", "jpeg", "png", "webp", *sorted(EXTENSIONS - {"jpg", "jpeg", "png", "webp"}))
"""Extensions of pictures, in lower case, those to be taken first first."""

FIELDS = ("label", "cls")
"""Where a ``json`` has its label."""


class TarImages:
    """A reader of labelled images: ``KEY.jpg`` (or png, webp, ...) and ``KEY.cls``.

    A label is what ``cls`` holds, or the field ``label`` or ``cls`` of ``json``: the number of a
    class or its name. Labels are all read when it is made, and kept beside each shard; of an image
    exactly its own bytes, when it is asked for.

    Args:
        shards: see `attent.tasks.data.shards.paths.Shards`.
        classes: names of classes in the order of their labels; None for those found.

    Attributes:
        classes: the same; None where labels are numbers and nothing says what they stand for.
        labels: ``[N]`` int64.
        blocks: as of `TarShards`.
        damaged: shards that were left out.

    Raises:
        ValueError: as of `TarShards`, and a label that is none; names file, member and byte.
    """

    domains = ("rgb",)
    damaged: tuple[Damaged, ...] = ()

    def __init__(self, shards: Shards, *, classes: Sequence[str] | None = None) -> None:
        columns = {"rgb": IMAGES, "cls": ("cls",), "json": ("json",)}
        self.shards = TarShards(shards, columns, optional=("cls", "json"))
        self.blocks = self.shards.blocks
        kind = "cls" if self.shards.has("cls") else "json"
        if self.shards.has(kind) < len(self):
            raise ValueError(
                f"{self.shards.paths[0]} and its like have {self.shards.has(kind)} labels (KEY.cls,"
                f" or KEY.json with the field {' or '.join(FIELDS)}) of {len(self)} images"
            )
        self.labels, self.classes = _labels(self.shards, kind, classes)
        for name in ("cls", "json"):  # sixteen bytes an example that are not needed any more
            self.shards.drop(name)

    def __len__(self) -> int:
        return len(self.shards)

    def locate(self, index: int) -> str:
        """The image's shard, member and byte."""
        return self.shards.place(index, "rgb")

    def read(self, index: int) -> dict[str, Tensor]:
        """``rgb`` of one image at its own size, upright, uint8 ``[3, H, W]``.

        Raises:
            ValueError: a member that cannot be read, or holds more than 8 bits a channel; names it.
        """
        return {"rgb": decode.rgb(_encoded(self.shards, index, "rgb"), upright=True)}


class TarScenes:
    """A reader of scenes: ``KEY.rgb.jpg``, ``KEY.depth.png``, ``KEY.semseg.png``, ...

    rgb may be ``KEY.jpg`` too. The files hold what those of `PairedFolder` do.

    Args:
        shards: see `attent.tasks.data.shards.paths.Shards`.
        domains: which of `attent.tasks.data.paired_folder.KNOWN`, in the order they are read.
        classes: as of `TarImages`.
        depth_range: as of `PairedFolder`.

    Attributes:
        labels: ``[N]`` int64, what ``KEY.cls`` holds; None where there is none.
        classes: as of `TarImages`; None without labels.
        blocks: as of `TarShards`.
        damaged: shards that were left out.

    Raises:
        ValueError: as of `TarShards`; domains that are none; a label that is none, or labels of
            some scenes only.
    """

    damaged: tuple[Damaged, ...] = ()

    def __init__(
        self,
        shards: Shards,
        *,
        domains: Sequence[str],
        classes: Sequence[str] | None = None,
        depth_range: float = 1.0,
    ) -> None:
        self.domains, self.depth_range = check_domains(domains, KNOWN), depth_range
        columns = {
            domain: tuple(f"{domain}.{e}" for e in IMAGES) + (IMAGES if domain == "rgb" else ())
            for domain in self.domains
        }
        self.shards = TarShards(shards, {**columns, "cls": ("cls",)}, optional=("cls",))
        self.blocks = self.shards.blocks
        self.labels: Tensor | None = None
        self.classes: list[str] | None = None
        labelled = self.shards.has("cls")
        if 0 < labelled < len(self):
            raise ValueError(
                f"{self.shards.paths[0]} and its like have a KEY.cls for {labelled} of {len(self)} "
                "scenes; expected one for each, or none"
            )
        if labelled:
            self.labels, self.classes = _labels(self.shards, "cls", classes)
        self.shards.drop("cls")

    def __len__(self) -> int:
        return len(self.shards)

    def locate(self, index: int) -> str:
        """The shard, member and byte of a scene's first domain."""
        return self.shards.place(index, self.domains[0])

    def read(self, index: int) -> dict[str, Tensor]:
        """The domains of a scene, as of `PairedFolder.read`.

        Raises:
            ValueError: a member that cannot be read or does not hold what its domain should, or
                members of different sizes; names them.
        """
        scene = {
            domain: decode.domain(domain, _encoded(self.shards, index, domain), self.depth_range)
            for domain in self.domains
        }
        if len({value.shape[-2:] for value in scene.values()}) > 1:
            check_sizes({self.shards.place(index, d): value for d, value in scene.items()})
        return scene


def _encoded(shards: TarShards, index: int, column: str) -> decode.Encoded:
    return decode.Encoded(shards.data(index, column), partial(shards.place, index, column))


def _labels(
    shards: TarShards, kind: str, classes: Sequence[str] | None
) -> tuple[Tensor, list[str] | None]:
    """Labels of all examples, from the column ``cls`` or ``json``."""
    text = _of_cls if kind == "cls" else _of_json

    def found(rows: range) -> Arrays:
        part = coded(text(shards.data(i, kind), partial(shards.place, i, kind)) for i in rows)
        return {"names": np.array(part.names, dtype=np.str_), "codes": part.codes.astype(np.int32)}

    parts = []
    for path, rows in shards.of_shards():
        if rows:
            kept = remembered(path, f"labels-{kind}", partial(found, rows))
            parts.append(Coded(kept["names"].tolist(), kept["codes"].astype(np.int64)))
    return numbered(parts, classes, lambda index: shards.place(index, kind))


def _of_cls(data: bytes, place: Callable[[], str]) -> str:
    try:
        text = data.decode("utf-8").strip()
    except UnicodeDecodeError as error:
        raise ValueError(f"{place()} is no label: {error}") from error
    if not text:
        raise ValueError(f"{place()} is empty; expected the number of a class, or its name")
    return text


def _of_json(data: bytes, place: Callable[[], str]) -> str:
    try:
        record = json.loads(data)
    except ValueError as error:
        raise ValueError(f"{place()} is not JSON: {error}") from error
    fields = record if isinstance(record, dict) else {}
    label = next((fields[name] for name in FIELDS if name in fields), None)
    if isinstance(label, bool) or not isinstance(label, int | str) or label == "":
        raise ValueError(
            f"{place()} has no label: expected the field {' or '.join(FIELDS)}, a number or a "
            f"name; found {', '.join(list(fields)[:8]) or 'no fields'}"
        )
    return str(label)
