"""The options of encoders that are fine-tuned, and of data with a map to predict."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

from attent.tasks.config import (
    ConfigError,
    RunConfig,
    SelectionConfig,
    TrainingConfig,
    check_patches,
    check_shared,
    need,
)

INPUTS = ("rgb", "depth", "semseg")


@dataclass(frozen=True, kw_only=True)
class EncoderConfig:
    """The encoder that is fine-tuned.

    Args:
        model: multivit_SIZE; SIZE is micro, tiny, small, base or large.
        model_args: further arguments of the encoder, such as dim, depth and num_heads.
        pretrained_weights: start from these: the folder of a finished run of attent pretrain, a
            file of MultiMAE weights (released ones too), or timm:NAME for a vision transformer of
            timm; null for fresh ones.
        input_size: side of the pictures in pixels.
        patch_size: side of a patch in pixels.
        num_global_tokens: tokens that belong to no patch.
        drop_path: stochastic depth of the encoder, in [0, 1).
    """

    model: str = "multivit_base"
    model_args: dict[str, Any] | None = None
    pretrained_weights: str | None = None
    input_size: int = 224
    patch_size: int = 16
    num_global_tokens: int = 1
    drop_path: float = 0.1


@dataclass(frozen=True, kw_only=True)
class DenseConfig(EncoderConfig, SelectionConfig, TrainingConfig, RunConfig):
    """Pictures with a map to predict.

    Args:
        layout: what a folder holds: ade20k, nyuv2, taskonomy, or folders
            ({train,val}/DOMAIN/CLASS/NAME.EXT); null for what it looks like.
        num_train: training scenes, of data scenes.
        num_val: held-out scenes, of data scenes.
        data_cache: a folder in which rendered scenes are kept; null renders them anew in each run.
        in_domains: what is encoded: a list, or joined by hyphens (rgb-depth).
        pseudo_domains: which of in_domains are read from pseudo_depth or pseudo_semseg: what a
            network predicted of the picture.
        num_semseg_classes: classes of the label maps that are encoded; null takes the scenes' own
            number, or COCO's 133.
        head_args: further arguments of the head.
        augment: train on random crops, flips and colours; false on the pictures as they are
            evaluated.
    """

    epochs: int = 64
    batch_size: int = 4
    lr: float | None = 1e-4
    warmup_epochs: float | None = 1.0
    layer_decay: float = 0.75
    score_batch_size: int = 16

    layout: Literal["ade20k", "nyuv2", "taskonomy", "folders"] | None = None
    num_train: int = 4000
    num_val: int = 500
    data_cache: str | None = None
    in_domains: list[str] | str = dataclasses.field(default_factory=lambda: ["rgb"])
    pseudo_domains: list[str] | str = dataclasses.field(default_factory=list)
    num_semseg_classes: int | None = None
    head_args: dict[str, Any] | None = None
    augment: bool = True

    def check(self) -> None:
        """Refuse values out of range.

        Raises:
            ConfigError: names the option and what is accepted.
        """
        for name in ("in_domains", "pseudo_domains"):
            value = getattr(self, name)
            if isinstance(value, str):
                object.__setattr__(self, name, [part for part in value.split("-") if part])
        check_shared(self)
        for name in ("num_train", "num_val", "input_size", "patch_size"):
            need(self, name, lambda v: v >= 1, "at least 1")
        need(self, "num_semseg_classes", lambda v: v is None or v >= 1, "at least 1, or null")
        check_patches(self, semseg="semseg" in self.in_domains)
        need(self, "num_global_tokens", lambda v: v >= 0, "at least 0")
        need(self, "drop_path", lambda v: 0 <= v < 1, "in [0, 1)")
        for name, known in (("in_domains", INPUTS), ("pseudo_domains", INPUTS[1:])):
            wrong = [domain for domain in getattr(self, name) if domain not in known]
            if wrong or len(set(getattr(self, name))) < len(getattr(self, name)):
                raise ConfigError(
                    f"{name} names {', '.join(getattr(self, name))}; it takes "
                    f"{', '.join(known)}, each once, as a list or joined by hyphens"
                )
        if not self.in_domains:
            raise ConfigError(f"in_domains names nothing; it takes {', '.join(INPUTS)}")

    def idle(self) -> dict[str, str]:
        """The options that do nothing here, and why."""
        found: dict[str, str] = {}
        if getattr(self, "data", None) == "scenes":
            found |= {"layout": "scenes are rendered"}
        else:
            names = ("num_train", "num_val", "data_cache")
            found |= dict.fromkeys(names, "only data scenes are rendered")
        if "semseg" not in self.in_domains:
            found |= {"num_semseg_classes": "semseg is not encoded"}
        return found
