"""``attent classify``."""

from __future__ import annotations

from tensordict import TensorDict
from torch import Tensor

from attent.tasks.classification.build import build_classify, load_data, load_held_out
from attent.tasks.classification.config import ClassifyConfig
from attent.tasks.classification.pictures import predicted
from attent.tasks.command import Command, Measure


def _labelled(batch: TensorDict) -> list[tuple[Tensor, str]]:
    """Images with their labels."""
    return [(image, str(int(label))) for image, label in zip(batch["image"], batch["label"])]  # noqa: B905


CLASSIFY = Command(
    name="classify",
    config=ClassifyConfig,
    build=build_classify,
    measures=(
        Measure(
            metric="val_accuracy",
            title="held-out accuracy",
            short="accuracy",
            percent=True,
            larger_is_better=True,
        ),
        Measure(metric="val_loss", title="held-out loss", short="val loss"),
    ),
    load_data=load_data,
    load_held_out=load_held_out,
    thumbnails=_labelled,
    predict=predicted,
)
