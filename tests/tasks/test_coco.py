"""COCO's instances, written in the real format: what is read, what is refused; views of objects."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as rle
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from attent.pipeline import example_keys
from attent.pipeline.source import ExampleError, fetch_batch
from attent.tasks.data.coco import Coco
from attent.tasks.data.objects import ObjectView, Scene, batch_of
from attent.tasks.data.pixels import DEVIATION, MEAN
from attent.tasks.data.scene_objects import SceneObjects
from attent.tasks.data.scenes import Scenes

# Two polygons of one object: columns 2-5 and 8-9 of rows 1-4.
TWO = [[2, 1, 6, 1, 6, 5, 2, 5], [8, 1, 10, 1, 10, 5, 8, 5]]
CATEGORIES = [{"id": 7, "name": "tree"}, {"id": 90, "name": "car"}, {"id": 3, "name": "cat"}]


def rectangle(left, top, right, bottom, height=8, width=16):
    mask = np.zeros((height, width), np.uint8, order="F")
    mask[top:bottom, left:right] = 1
    return mask


def runs(mask, *, compressed):
    if compressed:
        found = rle.encode(np.asfortranarray(mask))
        return {"size": list(found["size"]), "counts": found["counts"].decode()}
    flat = mask.T.reshape(-1)  # column by column, zeros first
    edges = np.flatnonzero(np.diff(np.concatenate([[0], flat, [2]])))
    return {"size": list(mask.shape), "counts": np.diff(np.concatenate([[0], edges])).tolist()}


def annotation(id, image_id, category_id, bbox, segmentation, iscrowd=0):
    return {
        "id": id, "image_id": image_id, "category_id": category_id, "bbox": bbox,
        "segmentation": segmentation, "iscrowd": iscrowd, "area": bbox[2] * bbox[3],
    }  # fmt: skip


def instances():
    """Three pictures of 16 x 8 pixels: polygons and both kinds of runs; a crowd; nothing."""
    images = [
        {"id": id, "file_name": f"{id:012}.jpg", "width": 16, "height": 8} for id in (42, 5, 300)
    ]
    crowd = rectangle(0, 6, 16, 8)
    return {
        "info": {"year": 2017},
        "images": images,
        "annotations": [
            annotation(1, 42, 90, [2, 1, 8, 4], TWO),
            annotation(2, 5, 3, [4, 2, 8, 5], runs(rectangle(4, 2, 12, 7), compressed=True)),
            annotation(3, 42, 7, [0, 6, 16, 2], runs(crowd, compressed=False), iscrowd=1),
            annotation(4, 5, 3, [4, 2, 0, 5], [[4, 2, 4, 7, 4, 5]]),
        ],
        "categories": CATEGORIES,
    }  # fmt: skip


def write(root, found, split="val2017", size=(16, 8)):
    (root / "annotations").mkdir(parents=True, exist_ok=True)
    (root / split).mkdir(exist_ok=True)
    (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(found))
    for image in found.get("images", []):
        colour = (0, 0, 255) if image["id"] == 42 else (255, 0, 0)
        Image.new("RGB", size, colour).save(root / split / image["file_name"], quality=95)
    return root


def coco(root, size=16, **options):
    return Coco(root, "val2017", view=ObjectView(size=size), **options)


def test_what_is_read(tmp_path):
    source = coco(write(tmp_path, instances()))
    assert len(source) == 3
    assert source.image_ids == [42, 5, 300]
    # The ids of the categories have gaps; labels have none, in the ids' order.
    assert source.categories == [(3, "cat"), (7, "tree"), (90, "car")]
    assert source.classes == ("cat", "tree", "car")
    scene = source.read(0)
    assert scene.boxes.tolist() == [[2, 1, 10, 5], [0, 6, 16, 8]]
    assert scene.labels.tolist() == [3, 2]
    assert scene.crowd.tolist() == [False, True]
    two = rectangle(2, 1, 6, 5) + rectangle(8, 1, 10, 5)
    assert np.array_equal(scene.masks[0].numpy(), two)
    assert np.array_equal(scene.masks[1].numpy(), rectangle(0, 6, 16, 8))
    assert np.array_equal(source.read(1).masks[0].numpy(), rectangle(4, 2, 12, 7))
    # The box without area is left out, and said to be.
    assert len(source.read(1).labels) == 1
    assert source.dropped == [4]
    assert source.read(2).masks.shape == (0, 8, 16)
    assert source.locate(0).endswith("val2017/000000000042.jpg, image 42")


def test_a_batch_is_letterboxed_and_padded(tmp_path):
    """16 x 8 in a square of 32: twice as large, at the top, nothing below row 16."""
    source = coco(write(tmp_path, instances()), size=32)
    batch = source.fetch(torch.tensor([2, 0]))
    assert {name: (tuple(v.shape[1:]), v.dtype) for name, v in batch.items()} == {
        "rgb": ((3, 32, 32), torch.float32), "boxes": ((2, 4), torch.float32),
        "labels": ((2,), torch.int64), "masks": ((2, 32, 32), torch.bool),
        "crowd": ((2,), torch.bool),
    }  # fmt: skip
    assert batch["labels"].tolist() == [[0, 0], [3, 2]]
    assert batch["boxes"][1].tolist() == [[4, 2, 20, 10], [0, 12, 32, 16]]
    expected = torch.zeros(32, 32, dtype=torch.bool)
    expected[2:10, 4:12] = expected[2:10, 16:20] = True
    assert torch.equal(batch["masks"][1, 0], expected)
    assert not batch["rgb"][:, :, 16:].any()
    blue = (torch.tensor([0.0, 0, 1]) - torch.tensor(MEAN)) / torch.tensor(DEVIATION)
    torch.testing.assert_close(batch["rgb"][1, :, 8, 8], blue, rtol=0, atol=0.05)
    alone = source.fetch(torch.tensor([2]))
    assert alone["masks"].shape == (1, 0, 32, 32)


def test_masks_are_those_of_pycocotools_own_reader(tmp_path, capsys):
    source = coco(write(tmp_path, instances()))
    reference = COCO(str(source.path))
    for i, id in enumerate(source.image_ids):
        known = [a for a in reference.loadAnns(reference.getAnnIds(id)) if a["id"] != 4]
        for mask, own in zip(source.read(i).masks, known, strict=True):
            assert np.array_equal(mask.numpy(), reference.annToMask(own))


@pytest.mark.parametrize("size", [16, 32, 8])
def test_results_are_mapped_back(tmp_path, size, capsys):
    """Truth given as detections, in the view of any size, is right to COCO's own evaluation."""
    found = instances()
    found["annotations"] = [
        annotation(1, 42, 90, [2, 2, 8, 4], runs(rectangle(2, 2, 10, 6), compressed=True)),
        annotation(2, 5, 3, [4, 2, 8, 6], runs(rectangle(4, 2, 12, 8), compressed=True)),
    ]
    source = coco(write(tmp_path, found), size=size)
    batch = source.fetch(torch.arange(3))
    rows = []
    for i, one in enumerate(batch):
        kept = one["labels"] > 0
        detected = {name: one[name][kept] for name in ("boxes", "labels", "masks")}
        rows += source.results(i, detected | {"scores": torch.full((int(kept.sum()),), 0.5)})
    assert [row["bbox"] for row in rows] == [[2, 2, 8, 4], [4, 2, 8, 6]]
    assert [(row["image_id"], row["category_id"]) for row in rows] == [(42, 90), (5, 3)]
    reference = COCO(str(source.path))
    for kind in ("bbox", "segm"):
        evaluation = COCOeval(reference, reference.loadRes(json.loads(json.dumps(rows))), kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
        assert evaluation.stats[0] == pytest.approx(1.0)


def test_every_picture_of_a_batch_is_as_it_is_alone(tmp_path):
    source = coco(write(tmp_path, instances()))
    keys = example_keys(3, torch.arange(3))
    for fetch in (source.fetch, lambda i: source.fetch_augmented(i, keys[i])):
        batch = fetch(torch.arange(3))
        for i in range(3):
            alone = fetch(torch.tensor([i]))[0]
            count = len(alone["labels"])
            assert torch.equal(batch["rgb"][i], alone["rgb"])
            assert torch.equal(batch["masks"][i, :count], alone["masks"])
            assert torch.equal(batch["boxes"][i, :count], alone["boxes"])
            assert not batch["labels"][i, count:].any()


def broken(change):
    found = instances()
    change(found)
    return found


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: f.pop("categories"), "holds info, images, annotations; expected the lists"),
        (lambda f: f["images"][1].pop("width"), "images, id 5: no width"),
        (lambda f: f["annotations"][2].pop("bbox"), "annotations, id 3: no bbox"),
        (
            lambda f: f["annotations"][0].update(image_id=9),
            "annotation 1 is of image 9, which is not among the 3 images",
        ),
        (
            lambda f: f["annotations"][1].update(category_id=4),
            "annotation 2 is of category 4; there are 3, 7, 90",
        ),
        (lambda f: f["annotations"][1].update(bbox=[1, 2, 3]), r"annotation 2 has bbox \[1, 2, 3"),
        (lambda f: f.update(images=[], annotations=[]), "lists no images"),
    ],
)  # fmt: skip
def test_a_file_that_is_refused(tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        coco(write(tmp_path, broken(change)))


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        ([[1, 2, 3, 4]], "annotation 2: segmentation of 1 polygons, one of 4 numbers"),
        ([], "annotation 2: segmentation of 0 polygons; expected at least one"),
        ({"counts": [128]}, "annotation 2: segmentation is dict; expected polygons, or size and"),
        (
            {"size": [16, 8], "counts": [128]},
            r"segmentation is of size \[16, 8\], its image of \[8, 16\]",
        ),
        ({"size": [8, 16], "counts": [100]}, "has runs of 100 pixels, its image 128"),
    ],
)
def test_a_mask_that_is_none(tmp_path, segmentation, message):
    found = broken(lambda f: f["annotations"][1].update(segmentation=segmentation))
    with pytest.raises(ValueError, match=f"instances_val2017.json: .*{message}"):
        coco(write(tmp_path, found))


def test_runs_that_are_damaged(tmp_path):
    damaged = {"size": [8, 16], "counts": "PP1PP"}
    found = broken(lambda f: f["annotations"][1].update(segmentation=damaged))
    with pytest.raises(ExampleError, match=r"image 5.* annotation 2: segmentation: Invalid RLE"):
        fetch_batch(coco(write(tmp_path, found)), torch.arange(3))


def test_pictures_that_are_missing_or_of_another_size(tmp_path):
    root = write(tmp_path, instances())
    (root / "val2017" / "000000000005.jpg").unlink()
    with pytest.raises(ValueError, match=r"missing in .*: 000000000005.jpg \(image 5\)$"):
        coco(root)
    Image.new("RGB", (8, 16)).save(root / "val2017" / "000000000005.jpg")
    said = r"example 1 .*image 5.* image 5: .* says 8 x 16 .* is 16 x 8"
    with pytest.raises(ExampleError, match=said):
        fetch_batch(coco(root), torch.arange(3))


def test_files_that_are_missing_or_damaged(tmp_path):
    root = write(tmp_path, instances())
    with pytest.raises(ValueError, match=r"instances_train2017.json; .* found instances_val2017"):
        Coco(root, "train2017", view=ObjectView(size=16))
    (root / "annotations" / "instances_val2017.json").write_text('{"images": [')
    with pytest.raises(ValueError, match="is not JSON"):
        coco(root)
    write(root, instances(), split="test2017")
    for file in (root / "test2017").iterdir():
        file.unlink()
    (root / "test2017").rmdir()
    with pytest.raises(ValueError, match=r"no folder .*test2017; .*found annotations, val2017"):
        Coco(root, "test2017", view=ObjectView(size=16))


def test_categories_of_the_training_split(tmp_path):
    root = write(tmp_path, instances())
    known = [(3, "cat"), (7, "tree"), (50, "dog"), (90, "car")]
    assert coco(root, categories=known).read(0).labels.tolist() == [4, 2]
    with pytest.raises(ValueError, match=r"categories that the training split has not: tree$"):
        coco(root, categories=[(3, "cat"), (90, "car")])


# --- views


def scene(height=20, width=40):
    """Two objects, one in the left half; each pixel's red is its column."""
    image = torch.arange(width, dtype=torch.uint8).expand(3, height, width).clone()
    masks = torch.zeros(2, height, width, dtype=torch.uint8)
    masks[0, 4:12, 2:12], masks[1, 10:20, 30:40] = 1, 1
    return Scene(
        image=image,
        boxes=torch.tensor([[2.0, 4, 12, 12], [30, 10, 40, 20]]),
        labels=torch.tensor([1, 2]),
        masks=masks,
        crowd=torch.tensor([False, False]),
    )


def bounds(mask):
    rows, columns = torch.where(mask)
    return [float(x) for x in (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)]


def test_a_flip_mirrors_picture_boxes_and_masks():
    viewed = ObjectView(size=40, scale=(1.0, 1.0), hflip=1.0)(scene(), 5)
    assert viewed.boxes.tolist() == [[28, 4, 38, 12], [0, 10, 10, 20]]
    assert viewed.image[0, 0].tolist() == list(range(39, -1, -1))
    assert [bounds(mask) for mask in viewed.masks] == viewed.boxes.tolist()


def test_small_scales_leave_room_and_large_ones_are_cropped():
    small = ObjectView(size=40, scale=(0.5, 0.5), hflip=0.0)(scene(), 5)
    assert small.size == (10, 20)
    assert small.boxes.tolist() == [[1, 2, 6, 6], [15, 5, 20, 10]]
    view = ObjectView(size=20, scale=(2.0, 2.0), hflip=0.0)  # 40 x 20, of which 20 x 20 are seen
    seen = set()
    for key in example_keys(0, torch.arange(60)).tolist():
        crop = view(scene(), key)
        assert crop.size == (20, 20)
        left = int(crop.image[0, 0, 0])
        seen.add(left)
        kept = [
            i
            for i, span in enumerate([(2, 12), (30, 40)])
            if span[1] > left and span[0] < left + 20
        ]
        assert crop.labels.tolist() == [i + 1 for i in kept]
        assert [bounds(mask) for mask in crop.masks] == crop.boxes.tolist()
    assert min(seen) < 4
    assert max(seen) > 16


def test_a_view_is_a_function_of_its_key():
    view = ObjectView(size=32)
    first = view(scene(), 11)
    again, other = view(scene(), 11), view(scene(), 12)
    assert torch.equal(first.image, again.image)
    assert torch.equal(first.boxes, again.boxes)
    assert not torch.equal(batch_of([first], 32)["rgb"], batch_of([other], 32)["rgb"])


def test_the_fixed_view_keeps_the_smallest_objects():
    tiny = scene()
    tiny.boxes[0] = torch.tensor([2.0, 4, 2.5, 4.5])
    assert ObjectView(size=10)(tiny, None).boxes[0].tolist() == [0.5, 1.0, 0.625, 1.125]
    random = ObjectView(size=10, scale=(1.0, 1.0), hflip=0.0)(tiny, 3)
    assert random.labels.tolist() == [2]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 0}, "size is a side in pixels"),
        ({"scale": (1.0, 0.5)}, "scale is two rising, positive numbers"),
        ({"hflip": 1.5}, "hflip is a probability"),
    ],
)
def test_wrong_views(options, message):
    with pytest.raises(ValueError, match=message):
        ObjectView(**({"size": 8} | options))


# --- rendered scenes


def test_scenes_are_the_renderers():
    scenes = Scenes(4, size=32)
    source, raw = SceneObjects(scenes, ObjectView(size=32)), scenes.fetch(torch.arange(4))
    batch = source.fetch(torch.arange(4))
    assert len(source) == 4
    assert source.locate(2) == scenes.locate(2)
    for one, own in zip(batch, raw, strict=True):
        kept = one["labels"] > 0
        assert torch.equal(one["labels"][kept], own["box_labels"][own["box_labels"] > 0])
        assert [bounds(mask) for mask in one["masks"][kept]] == one["boxes"][kept].tolist()
        assert torch.equal(one["masks"].any(0), own["instances"] > 0)
        pixels = one["rgb"] * torch.tensor(DEVIATION)[:, None, None]
        pixels = 255 * (pixels + torch.tensor(MEAN)[:, None, None])
        torch.testing.assert_close(pixels, own["rgb"].float(), rtol=0, atol=0.01)
    keys = example_keys(1, torch.arange(4))
    augmented = source.fetch_augmented(torch.arange(4), keys)
    assert not torch.equal(augmented["rgb"], batch["rgb"])
    assert torch.equal(
        source.fetch_augmented(torch.tensor([2]), keys[2:3])["rgb"][0], augmented["rgb"][2]
    )


def test_keys_that_are_not_one_for_each_picture(tmp_path):
    write(tmp_path, instances())
    scenes = SceneObjects(Scenes(4, size=32), ObjectView(size=32))
    for source in (coco(tmp_path), scenes):
        with pytest.raises(ValueError, match=r"one for each index: expected \[2\], got \[3\]"):
            source.fetch_augmented(torch.arange(2), torch.arange(3))
