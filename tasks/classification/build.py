"""From options to a run of image classification."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from attent.models.vit import build_vit, input_size, normalization
from attent.pipeline import Source, TensorSource
from attent.pipeline.source import fetch_batch
from attent.tasks.build import Run, assemble, check_labels, seeded
from attent.tasks.classification.config import ClassifyConfig
from attent.tasks.classification.task import Augment, Classification, Mixing
from attent.tasks.config import ConfigError
from attent.tasks.data.digits import digits
from attent.tasks.data.folder import ImageFolder
from attent.tasks.data.images import Augmentation, Images
from attent.tasks.data.npz import npz
from attent.tasks.data.options import rendered_scenes
from attent.tasks.data.scenes import SCENE_CLASSES
from attent.tasks.data.shards.find import labelled_shards
from attent.tasks.data.shards.image_table import TableImages
from attent.tasks.data.shards.image_tar import TarImages
from attent.tasks.finetuning.build import build_encoder

Labelled = ImageFolder | TarImages | TableImages
"""Readers of what a folder may hold."""

SIDE = 224
"""Of images in pixels, where neither the options nor the model say."""


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
    if config.model.startswith("multivit_"):
        model = _multivit(config, num_classes, channels, height, initial)
    else:
        model = _vit(config, num_classes, channels, height, initial)
    mixed = config.mixup or config.cutmix
    task = Classification(
        model,
        num_classes,
        label_smoothing=config.label_smoothing,
        prior=_prior(config, source, num_classes),
        augment=Augment(shift=config.shift, flip=0.0 if _cropped(source) else config.flip),
        mixing=Mixing(mixup=config.mixup, cutmix=config.cutmix, num_classes=num_classes)
        if mixed
        else None,
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
    shared = _shared(config)
    augmentation = None
    if config.crop_scale < 1 or config.rand_augment:
        augmentation = Augmentation(
            scale=config.crop_scale, hflip=config.flip, rand_augment=config.rand_augment
        )
    if config.data == "scenes":
        train, val = rendered_scenes(config, shared["size"])
    elif path.is_dir():
        train, val = _folders(path, leave_out=config.skip_unreadable)
    else:
        what = f"{path} is one file, not a folder" if path.is_file() else f"there is no {path}"
        raise ConfigError(
            f"data: {what}; it is 'digits', 'scenes', a folder of "
            "{train,val}/CLASS/IMAGE or of {train,val}-*.{tar,parquet,arrow}, or an .npz file of "
            "images and labels"
        )
    return Images(train, augmentation=augmentation, **shared), Images(val, **shared)


def load_held_out(config: ClassifyConfig, own: Source) -> Source:
    """The held-out images alone, of data that may have no others.

    Args:
        config: the options.
        own: of the run, whose classes they are labelled by if theirs are among them.

    Raises:
        ValueError: as of `load_data`.
    """
    path, known = Path(config.data), getattr(own, "classes", None)
    if config.data in ("digits", "scenes") or not path.is_dir():
        return load_data(config)[1]
    (folder,) = _images_of(path / "val")
    leave_out = config.skip_unreadable
    found = _shards(path, "val", leave_out=leave_out) or _reader(folder)
    if known is not None and found.classes is not None and set(found.classes) < set(known):
        found = _shards(path, "val", known, leave_out=leave_out) or _reader(folder, known)
    return Images(found, **_shared(config))


def _shared(config: ClassifyConfig) -> dict[str, Any]:
    """What all images of a run are made of."""
    mean, deviation = normalization(config.model)
    return {
        "size": config.image_size or (input_size(config.model) or (3, SIDE))[1],
        "crop_pct": config.crop_pct,
        "mean": mean,
        "deviation": deviation,
    }


def _folders(path: Path, *, leave_out: bool) -> tuple[Labelled, Labelled]:
    shards = _shards(path, "train", leave_out=leave_out)
    if shards is not None:
        held_out = _shards(path, "val", shards.classes, leave_out=leave_out)
        if held_out is None:
            raise ConfigError(
                f"data: {path} has shards to train on and none held out; expected val-*, "
                "validation-* or test-* beside train-*, or folders of those names"
            )
        return shards, held_out
    of_train, of_val = _images_of(path / "train", path / "val")
    train = _reader(of_train)
    return train, _reader(of_val, train.classes)


def _reader(folder: Path, classes: list[str] | None = None) -> ImageFolder:
    try:
        return ImageFolder(folder, classes=classes)
    except ValueError as error:
        shards = "" if folder.is_dir() else "; shards would be train-*.{tar,parquet,arrow}, val-*"
        raise ConfigError(f"data: {error}{shards}") from error


def _shards(
    path: Path, split: str, classes: list[str] | None = None, *, leave_out: bool
) -> Labelled | None:
    try:
        return labelled_shards(path, split, classes, leave_out=leave_out)
    except ValueError as error:
        raise ConfigError(f"data: {error}") from error


def _images_of(*splits: Path) -> list[Path]:
    """Where the images of some splits are: in ``rgb`` where they stand beside other modalities."""
    beside = all((split / "rgb").is_dir() for split in splits)
    return [split / "rgb" if beside else split for split in splits]


def _cropped(source: Source) -> bool:
    """Whether the source flips its images where it crops them."""
    return isinstance(source, Images) and source.augmentation is not None


def _vit(
    config: ClassifyConfig, num_classes: int, channels: int, side: int, initial: bool
) -> nn.Module:
    made_for = input_size(config.model)
    resize = made_for is not None and made_for[1] != side
    return seeded(
        config,
        lambda: build_vit(
            config.model,
            num_classes=num_classes,
            in_chans=channels,
            img_size=side if resize else None,
            drop_path_rate=config.drop_path,
            pretrained=config.pretrained and initial,
            model_args=config.model_args,
        ),
    )


def _multivit(
    config: ClassifyConfig, num_classes: int, channels: int, side: int, initial: bool
) -> nn.Module:
    if channels != 3:
        raise ConfigError(f"model {config.model} sees rgb; images have {channels} channels")
    return build_encoder(
        config,
        "cls",
        kind="classification",
        input_size=side,
        num_channels=num_classes,
        head_args={"pool": config.pool},
        initial=initial,
    )


def _data(config: ClassifyConfig) -> tuple[Source, Source, int]:
    source, held_out = load_data(config)
    labels = [_labels(part) for part in (source, held_out)]
    found = 1 + max(int(part.max()) for part in labels)
    if config.data == "scenes":
        found = len(SCENE_CLASSES)
    num_classes = config.num_classes or found
    for name, part in zip(("training", "held-out"), labels, strict=True):
        check_labels(part, num_classes, name)
    return source, held_out, num_classes


def _prior(config: ClassifyConfig, source: Source, num_classes: int) -> Tensor | None:
    """Logarithms of the classes' shares, times what is asked for; None for nothing.

    Raises:
        ConfigError: a class that is never there.
    """
    if not config.logit_adjustment:
        return None
    counts = torch.bincount(_labels(source), minlength=num_classes)
    if int(counts.min()) == 0:
        raise ConfigError(
            f"logit_adjustment: class {int(counts.argmin())} of {num_classes} has no training "
            "example, so it has no share; leave it 0, or give num_classes"
        )
    return config.logit_adjustment * (counts / counts.sum()).log()


def _labels(source: Source) -> Tensor:
    return source.fields["label"] if isinstance(source, TensorSource) else source.labels  # type: ignore[attr-defined]
