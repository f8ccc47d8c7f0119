from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from attent.pipeline import ExampleError, example_keys
from attent.pipeline.source import fetch_batch
from attent.tasks.data.dense import CHANNELS, Dense
from attent.tasks.data.dense_view import DenseView
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


# --- dense tasks

RGB_TASKS = {"normal": 3, "principal_curvature": 2, "reshading": 1}
DEEP_TASKS = ["edge_texture", "edge_occlusion", "keypoints2d", "keypoints3d"]


@pytest.fixture
def dense(root) -> Path:
    """The views' other tasks: noise of the files' own kinds; masks are invalid in one pixel."""
    mask = np.full((10, 10), 255, np.uint8)
    mask[5, 2] = 0
    for i, (building, point, view) in enumerate(VIEWS):
        images = {task: values(i, 10, 10, high=65536).astype(np.uint16) for task in DEEP_TASKS}
        images["depth_zbuffer"] = values(i, 10, 10, high=65536).astype(np.uint16)
        images |= {task: values(i, 10, 10, 3, high=256).astype(np.uint8) for task in RGB_TASKS}
        images |= {"mask_valid": mask, "rgb": images["normal"]}
        for task, image in images.items():
            domain = "depth_zbuffer" if task == "mask_valid" else task
            name = f"point_{point}_view_{view}_domain_{domain}.png"
            path = root / task / building / name
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(path)
    return root


def read(root: Path, task: str, index: int = 1):
    return Taskonomy(root, "tiny_val", domains=[task]).read(index)[task]


@pytest.mark.parametrize(("task", "channels"), RGB_TASKS.items())
def test_tasks_kept_as_pictures_are_bytes_of_255(dense, task, channels):
    expected = torch.from_numpy(values(1, 10, 10, 3, high=256)).permute(2, 0, 1)[:channels] / 255
    torch.testing.assert_close(read(dense, task), expected.float())


@pytest.mark.parametrize("task", ["keypoints2d", "keypoints3d"])
def test_keypoints_are_sixteen_bits_of_65535(dense, task):
    expected = torch.from_numpy(values(1, 10, 10, high=65536))[None] / 65535
    torch.testing.assert_close(read(dense, task), expected.float())


def test_texture_edges_are_cut_at_a_quarter(dense):
    # 0.25 * 65535 = 16383.75, which is 1; half of it is a half.
    image = np.array([[0, 8192, 16383, 16384, 65535]], np.uint16)
    path = Taskonomy(dense, "tiny_val", domains=["edge_texture"]).path("edge_texture", 1)
    Image.fromarray(image).save(path)
    found = read(dense, "edge_texture")[0, 0].tolist()
    assert found == pytest.approx([0, 8192 / 16383.75, 16383 / 16383.75, 1, 1])
    assert found[2] < found[3] == 1


def test_occlusion_edges_are_blurred(dense):
    image = np.zeros((5, 5), np.uint16)
    image[2, 2] = 65535
    path = Taskonomy(dense, "tiny_val", domains=["edge_occlusion"]).path("edge_occlusion", 1)
    Image.fromarray(image).save(path)
    # exp(-1/2) = 0.6065 beside 1: 1 / 2.2131 = 0.4519 in the middle, 0.2741 beside it.
    row = np.array([0, 0.27407, 0.45186, 0.27407, 0])
    np.testing.assert_allclose(read(dense, "edge_occlusion")[0], np.outer(row, row), atol=1e-4)


def test_depth_by_its_own_name_is_the_same(dense):
    assert torch.equal(read(dense, "depth_zbuffer"), read(dense, "depth"))


def test_a_pixel_is_valid_where_its_whole_cell_is(dense):
    # Pixel (5, 2) spoils the cell of rows 4 to 7 and columns 0 to 3.
    expected = torch.ones(10, 10, dtype=torch.bool)
    expected[4:8, 0:4] = False
    assert torch.equal(read(dense, "mask_valid"), expected)
    # Rows and columns 8 and 9 are cells of their own, though smaller.
    mask = np.full((10, 10), 255, np.uint8)
    mask[9, 9] = mask[0, 8] = 0
    path = Taskonomy(dense, "tiny_val", domains=["mask_valid"]).path("mask_valid", 1)
    Image.fromarray(mask).save(path)
    expected = torch.ones(10, 10, dtype=torch.bool)
    expected[8:, 8:] = expected[:4, 8:] = False
    assert torch.equal(read(dense, "mask_valid"), expected)


@pytest.mark.parametrize("target", [task for task in CHANNELS if task != "depth"])
def test_every_task_makes_batches(dense, target):
    reader = Taskonomy(dense, "tiny_val", domains=["rgb", target, "mask_valid"])
    data = Dense(reader, DenseView(size=10), inputs=["rgb"], target=target)
    index = torch.tensor([2, 0])
    batch = data.fetch(index)
    assert list(batch["target"].shape) == [2, CHANNELS[target], 10, 10]
    assert torch.equal(batch["target"][0], reader.read(2)[target])
    assert torch.equal(batch["valid"][0, 0], reader.read(2)["mask_valid"])
    keys = example_keys(1, torch.arange(16))
    views = data.fetch_augmented(torch.zeros(16, dtype=torch.int64), keys)["target"]
    flipped = [torch.equal(view, batch["target"][1].flip(-1)) for view in views]
    kept = [torch.equal(view, batch["target"][1]) for view in views]
    assert sum(flipped) + sum(kept) == 16
    assert not any(flipped) if target == "normal" else any(flipped) and any(kept)


def test_a_missing_file_of_a_dense_task_is_named(dense):
    path = Taskonomy(dense, "tiny_val", domains=["normal"]).path("normal", 2)
    path.unlink()
    with pytest.raises(ValueError, match=f"are missing: .*{path.name}"):
        Taskonomy(dense, "tiny_val", domains=["rgb", "normal"])
    with pytest.raises(ValueError, match=r"one or more of rgb, .*mask_valid, each once; got \['n"):
        Taskonomy(dense, "tiny_val", domains=["normals"])
