"""Shapes: B examples, H x W a scene's own size, S the view's side, s the stride of semseg."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as V
from torchvision.tv_tensors import Image, Mask

from attent.pipeline import ExampleError, example_keys, fold
from attent.pipeline.source import fetch_batch
from attent.pipeline.stream import Loading, Stream
from attent.tasks.data.dense import CHANNELS, Dense
from attent.tasks.data.dense_view import DenseView, DepthView, Jitter, SegmentView
from attent.tasks.data.pixels import DEVIATION, MEAN
from attent.tasks.data.scenes.layout import SEMANTIC_CLASSES, SKY
from attent.tasks.data.scenes.source import Scenes as Rendered

SEGMENT = {"inputs": ("rgb", "depth"), "target": "semseg", "num_classes": 150}
DEPTH = {"inputs": ["rgb", "semseg"], "target": "depth"}


class Scenes:
    """Noise in memory; every third scene is 16 x 16, the others are larger and not square."""

    def __init__(self, num: int = 7, **changes) -> None:
        self.scenes = [self.scene(i) | (changes if i == 4 else {}) for i in range(num)]

    @staticmethod
    def scene(seed: int) -> dict[str, Tensor]:
        draw = torch.Generator().manual_seed(seed)
        height, width = (16, 16) if seed % 3 == 0 else (20 + seed, 30)
        return {
            "normal": torch.rand(3, height, width, generator=draw),
            "semseg": torch.randint(133, (height, width), generator=draw, dtype=torch.uint8),
            # Channels last in memory, as files are decoded.
            "rgb": torch.randint(
                256, (height, width, 3), generator=draw, dtype=torch.uint8
            ).permute(2, 0, 1),
            "depth": 10 * torch.rand(1, height, width, generator=draw),
            "mask_valid": torch.rand(height, width, generator=draw) > 0.3,
            "pseudo_depth": torch.rand(1, height, width, generator=draw),
            "pseudo_semseg": torch.randint(133, (height, width), generator=draw),
        }

    def __len__(self) -> int:
        return len(self.scenes)

    def locate(self, index: int) -> str:
        return f"scene number {index}"

    def read(self, index: int) -> dict[str, Tensor]:
        return self.scenes[index]


def source(reader=None, view=None, **options) -> Dense:
    return Dense(reader or Scenes(), view or SegmentView(size=16), **options)


def keys_of(index: Tensor) -> Tensor:
    return example_keys(fold(5, "views", 2), index)


def square(**options) -> dict[str, Tensor]:
    """The fixed view of the scene of 16 x 16 pixels."""
    return source(**options).fetch(torch.tensor([3]))[0]


# --- what is in a batch


@pytest.mark.parametrize("augmented", [False, True])
@pytest.mark.parametrize(
    ("options", "names"),
    [
        (SEGMENT, ["rgb", "depth", "depth_valid", "target"]),
        (DEPTH, ["rgb", "semseg", "target", "valid"]),
        (SEGMENT | {"inputs": ["depth"]}, ["depth", "depth_valid", "target"]),
        (
            {"inputs": ["semseg", "depth", "rgb"], "target": "normal"},
            ["semseg", "depth", "depth_valid", "rgb", "target", "valid"],
        ),
    ],
)
def test_a_batch_is_what_it_is_said_to_be(augmented, options, names):
    data, index = source(**options), torch.tensor([4, 0, 2])
    batch = data.fetch_augmented(index, keys_of(index)) if augmented else data.fetch(index)
    assert list(batch.keys()) == names
    assert batch.batch_size == (3,)
    target = {
        "semseg": ([3, 16, 16], torch.int64),
        "depth": ([3, 1, 16, 16], torch.float32),
        "normal": ([3, 3, 16, 16], torch.float32),
    }
    expected = {
        "rgb": ([3, 3, 16, 16], torch.float32),
        "depth": ([3, 1, 16, 16], torch.float32),
        "depth_valid": ([3, 1, 16, 16], torch.bool),
        "semseg": ([3, 4, 4], torch.int64),
        "target": target[options["target"]],
        "valid": ([3, 1, 16, 16], torch.bool),
    }
    found = {name: (list(value.shape), value.dtype) for name, value in batch.items()}
    assert found == {name: expected[name] for name in names}
    assert all(type(value) is Tensor and value.is_contiguous() for value in batch.values())


def test_the_fixed_view_of_a_square_scene_is_its_pixels():
    scene, batch = Scenes.scene(3), square(**SEGMENT)
    expected = V.normalize(scene["rgb"].float() / 255, list(MEAN), list(DEVIATION))
    torch.testing.assert_close(batch["rgb"], expected)
    assert torch.equal(batch["depth"], scene["depth"])
    assert torch.equal(batch["depth_valid"][0], scene["mask_valid"])
    assert torch.equal(batch["target"], scene["semseg"].long())
    batch = square(**DEPTH)
    assert torch.equal(batch["semseg"], scene["semseg"][::4, ::4].long())
    assert torch.equal(batch["target"], scene["depth"])
    assert torch.equal(batch["valid"][0], scene["mask_valid"])
    assert torch.equal(square(inputs=["rgb"], target="normal")["target"], scene["normal"])


@pytest.mark.parametrize("view", [SegmentView(size=16), DepthView(size=16), DenseView(size=16)])
@pytest.mark.parametrize("key", [None, -5, 2**61])
def test_other_scenes_go_through_the_view(view, key):
    data, index = source(view=view, **SEGMENT), torch.tensor([4])
    batch = data.fetch(index) if key is None else data.fetch_augmented(index, torch.tensor([key]))
    scene = Scenes.scene(4)
    viewed = view(
        {
            "rgb": Image(scene["rgb"]),
            "depth": Mask(scene["depth"]),
            "depth_valid": Mask(scene["mask_valid"]),
            "semseg": Mask(scene["semseg"]),
        },
        key,
    )
    plain = {name: value.as_subclass(Tensor) for name, value in viewed.items()}
    torch.testing.assert_close(
        batch["rgb"][0], V.normalize(plain["rgb"].float() / 255, list(MEAN), list(DEVIATION))
    )
    assert torch.equal(batch["depth"][0], plain["depth"])
    assert torch.equal(batch["depth_valid"][0, 0], plain["depth_valid"])
    assert torch.equal(batch["target"][0], plain["semseg"].long())


def test_what_padding_adds_is_of_no_class_and_not_valid():
    # Scene 4 is 24 x 30, the view of 20 has 16 rows of it.
    view = SegmentView(size=20)
    options = {"inputs": ["depth", "semseg"], "pseudo": ["semseg"], "num_semseg_classes": 140}
    batch = source(view=view, target="semseg", num_classes=133, **options).fetch(torch.tensor([4]))
    assert (batch["target"][0, 16:] == 255).all()
    assert (batch["target"][0, :16] < 133).all()
    assert (batch["semseg"][0, 4:] == 140).all()
    assert (batch["semseg"][0, :4] < 133).all()
    assert not batch["depth_valid"][0, 0, 16:].any()
    assert not batch["depth"][0, 0, 16:].any()
    assert batch["depth_valid"].any()
    batch = source(view=view, **DEPTH).fetch(torch.tensor([4]))
    assert not batch["valid"][0, 0, 16:].any()


def test_rgb_of_padding_is_grey():
    batch = source(view=SegmentView(size=20), **SEGMENT).fetch(torch.tensor([4]))
    grey = [(128 / 255 - m) / d for m, d in zip(MEAN, DEVIATION, strict=True)]
    assert batch["rgb"][0, :, 16:].flatten(1).unique(dim=1).flatten().tolist() == pytest.approx(
        grey
    )


def test_inputs_and_target_stay_together():
    class Coordinates(Scenes):
        @staticmethod
        def scene(seed: int) -> dict[str, Tensor]:
            row, column = torch.meshgrid(torch.arange(30), torch.arange(40), indexing="ij")
            return {
                "rgb": (6 * torch.stack([row, column, column])).to(torch.uint8),
                "depth": row[None].float(),
                "semseg": column.to(torch.uint8),
                "mask_valid": column % 3 == 0,
            }

    view = SegmentView(size=32, jitter=Jitter(probability=0))
    data = source(
        Coordinates(), view, **SEGMENT, mean=(0.0, 0.0, 0.0), deviation=(1 / 255,) * 3
    )  # rgb in bytes
    batch = data.fetch_augmented(torch.arange(7), keys_of(torch.arange(7)))
    seen = batch["target"] != 255
    assert torch.equal(batch["depth_valid"][:, 0], seen & (batch["target"] % 3 == 0))
    # At most 40 / 3.2 pixels of the scene become one: half of them away, and levels are rounded.
    assert float((batch["rgb"][:, 0] / 6 - batch["depth"][:, 0])[seen].abs().max()) < 7
    assert float((batch["rgb"][:, 1] / 6 - batch["target"])[seen].abs().max()) < 7


# --- what counts


def test_a_scene_without_a_mask_is_valid_all_over():
    reader = Scenes()
    for scene in reader.scenes:
        del scene["mask_valid"]
    batch = source(reader, inputs=["rgb", "depth"], target="normal").fetch(torch.tensor([0, 3]))
    assert batch["valid"].all()
    assert batch["depth_valid"].all()


def test_far_depth_does_not_count():
    scene = Scenes.scene(3)
    near = scene["depth"][0] <= 4
    for options, name in ((DEPTH, "valid"), (SEGMENT, "depth_valid")):
        batch = square(max_depth=4, **options)
        assert torch.equal(batch[name][0], scene["mask_valid"] & near)
    # ... but what is not depth does.
    batch = square(max_depth=4, inputs=["depth"], target="normal")
    assert torch.equal(batch["valid"][0], scene["mask_valid"])
    assert torch.equal(batch["depth_valid"][0], scene["mask_valid"] & near)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_numbers_that_are_none_do_not_count_and_are_zero(bad):
    reader = Scenes()
    reader.scenes[3]["depth"][0, 2, 5] = bad
    reader.scenes[3]["normal"][1, 2, 5] = bad
    reader.scenes[3]["mask_valid"][:] = True
    batch = source(reader, inputs=["rgb", "depth"], target="normal").fetch(torch.tensor([3]))
    for value, name in ((batch["depth"], "depth_valid"), (batch["target"][:, 1:2], "valid")):
        assert batch[name].logical_not().nonzero().tolist() == [[0, 0, 2, 5]]
        assert float(value[0, 0, 2, 5]) == 0
        assert value.isfinite().all()
    assert not reader.scenes[3]["depth"][0, 2, 5].isfinite()  # the reader's own is left alone


def test_predicted_inputs_are_taken_for_those_of_the_scene():
    scene = Scenes.scene(3)
    batch = square(
        inputs=["depth", "semseg"], pseudo=["depth", "semseg"], target="semseg", num_classes=133
    )
    assert torch.equal(batch["depth"], scene["pseudo_depth"])
    assert batch["depth_valid"].all()  # a network misses no pixel, as a sensor does
    assert torch.equal(batch["semseg"], scene["pseudo_semseg"][::4, ::4])
    assert torch.equal(batch["target"], scene["semseg"].long())


# --- labels


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64])
@pytest.mark.parametrize(
    ("reduce", "expected"),
    [(False, [0, 1, 149, 255, 150]), (True, [255, 0, 148, 255, 149])],
)
def test_labels_are_counted_from_zero_and_255_is_ignored(reduce, expected, dtype):
    ids = torch.tensor([0, 1, 149, 255, 150]).to(dtype).repeat(16, 4)[:, :16]
    reader = Scenes()
    reader.scenes[3]["semseg"] = ids
    options = {"num_classes": 150 if reduce else 151, "reduce_zero_label": reduce}
    batch = source(reader, inputs=["rgb"], target="semseg", **options).fetch(torch.tensor([3]))
    assert batch["target"][0, 0].tolist() == (expected * 4)[:16]


@pytest.mark.parametrize(
    ("bad", "reduce", "said"),
    [
        (150, False, r"0 to 149 or 255 for no class \(num_classes is 150\)"),
        (151, True, r"0 to 150 or 255 for no class \(num_classes is 150, reduce_zero_label\)"),
        (-1, False, "0 to 149 or 255"),
        (256, True, "0 to 150 or 255"),
    ],
)
def test_an_id_that_is_no_class_is_named_with_its_scene(bad, reduce, said):
    ids = torch.zeros(24, 30, dtype=torch.int16)
    ids[0, 29] = bad  # outside of most crops: the scene is wrong all the same
    data = source(Scenes(semseg=ids), reduce_zero_label=reduce, **SEGMENT)
    message = f"scene number 4: semseg holds the id {bad}; expected {said}"
    with pytest.raises(ValueError, match=message):
        data.fetch(torch.tensor([4]))
    with pytest.raises(ValueError, match=message):
        data.fetch_augmented(torch.tensor([4]), torch.tensor([1]))
    with pytest.raises(ExampleError, match=r"example 4 \(scene number 4\).*holds the id"):
        fetch_batch(data, torch.arange(7))


def test_the_ids_of_an_input_are_checked_by_their_own_number_and_not_shifted():
    ids = torch.zeros(24, 30, dtype=torch.uint8)
    ids[:, 20:], ids[0, 0] = 255, 132
    options = {"inputs": ["semseg"], "pseudo": ["semseg"], "target": "semseg", "num_classes": 150}
    data = source(Scenes(pseudo_semseg=ids), DenseView(size=16), reduce_zero_label=True, **options)
    found = data.fetch(torch.tensor([4]))["semseg"]
    # Columns 0, 4, 8 and 12 of 16 are 0, 7, 15 and 22 of 30.
    assert found[0, 1].tolist() == [0, 0, 0, 133]
    assert found[0, 0].tolist() == [132, 0, 0, 133]
    ids[0, 0] = 133
    with pytest.raises(
        ValueError, match=r"4: pseudo_semseg holds the id 133; expected 0 to 132 or .*num_semseg_"
    ):
        data.fetch(torch.tensor([4]))


# --- what an example's view depends on


@pytest.mark.parametrize("options", [SEGMENT, DEPTH], ids=["segment", "depth"])
def test_a_view_does_not_depend_on_the_rest_of_the_batch(options):
    view = SegmentView(size=16) if options is SEGMENT else DepthView(size=16)
    data, index = source(view=view, **options), torch.arange(7)
    keys = keys_of(index)
    together, reverse = data.fetch_augmented(index, keys), index.flip(0)
    turned = data.fetch_augmented(reverse, keys[reverse])
    for i in index.tolist():
        alone = data.fetch_augmented(index[i : i + 1], keys[i : i + 1])
        assert (alone[0] == together[i]).all()
        assert (turned[6 - i] == together[i]).all()


def test_the_key_decides_the_view():
    data, index = source(**SEGMENT), torch.tensor([4, 4, 4])
    batch = data.fetch_augmented(index, torch.tensor([-1, 2**62, -1]))
    assert (batch[0] == batch[2]).all()
    assert not torch.equal(batch["target"][0], batch["target"][1])
    assert not (batch[0] == data.fetch(index)[0]).all()


def test_threads_and_generators_change_nothing():
    data, index = source(**SEGMENT), torch.arange(7)
    keys, state = keys_of(index), torch.get_rng_state()
    expected = data.fetch_augmented(index, keys)
    with ThreadPoolExecutor(4) as pool:
        batches = list(pool.map(lambda _: data.fetch_augmented(index, keys), range(12)))
    assert all((batch == expected).all() for batch in batches)
    assert torch.equal(torch.get_rng_state(), state)


def test_readers_are_not_written_to():
    reader = Scenes()
    for options in (SEGMENT | {"reduce_zero_label": True}, DEPTH | {"max_depth": 3}):
        data, index = source(reader, **options), torch.arange(7)
        data.fetch(index)
        data.fetch_augmented(index, keys_of(index))
    for i, scene in enumerate(reader.scenes):
        assert all(torch.equal(value, Scenes.scene(i)[name]) for name, value in scene.items())


def test_it_streams():
    stream = Stream(source(**SEGMENT), range(7), 3, loading=Loading(workers=2))
    batches = list(stream)
    assert [batch["index"].tolist() for batch in batches] == [[0, 1, 2], [3, 4, 5, 6]]
    assert (batches[1].exclude("index") == source(**SEGMENT).fetch(torch.arange(3, 7))).all()


# --- rendered scenes


def test_rendered_scenes_can_be_segmented():
    reader = Rendered(6, size=32)
    data = Dense(
        reader,
        SegmentView(size=32),
        inputs=["rgb", "depth"],
        target="semseg",
        num_classes=len(SEMANTIC_CLASSES),
    )
    index = torch.arange(6)
    batch, scenes = data.fetch(index), reader.fetch(index)
    assert torch.equal(batch["target"], scenes["semseg"].long())
    assert torch.equal(batch["depth"], scenes["depth"])
    assert batch["depth_valid"].all()
    augmented = data.fetch_augmented(index, keys_of(index))
    assert set(augmented["target"].unique().tolist()) <= {*range(len(SEMANTIC_CLASSES)), 255}


def test_the_sky_of_rendered_scenes_can_be_left_out():
    reader = Rendered(6, size=32)
    options = {"inputs": ["rgb"], "target": "depth"}
    index = torch.arange(6)
    sky = reader.fetch(index)["semseg"] == SKY
    assert sky.any()
    everything = Dense(reader, DepthView(size=32), **options).fetch(index)
    assert everything["valid"].all()
    batch = Dense(reader, DepthView(size=32), max_depth=39, **options).fetch(index)
    assert not batch["valid"][:, 0][sky].any()
    assert float(batch["target"][batch["valid"]].max()) <= 39
    assert float(batch["valid"].float().mean()) > 0.5


# --- mistakes


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rgb": torch.zeros(3, 24, 30)}, r"rgb is \[3, 24, 30\] torch.float32; expected \[3, H"),
        ({"depth": torch.zeros(24, 30)}, r"depth is \[24, 30\] .*; expected \[1, H, W\] float32"),
        ({"depth": torch.zeros(3, 24, 30)}, r"depth is \[3, 24, 30\]"),
        ({"semseg": torch.zeros(24, 30)}, r"semseg is .* torch.float32; expected .* of integers"),
        ({"semseg": torch.zeros(0, 30, dtype=int)}, r"semseg is \[0, 30\]"),
        ({"mask_valid": torch.ones(24, 30)}, r"mask_valid is .*; expected \[H, W\] bool"),
        (
            {"mask_valid": torch.ones(24, 1, dtype=torch.bool)},
            r"mask_valid is \[24, 1\] on a scene of \[24, 30\]",
        ),
    ],
)
def test_a_scene_that_is_not_raw_is_named(changes, message):
    with pytest.raises(ValueError, match=rf"scene number 4: {message}"):
        source(Scenes(**changes), **SEGMENT).fetch(torch.tensor([4]))


def test_a_measurement_of_too_few_channels_is_named():
    data = source(Scenes(normal=torch.zeros(1, 24, 30)), inputs=["rgb"], target="normal")
    with pytest.raises(ValueError, match=r"normal is \[1, 24, 30\] .*expected \[3, H, W\] float32"):
        data.fetch(torch.tensor([4]))


def test_sizes_that_differ_are_named_with_the_example():
    data = source(Scenes(semseg=torch.zeros(24, 31, dtype=int)), **SEGMENT)
    with pytest.raises(ExampleError, match=r"example 4 .*rgb \(24, 30\), .*semseg \(24, 31\)"):
        fetch_batch(data, torch.arange(7))


def test_a_domain_that_the_reader_leaves_out_is_named():
    reader = Scenes()
    del reader.scenes[2]["depth"]
    with pytest.raises(ValueError, match="scene number 2: expected rgb, depth, semseg; found no d"):
        source(reader, **SEGMENT).fetch(torch.arange(3))


def test_a_domain_that_the_reader_does_not_read_is_refused_at_once():
    reader = Scenes()
    reader.domains = ("rgb", "semseg")  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="need rgb, depth, semseg, but Scenes reads rgb, semseg"):
        source(reader, **SEGMENT)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"inputs": {"rgb", "depth"}}, "must be a list or tuple, for its order; got set"),
        ({"inputs": []}, r"one or more of rgb, depth, semseg, each once; got \[\]"),
        ({"inputs": ["rgb", "normal"]}, r"one or more of rgb, depth, semseg.*'normal'"),
        ({"target": "labels"}, "target is one of semseg, depth, depth_zbuffer, .*; got 'labels'"),
        ({"inputs": ["rgb", "semseg"]}, r"input semseg is what is to be predicted.*pseudo_semseg"),
        (
            {"inputs": ["depth"], "target": "depth_zbuffer", "num_classes": None},
            r"input depth is what is to be predicted \(target depth_zbuffer\)",
        ),
        ({"pseudo": ["semseg"]}, r"pseudo is a list of inputs other than rgb; got \['semseg'\]"),
        ({"pseudo": ["rgb"]}, "pseudo is a list of inputs other than rgb"),
        ({"pseudo": "depth"}, "pseudo is a list of inputs other than rgb; got 'depth'"),
        ({"num_classes": None}, "num_classes of target semseg is 1 to 255; got None"),
        ({"num_classes": 0}, "is 1 to 255; got 0"),
        ({"num_classes": 256}, "is 1 to 255; got 256"),
        ({"num_classes": 255, "reduce_zero_label": True}, "is 1 to 254; got 255"),
        ({"target": "normal"}, "num_classes and reduce_zero_label are of target semseg, not norm"),
        (
            {"target": "normal", "num_classes": None, "reduce_zero_label": True},
            "are of target semseg, not normal",
        ),
        ({"num_semseg_classes": 256}, "num_semseg_classes is 1 to 255; got 256"),
        (
            {"inputs": ["semseg"], "pseudo": ["semseg"], "semseg_stride": 3},
            "size 16 must be a multiple of semseg_stride 3",
        ),
        ({"max_depth": 0}, "max_depth is above 0, and of a depth among inputs.*; got 0 for"),
        ({"max_depth": 3, "pseudo": ["depth"]}, "got 3 for inputs .* and target semseg"),
        ({"max_depth": 3, "inputs": ["rgb"]}, r"got 3 for inputs \['rgb'\] and target semseg"),
    ],
)
def test_options_that_make_no_source(options, message):
    with pytest.raises(ValueError, match=message):
        source(**(SEGMENT | options))


def test_a_prediction_has_as_many_numbers_as_classes_or_channels():
    assert source(**SEGMENT).num_outputs == 150
    for target, channels in CHANNELS.items():
        assert source(inputs=["rgb"], target=target).num_outputs == channels


def test_keys_that_are_not_one_for_each_example():
    with pytest.raises(ValueError, match=r"one for each index: expected \[3\], got \[2\]"):
        source(**SEGMENT).fetch_augmented(torch.arange(3), torch.arange(2))
