"""From options that several commands share to data."""

from __future__ import annotations

from typing import Any

from attent.tasks.data.scenes import SEMANTIC_CLASSES, Scenes

COCO_CLASSES = 133
"""Of COCO's panoptic labels, the ids of published pseudo labels."""


def rendered_scenes(config: Any, size: int) -> tuple[Scenes, Scenes]:
    """The scenes of data ``scenes``: those trained on and those held out.

    Args:
        config: with ``num_train``, ``num_val``, ``seed`` and ``data_cache``; ``imbalance`` and
            ``label_noise`` of the training split where it has them.
        size: side of the pictures in pixels.
    """
    shared: dict[str, Any] = {"size": size, "seed": config.seed, "cache": config.data_cache}
    train = Scenes(
        config.num_train,
        split="train",
        imbalance=getattr(config, "imbalance", 1.0),
        label_noise=getattr(config, "label_noise", 0.0),
        **shared,
    )
    return train, Scenes(config.num_val, split="val", **shared)


def num_semseg_classes(config: Any) -> int:
    """How many classes there are in the label maps that are encoded or predicted.

    Args:
        config: has ``data`` and ``num_semseg_classes``.
    """
    if config.num_semseg_classes is not None:
        return config.num_semseg_classes
    return len(SEMANTIC_CLASSES) if config.data == "scenes" else COCO_CLASSES
