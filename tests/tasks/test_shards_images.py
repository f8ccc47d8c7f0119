"""Pictures in tar shards: labels, scenes of several modalities, and the commands on them."""

from __future__ import annotations

import json
import os
import pickle

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from attent.pipeline.order import blockwise_order
from attent.pipeline.source import ExampleError, blocks_of, fetch_batch, watched
from attent.pipeline.stream import Stream
from attent.tasks.classification.build import load_data, load_held_out
from attent.tasks.classification.config import ClassifyConfig
from attent.tasks.config import ConfigError
from attent.tasks.data import decode
from attent.tasks.data.images import Augmentation, Images
from attent.tasks.data.joint import JointView
from attent.tasks.data.multimodal import Multimodal
from attent.tasks.data.paired_folder import PairedFolder
from attent.tasks.data.shards import TarImages, TarScenes
from tests.tasks.shards import gray, labelled, offsets, pack, picture, pixels


@pytest.fixture
def shards(tmp_path):
    """Two shards of four and six pictures."""
    pack(tmp_path / "t-0.tar", labelled(range(4)))
    pack(tmp_path / "t-1.tar", labelled(range(4, 10)))
    return tmp_path


# --- labelled images


@pytest.mark.parametrize("ending", ["png", "webp", "jpg", "JPEG"])
def test_pictures_and_labels_are_those_that_were_packed(tmp_path, ending):
    kind = "JPEG" if ending in ("jpg", "JPEG") else ending.upper()
    rows = [(f"{i}.{ending}", picture(i, (20 + i, 30), kind)) for i in range(4)]
    pack(
        tmp_path / "a.tar", [m for i, r in enumerate(rows) for m in (r, (f"{i}.cls", b"%d\n" % i))]
    )
    reader = TarImages(tmp_path)
    assert reader.labels.tolist() == [0, 1, 2, 3]
    assert reader.labels.dtype == torch.int64
    assert reader.classes is None
    for i, (_, data) in enumerate(rows):
        assert np.array_equal(reader.read(i)["rgb"].numpy(), pixels(data))


def test_labels_are_numbers_or_names_of_cls_or_json(tmp_path):
    def of(*labels, classes=None, text="cls"):
        folder = tmp_path / f"{len(list(tmp_path.iterdir()))}"
        for s, part in enumerate((labels[:2], labels[2:])):
            members = [(f"{i}.{e}", d) for i, label in enumerate(part)
                       for e, d in (("jpg", b""), (text, label.encode()))]  # fmt: skip
            pack(folder / f"{s}.tar", members)
        reader = TarImages(folder, classes=classes)
        return reader.labels.tolist(), reader.classes

    assert of("2", "0", "10") == ([2, 0, 10], None)
    assert of("cat", "ant", "cat") == ([1, 0, 1], ["ant", "cat"])
    assert of("cat", "ant", "cat", classes=["cat", "bee", "ant"])[0] == [0, 2, 0]
    assert of("2", "0", "1", classes=["a", "b", "c"]) == ([2, 0, 1], ["a", "b", "c"])
    assert of("7", "8", "7", classes=["8", "7"])[0] == [1, 0, 1]  # names that look like numbers
    fields = [json.dumps(f) for f in ({"label": 4}, {"cls": 5, "note": "x"}, {"label": 3})]
    assert of(*fields, text="json") == ([4, 5, 3], None)
    assert of('{"label": "b"}', '{"cls": "a"}', text="json") == ([1, 0], ["a", "b"])


@pytest.mark.parametrize(
    ("ending", "label", "message"),
    [
        ("cls", b"", r"1\.cls at byte 2560 is empty"),
        ("cls", b"\xff", r"1\.cls at byte 2560 is no label"),
        ("cls", b"-1", r"1\.cls at byte 2560 has the label '-1'; expected class numbers from 0"),
        ("cls", b"cat", r"1\.cls at byte 2560 has the label 'cat'; expected .*\(ant, bee\)"),
        ("cls", b"2", r"1\.cls at byte 2560 has the label '2'; expected one of 2 .*or 0 to 1"),
        ("json", b"{", r"1\.json at byte 2560 is not JSON"),
        ("json", b'{"a": 1}', r"1\.json at byte 2560 has no label: expected .* found a"),
        ("json", b'{"label": true}', r"1\.json at byte 2560 has no label"),
        ("json", b"[]", r"1\.json at byte 2560 has no label: .* found no fields"),
        ("txt", b"0", r"have 0 labels .* of 2 images"),
    ],
)
def test_a_label_that_is_none_is_told_with_member_and_byte(tmp_path, ending, label, message):
    """Two empty pictures: headers at 0 and 1536, labels' headers at 512 and 2048."""
    good = b'{"label": 0}' if ending == "json" else b"0"
    files = [("0.jpg", b""), (f"0.{ending}", good), ("1.jpg", b""), (f"1.{ending}", label)]
    pack(tmp_path / "a.tar", files)
    classes = ["ant", "bee"] if label in (b"cat", b"2") else None
    with pytest.raises(ValueError, match=message):
        TarImages(tmp_path, classes=classes)


def test_only_some_labels_are_refused(tmp_path):
    pack(tmp_path / "a.tar", [("0.jpg", b""), ("0.cls", b"0"), ("1.jpg", b"")])
    with pytest.raises(ValueError, match=r"a\.tar and its like have 1 labels .* of 2 images"):
        TarImages(tmp_path)


def test_labels_are_read_once(shards):
    """The second reader finds them beside the shards, in whose place there may be anything."""
    expected = TarImages(shards).labels
    for path in shards.glob("*.tar"):
        about = path.stat()
        path.write_bytes(bytes(about.st_size))
        os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns))
    assert torch.equal(TarImages(shards).labels, expected)


def test_a_picture_that_does_not_decode_is_told_with_member_and_byte(tmp_path):
    whole = picture(0, (40, 40), "JPEG")
    bad = {"cut": whole[: len(whole) // 2], "not": b"not a picture", "no": b""}
    pack(
        tmp_path / "a.tar",
        [m for k, d in bad.items() for m in ((f"{k}.jpg", d), (f"{k}.cls", b"0"))],
    )
    source, where = Images(TarImages(tmp_path), size=8), offsets(tmp_path / "a.tar")
    for i, key in enumerate(bad):
        place = rf"a\.tar member {key}\.jpg at byte {where[f'{key}.jpg'][0]}"
        with pytest.raises(ExampleError, match=rf"example {i} \(.*{place}\).*{place} cannot be re"):
            fetch_batch(source, torch.tensor([i]))


# --- as a source


def test_what_is_masked_out_is_not_decoded(shards, monkeypatch):
    """Each selected picture is decoded once and no other, as they are and augmented."""
    decoded = []
    rgb = decode.rgb
    monkeypatch.setattr(
        decode, "rgb", lambda file, **o: decoded.append(file.place()) or rgb(file, **o)
    )
    reader = TarImages(shards)
    mask = torch.zeros(len(reader), dtype=torch.bool)
    mask[[1, 5, 8]] = True
    for augmentation in (None, Augmentation(scale=0.5)):
        source = Images(reader, size=8, augmentation=augmentation)
        decoded.clear()
        order = blockwise_order(mask, 3, reader.blocks)
        keys = None if augmentation is None else lambda index: index
        batches = list(Stream(source, order, batch_size=2, keys=keys))
        assert sorted(torch.cat([batch["index"] for batch in batches]).tolist()) == [1, 5, 8]
        assert sorted(decoded) == sorted(reader.locate(i) for i in (1, 5, 8))


def test_a_source_says_where_its_blocks_are_and_what_it_reads(shards):
    source, told = Images(TarImages(shards), size=8), []
    blocks = blocks_of(source)
    assert blocks is not None
    assert blocks.tolist() == [0, 4, 10]
    watched(told.append)
    try:
        source.fetch(torch.tensor([7, 2]))
        source.fetch_augmented(torch.tensor([3]), torch.tensor([0]))
    finally:
        watched(None)
    assert told == [7, 2, 3]
    assert source.fetch(torch.tensor([9, 0]))["label"].tolist() == [0, 0]


class Items(torch.utils.data.Dataset):
    """Pictures one by one, for workers that are other processes."""

    def __init__(self, reader):
        self.reader = reader

    def __len__(self):
        return len(self.reader)

    def __getitem__(self, index):
        return self.reader.read(index)["rgb"]


def test_other_processes_read_the_same(shards):
    reader = TarImages(shards)
    expected = [reader.read(i)["rgb"] for i in range(len(reader))]
    loader = DataLoader(Items(reader), batch_size=5, num_workers=2, multiprocessing_context="fork")
    assert torch.equal(torch.cat(list(loader)), torch.stack(expected))
    sent = pickle.loads(pickle.dumps(reader))
    assert torch.equal(sent.read(7)["rgb"], expected[7])


# --- scenes


def scene(i: int, prefix: str = "") -> dict[str, bytes]:
    return {
        f"{prefix}rgb.png": picture(i, (8, 8)),
        "depth.png": gray(1000 * i + 500, deep=True),
        "semseg.png": gray(i),
        "mask_valid.png": gray(255),
    }


def test_scenes_are_as_those_of_folders(tmp_path):
    """The same files in folders and in a tar, through the same views."""
    domains = ["rgb", "depth", "semseg", "mask_valid"]
    members = []
    for i in range(3):
        for ending, data in scene(i).items():
            members.append((f"some/{i}.{ending}", data))
            path = tmp_path / "folders" / ending.partition(".")[0] / "some" / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
    pack(tmp_path / "tars" / "a.tar", members)
    found = TarScenes(tmp_path / "tars", domains=domains, depth_range=10.0)
    expected = PairedFolder(tmp_path / "folders", domains=domains, depth_range=10.0)
    assert found.labels is None
    for i in range(3):
        read, wanted = found.read(i), expected.read(i)
        assert list(read) == domains
        assert all(torch.equal(read[d], wanted[d]) for d in domains)
    view = JointView(size=4, scale=(0.3, 1), hflip=0.5)
    sources = [
        Multimodal(reader, view, domains=domains[:3], semseg_stride=2)
        for reader in (found, expected)
    ]
    index, keys = torch.arange(3), torch.tensor([5, 6, 7])
    ours, theirs = (source.fetch_augmented(index, keys) for source in sources)
    assert all(torch.equal(ours[d], theirs[d]) for d in domains[:3])
    assert sources[0].blocks is not None
    assert sources[0].blocks.tolist() == [0, 3]


def test_of_a_scene_only_the_domains_asked_for_are_read(tmp_path):
    """rgb may be named alone, and labels come with it."""
    members = []
    for i in range(2):
        members += [
            (f"{i}.jpg", picture(i)),
            (f"{i}.depth.png", b"no picture"),
            (f"{i}.cls", b"cat"),
        ]
    pack(tmp_path / "a.tar", members)
    reader = TarScenes(tmp_path, domains=["rgb"])
    assert reader.read(1)["rgb"].shape == (3, 10, 12)
    assert (reader.labels.tolist(), reader.classes) == ([0, 0], ["cat"])
    place = r"a\.tar member 1\.depth\.png at byte \d+"
    with pytest.raises(ValueError, match=place + " cannot be read: cannot identify image file$"):
        TarScenes(tmp_path, domains=["rgb", "depth"]).read(1)
    with pytest.raises(
        ValueError, match=r"2 of 2 examples have no semseg .*\(cls, depth\.png, jpg"
    ):
        TarScenes(tmp_path, domains=["semseg"])
    assert pickle.loads(pickle.dumps(reader)).locate(1) == reader.locate(1)


def test_domains_of_different_sizes_are_told(tmp_path):
    pack(tmp_path / "a.tar", [("0.rgb.png", picture(0, (8, 8))), ("0.semseg.png", gray(1, (8, 6)))])
    with pytest.raises(
        ValueError, match=r"one size .* 0\.rgb\.png at byte 512 of 8 x 8, .* of 6 x 8"
    ):
        TarScenes(tmp_path, domains=["rgb", "semseg"]).read(0)
    pack(tmp_path / "b.tar", [("0.jpg", b""), ("0.cls", b"1"), ("1.jpg", b"")])
    with pytest.raises(ValueError, match=r"have a KEY\.cls for 1 of 2 scenes"):
        TarScenes(tmp_path / "b.tar", domains=["rgb"])


# --- the commands

CLASSIFY = (
    "--model", "multivit_micro", "--patch_size", "4", "--image_size", "8", "--epochs", "1",
    "--batch_size", "4", "--device", "cpu", "--crop_scale", "0.5", "--method", "full",
)  # fmt: skip


def test_classify_trains_on_tar_shards(attent, tmp_path):
    for name, rows in (("train-000", range(9)), ("train-001", range(9, 18)), ("val-000", range(6))):
        pack(tmp_path / "data" / f"{name}.tar", labelled(rows))
    (tmp_path / "data" / "classes.txt").write_text("ant\nbee\ncat\n")
    status, out, err = attent("classify", "--data", "data", *CLASSIFY, "--output_dir", "run")
    assert status == 0, out + err
    assert (tmp_path / "run").is_dir()


def test_shards_of_classify_have_the_classes_of_training(tmp_path):
    names = ["ant", "bee", "cat"]
    for split, rows in (("train", range(6)), ("test", range(1, 3))):
        members = [(f"{i}.{e}", d) for i in rows
                   for e, d in (("png", picture(i)), ("cls", names[i % 3].encode()))]  # fmt: skip
        pack(tmp_path / split / "a.tar", members)
    config = ClassifyConfig(data=str(tmp_path), model="multivit_micro", image_size=8)
    train, val = load_data(config)
    assert isinstance(val, Images)
    assert (val.labels.tolist(), val.classes) == ([1, 2], names)
    assert load_held_out(config, train).labels.tolist() == [1, 2]  # type: ignore[attr-defined]
    pack(tmp_path / "test" / "a.tar", [("0.png", picture(0)), ("0.cls", b"dog")])
    with pytest.raises(ConfigError, match=r"^data: .*0\.cls at byte .* has the label 'dog'; expec"):
        load_data(config)
    (tmp_path / "test" / "a.tar").unlink()
    with pytest.raises(ConfigError, match=r"shards to train on and none held out; expected val-\*"):
        load_data(config)


def test_pretrain_trains_on_tar_shards(attent, tmp_path):
    """Scenes, and labelled pictures for rgb alone."""
    for split, count in (("train", 8), ("val", 4)):
        members = [(f"{i}.{e}", d) for i in range(count) for e, d in scene(i).items()]
        pack(tmp_path / "rooms" / f"{split}.tar", members)
        pack(tmp_path / "pictures" / split / "a.tar", labelled(range(count)))
    options = (
        "--model", "pretrain_multimae_micro", "--input_size", "8", "--patch_size", "4", "--epochs",
        "1", "--batch_size", "4", "--num_encoded_tokens", "2", "--decoder_dim", "32", "--device",
        "cpu", "--method", "full", "--decoder_num_heads", "2", "--decoder_depth", "1",
        "--warmup_epochs", "0",
    )  # fmt: skip
    for data, domains in (("rooms", "rgb-depth-semseg"), ("pictures", "rgb")):
        chosen = ("--in_domains", domains, "--out_domains", domains, "--output_dir", f"run-{data}")
        status, out, err = attent("pretrain", "--data", data, *options, *chosen)
        assert status == 0, out + err
