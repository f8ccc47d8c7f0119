"""Heads by name and by what they predict."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import nn

from attent.models.heads.convnext import ConvNeXtHead
from attent.models.heads.dpt import DPTHead
from attent.models.heads.linear import LinearHead, LinearMap
from attent.models.heads.segmenter import SegmenterHead

HEADS: Mapping[str, Mapping[str, type[nn.Module]]] = {
    "linear": {
        "classification": LinearHead,
        "segmentation": LinearMap,
        "regression": LinearMap,
    },
    "convnext": {"segmentation": ConvNeXtHead, "regression": ConvNeXtHead},
    "dpt": {"segmentation": DPTHead, "regression": DPTHead},
    "segmenter": {"segmentation": SegmenterHead},
}
"""Name -> what it can predict -> the head."""

_GIVEN = ("self", "num_channels", "num_outputs", "kind", "dim", "depth", "main_tasks")


def build_head(
    name: str,
    *,
    kind: str,
    num_channels: int,
    dim: int,
    depth: int,
    main_tasks: Sequence[str] = ("rgb",),
    **head_args: Any,
) -> nn.Module:
    """A head for a `MultiViT`.

    Args:
        name: of `HEADS`.
        kind: ``classification`` of whole pictures; ``segmentation`` or ``regression`` of pixels.
        num_channels: classes, or values a pixel.
        dim: channels of the encoder.
        depth: blocks of the encoder.
        main_tasks: the modalities whose tokens a head of pixels reads; a classifier reads all.
        **head_args: further arguments of the head.

    Raises:
        ValueError: no such head, one that does not predict this, or arguments that it does not
            take, with the nearest names; arguments out of range.
    """
    kinds = HEADS[_known("head", name, HEADS)]
    every = sorted({kind for kinds in HEADS.values() for kind in kinds})
    if _known("kind", kind, every) not in kinds:
        able = ", ".join(other for other in HEADS if kind in HEADS[other])
        raise ValueError(f"head {name!r} is not for {kind}; those that are: {able}")
    make = kinds[kind]
    taken = [n for n in inspect.signature(make.__init__).parameters if n not in _GIVEN]
    for argument in head_args:
        _known(f"argument of head {name!r}", argument, taken)
    if make is LinearHead:
        return LinearHead(dim, num_channels, **head_args)
    if make is DPTHead:
        head_args |= {"kind": kind, "depth": depth}
    return make(num_channels, dim=dim, main_tasks=main_tasks, **head_args)


def _known(what: str, name: str, names: Iterable[str]) -> str:
    """The name itself.

    Raises:
        ValueError: it is none of them.
    """
    names = list(names)
    if name not in names:
        near = difflib.get_close_matches(name, names, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"no {what} {name!r} ({', '.join(names) or 'it takes none'}){hint}")
    return name
