"""Vision transformers, by timm."""

from __future__ import annotations

import difflib
import functools
import inspect
import sys
from collections.abc import Callable, Mapping
from typing import Any

import timm
from timm.data.constants import IMAGENET_DEFAULT_MEAN as IMAGENET_MEAN
from timm.data.constants import IMAGENET_DEFAULT_STD as IMAGENET_STD
from timm.models.vision_transformer import VisionTransformer
from torch import nn

_SMALL: dict[str, dict[str, Any]] = {
    # 16 patches of 2 x 2 pixels: a model for scikit-learn's 8-pixel digits.
    "vit_digits": {
        "img_size": 8,
        "patch_size": 2,
        "in_chans": 1,
        "embed_dim": 64,
        "depth": 4,
        "num_heads": 4,
        "mlp_ratio": 2.0,
        "global_pool": "avg",
        "class_token": False,
    }
}


def model_names() -> list[str]:
    """The models of this package; every image classifier of timm can be named too."""
    return sorted(_SMALL)


def build_vit(
    name: str,
    *,
    num_classes: int,
    in_chans: int | None = None,
    img_size: int | None = None,
    drop_path_rate: float = 0.0,
    pretrained: bool = False,
    model_args: Mapping[str, Any] | None = None,
) -> nn.Module:
    """A classifier of images.

    Args:
        name: ``vit_digits``, or any model of timm.
        num_classes: outputs.
        in_chans: channels of the images; None for the model's own.
        img_size: side of the images in pixels; None for the model's own.
        drop_path_rate: stochastic depth of the last block, in [0, 1).
        pretrained: load timm's weights (needs a network or its cache).
        model_args: further arguments of the model.

    Raises:
        ValueError: no such model, with the nearest names; arguments it does not take; images that
            are not a whole number of patches; weights that timm does not have or cannot reach.
    """
    taken = sorted({"num_classes", "in_chans", "img_size"} & set(model_args or {}))
    if taken:
        raise ValueError(f"model_args: {', '.join(taken)} follows from the data; leave it out")
    given: dict[str, Any] = {"num_classes": num_classes}
    given |= {"drop_path_rate": drop_path_rate} if drop_path_rate else {}
    given |= {"in_chans": in_chans} if in_chans is not None else {}
    given |= {"img_size": img_size} if img_size is not None else {}
    given |= dict(model_args or {})
    if name in _SMALL:
        if pretrained:
            raise ValueError(f"there are no pretrained weights of {name!r}")
        return _made(VisionTransformer, _SMALL[name] | given, name, model_args)
    if not timm.is_model(name):
        known = [*_SMALL, *timm.list_models()]
        near = difflib.get_close_matches(name, known, n=3)
        hint = f"; did you mean {', '.join(near)}?" if near else ""
        raise ValueError(f"no model {name!r} here or in timm{hint}")
    make = functools.partial(timm.create_model, name, pretrained=pretrained)
    try:
        return _made(make, given, name, model_args)
    except (OSError, RuntimeError) as error:
        if not pretrained:
            raise
        said = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(f"timm's weights of {name!r} cannot be loaded: {said}") from error


def _made(
    make: Callable[..., nn.Module],
    given: Mapping[str, Any],
    name: str,
    model_args: Mapping[str, Any] | None,
) -> nn.Module:
    """The model, its constructor's complaints told as the user's mistakes they are."""
    if "img_size" in given and not _takes_size(name):
        given = {key: value for key, value in given.items() if key != "img_size"}
    try:
        model = make(**given)
    except (TypeError, AssertionError, ZeroDivisionError) as error:
        raise ValueError(
            f"model {name!r} cannot be made with model_args {dict(model_args or {})}: {error}"
        ) from error
    embed, size = getattr(model, "patch_embed", None), given.get("img_size")
    patch = getattr(embed, "patch_size", None)
    if size is not None and patch is not None and size % patch[0]:
        raise ValueError(
            f"images of {size} pixels a side are not a whole number of patches of {patch[0]}: what "
            "is left over would never be seen; set patch_size in model_args, or another image size"
        )
    return model


def _takes_size(name: str) -> bool:
    """Whether a model is made for one size of images; a convolutional network takes any."""
    if name in _SMALL:
        return True
    module = sys.modules[timm.model_entrypoint(name).__module__]
    return "img_size" in inspect.getsource(module)


def normalization(name: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """(mean, deviation) per channel of the images a model was trained on, ImageNet's otherwise."""
    config = timm.get_pretrained_cfg(name) if timm.is_model(name) else None
    return (config.mean, config.std) if config is not None else (IMAGENET_MEAN, IMAGENET_STD)


def input_size(name: str) -> tuple[int, int] | None:
    """(channels, side in pixels) a model is made for, if that is known."""
    if name in _SMALL:
        return _SMALL[name]["in_chans"], _SMALL[name]["img_size"]
    if timm.is_model(name):
        config = timm.get_pretrained_cfg(name)
        if config is not None:
            return config.input_size[0], config.input_size[-1]
    return None
