"""Rendered scenes as a source of examples."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path

import numpy as np
import torch
from tensordict import TensorDict
from torch import Tensor

from attent.pipeline.keyed import example_keys, fold, uniform
from attent.tasks.data.scenes.drawing import draw
from attent.tasks.data.scenes.layout import SCENE_CLASSES
from attent.tasks.data.scenes.renderer import VERSION, render
from attent.tasks.data.scenes.store import File, Memory, pack, record_type, unpack

SPLITS = ("train", "val", "test")

TOGETHER = 2**20
"""Pixels of the scenes that are drawn together, at most."""

AHEAD = 32
"""Scenes that are rendered when one is asked for by `Scenes.read`: one alone takes ten times as
long as one among many."""


class Scenes:
    """Scenes of simple solids, rendered when they are first asked for.

    A scene is a function of (seed, split, index), and of its class: the same to the last bit
    whenever, in whatever order and in whatever batch it is asked for, on any number of threads. It
    does not depend on ``num_examples``: a longer data set begins with the shorter one.

    The solids: 2 to `SLOTS` of the shapes `SHAPES`. The one in the first slot is dominant, clearly
    larger than the others and mostly visible; its shape, and whether it is plain or striped, are
    the scene's class.

    Args:
        num_examples: N, at least 1.
        size: side of the pictures in pixels, at least 16.
        seed: any integer.
        split: ``train``, ``val`` or ``test``.
        imbalance: how many times more frequent the first class of the training split is than the
            last, geometric in between; 1 for balanced classes. Other splits are balanced.
        label_noise: share of the training split whose ``label`` is another class than the scene's,
            each as likely, in [0, 1). Other splits are clean.
        cache: a folder in which rendered scenes are kept, in a file named after a digest of
            everything the pictures depend on; None for none. Damaged scenes are rendered again.
        memory: bytes of rendered scenes that are kept in memory.

    Attributes:
        labels: ``[N]`` int64, what training sees, in `SCENE_CLASSES`.
        clean_labels: ``[N]`` int64, the scenes' classes.

    Raises:
        ValueError: an argument out of range; says what was given and what is accepted.
    """

    def __init__(
        self,
        num_examples: int,
        *,
        size: int = 64,
        seed: int = 0,
        split: str = "train",
        imbalance: float = 1.0,
        label_noise: float = 0.0,
        cache: str | Path | None = None,
        memory: int = 2**30,
    ) -> None:
        _check(num_examples, size, split, imbalance, label_noise, memory)
        self.size, self.seed, self.split = size, seed, split
        if split != "train":
            imbalance, label_noise = 1.0, 0.0
        index = torch.arange(num_examples)
        key = fold(seed, "scenes", split)
        self._keys = example_keys(key, index)
        self.clean_labels = _classes(uniform(example_keys(fold(key, "class"), index)), imbalance)
        self.labels = _noisy(self.clean_labels, label_noise, fold(key, "noise"), index)
        kind = record_type(size)
        self._memory = Memory(num_examples, kind, memory)
        self._kind = kind
        self._file = None
        if cache is not None:
            told = json.dumps([VERSION, size, seed, split, float(imbalance), kind.descr])
            digest = hashlib.sha256(told.encode()).hexdigest()[:16]
            self._file = File(Path(cache) / f"scenes-{digest}.bin", kind)

    def __len__(self) -> int:
        return len(self.labels)

    def fetch(self, index: Tensor) -> TensorDict:
        """The scenes at ``index`` (``[B]`` int64); may be called from several threads at once.

        Returns:
            ``rgb`` uint8 ``[B, 3, S, S]``, ``depth`` float32 ``[B, 1, S, S]`` in metres along the
            camera's axis, ``semseg`` uint8 ``[B, S, S]`` in `SEMANTIC_CLASSES`, ``instances`` uint8
            ``[B, S, S]`` (slots counted from 1, or 0), ``boxes`` float32 ``[B, M, 4]`` (left, top,
            right, bottom of the visible pixels, in pixels; zero for a slot of which nothing is
            seen), ``box_labels`` int64 ``[B, M]`` (shape counted from 1, or 0), ``label`` and
            ``clean_label`` int64 ``[B]``.

        Raises:
            IndexError: an index that is not in [0, N).
        """
        wanted = index.tolist()
        found = self._records(wanted)
        # As plain bytes: field by field it takes several times as long.
        rows = [found[n].view(np.uint8) for n in wanted]
        records = np.concatenate(rows or [np.empty(0, np.uint8)]).view(self._kind)
        pictures = {name: value.contiguous() for name, value in unpack(records).items()}
        labels = {"label": self.labels[index], "clean_label": self.clean_labels[index]}
        return TensorDict({**pictures, **labels}, batch_size=[len(wanted)])

    def read(self, index: int) -> dict[str, Tensor]:
        """``rgb``, ``depth`` and ``semseg`` of one scene; not to be written to.

        Raises:
            IndexError: an index that is not in [0, N).
        """
        record = self._kept(index)
        if record is None:
            first = index // AHEAD * AHEAD
            ahead = list(range(first, min(first + AHEAD, len(self))))
            kept = self._file is not None or self._memory.free >= len(ahead)
            record = self._records(ahead if kept else [index])[index]
        pictures = unpack(record)
        return {name: pictures[name][0] for name in ("rgb", "depth", "semseg")}

    def locate(self, index: int) -> str:
        """Which scene that is."""
        return f"scene {index} of split {self.split}, seed {self.seed}"

    def _records(self, wanted: list[int]) -> dict[int, np.ndarray]:
        """Scenes' records ``[1]``: those that are kept, and the others rendered."""
        found: dict[int, np.ndarray] = {}
        missing: list[int] = []
        for n in dict.fromkeys(wanted):
            record = self._kept(n)
            if record is None:
                missing.append(n)
            else:
                found[n] = record
        together = min(256, max(4, TOGETHER // self.size**2))
        for first in range(0, len(missing), together):
            found |= self._rendered(missing[first : first + together])
        return found

    def _kept(self, index: int) -> np.ndarray | None:
        """A scene's record ``[1]`` from memory, else from the file, or None."""
        if not 0 <= index < len(self):
            raise IndexError(f"there is no scene {index}; the indices are 0 to {len(self) - 1}")
        record = self._memory.find(index)
        if record is None and self._file is not None:
            record = self._file.find(index)
            if record is not None:
                record = self._memory.put(index, record)
        return record

    def _rendered(self, wanted: list[int]) -> dict[int, np.ndarray]:
        """Render scenes, and keep them where there is room."""
        index = torch.tensor(wanted)
        with torch.inference_mode():  # less to do for each call of torch
            layout = draw(self._keys[index], self.clean_labels[index])
            records = pack(render(layout, self.size), self._kind)
        found = {}
        for i, n in enumerate(wanted):
            if self._file is not None:
                self._file.put(n, records[i : i + 1])
            found[n] = self._memory.put(n, records[i : i + 1])
        return found


def _classes(numbers: Tensor, imbalance: float) -> Tensor:
    """Classes of numbers in [0, 1): the first ``imbalance`` times as likely as the last."""
    count = len(SCENE_CLASSES)
    shares = [imbalance ** (-c / (count - 1)) for c in range(count)]
    steps = [math.fsum(shares[: c + 1]) / math.fsum(shares) for c in range(count - 1)]
    return torch.bucketize(numbers, torch.tensor(steps, dtype=torch.float64), right=True)


def _noisy(labels: Tensor, share: float, key: int, index: Tensor) -> Tensor:
    """Labels of which a share is replaced by another class."""
    keys = example_keys(key, index)
    other = 1 + (uniform(keys, 1) * (len(SCENE_CLASSES) - 1)).long()
    return torch.where(uniform(keys) < share, (labels + other) % len(SCENE_CLASSES), labels)


def _check(
    num_examples: int, size: int, split: str, imbalance: float, label_noise: float, memory: int
) -> None:
    """Raise a ValueError for an argument out of range."""
    if num_examples < 1:
        raise ValueError(f"num_examples must be at least 1, got {num_examples}")
    if size < 16:
        raise ValueError(f"size must be at least 16 pixels, got {size}")
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
    if not 1 <= imbalance < math.inf:
        raise ValueError(f"imbalance must be a finite ratio of at least 1, got {imbalance}")
    if not 0 <= label_noise < 1:
        raise ValueError(f"label_noise must be in [0, 1), got {label_noise}")
    if memory < 0:
        raise ValueError(f"memory must be at least 0 bytes, got {memory}")
