"""``attent detect``."""

from __future__ import annotations

from attent.tasks.command import Command, Measure
from attent.tasks.detection.build import build_detect, load_data, load_held_out
from attent.tasks.detection.config import DetectConfig
from attent.tasks.detection.pictures import objects, predicted, thumbnails

DETECT = Command(
    name="detect",
    config=DetectConfig,
    build=build_detect,
    measures=(
        Measure(
            metric="val_box_map",
            title="held-out box mAP",
            short="box mAP",
            percent=True,
            larger_is_better=True,
        ),
        Measure(
            metric="val_mask_map",
            title="held-out mask mAP",
            short="mask mAP",
            percent=True,
            larger_is_better=True,
        ),
        Measure(metric="val_loss", title="held-out loss", short="val loss"),
    ),
    parts=(
        Measure(
            metric="val_box_map_50", title="box mAP at IoU 0.5", short="box mAP50", percent=True
        ),
        Measure(
            metric="val_mask_map_50", title="mask mAP at IoU 0.5", short="mask mAP50", percent=True
        ),
        Measure(metric="val_loss_objectness", title="objectness loss", short="objectness"),
        Measure(metric="val_loss_rpn_box_reg", title="proposal box loss", short="rpn box"),
        Measure(metric="val_loss_classifier", title="class loss", short="class"),
        Measure(metric="val_loss_box_reg", title="box loss", short="box"),
        Measure(metric="val_loss_mask", title="mask loss", short="mask"),
    ),
    load_data=load_data,
    load_held_out=load_held_out,
    thumbnails=thumbnails,
    pictures=objects,
    predict=predicted,
)
