"""What ``attent predict`` makes of photographs as cameras write them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.v2 import functional as V
from torchvision.tv_tensors import Image as Picture

from attent.tasks.data import decode
from attent.tasks.data.dense_view import DepthView
from attent.tasks.data.folder import ImageFolder
from attent.tasks.data.paired_folder import PairedFolder
from attent.tasks.finetuning.pictures import _along, of_held_out, resized, shown, side_by_side
from attent.tasks.run import load_trained
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


def test_images_of_classes_are_seen_upright(tmp_path):
    upright = picture(0, 6, 9)
    (tmp_path / "ant").mkdir()
    photograph(tmp_path / "ant" / "a.png", upright, 6)
    found = ImageFolder(tmp_path).read(0)["rgb"]
    assert torch.equal(found, torch.from_numpy(upright).permute(2, 0, 1))


def test_pictures_beside_their_maps_are_seen_as_they_are_stored(tmp_path):
    upright, ids = picture(0, 6, 9), np.arange(54, dtype=np.uint8).reshape(9, 6)
    for domain in ("rgb", "semseg"):
        (tmp_path / domain / "all").mkdir(parents=True)
    photograph(tmp_path / "rgb" / "all" / "a.png", upright, 6)
    save(ids, tmp_path / "semseg" / "all" / "a.png")
    scene = PairedFolder(tmp_path, domains=["rgb", "semseg"]).read(0)
    stored = torch.from_numpy(np.rot90(upright).copy()).permute(2, 0, 1)
    assert torch.equal(scene["rgb"], stored)
    assert torch.equal(scene["semseg"], torch.from_numpy(ids))


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


@pytest.mark.parametrize("form", [(20, 57), (57, 20), (9, 10), (10, 9), (6, 6), (3, 40)])
def test_views_along_a_photograph_make_a_map_of_all_of_it(form):
    """Of a model that gives back what it is shown, seen half a view at a time."""
    image = torch.from_numpy(picture(0, *form)).permute(2, 0, 1)
    sizes = []

    def echo(pictures: torch.Tensor) -> torch.Tensor:
        sizes.extend([list(pictures.shape[1:])])
        return pictures.float()

    found = _along(echo, DepthView(size=10), image)
    scale = 10 / min(form)
    whole = [max(10, round(side * scale)) for side in form]
    expected = V.resize(Picture(image), whole, antialias=True).as_subclass(torch.Tensor)
    torch.testing.assert_close(found, expected.float())
    assert all(size == [3, 10, 10] for size in sizes)


def test_views_that_overlap_are_averaged_and_count_less_at_their_ends():
    """Two views of 4 pixels, 2 apart, that say 0 and 10: (2 x 0 + 1 x 10) / 3, and (1, 2)."""

    def numbered(pictures: torch.Tensor) -> torch.Tensor:
        views = torch.arange(len(pictures)).reshape(-1, 1, 1, 1) * 10.0
        return views.expand(-1, 1, *pictures.shape[-2:])

    found = _along(numbered, DepthView(size=4), torch.zeros(3, 4, 6, dtype=torch.uint8))
    row = torch.tensor([0, 0, 10 / 3, 20 / 3, 10, 10])
    torch.testing.assert_close(found, row.expand(1, 4, 6))


def test_depth_of_a_square_photograph_is_that_of_the_held_out_view(attent, tmp_path):
    folder = trained("depth", tmp_path / "run", head="linear", epochs=1)
    run, _ = load_trained(folder)
    rgb = run.held_out.reader.read(1)["rgb"]
    save(rgb.permute(1, 2, 0).numpy(), tmp_path / "one.png")
    attent("predict", "run", "one.png")
    _, predicted = of_held_out(run)
    found = np.load("run/predictions/one_map.npy")
    np.testing.assert_allclose(found, predicted[1], rtol=1e-4, atol=1e-5)


def test_labels_and_numbers_at_another_size():
    """Labels stay labels: those of the nearest pixels."""
    ids = torch.tensor([[1, 7], [9, 3]])
    assert resized(ids, 2, 4).tolist() == [[1, 1, 7, 7], [9, 9, 3, 3]]
    assert resized(ids, 1, 1).tolist() == [[3]]
    numbers = torch.tensor([[[0.0, 4.0]]])
    assert resized(numbers, 1, 4).tolist() == [[[0.0, 1.0, 3.0, 4.0]]]


@pytest.mark.parametrize("form", [(20, 60), (3000, 100), (30, 900), (2400, 2000)])
def test_a_figure_has_the_form_of_its_photograph(form):
    image = torch.zeros(3, *form, dtype=torch.uint8)
    small = shown(image)
    assert max(small.shape[1:]) == min(max(form), 1000)
    figure, left, _ = side_by_side(small)
    assert left.images[0].get_array().shape == (*small.shape[1:], 3)
    width, height = figure.get_size_inches()
    assert width == 9
    assert 1.2 <= height <= 7
