"""The options of ``attent pretrain``."""

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

ALL = ("rgb", "depth", "semseg")


@dataclass(frozen=True, kw_only=True)
class PretrainConfig(SelectionConfig, TrainingConfig, RunConfig):
    """Pre-train a multi-modal masked autoencoder.

    Args:
        data: scenes (rendered as they are asked for), photos (real ones that installed packages
            carry; in_domains and out_domains rgb alone, or depth alone), a folder of
            {train,val}/{rgb,depth,semseg}/CLASS/NAME.EXT, one of shards {train,val}-*.tar of
            KEY.{rgb.jpg,depth.png,semseg.png}, or one of Taskonomy's layout with train.csv and
            val.csv.
        num_train: training scenes, of data scenes.
        num_val: held-out scenes, of data scenes.
        imbalance: of data scenes, how many times as frequent the commonest class of scenes is as
            the rarest.
        data_cache: a folder in which rendered scenes are kept; null renders them anew in each run.
        num_semseg_classes: ids of semseg are 0 to one less; null takes the scenes' own number, or
            COCO's 133.
        crop_scale: augmentation: smallest share of a picture's area that is cropped, in (0, 1]; 1
            with hflip 0 trains on the pictures as they are.
        hflip: augmentation: probability of a horizontal flip.
        model: pretrain_multimae_SIZE; SIZE is micro, tiny, small, base or large.
        model_args: further arguments of the encoder, such as dim, depth and num_heads.
        pretrained_weights: start from these: a file of MultiMAE weights (released ones too), the
            folder of a finished run, or timm:NAME for a vision transformer of timm; null for fresh
            ones.
        input_size: side of the pictures in pixels.
        patch_size: side of a patch in pixels.
        in_domains: what is encoded: a list, or joined by hyphens (rgb-depth-semseg).
        out_domains: what is predicted: the same.
        num_encoded_tokens: patches seen of all modalities together; the rest are predicted.
        num_global_tokens: tokens that belong to no patch.
        alphas: concentration of each modality's share of the seen patches: one number, or one for
            each of in_domains. High shares evenly, low favours one modality at a time.
        sample_tasks_uniformly: draw first which modalities are seen at all.
        decoder_dim: channels of the decoders.
        decoder_depth: blocks of each decoder.
        decoder_num_heads: heads of each decoder.
        decoder_use_task_queries: decoders ask with their own modality's seen patches.
        decoder_use_xattn: decoders attend to the other modalities.
        extra_norm_pix_loss: a second decoder of rgb, for pixels normalised by patch.
        fp32_output_adapters: outputs decoded in float32 under bf16: a list, or joined by hyphens.
        standardize_depth: depth maps by their own truncated mean and deviation.
        loss_on_unmasked: losses of all patches, not only of the masked.
        task_balancer: how the outputs' losses are weighed: none (their sum), uncertainty (learned)
            or softmax (by their own size).
        score_masks: masks that scoring and evaluation average over, at as many times the cost.
        drop_path: stochastic depth of the encoder, in [0, 1).
    """

    epochs: int = 1600
    batch_size: int = 256
    lr: float | None = None
    blr: float | None = 1e-4
    warmup_epochs: float | None = 40.0
    betas: list[float] = dataclasses.field(default_factory=lambda: [0.9, 0.95])

    data: str = "scenes"
    num_train: int = 4000
    num_val: int = 500
    imbalance: float = 1.0
    data_cache: str | None = None
    num_semseg_classes: int | None = None
    crop_scale: float = 0.2
    hflip: float = 0.5
    model: str = "pretrain_multimae_base"
    model_args: dict[str, Any] | None = None
    pretrained_weights: str | None = None
    input_size: int = 224
    patch_size: int = 16
    in_domains: list[str] | str = dataclasses.field(default_factory=lambda: list(ALL))
    out_domains: list[str] | str = dataclasses.field(default_factory=lambda: list(ALL))
    num_encoded_tokens: int = 98
    num_global_tokens: int = 1
    alphas: float | list[float] = 1.0
    sample_tasks_uniformly: bool = False
    decoder_dim: int = 256
    decoder_depth: int = 2
    decoder_num_heads: int = 8
    decoder_use_task_queries: bool = True
    decoder_use_xattn: bool = True
    extra_norm_pix_loss: bool = True
    fp32_output_adapters: list[str] | str = dataclasses.field(default_factory=lambda: ["semseg"])
    standardize_depth: bool = True
    loss_on_unmasked: bool = False
    task_balancer: Literal["none", "uncertainty", "softmax"] = "none"
    score_masks: int = 1
    drop_path: float = 0.0

    def __post_init__(self) -> None:
        for name in ("in_domains", "out_domains", "fp32_output_adapters"):
            value = getattr(self, name)
            if isinstance(value, str):
                object.__setattr__(self, name, [part for part in value.split("-") if part])
        check_shared(self)
        for name in ("in_domains", "out_domains"):
            _check_domains(name, getattr(self, name))
        at_least_one = (
            "num_train", "num_val", "input_size", "patch_size", "num_encoded_tokens",
            "decoder_dim", "decoder_num_heads", "score_masks",
        )  # fmt: skip
        for name in at_least_one:
            need(self, name, lambda v: v >= 1, "at least 1")
        for name in ("decoder_depth", "num_global_tokens"):
            need(self, name, lambda v: v >= 0, "at least 0")
        check_patches(self, semseg="semseg" in self.domains)
        need(self, "num_semseg_classes", lambda v: v is None or v >= 2, "at least 2, or null")
        need(self, "drop_path", lambda v: 0 <= v < 1, "in [0, 1)")
        need(self, "hflip", lambda v: 0 <= v <= 1, "in [0, 1]")
        need(self, "crop_scale", lambda v: 0 < v <= 1, "in (0, 1]")
        need(self, "imbalance", lambda v: 1 <= v < float("inf"), "at least 1")
        need(self, "alphas", _above_zero, "above 0, one number or one for each of in_domains")
        decoded = (*ALL, "norm_rgb")
        if not set(self.fp32_output_adapters) <= set(decoded):
            raise ConfigError(
                f"fp32_output_adapters names {', '.join(self.fp32_output_adapters)}; it takes "
                f"{', '.join(decoded)}"
            )
        if isinstance(self.alphas, list) and len(self.alphas) != len(self.in_domains):
            raise ConfigError(
                f"alphas are {len(self.alphas)} numbers for {len(self.in_domains)} in_domains"
            )

    @property
    def domains(self) -> list[str]:
        """All modalities that are read, the encoded ones first."""
        return [*self.in_domains, *(d for d in self.out_domains if d not in self.in_domains)]

    def idle(self) -> dict[str, str]:
        """The options that do nothing here, and why."""
        found = {}
        if self.data != "scenes":
            names = ("num_train", "num_val", "imbalance", "data_cache")
            found |= dict.fromkeys(names, "only data scenes are rendered")
        if "semseg" not in self.domains:
            found |= {"num_semseg_classes": "semseg is no domain"}
        if "depth" not in self.domains:
            found |= {"standardize_depth": "depth is no domain"}
        if "rgb" not in self.out_domains:
            found |= {"extra_norm_pix_loss": "rgb is no output"}
        if not self.bf16:
            found |= {"fp32_output_adapters": "everything is float32 without bf16"}
        return found


def _above_zero(alphas: float | list[float]) -> bool:
    values = alphas if isinstance(alphas, list) else [alphas]
    return bool(values) and all(0 < value < float("inf") for value in values)


def _check_domains(option: str, domains: list[str] | str) -> None:
    wrong = [name for name in domains if name not in ALL]
    if wrong or not domains or len(set(domains)) < len(domains):
        raise ConfigError(
            f"{option} names {', '.join(domains) or 'nothing'}; it takes {', '.join(ALL)}, each "
            "once, as a list or joined by hyphens"
        )
