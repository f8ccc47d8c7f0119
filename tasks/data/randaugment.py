"""RandAugment (Cubuk et al., CVPR Workshops 2020) as a function of a key.

The operations are torchvision's; which and how strong is drawn from the example's key.
Torchvision's own class draws from the global generator, which threads that read ahead would share
with dropout.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as V

from attent.pipeline.keyed import uniforms

STRONGEST = 10
"""The largest magnitude."""

GREY = [128.0, 128.0, 128.0]
"""What shows where a picture was moved away."""


def _affine(picture: Tensor, *, x: float = 0, y: float = 0, shear: list[float]) -> Tensor:
    shift = [round(x * picture.shape[-1]), round(y * picture.shape[-2])]
    return V.affine(
        picture,
        angle=0.0,
        translate=shift,  # type: ignore[arg-type]
        scale=1.0,
        shear=shear,
        interpolation=InterpolationMode.BILINEAR,
        fill=GREY,
    )


def _rotated(picture: Tensor, strength: float) -> Tensor:
    bilinear = InterpolationMode.BILINEAR
    return V.rotate(picture, 30 * strength, interpolation=bilinear, fill=GREY)


def _solarized(picture: Tensor, strength: float) -> Tensor:
    threshold = 256 * (1 - abs(strength))
    return picture if threshold > 255 else V.solarize(picture, threshold)  # which refuses 256


# Strength is in [-1, 1]; those without a sign take its size. "Increasing": 0 leaves as it is.
OPERATIONS: dict[str, Callable[[Tensor, float], Tensor]] = {
    "autocontrast": lambda picture, s: V.autocontrast(picture),
    "equalize": lambda picture, s: V.equalize(picture),
    "invert": lambda picture, s: V.invert(picture),
    "rotate": _rotated,
    "posterize": lambda picture, s: V.posterize(picture, 8 - round(4 * abs(s))),
    "solarize": _solarized,
    "saturation": lambda picture, s: V.adjust_saturation(picture, 1 + 0.9 * s),
    "contrast": lambda picture, s: V.adjust_contrast(picture, 1 + 0.9 * s),
    "brightness": lambda picture, s: V.adjust_brightness(picture, 1 + 0.9 * s),
    "sharpness": lambda picture, s: V.adjust_sharpness(picture, 1 + 0.9 * s),
    "shear_x": lambda picture, s: _affine(picture, shear=[17 * s, 0.0]),
    "shear_y": lambda picture, s: _affine(picture, shear=[0.0, 17 * s]),
    "translate_x": lambda picture, s: _affine(picture, x=0.45 * s, shear=[0.0, 0.0]),
    "translate_y": lambda picture, s: _affine(picture, y=0.45 * s, shear=[0.0, 0.0]),
}
"""Name -> (picture ``[3, H, W]`` uint8, strength) -> picture; ranges as of timm's "increasing"."""


def rand_augment(
    picture: Tensor, key: int, magnitude: float, *, number: int = 2, deviation: float = 0.5
) -> Tensor:
    """Some random operations, one after the other.

    Args:
        picture: ``[3, H, W]`` uint8.
        key: decides everything.
        magnitude: 0 to 10.
        number: of operations.
        deviation: of the magnitude, which is normal about the one given and kept in [0, 10].

    Each is left out half the time (timm's ``rand-mM-mstdD-inc1``).
    """
    names = list(OPERATIONS)
    draws = uniforms(torch.tensor([key]), 4 * number)[0].reshape(number, 4)
    for which, sign, chance, normal in draws.tolist():
        if chance < 0.5:
            continue
        offset = float(torch.special.ndtri(torch.tensor(max(normal, 2.0**-53), dtype=torch.double)))
        strength = min(max(magnitude + deviation * offset, 0.0), STRONGEST) / STRONGEST
        operation = OPERATIONS[names[int(which * len(names))]]
        picture = operation(picture, strength if sign < 0.5 else -strength)
    return picture
