"""What ``attent predict`` makes of photographs as cameras write them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from attent.tasks.data import decode
from tests.tasks.finetuned import picture, save, trained

ORIENTATION = 0x0112
"""The tag of EXIF."""

AS_STORED = {
    1: lambda x: x,
    2: lambda x: x[:, ::-1],
    3: lambda x: x[::-1, ::-1],
    4: lambda x: x[::-1],
    5: lambda x: x.transpose(1, 0, 2),
    6: lambda x: np.rot90(x),
    7: lambda x: x.transpose(1, 0, 2)[::-1, ::-1],
    8: lambda x: np.rot90(x, -1),
}
"""Orientation -> how a camera that was held so stores a picture (EXIF 2.32, 4.6.5)."""


def photograph(path: Path, upright: np.ndarray, orientation: int) -> Path:
    """A file whose pixels lie as the camera saw them, and say how they do."""
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    image = Image.fromarray(np.ascontiguousarray(AS_STORED[orientation](upright)))
    image.save(path, exif=exif)
    return path


@pytest.mark.parametrize("orientation", AS_STORED)
def test_a_picture_is_turned_upright_where_that_is_asked_for(tmp_path, orientation):
    upright = picture(0, 6, 9)
    path = photograph(tmp_path / "a.png", upright, orientation)
    stored = torch.from_numpy(AS_STORED[orientation](upright).copy()).permute(2, 0, 1)
    assert torch.equal(decode.rgb(path), stored)
    found = decode.rgb(path, upright=True)
    assert torch.equal(found, torch.from_numpy(upright).permute(2, 0, 1))


def test_a_note_that_cannot_be_read_turns_nothing(tmp_path):
    image = Image.fromarray(picture(0, 6, 9))
    image.save(tmp_path / "a.jpg", exif=b"Exif\x00\x00 no such thing", quality=95)
    path = tmp_path / "a.jpg"
    assert torch.equal(decode.rgb(path, upright=True), decode.rgb(path))


@pytest.mark.parametrize("command", ["classify", "segment", "depth"])
def test_a_phones_photograph_is_predicted_upright(attent, tmp_path, command):
    heads = {} if command == "classify" else {"head": "linear"}
    trained(command, tmp_path / "run", epochs=1, **heads)
    upright = picture(0, 40, 64)
    save(upright, tmp_path / "viewed.png")
    photograph(tmp_path / "phone.png", upright, 6)
    status, _, err = attent("predict", "run", "viewed.png", "phone.png")
    assert status == 0, err
    (path,) = Path("run/predictions").glob("viewed_*")
    other = path.with_name(path.name.replace("viewed", "phone"))
    assert path.read_bytes() == other.read_bytes()
