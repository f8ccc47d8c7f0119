"""From options to a run of detection."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import cast

from torch import nn

from attent.models.detection import MaskRCNN
from attent.models.multimae import build_multivit
from attent.pipeline import Source
from attent.tasks.build import Run, assemble
from attent.tasks.config import ConfigError
from attent.tasks.data.coco import Coco
from attent.tasks.data.objects import ObjectView
from attent.tasks.data.options import rendered_scenes
from attent.tasks.data.scene_objects import SceneObjects
from attent.tasks.detection.config import DetectConfig
from attent.tasks.detection.task import Detection
from attent.tasks.initial import initial_model

ObjectSource = SceneObjects | Coco


def build_detect(config: DetectConfig, *, initial: bool = True) -> Run:
    """Everything `attent detect` needs, checked before any training.

    Args:
        config: the options. Its ``grad_norm`` is that of `looped_grad_norms`: ghost norms refuse
            regions, which are not examples.
        initial: load the weights that training starts from; False where a checkpoint's take their
            place.

    Raises:
        ValueError: what the options ask for cannot be; the message says why.
    """
    source, held_out = load_data(config)
    num_classes = len(source.classes)
    model = initial_model(
        config, lambda: _model(config, num_classes), initial=initial, part="encoder"
    )
    task = Detection(cast(MaskRCNN, model))
    if config.signal == "grad_norm":
        config = dataclasses.replace(config, signal="looped_grad_norm")
    return assemble(config, task, source, held_out)


def load_data(config: DetectConfig) -> tuple[ObjectSource, ObjectSource]:
    """The training and the held-out pictures with their objects.

    Raises:
        ValueError: no such data, or not in the form expected.
    """
    view = _view(config)
    if config.data == "scenes":
        scenes, others = rendered_scenes(config, config.input_size)
        return SceneObjects(scenes, view), SceneObjects(others, view)
    root = Path(config.data)
    train = Coco(root, _split(root, "train"), view=view)
    return train, Coco(root, _split(root, "val"), view=view, categories=train.categories)


def load_held_out(config: DetectConfig, own: Source) -> Source:
    """The held-out pictures alone, of data that may have no others.

    Args:
        config: the options.
        own: of the run; where its categories are more than these data's, they are the run's.

    Raises:
        ValueError: as of `load_data`.
    """
    if config.data == "scenes":
        return load_data(config)[1]
    root = Path(config.data)
    split, view = _split(root, "val"), _view(config)
    found = Coco(root, split, view=view)
    if isinstance(own, Coco) and set(found.categories) < set(own.categories):
        return Coco(root, split, view=view, categories=own.categories)
    return found


def _view(config: DetectConfig) -> ObjectView:
    low, high = config.jitter
    return ObjectView(size=config.input_size, scale=(low, high), hflip=config.hflip)


def _split(root: Path, begins: str) -> str:
    """The name of a split, of which there is one file of instances.

    Raises:
        ConfigError: there is none, or there are several.
    """
    if not root.is_dir():
        raise ConfigError(f"data: there is no {root}; it is 'scenes' or a folder of COCO's layout")
    there = sorted(path.name for path in (root / "annotations").glob("instances_*.json"))
    named = [re.fullmatch(rf"instances_({begins}.*)\.json", name) for name in there]
    found = [match[1] for match in named if match]
    if len(found) == 1:
        return found[0]
    held = sorted(p.name for p in root.iterdir())[:8]
    files = ", ".join(there) or "no instances_SPLIT.json"
    raise ConfigError(
        f"data: {root} holds {', '.join(held) or 'nothing'}, its annotations {files}; it is "
        f"'scenes', or a folder with one annotations/instances_{begins}YEAR.json"
    )


def _model(config: DetectConfig, num_classes: int) -> nn.Module:
    encoder = build_multivit(
        config.model,
        image_size=config.input_size,
        patch_size=config.patch_size,
        num_global_tokens=config.num_global_tokens,
        drop_path_rate=config.drop_path,
        model_args=config.model_args,
    )
    return MaskRCNN(
        encoder,
        num_classes,
        channels=config.pyramid_dim,
        box_dim=config.box_dim,
        anchor_sizes=config.anchor_sizes,
        anchor_ratios=config.anchor_ratios,
        num_proposals=config.num_proposals,
        anchors_drawn=config.anchors_drawn,
        regions_drawn=config.regions_drawn,
        min_score=config.min_score,
        max_detections=config.max_detections,
    )
