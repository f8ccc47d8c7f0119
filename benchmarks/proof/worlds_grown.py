"""Worlds of images that have grown: a model knows seven classes, three rare ones have come.

A classifier was trained on seven of ten classes, which the seed draws, and now the data are these
and a few of three new classes; test and val are balanced over all ten, so that their accuracy is
the mean over classes (macro accuracy). Training goes on from that classifier, on all the data, old
and new: most of them teach it nothing. What the classifier itself has cost is counted for no arm.

- ``digits_grown``: 350 of each known class, those that the classifier was trained on, and 35 of
  each new one.
- ``scenes_grown``: redundant and long-tailed: of each known class 60 scenes, each there ten times,
  a little jittered, and 60 of each new class, once each. The classifier was trained on 800 others
  of each known class, which no seed trains on or is judged by.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from attent.pipeline import Step, adamw, fit, full, initial_state, train, warmup_cosine
from attent.pipeline.keyed import fold, generator
from attent.pipeline.task import bind
from attent.tasks.classification import Classification

from .pools import cache_folder
from .splits import by_class, near_copies, parts_of, repeated
from .world import World, shuffled
from .worlds_images import KINDS, NUM_CLASSES, POOLS, Images, source_of, tasks_of

ENDING = "_grown"
KNOWN = 7
"""Classes that the classifier knows already."""

RESERVED_SEED = 8


@dataclass(frozen=True, kw_only=True)
class Grown:
    """What is fixed of a world that has grown.

    Attributes:
        known: originals of each class that is known.
        new: examples of each class that is not.
        copies: how often each original of a known class is there.
        reserved: examples of each class for the classifier alone; 0: it is trained on the originals
            of the known classes.
        before: epochs of the classifier.
        lr: its peak learning rate.
        epochs: of plain training at budget 1.
    """

    known: int
    new: int
    copies: int
    reserved: int
    before: int
    lr: float
    epochs: int

    @property
    def size(self) -> int:
        """Training examples."""
        return KNOWN * self.known * self.copies + (NUM_CLASSES - KNOWN) * self.new


GROWN = {
    "digits": Grown(known=350, new=35, copies=1, reserved=0, before=20, lr=3e-3, epochs=16),
    "scenes": Grown(known=60, new=60, copies=10, reserved=800, before=12, lr=3e-3, epochs=8),
}
NAMES = tuple(kind + ENDING for kind in GROWN)


def grown_world(name: str, seed: int, *, size: int | None = None) -> World:
    """A world that has grown.

    The classifier is trained the first time that a seed is asked for, and kept.

    Args:
        name: of `NAMES`.
        seed: of everything drawn.
        size: see `worlds.world`.
    """
    kind_name = name.removesuffix(ENDING)
    kind, grown = KINDS[kind_name], GROWN[kind_name]
    share = 1.0 if size is None else min(1.0, size / grown.size)
    key = fold(seed, "proof", kind_name)
    pool, labels = (POOLS[kind_name]()[field] for field in ("image", "label"))
    rows, reserved = by_class(labels, NUM_CLASSES, key), None
    if grown.reserved:
        kept = max(1, round(share * grown.reserved))
        fixed = by_class(labels, NUM_CLASSES, RESERVED_SEED)
        reserved = [of_class[:kept] for of_class in fixed]
        rows = [
            shuffled(of_class[kept:], fold(key, "class", c)) for c, of_class in enumerate(fixed)
        ]
    counts = (max(1, round(share * count)) for count in (kind.val, kind.test))
    in_val, in_test, left = parts_of(rows, *counts)
    order = torch.randperm(NUM_CLASSES, generator=generator(fold(key, "known"))).tolist()
    known = set(order[:KNOWN])
    originals = [
        of_class[: max(1, round(share * (grown.known if c in known else grown.new)))]
        for c, of_class in enumerate(left)
    ]
    wanted = [
        len(of_class) * (grown.copies if c in known else 1) for c, of_class in enumerate(originals)
    ]
    rows_of_all, copies = repeated(originals, wanted)
    images = pool[rows_of_all].float() / 255
    if copies.any():
        images[copies] = near_copies(images[copies], fold(key, "copies"), **kind.jitter)
    before = torch.cat([(reserved or originals)[c] for c in sorted(known)])
    shown = labels[rows_of_all]
    val, test = (torch.cat(part) for part in (in_val, in_test))
    weights = _classifier(kind, grown, seed, pool[before], labels[before])
    return World(
        name=name,
        seed=seed,
        source=source_of(kind, images, shown),
        val=source_of(kind, pool[val].float() / 255, labels[val]),
        test=source_of(kind, pool[test].float() / 255, labels[test]),
        make_task=_going_on(tasks_of(kind, kind.augment, seed), weights),
        epochs=grown.epochs,
        batch_size=kind.batch_size,
        labels=shown,
        num_classes=NUM_CLASSES,
        recipe=kind.recipe,
        extra={"original": rows_of_all, "copy": copies},
    )


def _going_on(
    make: Callable[..., Classification], weights: Mapping[str, Tensor]
) -> Callable[..., Classification]:
    """Options -> the task, its model with the classifier's weights each time."""

    def made(**options: Any) -> Classification:
        task = make(**options)
        task.model.load_state_dict(weights)
        return task

    return made


def _classifier(
    kind: Images, grown: Grown, seed: int, images: Tensor, labels: Tensor
) -> dict[str, Tensor]:
    """The weights of a classifier of some images; from its file if it is there.

    The file's name has a digest of all that they are made of.
    """
    made_of = hashlib.sha256(repr((kind, replace(grown, epochs=0), torch.__version__)).encode())
    made_of.update(images.contiguous().numpy().tobytes() + labels.numpy().tobytes())
    path = cache_folder() / f"classifier-{seed}-{made_of.hexdigest()[:12]}.pt"
    if not path.is_file():
        task = tasks_of(kind, kind.augment, seed)()
        source = source_of(kind, images.float() / 255, labels)
        stage = train(
            task,
            source,
            optimizer=adamw(warmup_cosine(grown.lr, warmup=0.05), weight_decay=0.05),
            step=Step(batch_size=kind.batch_size, clip=1.0),
        )
        state = initial_state(task, source, seed=fold(seed, "proof", "classifier"))
        bind(task.model, fit(full(source, train=stage, epochs=grown.before), state))
        whole = path.with_suffix(f".{os.getpid()}.pt")
        torch.save(task.model.state_dict(), whole)
        whole.replace(path)  # of several processes none sees half a file
    weights: dict[str, Tensor] = torch.load(path, weights_only=True)
    return weights
