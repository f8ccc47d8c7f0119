"""MultiMAE and MultiViT by name."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from attent.models.multimae.inputs import InputAdapter, PatchedInput, SemsegInput
from attent.models.multimae.model import MultiMAE, MultiViT
from attent.models.multimae.outputs import SpatialOutput

# Base and large are the published ones; tiny and small have the sizes of DeiT; micro is for
# pictures of 64 pixels on a CPU.
SIZES: dict[str, dict[str, int]] = {
    "micro": {"dim": 96, "depth": 6, "num_heads": 3},
    "tiny": {"dim": 192, "depth": 12, "num_heads": 3},
    "small": {"dim": 384, "depth": 12, "num_heads": 6},
    "base": {"dim": 768, "depth": 12, "num_heads": 12},
    "large": {"dim": 1024, "depth": 24, "num_heads": 16},
}

CHANNELS = {"rgb": 3, "depth": 1}
"""Of the modalities that are pictures."""

DOMAINS = ("rgb", "depth", "semseg")
"""The modalities there are."""

MODEL_ARGS = ("dim", "depth", "num_heads", "mlp_ratio", "drop_rate", "attn_drop_rate")
"""What ``model_args`` may name."""

SEMSEG_STRIDE = 4
"""Pixels of a picture to one of its map of classes."""


@dataclass(frozen=True, kw_only=True)
class Decoders:
    """What the decoders of a `MultiMAE` are like.

    Attributes:
        dim: channels.
        depth: blocks after the cross-attention.
        num_heads: of every attention.
        use_task_queries: ask with the modality's own visible tokens.
        use_xattn: cross-attention to the other tokens.
        extra_norm_pix: a second decoder of rgb, ``norm_rgb``, for pixels normalised by patch.
        fp32: outputs decoded in float32 outside autocast.
    """

    dim: int = 256
    depth: int = 2
    num_heads: int = 8
    use_task_queries: bool = True
    use_xattn: bool = True
    extra_norm_pix: bool = True
    fp32: Sequence[str] = ()


def pretraining_names() -> list[str]:
    """The models that `build_multimae` knows."""
    return [f"pretrain_multimae_{size}" for size in SIZES]


def build_multimae(
    name: str,
    *,
    in_domains: Sequence[str] = DOMAINS,
    out_domains: Sequence[str] = DOMAINS,
    image_size: int = 224,
    patch_size: int = 16,
    num_semseg_classes: int = 133,
    num_global_tokens: int = 1,
    drop_path_rate: float = 0.0,
    decoders: Decoders | None = None,
    model_args: Mapping[str, Any] | None = None,
) -> MultiMAE:
    """A masked autoencoder.

    Args:
        name: ``pretrain_multimae_SIZE``; sizes are in `SIZES`.
        in_domains: modalities that are encoded, in the order of the sequence.
        out_domains: modalities that are predicted.
        image_size: side of the pictures in pixels, for which position embeddings are made; other
            sizes resample them. (The published code always makes them for 224.)
        patch_size: in pixels of the picture.
        num_semseg_classes: K.
        num_global_tokens: G.
        drop_path_rate: stochastic depth of the last block.
        decoders: what the decoders are like.
        model_args: further arguments of `MultiViT`, of those in `MODEL_ARGS`.

    Raises:
        ValueError: no such model, modality or argument, with the nearest name; a picture that is
            not a whole number of patches.
    """
    decoders = decoders or Decoders()
    sizes = _arguments(_size(name, "pretrain_multimae"), model_args)
    adapters = input_adapters(
        list(in_domains),
        dim=sizes["dim"],
        patch_size=patch_size,
        image_size=image_size,
        num_semseg_classes=num_semseg_classes,
    )
    outputs = output_adapters(
        list(out_domains),
        decoders,
        in_domains=list(in_domains),
        encoder_dim=sizes["dim"],
        patch_size=patch_size,
        image_size=image_size,
        num_semseg_classes=num_semseg_classes,
    )
    return MultiMAE(
        adapters,
        outputs,
        num_global_tokens=num_global_tokens,
        drop_path_rate=drop_path_rate,
        fp32_outputs=decoders.fp32,
        **sizes,
    )


def build_multivit(
    name: str,
    *,
    in_domains: Sequence[str] = ("rgb",),
    output_adapters: Mapping[str, nn.Module] | None = None,
    image_size: int = 224,
    patch_size: int = 16,
    num_semseg_classes: int = 133,
    padding_class: bool = False,
    num_global_tokens: int = 1,
    drop_path_rate: float = 0.0,
    model_args: Mapping[str, Any] | None = None,
) -> MultiViT:
    """The encoder alone, ``multivit_SIZE``, with heads of your own; arguments as above.

    ``padding_class`` gives label maps that are encoded one more id, K, for pixels of no class.
    """
    sizes = encoder_sizes(name, model_args)
    adapters = input_adapters(
        list(in_domains),
        dim=sizes["dim"],
        patch_size=patch_size,
        image_size=image_size,
        num_semseg_classes=num_semseg_classes,
        padding_class=padding_class,
    )
    return MultiViT(
        adapters,
        output_adapters,
        num_global_tokens=num_global_tokens,
        drop_path_rate=drop_path_rate,
        **sizes,
    )


def encoder_sizes(name: str, model_args: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """``dim``, ``depth`` and ``num_heads`` of ``multivit_SIZE``, as `build_multivit` makes it."""
    return _arguments(_size(name, "multivit"), model_args)


def input_adapters(
    domains: Sequence[str],
    *,
    dim: int,
    patch_size: int,
    image_size: int,
    num_semseg_classes: int,
    padding_class: bool = False,
) -> dict[str, InputAdapter]:
    """The adapter of each modality, in their order."""
    if not domains:
        raise ValueError("in_domains names no modality to encode")
    if image_size % patch_size:
        raise ValueError(
            f"input_size {image_size} is not a whole number of patches of {patch_size} pixels"
        )
    checked_domains("in_domains", domains)
    _check_stride(domains, patch_size)
    adapters: dict[str, InputAdapter] = {}
    for domain in domains:
        if domain == "semseg":
            adapters[domain] = SemsegInput(
                num_semseg_classes,
                dim,
                patch_size=patch_size,
                stride=SEMSEG_STRIDE,
                image_size=image_size,
                padding_class=padding_class,
            )
        else:
            adapters[domain] = PatchedInput(
                CHANNELS[domain], dim, patch_size=patch_size, image_size=image_size
            )
    return adapters


def output_adapters(
    domains: Sequence[str],
    decoders: Decoders,
    *,
    in_domains: Sequence[str],
    encoder_dim: int,
    patch_size: int,
    image_size: int,
    num_semseg_classes: int,
) -> dict[str, nn.Module]:
    """The decoder of each output, in the order of their modalities; ``norm_rgb`` is the last."""
    if not domains:
        raise ValueError("out_domains names no modality to predict")
    outputs = {domain: domain for domain in checked_domains("out_domains", domains)}
    _check_stride(domains, patch_size)
    if decoders.extra_norm_pix and "rgb" in outputs:
        outputs["norm_rgb"] = "rgb"
    return {
        output: SpatialOutput(
            CHANNELS.get(domain, num_semseg_classes),
            task=domain,
            context_tasks=in_domains,
            encoder_dim=encoder_dim,
            patch_size=patch_size,
            stride=SEMSEG_STRIDE if domain == "semseg" else 1,
            image_size=image_size,
            dim=decoders.dim,
            depth=decoders.depth,
            num_heads=decoders.num_heads,
            use_task_queries=decoders.use_task_queries,
            use_xattn=decoders.use_xattn,
        )
        for output, domain in outputs.items()
    }


def checked_domains(option: str, domains: Sequence[str]) -> Sequence[str]:
    """The domains themselves.

    Raises:
        ValueError: one is unknown, or is named twice.
    """
    for domain in domains:
        if domain not in DOMAINS:
            near = difflib.get_close_matches(domain, DOMAINS, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"{option}: no modality {domain!r} ({', '.join(DOMAINS)}){hint}")
    if len(set(domains)) < len(domains):
        raise ValueError(f"{option} names a modality twice: {', '.join(domains)}")
    return domains


def _check_stride(domains: Sequence[str], patch_size: int) -> None:
    if "semseg" in domains and patch_size % SEMSEG_STRIDE:
        raise ValueError(
            f"patch_size {patch_size} is not a multiple of {SEMSEG_STRIDE}, the pixels to one of "
            "a map of classes"
        )


def _arguments(size: str, model_args: Mapping[str, Any] | None) -> dict[str, Any]:
    """Those of a size, some of them replaced."""
    for name in model_args or {}:
        if name not in MODEL_ARGS:
            near = difflib.get_close_matches(name, MODEL_ARGS, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"model_args: no {name!r} ({', '.join(MODEL_ARGS)}){hint}")
    return {**SIZES[size], **(model_args or {})}


def _size(name: str, prefix: str) -> str:
    known = {f"{prefix}_{size}": size for size in SIZES}
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"no model {name!r} ({', '.join(known)}){hint}")
    return known[name]
