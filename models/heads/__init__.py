"""Heads of a `MultiViT` for fine-tuning: a class, or a value for each pixel."""

from attent.models.heads.build import HEADS, build_head
from attent.models.heads.convnext import ConvNeXtHead
from attent.models.heads.dense import DenseHead
from attent.models.heads.dpt import DPTHead
from attent.models.heads.linear import LinearHead, LinearMap
from attent.models.heads.segmenter import SegmenterHead

__all__ = [
    "HEADS",
    "ConvNeXtHead",
    "DPTHead",
    "DenseHead",
    "LinearHead",
    "LinearMap",
    "SegmenterHead",
    "build_head",
]
