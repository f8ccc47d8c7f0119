from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from attent.pipeline import ExampleError
from attent.pipeline.source import fetch_batch
from attent.tasks.data.joint import JointView
from attent.tasks.data.multimodal import Multimodal
from attent.tasks.data.taskonomy import TASKS, Taskonomy

DOMAINS = ("rgb", "depth", "semseg")
VIEWS = [("allensville", 0, 3), ("wiconisco", 12, 0), ("allensville", 7, 1)]
FILES = {
    "rgb": "rgb/{}/point_{}_view_{}_domain_rgb.png",
    "depth": "depth_zbuffer/{}/point_{}_view_{}_domain_depth_zbuffer.png",
    "semseg": "segment_semantic/{}/point_{}_view_{}_domain_segmentsemantic.png",
}


def values(seed: int, *shape: int, high: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, high, shape)


@pytest.fixture
def root(tmp_path) -> Path:
    for i, view in enumerate(VIEWS):
        images = {
            "rgb": values(i, 8, 8, 3, high=256).astype(np.uint8),
            "depth": values(i, 8, 8, high=65536).astype(np.uint16),
            "semseg": values(i, 8, 8, high=17).astype(np.uint8),
        }
        for domain, image in images.items():
            path = tmp_path / FILES[domain].format(*view)
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(path)
    rows = "".join(f"x,{view},{building},{point}\n" for building, point, view in VIEWS)
    (tmp_path / "tiny_val.csv").write_text("who,view,building,point\n" + rows)
    return tmp_path


def test_views_are_read_in_the_order_of_the_list(root):
    reader = Taskonomy(root, "tiny_val", domains=DOMAINS)
    assert len(reader) == 3
    for i in range(3):
        scene = reader.read(i)
        assert list(scene) == ["rgb", "depth", "semseg"]
        pixels = torch.from_numpy(values(i, 8, 8, 3, high=256)).permute(2, 0, 1)
        assert torch.equal(scene["rgb"].long(), pixels)
        assert scene["semseg"].tolist() == values(i, 8, 8, high=17).tolist()
        stored = torch.from_numpy(values(i, 8, 8, high=65536)) / 65535
        nearest = stored.clamp(max=8000 / 65535)
        torch.testing.assert_close(scene["depth"][0], nearest / (8000 / 65535))
        assert float(scene["depth"].max()) == 1
    assert reader.locate(1) == str(root / FILES["rgb"].format("wiconisco", 12, 0))


def test_it_makes_batches(root):
    reader = Taskonomy(root, "tiny_val", domains=DOMAINS)
    batch = Multimodal(reader, JointView(size=8), domains=DOMAINS).fetch(torch.tensor([2, 0]))
    assert list(batch.keys()) == ["rgb", "depth", "semseg"]
    assert batch["semseg"][0].tolist() == values(2, 8, 8, high=17)[::4, ::4].tolist()


def test_the_other_tasks_have_places_too(root):
    reader = Taskonomy(root, "tiny_val", domains=["depth"])
    for task in TASKS:
        assert reader.path(task, 0).parts[-3] == task
    name = "point_0_view_3_domain_{}.png"
    assert reader.path("mask_valid", 0).name == name.format("depth_zbuffer")
    assert reader.path("segment_semantic", 0).name == name.format("segmentsemantic")
    assert reader.path("reshading", 0).name == name.format("reshading")


def test_a_list_saved_by_a_spreadsheet_is_read(root):
    text = "building, point, view\r\nallensville, 0, 3\r\n"
    (root / "saved.csv").write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert Taskonomy(root, "saved", domains=["rgb"]).views == [("allensville", "0", "3")]


def test_a_missing_list_says_what_is_there(root):
    with pytest.raises(
        ValueError,
        match=r"no file .*tiny_train\.csv; expected ROOT/SPLIT\.csv.*found tiny_val\.csv",
    ):
        Taskonomy(root, "tiny_train", domains=DOMAINS)
    with pytest.raises(ValueError, match=r"found no \.csv in"):
        Taskonomy(root / "rgb", "tiny_val", domains=DOMAINS)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"bad\.csv begins with nothing; expected a header with the columns building, point"),
        ("allensville,0,3\n", r"begins with allensville, 0, 3; expected a header"),
        ("building,point\nallensville,0\n", "begins with building, point; expected"),
        ("building,point,view\n", r"bad\.csv lists no views"),
        ("building,point,view\nallensville,0,3\nwiconisco,12\n", r"line 3: .*found 'wiconisco'"),
    ],
)
def test_lists_that_list_no_views(root, text, message):
    (root / "bad.csv").write_text(text)
    with pytest.raises(ValueError, match=message):
        Taskonomy(root, "bad", domains=["rgb"])


def test_missing_files_are_named(root):
    gone = [FILES["depth"].format(*VIEWS[1]), FILES["semseg"].format(*VIEWS[0])]
    (root / gone[0]).unlink()
    (root / gone[0]).parent.rmdir()
    (root / gone[1]).unlink()
    with pytest.raises(
        ValueError, match=r"tiny_val\.csv lists views whose files are miss"
    ) as caught:
        Taskonomy(root, "tiny_val", domains=DOMAINS)
    assert all(str(root / path) in str(caught.value) for path in gone)
    with (root / "tiny_val.csv").open("a") as file:
        file.writelines(f"x,{i},nowhere,{i}\n" for i in range(20))
    with pytest.raises(ValueError, match=r"\.\.\. \(20 in all\)"):
        Taskonomy(root, "tiny_val", domains=["rgb"])


def test_a_corrupt_file_is_named(root):
    path = root / FILES["semseg"].format(*VIEWS[1])
    path.write_bytes(path.read_bytes()[:60])
    data = Multimodal(
        Taskonomy(root, "tiny_val", domains=DOMAINS), JointView(size=8), domains=DOMAINS
    )
    with pytest.raises(ExampleError, match=rf"example 1 .*{path.name} cannot be read"):
        fetch_batch(data, torch.arange(3))


def test_depth_of_8_bits_is_refused(root):
    path = root / FILES["depth"].format(*VIEWS[0])
    Image.new("L", (8, 8)).save(path)
    with pytest.raises(ValueError, match=rf"{path.name} is PNG of mode L; expected one channel of"):
        Taskonomy(root, "tiny_val", domains=["depth"]).read(0)
