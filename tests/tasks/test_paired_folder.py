from __future__ import annotations

import os
import shutil
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from attent.pipeline import ExampleError
from attent.pipeline.source import fetch_batch
from attent.tasks.data import decode
from attent.tasks.data.joint import JointView
from attent.tasks.data.multimodal import Multimodal
from attent.tasks.data.paired_folder import PairedFolder

DOMAINS = ("rgb", "depth", "semseg")
# A palette in reverse, so that colours cannot pass for indices.
PALETTE = [level for i in range(256) for level in (255 - i, 0, i)]


def pixels(seed: int, *shape: int, high: int = 256) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, high, shape)


def photograph(seed: int, size: tuple[int, int] = (12, 10)) -> Image.Image:
    return Image.fromarray(pixels(seed, *size, 3).astype(np.uint8))


def depth_map(seed: int, size: tuple[int, int] = (12, 10)) -> Image.Image:
    return Image.fromarray(pixels(seed, *size, high=65536).astype(np.uint16))


def label_map(seed: int, size: tuple[int, int] = (12, 10), *, palette: bool = False) -> Image.Image:
    image = Image.fromarray(pixels(seed, *size, high=133).astype(np.uint8))
    if palette:
        image.putpalette(PALETTE)
    return image


def save(image: Image.Image, path: Path, **options) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options)


@pytest.fixture
def root(tmp_path) -> Path:
    """Four scenes of two classes, each in other formats; the second class is made first."""
    train = tmp_path / "train"
    save(photograph(3), train / "rgb" / "zebra" / "herd" / "b.png")
    save(depth_map(3), train / "depth" / "zebra" / "herd" / "b.TIFF", compression="tiff_lzw")
    save(label_map(3, palette=True), train / "semseg" / "zebra" / "herd" / "b.tif")
    save(photograph(2), train / "rgb" / "zebra" / "a.webp", lossless=True)
    save(depth_map(2), train / "depth" / "zebra" / "a.tif")
    save(label_map(2), train / "semseg" / "zebra" / "a.bmp")
    save(photograph(0), train / "rgb" / "ant" / "1.0.JPEG", quality=95)
    save(depth_map(0), train / "depth" / "ant" / "1.0.png")
    save(label_map(0, palette=True), train / "semseg" / "ant" / "1.0.png")
    save(photograph(1), train / "rgb" / "ant" / "2.bmp")
    save(depth_map(1), train / "depth" / "ant" / "2.jp2")
    save(label_map(1), train / "semseg" / "ant" / "2.PNG")
    (train / "rgb" / "ant" / "notes.txt").write_text("not an image")
    save(photograph(9), train / "rgb" / "ant" / "._2.png")
    save(photograph(9), train / "rgb" / ".thumbnails" / "2.png")
    return train


# --- what is read


def test_scenes_are_paired_by_path_and_labelled_by_class(root):
    reader = PairedFolder(root, domains=DOMAINS)
    assert reader.stems == ["ant/1.0", "ant/2", "zebra/a", "zebra/herd/b"]
    assert reader.classes == ["ant", "zebra"]
    assert reader.labels.tolist() == [0, 0, 1, 1]
    assert reader.labels.dtype == torch.int64
    assert len(reader) == 4


def test_every_format_gives_the_pixels_that_were_written(root):
    reader = PairedFolder(root, domains=DOMAINS)
    for i in range(4):
        scene = reader.read(i)
        found = {d: (list(value.shape), value.dtype) for d, value in scene.items()}
        assert found == {
            "rgb": ([3, 12, 10], torch.uint8),
            "depth": ([1, 12, 10], torch.float32),
            "semseg": ([12, 10], torch.uint8),
        }
        expected = torch.from_numpy(pixels(i, 12, 10, 3)).permute(2, 0, 1)
        if i == 0:  # noise is the worst case of JPEG: its colours are kept in fewer pixels
            assert float((scene["rgb"] - expected).float().mean().abs()) < 10
        else:
            assert torch.equal(scene["rgb"].long(), expected)
        # A 16-bit integer over a power of two has an exact float32.
        steps = (scene["depth"][0].double() * 65536).long()
        assert torch.equal(steps, torch.from_numpy(pixels(i, 12, 10, high=65536)))
        assert torch.equal(scene["semseg"].long(), torch.from_numpy(pixels(i, 12, 10, high=133)))


def test_only_the_domains_asked_for_are_looked_at(root):
    shutil.rmtree(root / "rgb")
    reader = PairedFolder(root, domains=["semseg", "depth"])
    assert list(reader.read(0)) == ["semseg", "depth"]


def test_it_makes_batches(root):
    reader = PairedFolder(root, domains=DOMAINS)
    data = Multimodal(reader, JointView(size=8), domains=["depth", "rgb"])
    batch = data.fetch(torch.tensor([3, 0]))
    assert list(batch.keys()) == ["depth", "rgb", "label"]
    assert batch["label"].tolist() == [1, 0]
    assert 0 <= float(batch["depth"].min()) <= float(batch["depth"].max()) < 1


def test_locate_gives_a_path_or_what_a_shell_makes_the_paths_of(root):
    assert PairedFolder(root, domains=["rgb"]).locate(0) == f"{root}/rgb/ant/1.0.JPEG"
    found = PairedFolder(root, domains=DOMAINS).locate(3)
    assert found == f"{root}/{{rgb,depth,semseg}}/zebra/herd/b.*"


def test_the_labels_of_a_split_are_those_of_the_training_classes(root):
    shutil.rmtree(root / "rgb" / "ant")
    reader = PairedFolder(root, domains=["rgb"], classes=["ant", "zebra"])
    assert reader.labels.tolist() == [1, 1]
    with pytest.raises(ValueError, match=r"classes that the training split has not: \['zebra'\]"):
        PairedFolder(root, domains=["rgb"], classes=["ant"])


@pytest.mark.slow
def test_the_order_of_domains_is_the_callers_in_every_process(root):
    program = (
        "import sys\n"
        "from attent.tasks.data.paired_folder import PairedFolder\n"
        "reader = PairedFolder(sys.argv[1], domains=['semseg', 'rgb', 'depth'])\n"
        "print(*reader.read(0), *reader.stems, *set('rgb depth semseg'.split()))"
    )
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", program, str(root)],
            env=os.environ | {"PYTHONHASHSEED": str(seed)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for seed in (0, 1)
    ]
    words = [run.communicate(timeout=300)[0].split() for run in runs]
    expected = ["semseg", "rgb", "depth", "ant/1.0", "ant/2", "zebra/a", "zebra/herd/b"]
    assert words[0][:7] == words[1][:7] == expected
    assert words[0][7:] != words[1][7:]  # or these two seeds would show nothing


# --- what dense tasks read beside


@pytest.fixture
def measured(tmp_path) -> Path:
    """One scene with a mask, and what networks predicted of it."""
    save(photograph(0), tmp_path / "rgb" / "all" / "0.jpg")
    save(depth_map(0), tmp_path / "depth" / "all" / "0.png")
    save(depth_map(1), tmp_path / "pseudo_depth" / "all" / "0.png")
    save(label_map(2), tmp_path / "pseudo_semseg" / "all" / "0.png")
    mask = Image.fromarray(np.where(pixels(3, 12, 10) < 128, 255, 0).astype(np.uint8))
    save(mask, tmp_path / "mask_valid" / "all" / "0.png")
    return tmp_path


def test_masks_and_predictions_are_read_where_they_are_asked_for(measured):
    domains = ["mask_valid", "depth", "pseudo_depth", "pseudo_semseg"]
    scene = PairedFolder(measured, domains=domains, depth_range=8).read(0)
    assert list(scene) == domains
    assert scene["mask_valid"].dtype == torch.bool
    assert scene["mask_valid"].tolist() == (pixels(3, 12, 10) < 128).tolist()
    steps = (scene["depth"][0].double() * 65536 / 8).long()
    assert torch.equal(steps, torch.from_numpy(pixels(0, 12, 10, high=65536)))
    # What a network predicts has no unit, and depth_range none of its.
    steps = (scene["pseudo_depth"][0].double() * 65536).long()
    assert torch.equal(steps, torch.from_numpy(pixels(1, 12, 10, high=65536)))
    assert scene["pseudo_semseg"].tolist() == pixels(2, 12, 10, high=133).tolist()


def test_a_mask_is_paired_as_the_others_are(measured):
    save(photograph(1), measured / "rgb" / "all" / "1.jpg")
    with pytest.raises(ValueError, match=r"mask_valid lacks 1 of 2 scenes, .*rgb/all/1\.jpg"):
        PairedFolder(measured, domains=["rgb", "mask_valid"])


def test_folders_may_be_called_otherwise(measured):
    (measured / "mask_valid").rename(measured / "mask")
    folders = {"mask_valid": "mask"}
    reader = PairedFolder(measured, domains=["rgb", "mask_valid"], folders=folders)
    assert list(reader.read(0)) == ["rgb", "mask_valid"]
    assert reader.path("mask_valid", 0) == f"{measured}/mask/all/0.png"
    assert reader.locate(0) == f"{measured}/{{rgb,mask}}/all/0.*"
    (measured / "mask" / "all" / "0.png").unlink()
    with pytest.raises(ValueError, match="each of rgb, mask; found that mask lacks 1 of 1 scenes"):
        PairedFolder(measured, domains=["rgb", "mask_valid"], folders=folders)
    with pytest.raises(ValueError, match=r"no folder .*mask_valid; expected .* found depth, mask"):
        PairedFolder(measured, domains=["rgb", "mask_valid"])


def test_masks_of_one_bit_are_read_and_what_is_no_mask_is_refused(tmp_path):
    mask = pixels(0, 6, 5) < 128
    Image.fromarray(mask).save(tmp_path / "bits.png")
    Image.fromarray((mask * 254).astype(np.uint8)).save(tmp_path / "dim.png")
    Image.fromarray((mask * 255).astype(np.uint8)).save(tmp_path / "lossy.jpg")
    Image.fromarray(np.where(mask, 255, 254).astype(np.uint8)).save(tmp_path / "close.png")
    Image.new("L", (5, 6)).save(tmp_path / "none.png")
    depth_map(0).save(tmp_path / "deep.png")
    for name in ("bits.png", "close.png"):
        assert decode.mask(tmp_path / name).tolist() == mask.tolist()
    assert not decode.mask(tmp_path / "none.png").any()
    for name, found in (
        ("dim.png", "holds no 255, and values up to 254; expected 255 where a pixel is valid"),
        ("lossy.jpg", "is JPEG of mode L; expected one channel of 8 bits, without loss"),
        ("deep.png", "is PNG of mode I;16 .*; expected one channel of 8 bits"),
    ):
        with pytest.raises(ValueError, match=f"{name} {found}"):
            decode.mask(tmp_path / name)


# --- names that do not fit together


def test_missing_and_extra_files_are_all_named(root):
    (root / "depth" / "ant" / "2.jp2").unlink()
    (root / "semseg" / "zebra" / "a.bmp").unlink()
    save(depth_map(5), root / "depth" / "zebra" / "extra.png")
    with pytest.raises(ValueError, match="the same stems in each of rgb, depth, semseg") as caught:
        PairedFolder(root, domains=DOMAINS)
    parts = str(caught.value).split("found that ")[1].split("; ")
    assert parts == [
        "rgb lacks 1 of 5 scenes, the partners of depth/zebra/extra.png",
        "depth lacks 1 of 5 scenes, the partners of rgb/ant/2.bmp",
        "semseg lacks 2 of 5 scenes, the partners of depth/zebra/extra.png, rgb/zebra/a.webp",
    ]


def test_of_many_missing_files_the_first_are_named_and_all_are_counted(root):
    for i in range(30):
        (root / "rgb" / "ant" / f"x{i:02}.png").touch()
    with pytest.raises(ValueError, match=r"x00\.png, .*x04\.png, \.\.\. \(30 in all\)") as caught:
        PairedFolder(root, domains=DOMAINS)
    assert "depth lacks 30 of 34 scenes" in str(caught.value)
    assert "x05" not in str(caught.value)


def test_two_files_of_one_stem_are_named(root):
    save(photograph(0), root / "rgb" / "ant" / "2.jpg")
    with pytest.raises(
        ValueError, match=r"rgb has two files of one stem: ant/2\.\w+ and ant/2\."
    ) as c:
        PairedFolder(root, domains=DOMAINS)
    assert "ant/2.jpg" in str(c.value)
    assert "ant/2.bmp" in str(c.value)


def test_images_outside_a_class_are_named(root):
    save(label_map(0), root / "semseg" / "stray.png")
    with pytest.raises(ValueError, match=r"semseg has images outside any class folder: stray\.png"):
        PairedFolder(root, domains=DOMAINS)


def test_a_missing_domain_says_what_is_there(root):
    shutil.rmtree(root / "depth")
    with pytest.raises(
        ValueError,
        match=r"no folder .*train/depth; expected ROOT/train/DOMAIN/CLASS.*found rgb, semseg in",
    ):
        PairedFolder(root, domains=DOMAINS)
    with pytest.raises(ValueError, match="found train in"):
        PairedFolder(root.parent / "val", domains=DOMAINS)
    with pytest.raises(ValueError, match="found nothing in"):
        PairedFolder(root.parent / "nowhere" / "train", domains=DOMAINS)


def test_folders_without_images(tmp_path):
    (tmp_path / "rgb" / "ant").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"holds no images; expected rgb/CLASS/STEM.*jpx"):
        PairedFolder(tmp_path, domains=["rgb"])


def test_domains_are_checked(root):
    with pytest.raises(ValueError, match="got set"):
        PairedFolder(root, domains={"rgb", "depth"})  # type: ignore[arg-type]


# --- files that are not what their domain should be


def test_sizes_that_differ_are_named(root):
    save(depth_map(1, (10, 12)), root / "depth" / "ant" / "1.0.png")
    with pytest.raises(
        ValueError, match=r"one size.*rgb/ant/1\.0\.JPEG of 10 x 12, .*depth/ant/1\.0\.png of 12 x"
    ):
        PairedFolder(root, domains=DOMAINS).read(0)


@pytest.mark.parametrize(
    ("domain", "name"), [("rgb", "1.0.JPEG"), ("depth", "1.0.png"), ("semseg", "1.0.png")]
)
@pytest.mark.parametrize("how", ["garbage", "empty", "cut", "header"])
def test_a_corrupt_file_is_named(root, domain, name, how):
    path = root / domain / "ant" / name
    whole = path.read_bytes()
    middle = len(whole) // 2
    damaged = {
        "garbage": b"not an image",
        "empty": b"",
        "cut": whole[:middle],
        "header": whole[:4] + bytes(255 - byte for byte in whole[4:40]) + whole[40:],
    }[how]
    path.write_bytes(damaged)
    reader = PairedFolder(root, domains=DOMAINS)
    data = Multimodal(reader, JointView(size=8), domains=DOMAINS)
    with pytest.raises(ExampleError, match=rf"example 0 .*{domain}/ant/{name} cannot be read"):
        fetch_batch(data, torch.arange(4))


def test_a_file_that_goes_away_is_named(root):
    reader = PairedFolder(root, domains=DOMAINS)
    (root / "semseg" / "ant" / "2.PNG").unlink()
    with pytest.raises(ValueError, match=r"semseg/ant/2\.PNG cannot be read: .*No such file"):
        reader.read(1)


def png(path: Path, bits: int, rows: np.ndarray) -> None:
    """A grey PNG of few bits a pixel, which Pillow cannot write without changing the pixels."""
    packed = [
        np.packbits(np.unpackbits(row[:, None], axis=1)[:, -bits:].reshape(-1)).tobytes()
        for row in rows.astype(np.uint8)
    ]
    height, width = rows.shape
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, bits, 0, 0, 0, 0)),
        (b"IDAT", zlib.compress(b"".join(b"\0" + row for row in packed))),
        (b"IEND", b""),
    ]
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + b"".join(
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
            for kind, data in chunks
        )
    )


def test_depth_of_8_bits_or_in_colour_is_refused(tmp_path):
    label_map(0).save(tmp_path / "grey.png")
    photograph(0).save(tmp_path / "colour.png")
    Image.fromarray(pixels(0, 4, 4).astype(np.int32)).save(tmp_path / "wide.tif")
    Image.fromarray(pixels(0, 4, 4).astype(np.float32)).save(tmp_path / "real.tif")
    expected = r"expected one channel of 16 bits"
    for name, mode in (
        ("grey.png", "L"),
        ("colour.png", "RGB"),
        ("wide.tif", "I"),
        ("real.tif", "F"),
    ):
        with pytest.raises(ValueError, match=rf"{name} is (PNG|TIFF) of mode {mode}\b.*{expected}"):
            decode.sixteen_bit(tmp_path / name)


def test_depth_of_a_pgm_and_of_big_endian_tiff_is_read(tmp_path):
    values = pixels(0, 4, 6, high=65536)
    (tmp_path / "d.pgm").write_bytes(b"P5 6 4 65535\n" + values.astype(">u2").tobytes())
    big_endian = values.astype(">u2").tobytes()
    Image.frombytes("I;16B", (6, 4), big_endian).save(tmp_path / "d.tif")
    assert (tmp_path / "d.tif").read_bytes().startswith(b"MM")
    for name in ("d.pgm", "d.tif"):
        assert decode.sixteen_bit(tmp_path / name)[0].tolist() == values.tolist()


def test_labels_in_colour_or_of_16_bits_are_refused(tmp_path):
    photograph(0).save(tmp_path / "colour.png")
    depth_map(0).save(tmp_path / "deep.png")
    label_map(0).convert("1").save(tmp_path / "bits.png")
    for name, mode in (("colour.png", "RGB"), ("deep.png", "I;16"), ("bits.png", "1")):
        with pytest.raises(ValueError, match=rf"{name} is PNG of mode {mode}.*8 bits or a palette"):
            decode.ids(tmp_path / name)


def test_labels_that_decoding_would_change_are_refused(tmp_path):
    # Pillow stretches the 16 values of 4 bits over 0 to 255: 1 would be 17.
    png(tmp_path / "few.png", 4, pixels(0, 4, 4, high=16))
    assert np.array(Image.open(tmp_path / "few.png")).max() > 15
    # ... and the values of a PGM by 255 / its maximum.
    (tmp_path / "scaled.pgm").write_bytes(b"P5 4 4 132\n" + bytes(range(16)))
    label_map(0).save(tmp_path / "lossy.jpg")
    for name, how in (
        ("few.png", "of mode L stored as L;4"),
        ("scaled.pgm", "with values up to 132"),
        ("lossy.jpg", "is JPEG of mode L"),
    ):
        with pytest.raises(ValueError, match=rf"{name} .*{how}.*expected ids kept exactly"):
            decode.ids(tmp_path / name)


def test_labels_of_few_bits_with_a_palette_are_indices(tmp_path):
    image = Image.fromarray(pixels(0, 5, 5, high=4).astype(np.uint8))
    image.putpalette(PALETTE[:12])
    image.save(tmp_path / "few.png", bits=2)
    assert decode.ids(tmp_path / "few.png").tolist() == pixels(0, 5, 5, high=4).tolist()


def test_photographs_of_16_bits_are_refused_and_others_become_rgb(tmp_path):
    depth_map(0).save(tmp_path / "deep.png")
    with pytest.raises(ValueError, match=r"deep\.png is PNG of mode I;16.*8 bits a channel"):
        decode.rgb(tmp_path / "deep.png")
    grey = pixels(0, 4, 4).astype(np.uint8)
    Image.fromarray(grey).save(tmp_path / "grey.png")
    assert decode.rgb(tmp_path / "grey.png").tolist() == [grey.tolist()] * 3
    label_map(0, palette=True).save(tmp_path / "palette.png")
    indices = pixels(0, 12, 10, high=133)
    assert decode.rgb(tmp_path / "palette.png")[2].tolist() == indices.tolist()
