"""From options to a run of masked pre-training."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from torch import nn

from attent.models.multimae import Decoders, MultiMAE, build_multimae
from attent.pipeline import Source
from attent.tasks.build import Run, assemble, device_of
from attent.tasks.config import ConfigError
from attent.tasks.data.joint import JointView
from attent.tasks.data.multimodal import Multimodal, Reader
from attent.tasks.data.options import num_semseg_classes, rendered_split
from attent.tasks.data.paired_folder import PairedFolder
from attent.tasks.data.photos import Photos
from attent.tasks.data.shards.find import scene_shards
from attent.tasks.data.shards.image_tar import TarScenes
from attent.tasks.data.taskonomy import Taskonomy
from attent.tasks.initial import initial_model
from attent.tasks.pretraining.config import PretrainConfig
from attent.tasks.pretraining.task import MaskedPretraining


def build_pretrain(config: PretrainConfig, *, initial: bool = True) -> Run:
    """Everything `attent pretrain` needs, checked before any training.

    Args:
        config: the options.
        initial: load the weights that training starts from; False where a checkpoint's take their
            place.

    Raises:
        ValueError: what the options ask for cannot be; the message says why.
    """
    source, held_out = load_data(config)
    model = initial_model(config, lambda: _model(config), initial=initial)
    assert isinstance(model, MultiMAE)
    task = MaskedPretraining(
        model,
        num_encoded_tokens=config.num_encoded_tokens,
        balancer=config.task_balancer,
        alphas=config.alphas,
        sample_tasks_uniformly=config.sample_tasks_uniformly,
        standardize_depth=config.standardize_depth,
        loss_on_unmasked=config.loss_on_unmasked,
        score_masks=config.score_masks,
    )
    task.model.to(device_of(config.device))  # the balancer, which is new
    task.check_budget((config.input_size, config.input_size))
    return assemble(config, task, source, held_out)


def load_data(config: PretrainConfig) -> tuple[Source, Source]:
    """The training and the held-out scenes.

    Raises:
        ValueError: no such data, or not in the form expected.
    """
    train = _reader(config, "train")
    return _source(config, train), _source(config, _reader(config, "val", _classes(train)))


def load_held_out(config: PretrainConfig, own: Source) -> Source:
    """The held-out scenes alone, of data that may have no others.

    Args:
        config: the options, of the data to be read.
        own: the run's own, whose classes these have where they have any.

    Raises:
        ValueError: as of `load_data`.
    """
    assert isinstance(own, Multimodal)
    return _source(config, _reader(config, "val", _classes(own.reader)))


def _source(config: PretrainConfig, reader: Reader) -> Multimodal:
    view = JointView(size=config.input_size, scale=(config.crop_scale, 1.0), hflip=config.hflip)
    return Multimodal(
        reader, view, domains=config.domains, num_semseg_classes=num_semseg_classes(config)
    )


def _classes(reader: Reader) -> list[str] | None:
    """The names of classes that a reader has: of its folders, or of the labels in its shards."""
    return reader.classes if isinstance(reader, PairedFolder | TarScenes) else None


def _reader(
    config: PretrainConfig, split: Literal["train", "val"], classes: list[str] | None = None
) -> Reader:
    domains = config.domains
    if config.data == "scenes":
        return rendered_split(config, config.input_size, split)
    if config.data == "photos":
        if domains not in (["rgb"], ["depth"]):
            raise ConfigError(
                "data photos are rgb alone or depth alone, of different scenes; set in_domains and "
                "out_domains to one of them"
            )
        domain: Any = domains[0]
        return Photos(domain, size=config.input_size, split=split)
    root = Path(config.data)
    shards = scene_shards(root, split, domains, classes, leave_out=config.skip_unreadable)
    if shards is not None:
        return shards
    if (root / split).is_dir():
        return PairedFolder(root / split, domains=domains, classes=classes)
    if (root / f"{split}.csv").is_file():
        return Taskonomy(root, split, domains=domains)
    if not root.is_dir():
        found = f"there is no folder {root}"
    else:
        names = sorted(p.name for p in root.iterdir() if not p.name.startswith("."))
        found = f"{root} holds {', '.join(names[:8]) or 'nothing'}"
    raise ConfigError(
        f"data: {found}; it is 'scenes', 'photos', a folder "
        "of {train,val}/{rgb,depth,semseg}/CLASS/NAME.EXT, one of shards {train,val}-*.tar, or one "
        "of Taskonomy's layout with train.csv and val.csv"
    )


def _model(config: PretrainConfig) -> nn.Module:
    return build_multimae(
        config.model,
        in_domains=config.in_domains,
        out_domains=config.out_domains,
        image_size=config.input_size,
        patch_size=config.patch_size,
        num_semseg_classes=num_semseg_classes(config),
        num_global_tokens=config.num_global_tokens,
        drop_path_rate=config.drop_path,
        decoders=Decoders(
            dim=config.decoder_dim,
            depth=config.decoder_depth,
            num_heads=config.decoder_num_heads,
            use_task_queries=config.decoder_use_task_queries,
            use_xattn=config.decoder_use_xattn,
            extra_norm_pix=config.extra_norm_pix_loss,
            fp32=[
                name
                for name in config.fp32_output_adapters
                if name in config.out_domains or name == "norm_rgb"
            ],
        ),
        model_args=config.model_args,
    )
