"""Architectures. They know no stage and no data set."""

from attent.models.multimae import build_multimae, build_multivit
from attent.models.vit import build_vit, input_size, model_names

__all__ = ["build_multimae", "build_multivit", "build_vit", "input_size", "model_names"]
