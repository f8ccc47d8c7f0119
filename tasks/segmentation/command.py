"""``attent segment``."""

from __future__ import annotations

from attent.tasks.command import Command, Measure
from attent.tasks.grid import thumbnails
from attent.tasks.segmentation.build import build_segment, load_data, load_held_out
from attent.tasks.segmentation.config import SegmentConfig
from attent.tasks.segmentation.pictures import predicted, segmentations

SEGMENT = Command(
    name="segment",
    config=SegmentConfig,
    build=build_segment,
    measures=(
        Measure(
            metric="val_miou",
            title="held-out mIoU",
            short="mIoU",
            percent=True,
            larger_is_better=True,
        ),
        Measure(metric="val_loss", title="held-out loss", short="val loss"),
    ),
    parts=tuple(
        Measure(metric=f"val_{name}_accuracy", title=f"{name} accuracy", short=name, percent=True)
        for name in ("pixel", "mean")
    ),
    load_data=load_data,
    load_held_out=load_held_out,
    thumbnails=thumbnails,
    pictures=segmentations,
    predict=predicted,
)
