"""Multi-modal masked autoencoders (Bachmann et al., MultiMAE, ECCV 2022)."""

from attent.models.multimae.build import Decoders, build_multimae, build_multivit
from attent.models.multimae.masking import TokenOrder, draw_order, num_draws
from attent.models.multimae.model import MultiMAE, MultiViT

__all__ = [
    "Decoders",
    "MultiMAE",
    "MultiViT",
    "TokenOrder",
    "build_multimae",
    "build_multivit",
    "draw_order",
    "num_draws",
]
