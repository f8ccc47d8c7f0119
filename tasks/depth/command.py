"""``attent depth``."""

from __future__ import annotations

from attent.tasks.command import Command, Measure
from attent.tasks.depth.build import build_depth, load_data, load_held_out
from attent.tasks.depth.config import DepthConfig
from attent.tasks.depth.pictures import maps, predicted
from attent.tasks.grid import thumbnails

DEPTH = Command(
    name="depth",
    config=DepthConfig,
    build=build_depth,
    measures=(
        Measure(metric="val_l1", title="held-out absolute error", short="abs error"),
        Measure(metric="val_loss", title="held-out loss", short="val loss"),
    ),
    parts=(
        *(
            Measure(metric=f"val_delta{k}", title=f"delta{k}", short=f"delta{k}", percent=True)
            for k in (1, 2, 3)
        ),
        Measure(metric="val_rmse", title="RMSE, metres", short="RMSE"),
        Measure(metric="val_abs_rel", title="abs rel", short="abs rel"),
        Measure(metric="val_log10", title="log10", short="log10"),
    ),
    load_data=load_data,
    load_held_out=load_held_out,
    thumbnails=thumbnails,
    pictures=maps,
    predict=predicted,
)
