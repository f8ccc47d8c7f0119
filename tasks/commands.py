"""The training commands: their options, what builds their runs, and how their results are told."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.figure import Figure
from tensordict import TensorDict
from torch import Tensor

from attent.pipeline import Source
from attent.tasks.build import Run
from attent.tasks.classification.build import build_classify, load_data
from attent.tasks.classification.config import ClassifyConfig
from attent.tasks.pretraining.build import build_pretrain
from attent.tasks.pretraining.build import load_data as pretraining_data
from attent.tasks.pretraining.config import PretrainConfig
from attent.tasks.pretraining.pictures import reconstructions, thumbnails


@dataclass(frozen=True, kw_only=True)
class Measure:
    """A figure by which runs are told apart.

    Attributes:
        metric: its entry below ``metrics``.
        title: what people call it.
        short: where there is little room.
        percent: shown as a percentage.
        larger_is_better: which way is up.
    """

    metric: str
    title: str
    short: str
    percent: bool = False
    larger_is_better: bool = False

    def text(self, value: float) -> str:
        """The value, for people."""
        return f"{value:.2%}" if self.percent else f"{value:.4f}"


@dataclass(frozen=True, kw_only=True)
class Command:
    """A command that trains.

    Attributes:
        name: of the command.
        config: its options.
        build: options -> what the run is made of.
        measures: the figures of its runs; the first decides which checkpoint is the best.
        parts: further figures, which the report shows apart.
        load_data: options -> training and held-out examples, for pictures of them.
        thumbnails: a batch -> a small picture and a few words for each example.
        pictures: the trained run -> further pictures for the report: name, figure, what it shows.
    """

    name: str
    config: type
    build: Callable[..., Run]
    measures: tuple[Measure, ...]
    load_data: Callable[[Any], tuple[Source, Source]]
    thumbnails: Callable[[TensorDict], Sequence[tuple[Tensor, str]]]
    parts: tuple[Measure, ...] = ()
    pictures: Callable[[Run], list[tuple[str, Figure, str]]] | None = None


def _labelled(batch: TensorDict) -> list[tuple[Tensor, str]]:
    """Images with their labels."""
    return [(image, str(int(label))) for image, label in zip(batch["image"], batch["label"])]  # noqa: B905


COMMANDS = {
    command.name: command
    for command in (
        Command(
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
            thumbnails=_labelled,
        ),
        Command(
            name="pretrain",
            config=PretrainConfig,
            build=build_pretrain,
            measures=(Measure(metric="val_loss", title="held-out loss", short="val loss"),),
            parts=(
                Measure(metric="val_rgb", title="rgb", short="rgb"),
                Measure(metric="val_depth", title="depth", short="depth"),
                Measure(metric="val_semseg", title="semseg", short="semseg"),
                Measure(metric="val_norm_rgb", title="norm_rgb", short="norm_rgb"),
            ),
            load_data=pretraining_data,
            thumbnails=thumbnails,
            pictures=reconstructions,
        ),
    )
}
"""Every training command by name."""
