"""From options to a run of image classification."""

from __future__ import annotations

from pathlib import Path

import torch

from attent.models.vit import build_vit, input_size, normalization
from attent.pipeline import Source, TensorSource
from attent.pipeline.source import fetch_batch
from attent.tasks.build import Run, assemble, check_labels, seeded
from attent.tasks.classification.config import ClassifyConfig
from attent.tasks.classification.task import Augment, Classification
from attent.tasks.config import ConfigError
from attent.tasks.data.digits import digits
from attent.tasks.data.folder import ImageFolder
from attent.tasks.data.npz import npz


def build_classify(config: ClassifyConfig, *, initial: bool = True) -> Run:
    """Everything `attent classify` needs, checked before any training.

    Args:
        config: the options.
        initial: load the weights that training starts from; False where a checkpoint's take their
            place.

    Raises:
        ValueError: what the options ask for cannot be; the message says why.
    """
    source, held_out, num_classes = _data(config)
    image = fetch_batch(source, torch.tensor([0]))["image"]
    channels, height, width = image.shape[1:]
    if height != width:
        raise ConfigError(f"images are {height} x {width}; they must be square")
    made_for = input_size(config.model)
    resize = made_for is not None and made_for[1] != height
    model = seeded(
        config,
        lambda: build_vit(
            config.model,
            num_classes=num_classes,
            in_chans=channels,
            img_size=height if resize else None,
            drop_path_rate=config.drop_path,
            pretrained=config.pretrained and initial,
            model_args=config.model_args,
        ),
    )
    task = Classification(
        model,
        num_classes,
        label_smoothing=config.label_smoothing,
        augment=Augment(shift=config.shift, flip=config.flip),
    )
    return assemble(config, task, source, held_out)


def load_data(config: ClassifyConfig) -> tuple[Source, Source]:
    """The training and the held-out examples.

    Raises:
        ValueError: no such data, or not in the form expected.
    """
    if config.data == "digits":
        return digits(config.held_out, seed=config.seed)
    path = Path(config.data)
    if path.suffix == ".npz" and path.is_file():
        return npz(path, config.held_out, seed=config.seed)
    if path.is_dir():
        size = config.image_size or (input_size(config.model) or (3, 224))[1]
        mean, deviation = normalization(config.model)
        source = ImageFolder(path / "train", size=size, mean=mean, deviation=deviation)
        held_out = ImageFolder(
            path / "val", size=size, classes=source.classes, mean=mean, deviation=deviation
        )
        return source, held_out
    raise ConfigError(
        f"data: there is no {path}; it is 'digits', a folder of {{train,val}}/CLASS/IMAGE, or an "
        ".npz file of images and labels"
    )


def _data(config: ClassifyConfig) -> tuple[Source, Source, int]:
    source, held_out = load_data(config)
    labels = [_labels(part) for part in (source, held_out)]
    found = 1 + max(int(part.max()) for part in labels)
    num_classes = config.num_classes or found
    for name, part in zip(("training", "held-out"), labels, strict=True):
        check_labels(part, num_classes, name)
    return source, held_out, num_classes


def _labels(source: Source) -> torch.Tensor:
    return source.fields["label"] if isinstance(source, TensorSource) else source.labels  # type: ignore[attr-defined]
