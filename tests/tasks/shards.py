"""Shards that tests write, with the libraries that everybody writes them with."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
from PIL import Image


def picture(seed: int, size: tuple[int, int] = (10, 12), kind: str = "PNG") -> bytes:
    """An image file of noise, of rows x columns."""
    draw = np.random.default_rng(seed)
    buffer = io.BytesIO()
    Image.fromarray(draw.integers(0, 256, (*size, 3), dtype=np.uint8)).save(buffer, kind)
    return buffer.getvalue()


def pixels(data: bytes) -> np.ndarray:
    """``[3, H, W]``, by Pillow itself."""
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).transpose(2, 0, 1)


def gray(value: int, size: tuple[int, int] = (8, 8), deep: bool = False) -> bytes:
    """A PNG of one value, of 8 bits or of 16."""
    buffer = io.BytesIO()
    Image.fromarray(np.full(size, value, dtype=np.uint16 if deep else np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def pack(path: Path, members: Iterable[tuple[str, bytes]], **options: object) -> Path:
    """A tar of files, as `tarfile` writes it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", **options) as tar:  # type: ignore[call-overload]
        for name, data in members:
            about = tarfile.TarInfo(name)
            about.size = len(data)
            tar.addfile(about, io.BytesIO(data))
    return path


def labelled(rows: range, *, ending: str = "png", text: str = "cls") -> list[tuple[str, bytes]]:
    """Noise pictures 000000.png, ... with the label seed % 3."""
    members = []
    for i in rows:
        members.append((f"{i:06d}.{ending}", picture(i)))
        label = json.dumps({"label": i % 3}) if text == "json" else str(i % 3)
        members.append((f"{i:06d}.{text}", label.encode()))
    return members


def offsets(path: Path) -> Mapping[str, tuple[int, int]]:
    """Member -> its first byte and its size, as `tarfile` finds them."""
    with tarfile.open(path) as tar:
        return {member.name: (member.offset_data, member.size) for member in tar if member.isreg()}
