"""From options that several commands share to data."""

from __future__ import annotations

from typing import Any, Literal

from attent.tasks.data.scenes import SEMANTIC_CLASSES, Scenes

COCO_CLASSES = 133
"""Of COCO's panoptic labels, the ids of published pseudo labels."""


def rendered_scenes(config: Any, size: int) -> tuple[Scenes, Scenes]:
    """The scenes of data ``scenes``: those trained on and those held out; see `rendered_split`."""
    return rendered_split(config, size, "train"), rendered_split(config, size, "val")


def rendered_split(config: Any, size: int, split: Literal["train", "val"]) -> Scenes:
    """The scenes of one split of data ``scenes``.

    Args:
        config: with ``num_train``, ``num_val``, ``seed`` and ``data_cache``; ``imbalance`` and
            ``label_noise`` of the training split where it has them.
        size: side of the pictures in pixels.
        split: which.
    """
    shared: dict[str, Any] = {"size": size, "seed": config.seed, "cache": config.data_cache}
    if split == "val":
        return Scenes(config.num_val, split=split, **shared)
    return Scenes(
        config.num_train,
        split=split,
        imbalance=getattr(config, "imbalance", 1.0),
        label_noise=getattr(config, "label_noise", 0.0),
        **shared,
    )


def num_semseg_classes(config: Any) -> int:
    """How many classes there are in the label maps that are encoded or predicted.

    Args:
        config: has ``data`` and ``num_semseg_classes``.
    """
    if config.num_semseg_classes is not None:
        return config.num_semseg_classes
    return len(SEMANTIC_CLASSES) if config.data == "scenes" else COCO_CLASSES
