"""The options of ``attent depth``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from attent.tasks.config import need
from attent.tasks.finetuning.config import DenseConfig

Target = Literal[
    "depth", "depth_zbuffer", "edge_texture", "edge_occlusion", "keypoints2d", "keypoints3d",
    "normal", "principal_curvature", "reshading",
]  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class DepthConfig(DenseConfig):
    """Train a prediction of depth, or of another of Taskonomy's maps.

    Args:
        data: scenes (rendered as they are asked for), a folder of
            {train,val}/{rgb,depth}/CLASS/NAME.EXT (and mask_valid where there is one), one of the
            layout of NYUv2, or one of Taskonomy's layout with train.csv and val.csv.
        target: depth, in metres where the data set says so; or one of Taskonomy's maps.
        error: of a pixel: berhu, l1 or l2 (squared).
        max_depth: farther pixels are not learned from, nor measured; null for any depth.
        target_mean: of the targets; null to measure it on the training examples.
        target_deviation: of the targets; null to measure it too.
        head: dpt, convnext or linear.
        hflip: augmentation: probability of a horizontal flip.
    """

    data: str = "scenes"
    target: Target = "depth"
    error: Literal["berhu", "l1", "l2"] = "berhu"
    max_depth: float | None = None
    target_mean: float | None = None
    target_deviation: float | None = None
    head: Literal["dpt", "convnext", "linear"] = "dpt"
    hflip: float = 0.5

    def __post_init__(self) -> None:
        self.check()
        need(self, "max_depth", lambda v: v is None or v > 0, "above 0, or null")
        need(self, "target_deviation", lambda v: v is None or v > 0, "above 0, or null")
        need(self, "hflip", lambda v: 0 <= v <= 1, "in [0, 1]")

    def idle(self) -> dict[str, str]:
        """The options that do nothing here, and why."""
        found = super().idle()
        if not self.augment:
            found |= {"hflip": "augment is false"}
        if self.target not in ("depth", "depth_zbuffer"):
            found |= {"max_depth": f"target is {self.target}"}
        return found
