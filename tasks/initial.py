"""The weights that training starts from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from attent.models.multimae.weights import Loaded, from_timm, load_weights, read_weights
from attent.models.vit import build_vit
from attent.tasks.build import seeded
from attent.tasks.config import ConfigError


def initial_model(
    config: Any, make: Callable[[], nn.Module], *, initial: bool, part: str = ""
) -> nn.Module:
    """A model on the run's device, its weights those that training starts from.

    Args:
        config: with ``pretrained_weights``, ``seed`` and ``device``.
        make: the model; see `seeded`.
        initial: load ``pretrained_weights``; False where a checkpoint's take their place.
        part: the submodule that they are the weights of; by default the whole model.

    Raises:
        ConfigError: no such weights, or of another shape.
    """
    model = seeded(config, make)
    if config.pretrained_weights is not None and initial:
        try:
            load_initial(model.get_submodule(part), config.pretrained_weights)
        except ValueError as error:
            raise ConfigError(f"pretrained_weights: {error}") from error
    return model


def load_initial(model: nn.Module, weights: str) -> Loaded:
    """Load the weights that training starts from into a MultiMAE or its encoder.

    Args:
        model: `MultiMAE` or `MultiViT`.
        weights: a file of MultiMAE weights (released ones, or exported), the folder of a finished
            run of pre-training, or ``timm:NAME`` for a vision transformer of timm, of which the
            encoder and the rgb input are taken.

    Raises:
        ValueError: no such weights, or of another shape.
    """
    if weights.startswith("timm:"):
        name = weights.removeprefix("timm:")
        vit = build_vit(name, num_classes=0, pretrained=True)
        encoder: dict[str, Tensor] = from_timm(vit.state_dict())
        # What timm's model has not (depth, semseg, decoders) keeps its fresh weights.
        missing = {k: v for k, v in model.state_dict().items() if k not in encoder}
        return load_weights(model, encoder | missing, weights)
    path = Path(weights)
    if path.is_dir():
        path = path / "model.safetensors"
        if not path.is_file():
            raise ValueError(
                f"{weights} holds no model.safetensors: it is no finished run; "
                "attent export writes the weights of one that is not"
            )
    return load_weights(model, read_weights(path), weights)
