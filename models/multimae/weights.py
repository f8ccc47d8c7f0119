"""Weights of MultiMAE and of timm's vision transformers: reading, loading, converting.

Names and shapes are those of the released MultiMAE weights.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from attent.models.multimae.positions import resample

Weights = dict[str, Tensor]

_HEADS = "output_adapters."
_INPUTS = "input_adapters."

# Training checkpoints hold their options and learning rates as these, which torch would refuse.
_scalar: Any = np._core.multiarray.scalar  # type: ignore[attr-defined]
_HARMLESS: list[Any] = [
    argparse.Namespace,
    np.dtype,
    np.dtypes.Float64DType,
    np.dtypes.Int64DType,
    _scalar,
    (_scalar, "numpy.core.multiarray.scalar"),  # as older NumPy wrote it
]


@dataclass(frozen=True)
class Loaded:
    """What became of weights that were loaded.

    Attributes:
        missing: parameters of the model that were not there; they keep what they had.
        passed_over: what the model has no place for.
        resized: position embeddings that were resampled to the model's grid.
    """

    missing: tuple[str, ...]
    passed_over: tuple[str, ...]
    resized: tuple[str, ...]


def read_weights(path: str | Path) -> Weights:
    """The tensors of a file by name.

    Args:
        path: safetensors, or a file of ``torch.save``: the tensors themselves, or a checkpoint that
            holds them as ``model`` or ``state_dict``. Nothing in it is executed.

    Raises:
        ValueError: no such file, or it holds no tensors; says what was found.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"there is no file of weights {path}")
    if path.suffix == ".safetensors":
        try:
            found: Any = load_file(path)
        except SafetensorError as error:
            raise ValueError(f"{path} is not a safetensors file, or is damaged: {error}") from error
    else:
        with torch.serialization.safe_globals(_HARMLESS):
            try:
                found = torch.load(path, map_location="cpu", weights_only=True)
            except Exception as error:  # a damaged pickle fails with whatever it comes upon
                raise ValueError(f"{path} cannot be read as weights: {_told(error)}") from error
    for key in ("model", "state_dict"):
        if isinstance(found, Mapping) and isinstance(found.get(key), Mapping):
            found = found[key]
    if not isinstance(found, Mapping) or not found:
        raise ValueError(f"{path} holds no weights, but a {type(found).__name__}")
    tensors = {name: value for name, value in found.items() if isinstance(value, Tensor)}
    if len(tensors) < len(found):
        raise ValueError(f"{path} holds {', '.join(map(str, list(found)[:8]))}; expected tensors")
    return {name.removeprefix("module."): value for name, value in tensors.items()}


def _told(error: Exception) -> str:
    """What is wrong with a file, on a line, without torch's advice to trust it."""
    said = str(error) or type(error).__name__
    code = re.search(r"Unsupported (?:global|class):? (?:GLOBAL )?(\S+)", said)
    if code:
        return f"it holds {code[1]}, which is more than tensors; loading it would execute it"
    return said.splitlines()[0]


def load_weights(model: nn.Module, weights: Mapping[str, Tensor], origin: str) -> Loaded:
    """Load weights of a MultiMAE into another, perhaps of other heads, inputs or picture size.

    Position embeddings of another grid are resampled (bicubic); a table of classes that lacks the
    padding class is given zeros for it. Heads may be missing or left over, inputs left over;
    anything else that does not fit is refused.

    Args:
        model: `MultiMAE` or `MultiViT`.
        weights: by name.
        origin: where they are from, for messages.

    Raises:
        ValueError: weights that are missing, not known or of another shape; names the first.
    """
    own = model.state_dict()
    fitted, resized = {}, []
    for name, value in weights.items():
        if name in own:
            fitted[name] = _fit(name, value, own[name], origin)
            if name.endswith("pos_emb") and fitted[name].shape != value.shape:
                resized.append(name)
    missing = [name for name in own if name not in weights]
    absent = {name for name in weights if name not in own}
    inputs = set(getattr(model, "input_adapters", {}))
    unknown = [
        name
        for name in sorted(absent)
        if not name.startswith(_HEADS)
        and not (name.startswith(_INPUTS) and name.split(".")[1] not in inputs)
    ]
    needed = [name for name in missing if not name.startswith(_HEADS)]
    for names, what in ((needed, "has no weights for"), (unknown, "holds weights unknown here:")):
        if names:
            raise ValueError(
                f"{origin} {what} {', '.join(names[:4])}"
                + (f" and {len(names) - 4} more" if len(names) > 4 else "")
                + "; is it of another model or size?"
            )
    model.load_state_dict(fitted, strict=False)
    return Loaded(tuple(missing), tuple(sorted(absent)), tuple(resized))


def _fit(name: str, value: Tensor, own: Tensor, origin: str) -> Tensor:
    if value.shape == own.shape:
        return value
    if name.endswith("pos_emb") and value.ndim == 4 and value.shape[:2] == own.shape[:2]:
        return resample(value.float(), (own.shape[2], own.shape[3]), "bicubic")
    if name.endswith("class_emb.weight") and value.shape == (len(own) - 1, own.shape[1]):
        return torch.cat([value, torch.zeros_like(value[:1])])  # a class that stands for nothing
    if value.numel() == own.numel() and value.squeeze().shape == own.squeeze().shape:
        return value.reshape(own.shape)
    raise ValueError(
        f"{origin}: {name} is {list(value.shape)}, the model's {list(own.shape)}; is it of another "
        "model, patch size or number of classes?"
    )


def to_timm(weights: Mapping[str, Tensor]) -> Weights:
    """Weights of a timm vision transformer that computes the same tokens of rgb.

    The global token becomes the class token, the position embedding is laid out as a list with a
    row of zeros for it. MultiMAE has no norm after its last block: timm's is written as it starts
    (one and zero). There is no classifier: load it into a model of ``num_classes=0``.

    Raises:
        ValueError: no rgb input, or not exactly one global token.
    """
    tokens = weights.get("global_tokens", torch.empty(1, 0, 1))
    if tokens.shape[1] != 1:
        raise ValueError(f"timm's class token is one; there are {tokens.shape[1]} global tokens")
    source = f"{_INPUTS}rgb."
    if f"{source}proj.weight" not in weights:
        raise ValueError("timm's vision transformers see rgb, and these weights have no such input")
    positions = weights[f"{source}pos_emb"].flatten(2).transpose(1, 2)
    dim = tokens.shape[-1]
    converted = {
        "cls_token": tokens.clone(),
        "pos_embed": torch.cat([torch.zeros_like(tokens), positions], dim=1),
        "patch_embed.proj.weight": weights[f"{source}proj.weight"].clone(),
        "patch_embed.proj.bias": weights[f"{source}proj.bias"].clone(),
        "norm.weight": torch.ones(dim),
        "norm.bias": torch.zeros(dim),
    }
    for name, value in weights.items():
        if name.startswith("encoder."):
            converted["blocks." + name.removeprefix("encoder.")] = value.clone()
    return converted


def from_timm(weights: Mapping[str, Tensor]) -> Weights:
    """Weights of a MultiMAE's encoder and rgb input from those of a timm vision transformer.

    The class token's own position is added into the global token; the final norm and the
    classifier have no place.

    Raises:
        ValueError: not a plain vision transformer with a class token on a square grid.
    """
    needed = ("cls_token", "pos_embed", "patch_embed.proj.weight", "patch_embed.proj.bias")
    lacking = [name for name in needed if name not in weights]
    if lacking:
        raise ValueError(f"not a vision transformer with a class token: no {', '.join(lacking)}")
    positions = weights["pos_embed"]
    side = round((positions.shape[1] - 1) ** 0.5)
    if side * side != positions.shape[1] - 1:
        raise ValueError(f"{positions.shape[1] - 1} positions beside the class token are no square")
    converted = {
        "global_tokens": weights["cls_token"] + positions[:, :1],
        f"{_INPUTS}rgb.pos_emb": positions[:, 1:].transpose(1, 2).unflatten(2, (side, side)),
        f"{_INPUTS}rgb.proj.weight": weights["patch_embed.proj.weight"],
        f"{_INPUTS}rgb.proj.bias": weights["patch_embed.proj.bias"],
    }
    for name, value in weights.items():
        if name.startswith("blocks."):
            converted["encoder." + name.removeprefix("blocks.")] = value
    return {name: value.clone().contiguous() for name, value in converted.items()}
