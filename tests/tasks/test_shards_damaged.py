"""Shards that cannot be read: an error, or left out and listed where that is asked for."""

from __future__ import annotations

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from attent.tasks.data.shards.damaged import Damaged, sound
from attent.tasks.data.shards.find import labelled_shards, scene_shards
from tests.tasks.shards import gray, labelled, pack, picture
from tests.tasks.test_shards_images import CLASSIFY


def torn(path, end=None):
    """The file, cut off at a byte; in its middle if that is not said."""
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2 // 512 * 512 + 100 if end is None else end])
    return path


def test_those_that_can_be_read_stay_in_their_order():
    def read(path):
        if path in "bd":
            raise ValueError(f"{path} is cut off")

    damaged: list[Damaged] = []
    assert sound(list("abcde"), read, damaged) == list("ace")
    assert damaged == [Damaged("b", "b is cut off"), Damaged("d", "d is cut off")]
    # Nobody is asked where nothing is to be left out, and nothing is known of none.
    assert sound(list("abc"), read, None) == list("abc")
    assert sound([], read, damaged) == []
    with pytest.raises(ValueError, match="none of 2 shards can be read: b is cut off"):
        sound(["b", "d"], read, [])


@pytest.fixture
def tars(tmp_path):
    """Three shards of four pictures to train on, the second torn, and one held out."""
    for i in range(3):
        pack(tmp_path / f"train-{i}.tar", labelled(range(4 * i, 4 * i + 4)))
    pack(tmp_path / "val-0.tar", labelled(range(6)))
    torn(tmp_path / "train-1.tar")
    return tmp_path


def test_tar_shards(tars):
    with pytest.raises(ValueError, match=r"train-1\.tar.*cut off"):
        labelled_shards(tars, "train")
    found = labelled_shards(tars, "train", leave_out=True)
    assert found is not None
    assert found.labels.tolist() == [i % 3 for i in (0, 1, 2, 3, 8, 9, 10, 11)]
    assert "train-2.tar member 000008.png" in found.locate(4)
    (one,) = found.damaged
    assert (one.path, "cut off" in one.reason) == (str(tars / "train-1.tar"), True)
    held_out = labelled_shards(tars, "val", leave_out=True)
    assert held_out is not None
    assert held_out.damaged == ()


def test_tables(tmp_path):
    for i in range(2):
        rows = {"image": [picture(i), picture(i + 5)], "label": [0, 1]}
        pq.write_table(pa.table(rows), tmp_path / f"train-{i}.parquet")
    torn(tmp_path / "train-0.parquet")  # its schema, which is at the end, too
    with pytest.raises(ValueError, match=r"train-0\.parquet"):
        labelled_shards(tmp_path, "train")
    found = labelled_shards(tmp_path, "train", leave_out=True)
    assert found is not None
    assert (len(found), [one.path for one in found.damaged]) == (
        2, [str(tmp_path / "train-0.parquet")]
    )  # fmt: skip


def test_scenes(tmp_path):
    for i in range(2):
        pack(tmp_path / f"train-{i}.tar", [("0.rgb.png", picture(i)), ("0.depth.png", gray(7))])
    torn(tmp_path / "train-0.tar", 600)  # in the first member, after its header
    found = scene_shards(tmp_path, "train", ["rgb", "depth"], leave_out=True)
    assert found is not None
    assert (len(found), len(found.damaged)) == (1, 1)


def test_a_run_says_which_it_left_out_and_lists_them(attent, tars):
    words = ("classify", "--data", str(tars), "--num_classes", "3", *CLASSIFY)
    status, _, err = attent(*words, "--output_dir", "run")
    assert status == 2
    assert "train-1.tar" in err
    assert "cut off" in err
    status, out, err = attent(*words, "--output_dir", "run", "--skip_unreadable", "true")
    assert status == 0, err
    assert "a shard cannot be read and is left out: " in out + err
    assert "1 shard could not be read; it is listed in " in out + err
    path = tars / "run" / "skipped.jsonl"
    listed = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(one["split"], one["index"], one["place"]) for one in listed] == [
        ("train", None, str(tars / "train-1.tar"))
    ]
    assert "cut off" in listed[0]["reason"]
