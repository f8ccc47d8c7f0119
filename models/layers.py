"""Layer-wise decay of the learning rate (Clark et al., ELECTRA, ICLR 2020; Bao et al., BEiT, 2022).

With L blocks and decay d, what is i-th from the input learns at ``d ** (L + 1 - i)`` of the rate:
i = 0 for what makes tokens, j + 1 for block j, L + 1 for heads.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from timm.models import group_parameters
from torch import nn

from attent.models.multimae.model import MultiViT


def layer_scales(model: nn.Module, decay: float) -> dict[str, float]:
    """Multipliers of the learning rate, by parameter name.

    Args:
        model: a `MultiViT`, a model of timm that groups its parameters, or a module that holds one
            of them; what else it holds is at the full rate.
        decay: d, in (0, 1].

    Returns:
        Of every parameter, frozen ones too. Those of timm's models are grouped by timm, which takes
        the last norm with the last block.

    Raises:
        ValueError: ``decay`` out of range; no such model, or several.
    """
    if not 0 < decay <= 1:
        raise ValueError(f"layer_decay is in (0, 1], got {decay}")
    found: list[tuple[str, nn.Module]] = []
    for path, module in model.named_modules():
        inside = any(path.startswith(f"{above}." if above else "") for above, _ in found)
        if not inside and (isinstance(module, MultiViT) or hasattr(module, "group_matcher")):
            found.append((path, module))
    if len(found) != 1:
        raise ValueError(
            f"layer_decay needs one encoder whose layers are known, {type(model).__name__} has "
            f"{len(found)}: a MultiViT, or a model of timm"
        )
    path, encoder = found[0]
    scales = {name: 1.0 for name, _ in model.named_parameters()}
    layers, last = _layers(encoder)
    prefix = f"{path}." if path else ""
    return scales | {prefix + name: decay ** (last - layer) for name, layer in layers.items()}


def _layers(encoder: nn.Module) -> tuple[Mapping[str, int], int]:
    """Name -> i, and the i of heads."""
    if not isinstance(encoder, MultiViT):
        matcher: Any = encoder.group_matcher
        grouped: Any = group_parameters(encoder, matcher(coarse=False), reverse=True)
        return grouped, max(grouped.values())
    layers, head = {}, len(encoder.encoder) + 1
    for name, _ in encoder.named_parameters():
        part, _, rest = name.partition(".")
        if part == "encoder":
            layers[name] = int(rest.partition(".")[0]) + 1
        else:
            layers[name] = head if part == "output_adapters" else 0
    return layers, head
