"""Image files decoded for what they hold: photographs, 16-bit measurements, ids, masks.

A file that holds something else is refused, not converted. Every error names the file.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps
from PIL.ImageFile import ImageFile
from torch import Tensor
from torchvision.transforms.v2 import functional as V


class Encoded(NamedTuple):
    """A file's bytes, where it is kept among others."""

    data: bytes
    place: Callable[[], str]  # says where, in messages


File = str | Path | Encoded
"""A file by its path, or its bytes."""


class _Stored(NamedTuple):
    """How a file says its pixels are stored."""

    mode: str  # Pillow's
    format: str | None
    packing: str  # Pillow's raw mode, where its codec takes one
    maximum: int  # of the values of a PGM that decoding would scale; else 255


def rgb(path: File, *, upright: bool = False) -> Tensor:
    """``[3, H, W]`` uint8, of any file of 8 bits a channel.

    Args:
        path: of the file, or its bytes.
        upright: turned as the camera noted that it was held (EXIF), as viewers show it; False for
            the pixels in the order of the file, which are those that labels beside it are of.

    Raises:
        ValueError: the file cannot be read, or holds deeper pixels.
    """
    image, stored = _decoded(path)
    if stored.mode[0] in "IF":  # converting would cut their values off at 255
        raise _refused(path, stored, "an image of 8 bits a channel")
    if upright:
        # A note that cannot be read turns nothing, in viewers too.
        with contextlib.suppress(Exception):
            # Asked first, and not converted to what it is: each would be a copy of all pixels.
            if image.getexif().get(ExifTags.Base.Orientation, 1) != 1:
                image = ImageOps.exif_transpose(image)
    return V.pil_to_tensor(image if image.mode == "RGB" else image.convert("RGB"))


def sixteen_bit(path: File) -> Tensor:
    """``[1, H, W]`` float32, the values 0 to 65535 of one channel of unsigned 16-bit integers.

    Raises:
        ValueError: the file cannot be read, or holds other pixels.
    """
    image, stored = _decoded(path)
    # A PGM of 16 bits is decoded into 32, and nothing else with this packing is.
    if not (stored.mode.startswith("I;16") or stored.packing == "I;16B"):
        raise _refused(path, stored, "one channel of 16 bits (PNG, TIFF, PGM or JPEG 2000)")
    return torch.from_numpy(np.asarray(image).astype(np.float32)).unsqueeze(0)


def ids(path: File) -> Tensor:
    """``[H, W]`` uint8, the pixels of one channel of 8 bits, or the indices into a palette.

    Raises:
        ValueError: the file cannot be read, holds other pixels, or keeps ids in a way that changes
            them: by JPEG, or in fewer bits, which decoding would stretch over 0 to 255.
    """
    image, stored = _decoded(path)
    if stored.mode not in ("L", "P"):
        raise _refused(path, stored, "one channel of 8 bits or a palette")
    stretched = stored.packing.startswith("L;") or stored.maximum != 255
    if stored.format == "JPEG" or stretched:
        raise _refused(path, stored, "ids kept exactly: 8 bits each or a palette, without loss")
    return torch.from_numpy(np.array(image))


def mask(path: File) -> Tensor:
    """``[H, W]`` bool, true where a pixel of one channel is 255.

    Raises:
        ValueError: the file cannot be read, holds other pixels, lost some to JPEG, or marks pixels
            with other numbers only.
    """
    image, stored = _decoded(path)
    if stored.mode not in ("L", "1") or stored.format == "JPEG":
        raise _refused(path, stored, "one channel of 8 bits, without loss")
    values = torch.from_numpy(np.array(image.convert("L")))
    highest = int(values.max())
    if 0 < highest < 255:
        raise ValueError(
            f"{_place(path)} holds no 255, and values up to {highest}; expected 255 where a "
            "pixel is valid"
        )
    return values == 255


def domain(name: str, path: File, depth_range: float = 1.0) -> Tensor:
    """One modality of a scene, by what files of it hold.

    Args:
        name: rgb (uint8 ``[3, H, W]``); semseg and pseudo_semseg (uint8 ``[H, W]``); mask_valid
            (bool ``[H, W]``); any other is a measurement of 16 bits (float32 ``[1, H, W]``), the
            file's value / 65536.
        path: of the file, or its bytes.
        depth_range: what depth is multiplied by: depth that 65536 would stand for.

    Raises:
        ValueError: a file that cannot be read or does not hold what its domain should; names it.
    """
    if name == "rgb":
        return rgb(path)
    if name == "mask_valid":
        return mask(path)
    if name.endswith("semseg"):
        return ids(path)
    return sixteen_bit(path) * ((depth_range if name == "depth" else 1) / 65536)


def _place(path: File) -> str:
    return path.place() if isinstance(path, Encoded) else os.fspath(path)


def _decoded(path: File) -> tuple[Image.Image, _Stored]:
    try:
        with Image.open(io.BytesIO(path.data) if isinstance(path, Encoded) else path) as file:
            stored = _stored(file)  # before the pixels: decoding forgets how they were kept
            file.load()
        return file, stored
    except Exception as error:  # a damaged header leads Pillow into errors of any kind
        reason = re.sub(r" <_io\.BytesIO object at \w+>", "", str(error))  # its place is said
        raise ValueError(f"{_place(path)} cannot be read: {reason}") from error


def _stored(file: ImageFile) -> _Stored:
    codec, arguments = (file.tile[0][0], file.tile[0][3]) if file.tile else ("", None)
    parts = list(arguments) if isinstance(arguments, tuple) else [arguments]
    first, last = (parts[0], parts[-1]) if parts else (None, None)
    return _Stored(
        mode=file.mode,
        format=file.format,
        packing=first if isinstance(first, str) and codec != "jpeg2k" else "",
        maximum=last if codec.startswith("ppm") and isinstance(last, int) else 255,
    )


def _refused(path: File, stored: _Stored, expected: str) -> ValueError:
    kept = f" stored as {stored.packing}" if stored.packing not in ("", stored.mode) else ""
    scaled = f" with values up to {stored.maximum}" if stored.maximum != 255 else ""
    return ValueError(
        f"{_place(path)} is {stored.format} of mode {stored.mode}{kept}{scaled}; expected "
        f"{expected}"
    )
