"""NYU Depth V2 as MultiMAE's preparation writes it: ``{rgb,depth,semseg,mask}/data/NNNN.png``.

References:
    Silberman et al., Indoor Segmentation and Support Inference from RGBD Images, ECCV 2012.
    Gupta et al., Perceptual Organization and Recognition of Indoor Scenes from RGB-D Images, CVPR
    2013 (the 40 classes).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from attent.tasks.data.paired_folder import PairedFolder

CLASSES = (
    "wall", "floor", "cabinet", "bed", "chair", "sofa", "table", "door", "window", "bookshelf",
    "picture", "counter", "blinds", "desk", "shelves", "curtain", "dresser", "pillow", "mirror",
    "floor mat", "clothes", "ceiling", "books", "refrigerator", "television", "paper", "towel",
    "shower curtain", "box", "whiteboard", "person", "night stand", "toilet", "sink", "lamp",
    "bathtub", "bag", "other structure", "other furniture", "other prop",
)  # fmt: skip
"""Names of the classes from 1 on (Gupta et al.)."""

NUM_CLASSES = len(CLASSES)
"""Of pixels; label 0 is none of them, and they are counted from 1."""

DEPTH_RANGE = 10.0
"""Metres that the 16-bit value 65536 would stand for."""


class NYUv2(PairedFolder):
    """The rooms of one split; depth is read in metres, [0, 10).

    The unit is the file's: a 16-bit value is ``metres * 65536 / 10``. A published mean of 2070.8
    and deviation of 777.6, to standardise targets by, are of millimetres: divide them by 1000.

    Args:
        root: the split's folder; as of `PairedFolder`, and the folder of ``mask_valid`` may be
            called ``mask``.
        domains: which of rgb, depth, semseg (ids 0 to 40) and mask_valid, in the order they are
            read.
        classes: as of `PairedFolder`.

    Raises:
        ValueError: as of `PairedFolder`.
    """

    def __init__(
        self, root: str | Path, *, domains: Sequence[str], classes: Sequence[str] | None = None
    ) -> None:
        masks = "mask" if (Path(root) / "mask").is_dir() else "mask_valid"
        super().__init__(
            root,
            domains=domains,
            classes=classes,
            depth_range=DEPTH_RANGE,
            folders={"mask_valid": masks},
        )
