"""What every fine-tuned encoder is built of."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from tensordict import TensorDict
from torch import Tensor

from attent.models.heads import build_head
from attent.models.multimae import MultiViT, build_multivit
from attent.models.multimae.build import encoder_sizes
from attent.tasks.config import ConfigError
from attent.tasks.data.dense import Dense
from attent.tasks.data.dense_layouts import DenseData, find_dense
from attent.tasks.data.dense_view import View
from attent.tasks.data.options import num_semseg_classes, rendered_scenes
from attent.tasks.data.scenes import SEMANTIC_CLASSES
from attent.tasks.finetuning.config import DenseConfig
from attent.tasks.initial import initial_model


def build_encoder(
    config: Any,
    output: str,
    *,
    kind: str,
    input_size: int,
    num_channels: int,
    head_args: Mapping[str, Any] | None = None,
    initial: bool,
) -> MultiViT:
    """An encoder with a fresh head, its weights those that training starts from.

    Args:
        config: says which encoder, as in `EncoderConfig`; ``head`` is linear and ``in_domains`` rgb
            where it does not say.
        output: the head's name in what the model returns.
        kind: what the head predicts; see `build_head`.
        input_size: side of the pictures in pixels.
        num_channels: classes, or values a pixel.
        head_args: further arguments of the head.
        initial: load ``pretrained_weights``; False where a checkpoint's take their place.

    Raises:
        ValueError: what the options ask for cannot be.
    """
    domains = list(getattr(config, "in_domains", ["rgb"]))

    def make() -> MultiViT:
        sizes = encoder_sizes(config.model, config.model_args)
        head = build_head(
            getattr(config, "head", "linear"),
            kind=kind,
            num_channels=num_channels,
            dim=sizes["dim"],
            depth=sizes["depth"],
            **({"main_tasks": domains} if kind != "classification" else {}),
            **(head_args or {}),
        )
        return build_multivit(
            config.model,
            in_domains=domains,
            output_adapters={output: head},
            image_size=input_size,
            patch_size=config.patch_size,
            num_semseg_classes=num_semseg_classes(config) if "semseg" in domains else 1,
            padding_class="semseg" in domains,
            num_global_tokens=config.num_global_tokens,
            drop_path_rate=config.drop_path,
            model_args=config.model_args,
        )

    return cast(MultiViT, initial_model(config, make, initial=initial))


def readers_of(config: Any, target: str, *, held_out_only: bool = False) -> DenseData:
    """Scenes to train on and to measure on, and what is known of their labels.

    Args:
        config: a `DenseConfig` with ``data``.
        target: the domain that is predicted.
        held_out_only: no training split is looked for, and the held-out one stands for both.

    Raises:
        ValueError: no such data, or not in the form expected.
    """
    if config.data == "scenes":
        _check_scenes(config, target)
        train, val = rendered_scenes(config, config.input_size)
        return DenseData("scenes", train, val, len(SEMANTIC_CLASSES), False, SEMANTIC_CLASSES)
    if not Path(config.data).exists():
        raise ConfigError(f"data: there is no {config.data}; it is 'scenes' or a folder")
    return find_dense(
        config.data,
        inputs=config.in_domains,
        target=target,
        pseudo=config.pseudo_domains,
        layout=config.layout,
        held_out_only=held_out_only,
    )


def _check_scenes(config: DenseConfig, target: str) -> None:
    """Refuse what rendered scenes have not."""
    if target not in ("semseg", "depth"):
        raise ConfigError(f"target {target}: data scenes have depth; take a folder of Taskonomy")
    if config.pseudo_domains:
        raise ConfigError(
            f"pseudo_domains names {', '.join(config.pseudo_domains)}: of data scenes no network "
            "has predicted anything"
        )


def dense_sources(
    config: DenseConfig, data: DenseData, view: View, **options: Any
) -> tuple[Dense, Dense]:
    """Training and held-out scenes with their targets.

    Args:
        config: says what is encoded.
        data: the two splits.
        view: of both; random in training where ``augment`` is asked for.
        **options: of `Dense`: the target.
    """
    shared: dict[str, Any] = {
        "inputs": config.in_domains,
        "pseudo": config.pseudo_domains,
        "num_semseg_classes": num_semseg_classes(config),
        **options,
    }
    train = Dense if config.augment else Fixed
    return train(data.train, view, **shared), Dense(data.val, view, **shared)


class Fixed(Dense):
    """Scenes that are trained on as they are evaluated."""

    def fetch_augmented(self, index: Tensor, keys: Tensor) -> TensorDict:
        """As `fetch`, whatever the keys."""
        return self.fetch(index)
