"""The options of ``attent classify``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from attent.tasks.config import RunConfig, SelectionConfig, TrainingConfig, check_shared, need


@dataclass(frozen=True, kw_only=True)
class ClassifyConfig(SelectionConfig, TrainingConfig, RunConfig):
    """Train an image classifier.

    Args:
        data: digits (carried by scikit-learn), a folder of {train,val}/CLASS/IMAGE, or an .npz file
            of images [N, H, W] or [N, H, W, C] and labels [N].
        held_out: share held out of digits and .npz data, in (0, 1).
        num_classes: null counts them.
        image_size: side in pixels that images of a folder are resized to; null for the model's.
        model: vit_digits, or any model of timm.
        model_args: further arguments of the model.
        pretrained: load timm's weights.
        drop_path: stochastic depth, in [0, 1).
        label_smoothing: share of the target spread over all classes, in [0, 1).
        shift: augmentation: largest translation in pixels.
        flip: augmentation: probability of a horizontal flip.
    """

    data: str = "digits"
    held_out: float = 0.2
    num_classes: int | None = None
    image_size: int | None = None
    model: str = "vit_digits"
    model_args: dict[str, Any] | None = None
    pretrained: bool = False
    drop_path: float = 0.0
    label_smoothing: float = 0.0
    shift: int = 0
    flip: float = 0.0

    def __post_init__(self) -> None:
        check_shared(self)
        for name in ("label_smoothing", "drop_path"):
            need(self, name, lambda v: 0 <= v < 1, "in [0, 1)")
        need(self, "shift", lambda v: v >= 0, "at least 0")
        need(self, "held_out", lambda v: 0 < v < 1, "in (0, 1)")
        need(self, "flip", lambda v: 0 <= v <= 1, "in [0, 1]")
        need(self, "image_size", lambda v: v is None or v >= 1, "at least 1, or null")
        need(self, "num_classes", lambda v: v is None or v >= 2, "at least 2, or null")

    def idle(self) -> dict[str, str]:
        """The options that do nothing here, and why."""
        if self.data == "digits" or self.data.endswith(".npz"):
            kind = "digits" if self.data == "digits" else ".npz"
            return {"image_size": f"{kind} data keep their size"}
        return {"held_out": "a folder has its own val split"}
