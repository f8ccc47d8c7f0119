"""The options of ``attent segment``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from attent.tasks.config import need
from attent.tasks.finetuning.config import DenseConfig


@dataclass(frozen=True, kw_only=True)
class SegmentConfig(DenseConfig):
    """Train a semantic segmentation.

    Args:
        data: scenes (rendered as they are asked for), a folder of
            {train,val}/{rgb,semseg}/CLASS/NAME.EXT (and depth, mask_valid as they are needed), or
            one of the layouts of ADE20K or NYUv2.
        num_classes: null where scenes, ADE20K or NYUv2 say.
        reduce_zero_label: the label 0 is of no class, and classes are counted from 1; null for the
            data set's own rule.
        head: convnext, dpt, segmenter or linear.
        scale_min: augmentation: smallest factor of a picture's size.
        scale_max: augmentation: largest factor.
        hflip: augmentation: probability of a horizontal flip.
    """

    data: str = "scenes"
    num_classes: int | None = None
    reduce_zero_label: bool | None = None
    head: Literal["convnext", "dpt", "segmenter", "linear"] = "convnext"
    scale_min: float = 0.1
    scale_max: float = 2.0
    hflip: float = 0.5

    def __post_init__(self) -> None:
        self.check()
        need(self, "num_classes", lambda v: v is None or 2 <= v <= 254, "2 to 254, or null")
        need(self, "scale_min", lambda v: 0 < v <= self.scale_max, "above 0, at most scale_max")
        need(self, "hflip", lambda v: 0 <= v <= 1, "in [0, 1]")

    def idle(self) -> dict[str, str]:
        """The options that do nothing here, and why."""
        found = super().idle()
        if not self.augment:
            names = ("scale_min", "scale_max", "hflip")
            found |= dict.fromkeys(names, "augment is false")
        return found
