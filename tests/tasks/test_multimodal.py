"""Shapes: B examples, H x W a scene's own size, S the view's side, s the stride of semseg."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms.v2 import functional as V
from torchvision.tv_tensors import Image, Mask

from attent.pipeline import ExampleError, example_keys, fold
from attent.pipeline.source import fetch_batch
from attent.pipeline.stream import Loading, Stream
from attent.tasks.data.joint import JointView
from attent.tasks.data.multimodal import Multimodal
from attent.tasks.data.pixels import DEVIATION, MEAN

DOMAINS = ("rgb", "depth", "semseg")
WRAPPED = {"rgb": Image, "depth": Image, "semseg": Mask}


class Scenes:
    """Noise in memory; every third scene is 16 x 16, the others are larger and not square."""

    def __init__(self, num: int = 7, **changes) -> None:
        self.changes = changes
        self.scenes = [self.scene(i) for i in range(num)]

    @staticmethod
    def scene(seed: int) -> dict[str, Tensor]:
        draw = torch.Generator().manual_seed(seed)
        height, width = (16, 16) if seed % 3 == 0 else (20 + seed, 30)
        return {
            "semseg": torch.randint(133, (height, width), generator=draw, dtype=torch.uint8),
            "rgb": torch.randint(256, (3, height, width), generator=draw, dtype=torch.uint8),
            "depth": torch.rand(1, height, width, generator=draw),
        }

    def __len__(self) -> int:
        return len(self.scenes)

    def locate(self, index: int) -> str:
        return f"scene number {index}"

    def read(self, index: int) -> dict[str, Tensor]:
        return self.scenes[index] | (self.changes if index == 4 else {})


class Labelled(Scenes):
    labels = torch.tensor([3, 1, 2, 0, 1, 0, 2])


def source(reader=None, **options) -> Multimodal:
    options = {"domains": DOMAINS} | options
    return Multimodal(reader or Scenes(), JointView(size=16), **options)


def keys_of(index: Tensor) -> Tensor:
    return example_keys(fold(5, "views", 2), index)


# --- what is in a batch


@pytest.mark.parametrize("augmented", [False, True])
def test_a_batch_is_what_it_is_said_to_be(augmented):
    data, index = source(Labelled()), torch.tensor([4, 0, 2])
    batch = data.fetch_augmented(index, keys_of(index)) if augmented else data.fetch(index)
    assert list(batch.keys()) == ["rgb", "depth", "semseg", "label"]
    assert batch.batch_size == (3,)
    found = {name: (list(value.shape), value.dtype) for name, value in batch.items()}
    assert found == {
        "rgb": ([3, 3, 16, 16], torch.float32),
        "depth": ([3, 1, 16, 16], torch.float32),
        "semseg": ([3, 4, 4], torch.int64),
        "label": ([3], torch.int64),
    }
    assert batch["label"].tolist() == [1, 3, 2]
    assert all(type(value) is Tensor and value.is_contiguous() for value in batch.values())


def test_the_fixed_view_of_a_square_scene_is_its_pixels():
    batch, scene = source().fetch(torch.tensor([3])), Scenes.scene(3)
    expected = V.normalize(scene["rgb"].float() / 255, list(MEAN), list(DEVIATION))
    torch.testing.assert_close(batch["rgb"][0], expected)
    assert torch.equal(batch["depth"][0], scene["depth"])
    assert torch.equal(batch["semseg"][0], scene["semseg"][::4, ::4].long())


@pytest.mark.parametrize("augmented", [False, True])
def test_larger_scenes_go_through_the_view(augmented):
    data, index = source(), torch.tensor([4])
    key = int(keys_of(index)) if augmented else None
    batch = data.fetch_augmented(index, keys_of(index)) if augmented else data.fetch(index)
    wrapped = {d: WRAPPED[d](value) for d, value in Scenes.scene(4).items()}
    view = JointView(size=16)(wrapped, key)
    expected = V.normalize(view["rgb"].float() / 255, list(MEAN), list(DEVIATION))
    torch.testing.assert_close(batch["rgb"][0], expected.as_subclass(Tensor))
    assert torch.equal(batch["depth"][0], view["depth"].as_subclass(Tensor))
    assert torch.equal(batch["semseg"][0], view["semseg"].as_subclass(Tensor)[::4, ::4].long())


@pytest.mark.parametrize("stride", [1, 2, 4, 8, 16])
def test_the_stride_takes_the_pixels_that_nearest_takes(stride):
    data = source(semseg_stride=stride)
    ids = Scenes.scene(0)["semseg"]
    side = 16 // stride
    by_torch = F.interpolate(ids[None, None].float(), size=(side, side), mode="nearest")[0, 0]
    by_torchvision = V.resize(Mask(ids), [side, side])
    found = data.fetch(torch.tensor([0]))["semseg"][0]
    assert torch.equal(found, by_torch.long())
    assert torch.equal(found, by_torchvision.as_subclass(Tensor).long())


@pytest.mark.parametrize(
    "domains", [("semseg", "rgb"), ["depth"], ("depth", "semseg", "rgb")], ids=str
)
def test_a_batch_has_the_domains_asked_for_in_that_order(domains):
    batch = source(domains=domains).fetch(torch.arange(3))
    assert list(batch.keys()) == list(domains)


def test_the_standardisation_can_be_another():
    data = source(domains=["rgb"], mean=(0.0, 0.5, 1.0), deviation=(1.0, 0.5, 0.25))
    pixels = Scenes.scene(0)["rgb"] / 255
    by_hand = torch.stack([pixels[0], (pixels[1] - 0.5) / 0.5, (pixels[2] - 1) / 0.25])
    torch.testing.assert_close(data.fetch(torch.tensor([0]))["rgb"][0], by_hand)


def test_labels_of_any_integer_type_are_the_same_batch():
    expected = source(domains=["semseg"]).fetch(torch.tensor([4, 0]))["semseg"]
    for dtype in (torch.int16, torch.int32, torch.int64, torch.uint16):
        reader = Scenes()
        for scene in reader.scenes:
            scene["semseg"] = scene["semseg"].to(dtype)
        found = source(reader, domains=["semseg"]).fetch(torch.tensor([4, 0]))["semseg"]
        assert torch.equal(found, expected)


# --- what an example's view depends on


def test_a_view_does_not_depend_on_the_rest_of_the_batch():
    data, index = source(Labelled()), torch.arange(7)
    keys = keys_of(index)
    together, reverse = data.fetch_augmented(index, keys), index.flip(0)
    turned = data.fetch_augmented(reverse, keys[reverse])
    for i in index.tolist():
        alone = data.fetch_augmented(index[i : i + 1], keys[i : i + 1])
        assert (alone[0] == together[i]).all()
        assert (turned[6 - i] == together[i]).all()


def test_the_key_decides_the_view():
    data, index = source(), torch.tensor([4, 4, 4])
    batch = data.fetch_augmented(index, torch.tensor([-1, 2**62, -1]))
    assert (batch[0] == batch[2]).all()
    assert not torch.equal(batch["depth"][0], batch["depth"][1])


def test_a_square_scene_is_augmented_too():
    data, index = source(), torch.zeros(8, dtype=torch.int64)
    batch = data.fetch_augmented(index, keys_of(torch.arange(8)))
    assert len({tuple(depth.flatten().tolist()) for depth in batch["depth"]}) == 8


def test_threads_and_generators_change_nothing():
    data, index = source(), torch.arange(7)
    keys = keys_of(index)
    state, python_state = torch.get_rng_state(), random.getstate()
    expected = data.fetch_augmented(index, keys)
    with ThreadPoolExecutor(4) as pool:
        batches = list(pool.map(lambda _: data.fetch_augmented(index, keys), range(12)))
    assert all((batch == expected).all() for batch in batches)
    assert torch.equal(torch.get_rng_state(), state)
    assert random.getstate() == python_state


def test_readers_are_not_written_to():
    reader = Scenes()
    data, index = source(reader), torch.arange(7)
    for _ in range(2):
        data.fetch(index)
        data.fetch_augmented(index, keys_of(index))
    for i, scene in enumerate(reader.scenes):
        assert all(torch.equal(value, Scenes.scene(i)[name]) for name, value in scene.items())


def test_it_streams():
    stream = Stream(source(Labelled()), range(7), 3, loading=Loading(workers=2))
    batches = list(stream)
    # The one left over of 7 goes with the batch before it.
    assert [batch["index"].tolist() for batch in batches] == [[0, 1, 2], [3, 4, 5, 6]]
    assert (batches[1].exclude("index") == source(Labelled()).fetch(torch.arange(3, 7))).all()


# --- mistakes


@pytest.mark.parametrize(("bad", "shown"), [(133, 133), (255, 255), (-1, -1)])
def test_an_id_that_is_no_class_is_named_with_its_scene(bad, shown):
    ids = torch.zeros(24, 30, dtype=torch.int16)
    ids[0, 0] = bad  # outside the fixed view, and of most crops: the scene is wrong all the same
    data = source(Scenes(semseg=ids))
    message = rf"scene number 4: semseg holds the id {shown}; expected 0 to 132 \(num_semseg_class"
    with pytest.raises(ValueError, match=message):
        data.fetch(torch.tensor([4]))
    with pytest.raises(ValueError, match=message):
        data.fetch_augmented(torch.tensor([4]), torch.tensor([1]))
    with pytest.raises(ExampleError, match=rf"example 4 \(scene number 4\).*id {shown}"):
        fetch_batch(data, torch.arange(7))


def test_more_classes_allow_more_ids():
    ids = torch.full((24, 30), 133)
    data = source(Scenes(semseg=ids), num_semseg_classes=134)
    assert data.fetch(torch.tensor([4]))["semseg"].unique().tolist() == [133]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rgb": torch.zeros(3, 24, 30)}, r"rgb is \[3, 24, 30\] torch.float32; expected \[3, H"),
        ({"rgb": torch.zeros(1, 24, 30, dtype=torch.uint8)}, r"rgb is \[1, 24, 30\]"),
        ({"depth": torch.zeros(24, 30)}, r"depth is \[24, 30\] torch.float32; expected \[1, H, W"),
        ({"semseg": torch.zeros(24, 30)}, r"semseg is .* torch.float32; expected .* of integers"),
        ({"semseg": torch.zeros(1, 24, 30, dtype=int)}, r"semseg is \[1, 24, 30\]"),
        ({"semseg": torch.zeros(0, 30, dtype=int)}, r"semseg is \[0, 30\]"),
    ],
)
def test_a_scene_that_is_not_raw_is_named(changes, message):
    with pytest.raises(ValueError, match=rf"scene number 4: {message}"):
        source(Scenes(**changes)).fetch(torch.tensor([4]))


def test_sizes_that_differ_are_named_with_the_example():
    data = source(Scenes(depth=torch.zeros(1, 24, 31)))
    with pytest.raises(ExampleError, match=r"example 4 .*rgb \(24, 30\), depth \(24, 31\)"):
        fetch_batch(data, torch.arange(7))


def test_a_domain_that_the_reader_leaves_out_is_named():
    reader = Scenes()
    del reader.scenes[2]["depth"]
    with pytest.raises(ValueError, match="scene number 2: expected rgb, depth, semseg; found no d"):
        source(reader).fetch(torch.arange(3))


def test_a_domain_that_the_reader_does_not_read_is_refused_at_once():
    reader = Scenes()
    reader.domains = ("rgb",)  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match=r"domains are \['rgb', 'depth'\], but Scenes reads \['rg"):
        source(reader, domains=["rgb", "depth"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"domains": {"rgb", "depth"}}, "must be a list or tuple, for its order; got set"),
        ({"domains": "rgb"}, "must be a list or tuple, for its order; got str 'rgb'"),
        ({"domains": []}, r"one or more of rgb, depth, semseg, each once; got \[\]"),
        ({"domains": ["rgb", "rgb"]}, r"each once; got \['rgb', 'rgb'\]"),
        ({"domains": ["rgb", "dpeth"]}, r"one or more of rgb, depth, semseg.*'dpeth'"),
        ({"semseg_stride": 3}, "size 16 must be a multiple of semseg_stride 3"),
        ({"semseg_stride": 0}, "size 16 must be a multiple of semseg_stride 0"),
        ({"num_semseg_classes": 0}, "num_semseg_classes is at least 1; got 0"),
    ],
)
def test_options_that_make_no_source(options, message):
    with pytest.raises(ValueError, match=message):
        source(**options)


def test_keys_that_are_not_one_for_each_example():
    with pytest.raises(ValueError, match=r"one for each index: expected \[3\], got \[2\]"):
        source().fetch_augmented(torch.arange(3), torch.arange(2))


@pytest.mark.parametrize(
    ("labels", "found"),
    [(torch.zeros(6, dtype=int), r"\[6\] torch.int64"), (torch.zeros(7), r"\[7\] torch.float32")],
)
def test_labels_that_are_not_one_for_each_scene(labels, found):
    reader = Scenes()
    reader.labels = labels  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match=rf"Scenes.labels are {found}; expected \[7\] int64"):
        source(reader)
