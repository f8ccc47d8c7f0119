"""COCO's pictures and instances (Lin et al., Microsoft COCO, ECCV 2014).

``root/annotations/instances_SPLIT.json`` and ``root/SPLIT/NAME.jpg``, as COCO is distributed, with
SPLIT train2017 or val2017.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pycocotools import mask
from tensordict import TensorDict
from torch import Tensor
from torch.nn import functional as F

from attent.tasks.data import decode
from attent.tasks.data.joint import one_key_each
from attent.tasks.data.objects import ObjectView, Scene, batch_of

rle: Any = mask  # its annotations know none of the forms that segmentations have

SHOWN = 5
"""How many ids an error names."""


class Coco:
    """The pictures of one split with their instances, read when they are asked for.

    Pictures without instances are examples too. Instances whose box has no area (COCO has some) are
    left out; their ids are in ``dropped``.

    Args:
        root: has ``annotations/`` and a folder for each split.
        split: ``train2017``, ``val2017`` or another.
        view: of each picture.
        categories: (id, name) of each class in the order of the labels from 1; None for the file's
            own, by id.

    Attributes:
        categories: as above.
        classes: of the labels from 1 on.
        image_ids: of the examples, in the order of the file.
        dropped: ids of the annotations that are left out.

    Raises:
        ValueError: no such file, or not of this form; a picture that is not there; an annotation
            of an unknown picture or category, or without a mask. Says what was expected and what
            was found.
    """

    def __init__(
        self,
        root: str | Path,
        split: str,
        *,
        view: ObjectView,
        categories: Sequence[tuple[int, str]] | None = None,
    ) -> None:
        self.view = view
        self.folder = Path(root) / split
        self.path = Path(root) / "annotations" / f"instances_{split}.json"
        found = _read(self.path)
        own = sorted((int(c["id"]), str(c["name"])) for c in found["categories"])
        self.categories = own if categories is None else list(categories)
        unknown = [name for id, name in own if (id, name) not in self.categories]
        if unknown:
            raise ValueError(
                f"{self.path} has categories that the training split has not: "
                f"{', '.join(unknown[:SHOWN])}"
            )
        self.classes = tuple(name for _, name in self.categories)
        self._label = {id: i + 1 for i, (id, _) in enumerate(self.categories)}
        self.images: list[dict[str, Any]] = found["images"]
        if not self.images:
            raise ValueError(f"{self.path} lists no images")
        self.image_ids = [int(image["id"]) for image in self.images]
        self.dropped: list[int] = []
        self._of_image = self._sorted(found["annotations"])
        self._check_files()

    def __len__(self) -> int:
        return len(self.images)

    def locate(self, index: int) -> str:
        """The picture's path and id."""
        image = self.images[index]
        return f"{self.folder / image['file_name']}, image {image['id']}"

    def fetch(self, index: Tensor) -> TensorDict:
        """Fixed views of the pictures at ``index`` (``[B]`` int64); see `batch_of`.

        Raises:
            ValueError: a picture that cannot be read or is of another size than the file says,
                damaged runs; names the image or the annotation.
        """
        return self._batch(index, [None] * len(index))

    def fetch_augmented(self, index: Tensor, keys: Tensor) -> TensorDict:
        """As `fetch`, each picture under its key (``[B]`` int64)."""
        return self._batch(index, one_key_each(index, keys))

    def read(self, index: int) -> Scene:
        """A picture at its own size with its instances.

        Raises:
            ValueError: as of `fetch`.
        """
        image = self.images[index]
        pixels = decode.rgb(self.folder / image["file_name"])
        size = int(image["height"]), int(image["width"])
        if tuple(pixels.shape[1:]) != size:
            raise ValueError(
                f"image {image['id']}: {self.path.name} says {size[0]} x {size[1]} (height x "
                f"width), {self.folder / image['file_name']} is {pixels.shape[1]} x "
                f"{pixels.shape[2]}"
            )
        annotations = self._of_image.get(int(image["id"]), [])
        masks = [_mask(annotation, size) for annotation in annotations]
        # A box is left, top, width, height.
        boxes = torch.tensor([a["bbox"] for a in annotations], dtype=torch.float32).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        return Scene(
            image=pixels,
            boxes=boxes,
            labels=torch.tensor(
                [self._label[a["category_id"]] for a in annotations], dtype=torch.int64
            ),
            masks=torch.from_numpy(np.stack(masks)) if masks else torch.zeros(0, *size).byte(),
            crowd=torch.tensor([bool(a.get("iscrowd", 0)) for a in annotations], dtype=torch.bool),
        )

    def results(self, index: int, found: Mapping[str, Tensor]) -> list[dict[str, Any]]:
        """Detections in the fixed view of a picture, as COCO's results file has them.

        Args:
            index: of the picture.
            found: ``boxes`` ``[n, 4]``, ``labels`` ``[n]``, ``scores`` ``[n]``, ``masks``
                ``[n, S, S]``, in the view.

        Returns:
            For each: ``image_id``, ``category_id``, ``bbox`` (left, top, width, height), ``score``
            and ``segmentation``, compressed, all in the picture's own pixels.
        """
        image = self.images[index]
        height, width = int(image["height"]), int(image["width"])
        seen_height, seen_width = self.view.fit(height, width)
        scale = torch.tensor([width / seen_width, height / seen_height]).repeat(2)
        boxes = found["boxes"].cpu() * scale
        boxes[:, 2:] -= boxes[:, :2]
        rows = []
        for box, label, score, own in zip(
            boxes, found["labels"], found["scores"], found["masks"], strict=True
        ):
            seen = own.cpu()[None, None, :seen_height, :seen_width].float()
            whole = F.interpolate(seen, size=(height, width))[0, 0].byte().numpy()
            encoded = rle.encode(np.asfortranarray(whole))
            rows.append(
                {
                    "image_id": int(image["id"]),
                    "category_id": self.categories[int(label) - 1][0],
                    "bbox": box.tolist(),
                    "score": float(score),
                    "segmentation": {
                        "size": list(encoded["size"]), "counts": encoded["counts"].decode(),
                    },
                }
            )  # fmt: skip
        return rows

    def _batch(self, index: Tensor, keys: Sequence[int | None]) -> TensorDict:
        scenes = [self.view(self.read(i), key) for i, key in zip(index.tolist(), keys, strict=True)]
        return batch_of(scenes, self.view.size)

    def _sorted(self, annotations: list[dict[str, Any]]) -> dict[int, list[dict[str, Any]]]:
        """Image id -> its annotations."""
        known = {int(i["id"]): (int(i["height"]), int(i["width"])) for i in self.images}
        found: dict[int, list[dict[str, Any]]] = {}
        for annotation in annotations:
            id = annotation["id"]
            if annotation["image_id"] not in known:
                raise ValueError(
                    f"{self.path}: annotation {id} is of image {annotation['image_id']}, which is "
                    f"not among the {len(known)} images"
                )
            if annotation["category_id"] not in self._label:
                raise ValueError(
                    f"{self.path}: annotation {id} is of category {annotation['category_id']}; "
                    f"there are {', '.join(map(str, list(self._label)[:SHOWN]))}"
                    + (" ..." if len(self._label) > SHOWN else "")
                )
            box = annotation["bbox"]
            if len(box) != 4 or not all(math.isfinite(x) for x in box):
                raise ValueError(
                    f"{self.path}: annotation {id} has bbox {box}; expected "
                    "left, top, width, height"
                )
            _check_drawn(annotation, known[annotation["image_id"]], self.path)
            if box[2] <= 0 or box[3] <= 0:
                self.dropped.append(int(id))
            else:
                found.setdefault(annotation["image_id"], []).append(annotation)
        return found

    def _check_files(self) -> None:
        """The folder is listed once: faster than asking for its files one by one."""
        if not self.folder.is_dir():
            beside = sorted(p.name for p in self.folder.parent.iterdir())
            raise ValueError(
                f"no folder {self.folder}; expected ROOT/SPLIT/NAME.jpg, found "
                f"{', '.join(beside[:8])} in {self.folder.parent}"
            )
        present = {path.name for path in self.folder.iterdir()}
        missing = [i for i in self.images if i["file_name"] not in present]
        if missing:
            named = ", ".join(f"{i['file_name']} (image {i['id']})" for i in missing[:SHOWN])
            more = f", ... ({len(missing)} in all)" if len(missing) > SHOWN else ""
            raise ValueError(
                f"{self.path} lists images that are missing in {self.folder}: {named}{more}"
            )


def _read(path: Path) -> dict[str, list[dict[str, Any]]]:
    """The three lists of a file of instances, their entries seen to have what is needed."""
    if not path.is_file():
        there = sorted(p.name for p in path.parent.glob("*.json"))
        raise ValueError(
            f"no file {path}; expected ROOT/annotations/instances_SPLIT.json, found "
            f"{', '.join(there[:8]) or 'no .json'} in {path.parent}"
        )
    try:
        found = json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    needed = {
        "images": ("id", "file_name", "height", "width"),
        "annotations": ("id", "image_id", "category_id", "bbox", "segmentation"),
        "categories": ("id", "name"),
    }
    for part, names in needed.items():
        if not isinstance(found, dict) or not isinstance(found.get(part), list):
            held = ", ".join(found) if isinstance(found, dict) else type(found).__name__
            raise ValueError(f"{path} holds {held}; expected the lists {', '.join(needed)}")
        for place, entry in enumerate(found[part]):
            lacking = [name for name in names if name not in entry]
            if lacking:
                named = f"id {entry['id']}" if "id" in entry else f"number {place}"
                raise ValueError(f"{path}: {part}, {named}: no {', '.join(lacking)}")
    return found


def _check_drawn(annotation: dict[str, Any], size: tuple[int, int], path: Path) -> None:
    """Refuse a segmentation that is neither polygons (lists x, y, ...) nor runs of its image."""
    drawn, said = annotation["segmentation"], f"{path}: annotation {annotation['id']}: segmentation"
    if isinstance(drawn, list):
        wrong = [p for p in drawn if not isinstance(p, list) or len(p) < 6 or len(p) % 2]
        if wrong or not drawn:
            raise ValueError(
                f"{said} of {len(drawn)} polygons"
                + (f", one of {len(wrong[0])} numbers" if wrong else "")
                + "; expected at least one, each of x and y of three points or more"
            )
        return
    if not isinstance(drawn, dict) or not {"size", "counts"} <= drawn.keys():
        raise ValueError(f"{said} is {type(drawn).__name__}; expected polygons, or size and counts")
    if list(drawn["size"]) != list(size):
        raise ValueError(
            f"{said} is of size {list(drawn['size'])}, its image of {list(size)} (height, width)"
        )
    counts = drawn["counts"]
    if isinstance(counts, list) and sum(counts) != size[0] * size[1]:
        raise ValueError(f"{said} has runs of {sum(counts)} pixels, its image {size[0] * size[1]}")


def _mask(annotation: dict[str, Any], size: tuple[int, int]) -> np.ndarray:
    """``[H, W]`` uint8 of polygons, or of runs, compressed or not."""
    drawn = annotation["segmentation"]
    if isinstance(drawn, list):
        return rle.decode(rle.merge(rle.frPyObjects(drawn, *size)))
    if isinstance(drawn["counts"], list):
        drawn = rle.frPyObjects(drawn, *size)
    try:
        return rle.decode(drawn)
    except ValueError as error:
        raise ValueError(f"annotation {annotation['id']}: segmentation: {error}") from error
