"""The options of ``attent detect``."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from attent.tasks.config import (
    ConfigError,
    RunConfig,
    SelectionConfig,
    TrainingConfig,
    check_shared,
    need,
)
from attent.tasks.finetuning.config import EncoderConfig


@dataclass(frozen=True, kw_only=True)
class DetectConfig(EncoderConfig, SelectionConfig, TrainingConfig, RunConfig):
    """Train a detector of objects that also finds their masks (Mask R-CNN).

    Args:
        data: scenes (rendered as they are asked for), or a folder of COCO's layout:
            annotations/instances_SPLIT.json and SPLIT/NAME.jpg, SPLIT train2017 and val2017.
        num_train: training scenes, of data scenes.
        num_val: held-out scenes, of data scenes.
        data_cache: a folder in which rendered scenes are kept; null renders them anew in each run.
        jitter: augmentation: least and largest size at which a picture is shown, in input_size;
            larger ones are cropped. [1, 1] with hflip 0 trains on the pictures as they are.
        hflip: augmentation: probability of a horizontal flip.
        pyramid_dim: channels of the feature pyramid.
        box_dim: hidden channels of the box head.
        anchor_sizes: sides of the anchors in pixels, one for each level of the pyramid (of strides
            patch_size / 4, / 2, 1 and 2 times it), or five for one more level.
        anchor_ratios: heights of the anchors in widths.
        num_proposals: regions that are proposed for a picture, at most.
        anchors_drawn: anchors in a picture's loss.
        regions_drawn: regions in a picture's loss.
        min_score: detections below are dropped, in [0, 1).
        max_detections: of a picture.
    """

    batch_size: int = 16
    lr: float | None = 1e-4
    warmup_epochs: float | None = 1.0
    layer_decay: float = 0.75
    score_batch_size: int = 16
    input_size: int = 1024

    data: str = "scenes"
    num_train: int = 4000
    num_val: int = 500
    data_cache: str | None = None
    jitter: list[float] = dataclasses.field(default_factory=lambda: [0.5, 1.5])
    hflip: float = 0.5
    pyramid_dim: int = 256
    box_dim: int = 1024
    anchor_sizes: list[int] = dataclasses.field(default_factory=lambda: [32, 64, 128, 256, 512])
    anchor_ratios: list[float] = dataclasses.field(default_factory=lambda: [0.5, 1.0, 2.0])
    num_proposals: int = 1000
    anchors_drawn: int = 256
    regions_drawn: int = 512
    min_score: float = 0.05
    max_detections: int = 100

    def __post_init__(self) -> None:
        check_shared(self)
        at_least_one = (
            "num_train", "num_val", "input_size", "patch_size", "pyramid_dim", "box_dim",
            "num_proposals", "anchors_drawn", "max_detections",
        )  # fmt: skip
        for name in at_least_one:
            need(self, name, lambda v: v >= 1, "at least 1")
        # A quarter of the regions may hold an object.
        need(self, "regions_drawn", lambda v: v >= 4, "at least 4")
        need(self, "num_global_tokens", lambda v: v >= 0, "at least 0")
        need(self, "drop_path", lambda v: 0 <= v < 1, "in [0, 1)")
        need(self, "min_score", lambda v: 0 <= v < 1, "in [0, 1)")
        need(self, "hflip", lambda v: 0 <= v <= 1, "in [0, 1]")
        need(self, "jitter", _is_span, "two rising numbers above 0")
        need(self, "anchor_sizes", lambda v: len(v) in (4, 5) and min(v) >= 1, "four or five sizes")
        above = "one number above 0 or more"
        need(
            self, "anchor_ratios", lambda v: bool(v) and 0 < min(v) <= max(v) < float("inf"), above
        )
        if self.input_size % (2 * self.patch_size):
            raise ConfigError(
                f"input_size {self.input_size} is not an even number of patches of patch_size "
                f"{self.patch_size}, which the coarsest level of the pyramid needs"
            )
        self._check_signal()

    def _check_signal(self) -> None:
        """Refuse what cannot be had of a model whose regions are not examples."""
        if self.signal in ("vmap_grad_norm", "last_layer"):
            raise ConfigError(
                f"signal {self.signal} needs a model whose rows are examples, and regions are not; "
                "take loss, output_grad_norm or grad_norm (one example at a time)"
            )
        if self.observed and self.signal != "loss":
            raise ConfigError(f"scores: observed records the loss here; signal is {self.signal}")
        if self.compile:
            raise ConfigError(
                "compile: regions differ in number from picture to picture; leave it false"
            )

    def idle(self) -> dict[str, str]:
        """The options that do nothing here, and why."""
        if self.data == "scenes":
            return {}
        return dict.fromkeys(
            ("num_train", "num_val", "data_cache"), "only data scenes are rendered"
        )


def _is_span(values: list[float]) -> bool:
    return len(values) == 2 and 0 < values[0] <= values[1] < float("inf")
