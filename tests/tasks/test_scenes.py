from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

import attent.tasks.data.scenes.shade as shading
from attent.pipeline import ExampleError
from attent.pipeline.keyed import example_keys, fold
from attent.pipeline.source import describe_example, fetch_batch
from attent.tasks.data.scenes import (
    SCENE_CLASSES,
    SEMANTIC_CLASSES,
    SHAPES,
    SLOTS,
    Layout,
    Scenes,
    draw,
    render,
    source,
)
from attent.tasks.data.scenes.layout import FAR, HOLE
from attent.tasks.data.scenes.surface import normals

FIRST_SOLID = SEMANTIC_CLASSES.index(SHAPES[0])
FIELDS = {
    "rgb": (torch.uint8, (3, 32, 32)),
    "depth": (torch.float32, (1, 32, 32)),
    "semseg": (torch.uint8, (32, 32)),
    "instances": (torch.uint8, (32, 32)),
    "boxes": (torch.float32, (SLOTS, 4)),
    "box_labels": (torch.int64, (SLOTS,)),
    "label": (torch.int64, ()),
    "clean_label": (torch.int64, ()),
}


def layouts(count: int, seed: int = 0) -> Layout:
    """Scenes of all classes in turn."""
    index = torch.arange(count)
    return draw(example_keys(fold(seed, "test"), index), index % len(SCENE_CLASSES))


@cache
def some_scenes() -> tuple[Layout, dict[str, torch.Tensor]]:
    layout = layouts(60)
    return layout, render(layout, 32)


def scenes(count: int = 12, **options) -> Scenes:
    return Scenes(count, **({"size": 32} | options))


def assert_same(a, b) -> None:
    assert set(a.keys()) == set(b.keys())
    for name in a.keys():
        assert torch.equal(a[name], b[name]), name


def picked(batch, rows):
    return {name: value[rows] for name, value in batch.items()}


# --- a reference: walk along a ray in small steps until a point is inside a solid


def inside(kind: int, own: np.ndarray) -> np.ndarray:
    """Which points ``[..., 3]`` in a solid's own coordinates are inside: the shapes' definition."""
    x, y, z = np.moveaxis(own, -1, 0)
    radius, flat = np.hypot(x, y), np.abs(z) <= 1
    return {
        "ball": radius**2 + z**2 <= 1,
        "box": (np.abs(x) <= 1) & (np.abs(y) <= 1) & flat,
        "cylinder": (radius <= 1) & flat,
        "cone": (radius <= (1 - z) / 2) & flat,
        "ring": (radius <= 1) & (radius >= HOLE) & flat,
    }[SHAPES[kind]]


class Reference:
    """One scene of a layout, in floats of Python and NumPy."""

    def __init__(self, layout: Layout, scene: int) -> None:
        self.one = {name: value[scene].numpy() for name, value in vars(layout).items()}

    def own(self, slot: int, points: np.ndarray) -> np.ndarray:
        axes = self.one["axes"][slot]
        return (points - self.one["centre"][slot]) @ np.linalg.inv(axes)

    def inside(self, slot: int, points: np.ndarray) -> np.ndarray:
        return inside(int(self.one["kind"][slot]), self.own(slot, points))

    def slots(self) -> list[int]:
        return [slot for slot in range(SLOTS) if self.one["kind"][slot] >= 0]

    def hit(self, slot: int, start: np.ndarray, way: np.ndarray, steps: np.ndarray) -> float:
        """Where on a ray the first of the steps inside a solid is, or infinity."""
        within = self.inside(slot, start + steps[:, None] * way)
        if not within.any():
            return np.inf
        after = int(within.argmax())
        low, high = steps[max(after - 1, 0)], steps[after]
        for _ in range(30):
            middle = (low + high) / 2
            if self.inside(slot, start + middle * way):
                high = middle
            else:
                low = middle
        return float(high)

    def way(self, row: int, column: int, size: int) -> np.ndarray:
        """A pixel's line of sight; a step of 1 is a depth of 1."""
        p, q = 2 * (column + 0.5) / size - 1, 2 * (row + 0.5) / size - 1
        return self.one["forward"] + p * self.one["right"] + q * self.one["down"]

    def look(self, row: int, column: int, size: int) -> tuple[float, int, str]:
        """Depth, slot (0: none) and what is seen."""
        eye, way = self.one["eye"], self.way(row, column, size)
        best = (FAR, 0, "sky")
        if way[2] < 0:
            best = min(best, (-eye[2] / way[2], 0, "floor"))
        for axis, offset in enumerate(self.one["walls"]):
            if way[axis] > 0:
                best = min(best, ((offset - eye[axis]) / way[axis], 0, "wall"))
        steps = np.arange(0.2, min(best[0], 12.0) + 0.01, 0.006)
        for slot in self.slots():
            shape = SHAPES[int(self.one["kind"][slot])]
            best = min(best, (self.hit(slot, eye, way, steps), slot + 1, shape))
        return best

    def lit(self, point: np.ndarray, light: int) -> bool:
        """Whether no solid is between a point and a light; behind a solid's own back one is."""
        steps = np.arange(0.004, 6, 0.006)
        way = self.one["light"][light]
        return not any(np.isfinite(self.hit(slot, point, way, steps)) for slot in self.slots())


@pytest.mark.parametrize("scene", range(0, 10, 2), ids=lambda scene: SHAPES[scene // 2])
def test_pictures_are_those_of_a_slow_obvious_tracer(scene):
    size = 20
    layout = layouts(10, seed=3)
    reference, pictures = Reference(layout, scene), render(layout, size)
    expected = [[reference.look(r, c, size) for c in range(size)] for r in range(size)]
    depth = torch.tensor([[seen[0] for seen in line] for line in expected])
    slot = torch.tensor([[seen[1] for seen in line] for line in expected])
    what = torch.tensor([[SEMANTIC_CLASSES.index(seen[2]) for seen in line] for line in expected])
    same = slot == pictures["instances"][scene]
    assert (slot == 1).any()
    assert same.float().mean() > 0.99  # the walk may step over a solid's rim
    assert torch.equal(pictures["semseg"][scene][same], what[same].to(torch.uint8))
    found = pictures["depth"][scene, 0]
    torch.testing.assert_close(found[same], depth[same].float(), rtol=3e-5, atol=0)


@pytest.mark.parametrize("scene", range(1, 10, 2), ids=lambda scene: SHAPES[scene // 2])
def test_shadows_fall_where_a_solid_is_between_a_point_and_the_light(scene):
    size = 28
    layout = layouts(10, seed=4)
    # One light, nothing else: what it does not reach is black.
    glow = torch.tensor([[1.0, 1, 1], [0, 0, 0]], dtype=torch.float64).expand(10, 2, 3)
    white = {"ground": torch.ones_like(layout.ground), "colours": torch.ones_like(layout.colours)}
    nothing = {name: 0 * getattr(layout, name) for name in ("ambient", "sky")}
    layout = replace(layout, glow=glow, **white, **nothing)
    pictures, reference = render(layout, size, smooth=False), Reference(layout, scene)
    expected, found = [], []
    for row in range(size):
        for column in range(size):
            what = SEMANTIC_CLASSES[int(pictures["semseg"][scene, row, column])]
            if what in ("wall", "sky"):
                continue  # a wall's own direction decides
            depth = float(pictures["depth"][scene, 0, row, column])
            point = reference.one["eye"] + depth * reference.way(row, column, size)
            expected.append(reference.lit(point, 0))
            found.append(bool((pictures["rgb"][scene, :, row, column] > 8).all()))
    lit, seen = np.array(expected), np.array(found)
    assert (~lit).sum() > 10
    assert seen[lit].mean() > 0.99  # but where the light grazes
    assert (~seen[~lit]).mean() > 0.97


@pytest.mark.parametrize("kind", range(len(SHAPES)), ids=SHAPES)
def test_normals_point_out_of_solids(kind):
    points = np.random.default_rng(0).uniform(-1.3, 1.3, (4000, 3))
    start, way = points[:2000], points[2000:] - points[:2000]
    steps = np.linspace(0, 1, 400)
    path = start[:, None] + steps[:, None] * way[:, None]
    within = inside(kind, path)
    enters = ~within[:, 0] & within.any(1)
    at = within.argmax(1)
    surface = (path[np.arange(2000), at] + path[np.arange(2000), at - 1])[enters] / 2
    found = normals(torch.full((len(surface),), kind), torch.tensor(surface.T).float())
    found = (found / found.norm(dim=0)).T.numpy()
    assert len(surface) > 300
    right = ~inside(kind, surface + 0.02 * found) & inside(kind, surface - 0.02 * found)
    assert right.mean() > 0.93  # but at edges


def test_solids_that_cannot_be_met_are_left_out_rightly(monkeypatch):
    layout, _ = some_scenes()
    kept = shading.overlapping
    expected = render(layout, 32, smooth=False), render(layout, 32)
    monkeypatch.setattr(
        shading, "overlapping", lambda *args: kept(*args[:-1], margin=1e3 + 0 * args[-1])
    )
    found = render(layout, 32, smooth=False), render(layout, 32)
    assert_same(expected[0], found[0])
    differs = (expected[1]["rgb"] != found[1]["rgb"]).any(1).float().mean()
    assert differs < 1e-4  # a pixel's part may show what is nowhere near its middle


def test_smoothed_pictures_are_nearer_to_many_rays_for_each_pixel():
    layout = layouts(10)
    fine = render(layout, 128, smooth=False)["rgb"].float().div(255).square()
    mean = torch.nn.functional.avg_pool2d(fine, 4).sqrt()
    rough, smooth = (render(layout, 32, smooth=s)["rgb"].float() / 255 for s in (False, True))
    assert (smooth - mean).abs().mean() < 0.6 * (rough - mean).abs().mean()


# --- what is in a scene


def test_a_batch_has_every_entry_for_every_task():
    batch = scenes(4, label_noise=0.5).fetch(torch.tensor([2, 0, 3]))
    assert batch.batch_size == (3,)
    assert set(batch.keys()) == set(FIELDS)
    for name, (dtype, shape) in FIELDS.items():
        assert batch[name].dtype == dtype
        assert batch[name].shape == (3, *shape)
        assert batch[name].is_contiguous()


@pytest.mark.parametrize("size", [16, 23, 72])
def test_pictures_of_any_size(size):
    batch = scenes(2, size=size).fetch(torch.arange(2))
    assert batch["rgb"].shape == (2, 3, size, size)
    assert batch["depth"].shape == (2, 1, size, size)
    assert batch["boxes"].max() <= size


def test_depth_is_positive_and_ends_at_the_sky():
    _, pictures = some_scenes()
    depth = pictures["depth"].squeeze(1)
    assert depth.min() > 0.1
    assert depth.max() <= FAR * 1.0001
    sky = pictures["semseg"] == SEMANTIC_CLASSES.index("sky")
    assert sky.any()
    torch.testing.assert_close(depth[sky], torch.full_like(depth[sky], FAR))


def test_segments_instances_and_box_labels_agree():
    layout, pictures = some_scenes()
    instances, semseg = pictures["instances"], pictures["semseg"]
    assert torch.equal(instances > 0, semseg >= FIRST_SOLID)
    for slot in range(SLOTS):
        own = instances == slot + 1
        seen = own.flatten(1).any(1)
        labels = pictures["box_labels"][:, slot]
        assert torch.equal(labels > 0, seen)
        assert torch.equal(labels[seen], layout.kind[seen, slot] + 1)
        kind = layout.kind[:, slot, None, None].expand_as(own)
        assert torch.equal(semseg[own].long(), kind[own] + FIRST_SOLID)


def test_boxes_are_tight_around_what_is_seen():
    _, pictures = some_scenes()
    assert (pictures["boxes"] == 0).all(-1).any()
    for instances, boxes in zip(pictures["instances"], pictures["boxes"], strict=True):
        for slot, box in enumerate(boxes.tolist()):
            rows, columns = (instances == slot + 1).nonzero(as_tuple=True)
            if not len(rows):
                assert box == [0, 0, 0, 0]
                continue
            ends = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            assert box == [float(end) for end in ends]


def test_the_first_solid_is_of_the_scenes_class():
    batch = scenes(60, seed=5).fetch(torch.arange(60))
    assert torch.equal(batch["label"] // 2 + 1, batch["box_labels"][:, 0])
    shown = batch["instances"] == 1
    kind = (batch["label"] // 2 + FIRST_SOLID)[:, None, None].expand_as(shown)
    assert torch.equal(batch["semseg"][shown].long(), kind[shown])


def test_the_pattern_of_the_first_solid_is_in_the_picture():
    # Lit from everywhere alike and cleared of all else, a plain solid has one colour.
    layout = layouts(40)
    kind = layout.kind.clone()
    kind[:, 1:] = -1
    layout = replace(
        layout,
        kind=kind,
        glow=0 * layout.glow,
        ambient=0 * layout.ambient + 0.8,
        gloss=0 * layout.gloss,
    )
    pictures = render(layout, 48, smooth=False)
    for scene in range(40):
        colours = pictures["rgb"][scene][:, pictures["instances"][scene] == 1]
        spread = int((colours.amax(1).int() - colours.amin(1).int()).max())
        assert spread > 40 if scene % 2 else spread < 12, SCENE_CLASSES[scene % 10]


def test_the_first_solid_is_the_largest_and_mostly_visible():
    layout = layouts(400, seed=6)
    kind = layout.kind.clone()
    assert ((kind >= 0).sum(1) >= 2).all()
    assert (kind >= 0).sum(1).bincount(minlength=SLOTS + 1)[2:].min() > 20
    kind[:, 1:] = -1
    pictures, alone = (
        render(each, 32, smooth=False)["instances"] for each in (layout, replace(layout, kind=kind))
    )
    counts = torch.stack([(pictures == slot + 1).sum((1, 2)) for slot in range(SLOTS)], dim=1)
    assert (counts[:, 0] > 0.6 * (alone == 1).sum((1, 2))).all()
    assert (counts[:, 0] > counts[:, 1:].amax(1)).float().mean() > 0.99


# --- the same whenever it is asked for


def test_a_scene_is_the_same_to_the_last_bit_in_any_batch():
    every = scenes(150).fetch(torch.arange(150))
    order = torch.randperm(150, generator=torch.Generator().manual_seed(0))[:50]
    other = scenes(150, memory=0)
    parts = [other.fetch(part) for part in order.split([1, 2, 5, 11, 31])]
    assert_same(torch.cat(parts), every[order])


def test_a_scene_is_the_same_on_any_number_of_threads():
    one = scenes(8, size=64).fetch(torch.arange(8))
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        three = scenes(8, size=64).fetch(torch.arange(8))
    finally:
        torch.set_num_threads(threads)
    assert_same(one, three)


def test_workers_that_fetch_at_once_get_what_one_would():
    every = scenes(24).fetch(torch.arange(24))
    shared = scenes(24)
    order = [torch.arange(24).roll(i)[:12] for i in range(0, 24, 3)]
    with ThreadPoolExecutor(4) as workers:
        for index, batch in zip(order, workers.map(shared.fetch, order), strict=True):
            assert_same(batch, every[index])


def test_a_longer_data_set_begins_with_the_shorter_one():
    options = {"imbalance": 5.0, "label_noise": 0.3}
    assert_same(
        scenes(6, **options).fetch(torch.arange(6)), scenes(40, **options).fetch(torch.arange(6))
    )


def test_seeds_and_splits_are_other_scenes():
    index = torch.arange(4)
    base = scenes().fetch(index)["rgb"]
    for other in (scenes(seed=1), scenes(split="val"), scenes(split="test")):
        assert (other.fetch(index)["rgb"] != base).flatten(1).any(1).all()


def test_an_index_may_be_asked_for_twice():
    batch = scenes().fetch(torch.tensor([3, 1, 3]))
    assert_same(batch[0], batch[2])
    assert len(scenes().fetch(torch.tensor([], dtype=torch.int64))) == 0


# --- options


def test_classes_are_balanced_or_as_imbalanced_as_asked_for():
    even = Scenes(20_000, size=16).labels.bincount(minlength=10)
    assert even.min() > 1800
    assert even.max() < 2200
    counts = Scenes(20_000, size=16, imbalance=10).labels.bincount(minlength=10).double()
    torch.testing.assert_close(
        counts[0] / counts[9], torch.tensor(10.0).double(), rtol=0.15, atol=0
    )
    steps = counts[:-1] / counts[1:]
    torch.testing.assert_close(steps, torch.full_like(steps, 10 ** (1 / 9)), rtol=0.2, atol=0)


def test_a_share_of_the_training_labels_is_wrong():
    noisy = Scenes(20_000, size=16, label_noise=0.2)
    wrong = noisy.labels != noisy.clean_labels
    assert float(wrong.float().mean()) == pytest.approx(0.2, abs=0.01)
    shift = (noisy.labels - noisy.clean_labels)[wrong] % 10
    assert (shift.bincount(minlength=10)[1:] > 350).all()
    assert torch.equal(noisy.clean_labels, Scenes(20_000, size=16).labels)


def test_noise_changes_the_label_and_nothing_else():
    index = torch.arange(12)
    noisy, clean = scenes(label_noise=0.9).fetch(index), scenes().fetch(index)
    assert (noisy["label"] != clean["label"]).any()
    assert_same(noisy.exclude("label"), clean.exclude("label"))


def test_other_splits_are_balanced_and_clean():
    plain = Scenes(1000, size=16, split="val")
    asked = Scenes(1000, size=16, split="val", imbalance=50, label_noise=0.5)
    assert torch.equal(plain.labels, asked.labels)
    assert torch.equal(asked.labels, asked.clean_labels)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_examples": 0}, "num_examples must be at least 1, got 0"),
        ({"size": 15}, "size must be at least 16 pixels, got 15"),
        ({"split": "training"}, "split must be one of train, val, test, got 'training'"),
        ({"imbalance": 0.5}, "imbalance must be a finite ratio of at least 1, got 0.5"),
        ({"imbalance": float("nan")}, "imbalance must be"),
        ({"label_noise": 1.0}, r"label_noise must be in \[0, 1\), got 1.0"),
        ({"label_noise": -0.1}, "label_noise must be in"),
        ({"memory": -1}, "memory must be at least 0 bytes, got -1"),
    ],
    ids=str,
)
def test_a_wrong_option_is_named_with_what_is_accepted(options, message):
    with pytest.raises(ValueError, match=message):
        Scenes(**({"num_examples": 3} | options))


def test_an_index_out_of_range_is_named():
    with pytest.raises(IndexError, match="no scene 12; the indices are 0 to 11"):
        scenes().fetch(torch.tensor([1, 12]))
    for index in (-1, 12):
        with pytest.raises(IndexError, match=f"no scene {index}"):
            scenes().read(index)
    with pytest.raises(ExampleError, match=r"example 12 \(scene 12 of split train, seed 0\)"):
        fetch_batch(scenes(), torch.tensor([0, 12]))


def test_a_scene_says_which_it_is():
    assert describe_example(scenes(seed=7, split="val"), 3) == (
        "example 3 (scene 3 of split val, seed 7)"
    )


# --- what is kept


@pytest.fixture
def renders(monkeypatch) -> list[int]:
    """How many scenes each call of `render` was for."""
    calls = []

    def counted(layout, size):
        calls.append(len(layout))
        return render(layout, size)

    monkeypatch.setattr(source, "render", counted)
    return calls


def test_a_scene_is_rendered_once_while_there_is_memory(renders):
    data = scenes()
    first = data.fetch(torch.tensor([4, 2, 4]))
    second = data.fetch(torch.tensor([2, 3, 4]))
    assert renders == [2, 1]
    assert_same(first[:2], second[[2, 0]])


def test_memory_is_not_exceeded_and_what_is_not_kept_is_rendered_again(renders):
    whole = scenes().fetch(torch.arange(12))
    renders.clear()
    record = scenes()._kind.itemsize
    data = scenes(memory=5 * record + 1)
    for _ in range(2):
        assert_same(data.fetch(torch.arange(12)), whole)
    assert renders == [12, 7]
    assert sum(slab.nbytes for slab in data._memory._slabs) == 5 * record


def test_read_gives_views_of_one_scene(renders):
    data = scenes(40)
    whole = scenes(40).fetch(torch.tensor([7]))
    renders.clear()
    one = data.read(7)
    assert set(one) == {"rgb", "depth", "semseg"}
    for name, value in one.items():
        assert torch.equal(value, whole[name][0])
        assert value.data_ptr() == data.read(7)[name].data_ptr()
    data.read(8)
    assert renders == [32]  # its neighbours are asked for next
    assert torch.equal(scenes(40, memory=0).read(7)["rgb"], one["rgb"])


def cached_file(folder: Path) -> Path:
    (path,) = folder.glob("scenes-*.bin")
    return path


def test_scenes_are_read_from_the_cache(tmp_path, renders):
    index = torch.tensor([5, 0, 11])
    first = scenes(cache=tmp_path).fetch(index)
    assert_same(scenes(cache=str(tmp_path), memory=0, label_noise=0.0).fetch(index), first)
    assert torch.equal(scenes(cache=tmp_path).read(5)["rgb"], first["rgb"][0])
    assert renders == [3]
    assert_same(first, scenes().fetch(index))


def test_the_cache_is_keyed_by_what_pictures_depend_on(tmp_path):
    scenes(cache=tmp_path).fetch(torch.tensor([0]))
    for same in ({"count": 40}, {"label_noise": 0.5}, {"memory": 0}):
        scenes(cache=tmp_path, **same)
    assert len(list(tmp_path.iterdir())) == 1
    for other in ({"seed": 1}, {"size": 33}, {"split": "val"}, {"imbalance": 2.0}):
        scenes(cache=tmp_path, **other)
    assert len(list(tmp_path.iterdir())) == 5


@pytest.mark.parametrize("damage", ["flipped", "cut", "shifted", "empty"])
def test_a_damaged_cache_is_not_trusted_and_mended(tmp_path, renders, damage):
    index = torch.arange(4)
    whole = scenes(cache=tmp_path).fetch(index)
    path = cached_file(tmp_path)
    data = bytearray(path.read_bytes())
    record = len(data) // 4
    if damage == "flipped":
        data[record + record // 2] ^= 1
    path.write_bytes(
        {
            "flipped": data,
            "cut": data[:-1],
            "shifted": data[record:] + data[:record],
            "empty": b"",
        }[damage]
    )
    renders.clear()
    assert_same(scenes(cache=tmp_path).fetch(index), whole)
    assert renders == [{"flipped": 1, "cut": 1, "shifted": 4, "empty": 4}[damage]]
    renders.clear()
    assert_same(scenes(cache=tmp_path).fetch(index), whole)
    assert renders == []


def test_two_that_fill_one_cache_find_each_others_scenes(tmp_path, renders):
    one, other = scenes(cache=tmp_path), scenes(cache=tmp_path)
    whole = scenes().fetch(torch.arange(12))
    renders.clear()
    for first in range(0, 12, 4):
        one.fetch(torch.arange(first, first + 3))
        assert_same(other.fetch(torch.arange(first, first + 4)), whole[first : first + 4])
    assert renders == [3, 1, 3, 1, 3, 1]


def test_a_full_disk_is_told_once_and_does_no_harm(tmp_path, monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")

    data = scenes(cache=tmp_path)
    monkeypatch.setattr(os, "pwrite", full)
    with pytest.warns(UserWarning, match="no more scenes are kept in .*No space left") as told:
        batch = data.fetch(torch.arange(3))
    assert len(told) == 1
    assert_same(batch, scenes().fetch(torch.arange(3)))


def test_a_cache_that_is_a_file_is_refused(tmp_path):
    path = tmp_path / "file"
    path.touch()
    with pytest.raises(ValueError, match=r"cache is to be a folder; .*file is a file"):
        scenes(cache=path)
