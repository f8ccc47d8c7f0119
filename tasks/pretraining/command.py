"""``attent pretrain``."""

from __future__ import annotations

from attent.tasks.command import Command, Measure
from attent.tasks.grid import thumbnails
from attent.tasks.pretraining.build import build_pretrain, load_data, load_held_out
from attent.tasks.pretraining.config import PretrainConfig
from attent.tasks.pretraining.pictures import reconstructions

PRETRAIN = Command(
    name="pretrain",
    config=PretrainConfig,
    build=build_pretrain,
    measures=(Measure(metric="val_loss", title="held-out loss", short="val loss"),),
    parts=tuple(
        Measure(metric=f"val_{name}", title=name, short=name)
        for name in ("rgb", "depth", "semseg", "norm_rgb")
    ),
    load_data=load_data,
    load_held_out=load_held_out,
    thumbnails=thumbnails,
    pictures=reconstructions,
)
