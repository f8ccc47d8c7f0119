"""From options to a run of semantic segmentation."""

from __future__ import annotations

from attent.pipeline import Source
from attent.tasks.build import Run, assemble
from attent.tasks.config import ConfigError
from attent.tasks.data.dense import Dense
from attent.tasks.data.dense_layouts import DenseData
from attent.tasks.data.dense_view import SegmentView
from attent.tasks.finetuning.build import build_encoder, dense_sources, readers_of
from attent.tasks.segmentation.config import SegmentConfig
from attent.tasks.segmentation.task import Segmentation


def build_segment(config: SegmentConfig, *, initial: bool = True) -> Run:
    """Everything `attent segment` needs, checked before any training.

    Args:
        config: the options.
        initial: load the weights that training starts from; False where a checkpoint's take their
            place.

    Raises:
        ValueError: what the options ask for cannot be; the message says why.
    """
    source, held_out = load_data(config)
    model = build_encoder(
        config,
        "semseg",
        kind="segmentation",
        input_size=config.input_size,
        num_channels=source.num_outputs,
        head_args=config.head_args,
        initial=initial,
    )
    task = Segmentation(model, source.num_outputs, inputs=config.in_domains)
    return assemble(config, task, source, held_out)


def load_data(config: SegmentConfig) -> tuple[Dense, Dense]:
    """The training and the held-out scenes with their labels.

    Raises:
        ValueError: no such data, or not in the form expected.
    """
    return _sources(config, readers_of(config, "semseg"))


def load_held_out(config: SegmentConfig, own: Source) -> Dense:
    """The held-out scenes alone, of data that may have no others; those of the run are not asked.

    Raises:
        ValueError: as of `load_data`.
    """
    return _sources(config, readers_of(config, "semseg", held_out_only=True))[1]


def _sources(config: SegmentConfig, data: DenseData) -> tuple[Dense, Dense]:
    num_classes = config.num_classes or data.num_classes
    if num_classes is None:
        raise ConfigError(
            f"num_classes: a folder of the layout {data.layout} does not say; give it"
        )
    reduce = config.reduce_zero_label
    reduce = data.reduce_zero_label if reduce is None else reduce
    usual = (num_classes, reduce) == (data.num_classes, data.reduce_zero_label)
    view = SegmentView(
        size=config.input_size, scale=(config.scale_min, config.scale_max), hflip=config.hflip
    )
    return dense_sources(
        config,
        data,
        view,
        target="semseg",
        num_classes=num_classes,
        reduce_zero_label=reduce,
        class_names=data.class_names if usual else (),
    )
