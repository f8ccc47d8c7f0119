"""Parquet and arrow tables: which row groups are read; pictures as the hub has them."""

from __future__ import annotations

import pickle
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image
from pyarrow import feather, parquet

from attent.pipeline.order import blockwise_order
from attent.pipeline.source import ExampleError, blocks_of, fetch_batch
from attent.pipeline.stream import Stream
from attent.tasks.classification.build import load_data
from attent.tasks.classification.config import ClassifyConfig
from attent.tasks.config import ConfigError
from attent.tasks.data import decode
from attent.tasks.data.images import Images
from attent.tasks.data.rows import are_rows, read_rows
from attent.tasks.data.shards import ShardSource, TableImages, TableShards
from attent.tasks.data.shards.table_files import TableFile, open_table
from tests.tasks.shards import picture, pixels


def numbers(start: int, count: int) -> pa.Table:
    rows = range(start, start + count)
    return pa.table(
        {"n": list(rows), "square": [float(i * i) for i in rows], "t": [f"#{i}" for i in rows]}
    )


def as_stream(table: pa.Table, path: Path, rows: int, **options) -> None:
    with (
        pa.OSFile(str(path), "wb") as file,
        pa.ipc.new_stream(file, table.schema, **options) as out,
    ):
        out.write_table(table, max_chunksize=rows)


def as_file(table: pa.Table, path: Path, rows: int, **options) -> None:
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, table.schema, **options) as out:
        out.write_table(table, max_chunksize=rows)


LZ4 = {"options": pa.ipc.IpcWriteOptions(compression="lz4")}

WRITERS = {
    "parquet": ("a.parquet", lambda t, p, rows: parquet.write_table(t, p, row_group_size=rows)),
    "stream": ("a.arrow", as_stream),
    "file": ("a.arrow", as_file),
    "packed stream": ("a.arrow", lambda t, p, rows: as_stream(t, p, rows, **LZ4)),
    "feather": ("a.feather", lambda t, p, rows: feather.write_feather(t, str(p), chunksize=rows)),
}


@pytest.fixture(params=WRITERS)
def shards(request, tmp_path):
    """Twelve rows: 7 in groups of 3, then 5."""
    name, write = WRITERS[request.param]
    for s, (start, count) in enumerate(((0, 7), (7, 5))):
        write(numbers(start, count), tmp_path / f"{s}{name}", 3)
    return tmp_path


@pytest.fixture
def counted(monkeypatch):
    """How often each (file, row group, *columns) is read, of any kind of file."""
    read: Counter = Counter()
    for kind in TableFile.__subclasses__():

        def group(self, number, columns, *, whole=kind.group, **_):
            read[Path(self.path).name.partition(".")[0], number, *columns] += 1
            return whole(self, number, columns)

        monkeypatch.setattr(kind, "group", group)
    return read


# --- rows


def test_rows_are_those_that_were_written(shards):
    table = TableShards(shards)
    expected = [{"n": i, "square": float(i * i), "t": f"#{i}"} for i in range(12)]
    assert [table.read(i) for i in range(len(table))] == expected
    blocks = blocks_of(table)
    assert blocks is not None
    assert blocks.tolist() == [0, 3, 6, 7, 10, 12]
    assert TableShards(shards, ["t"]).read(8) == {"t": "#8"}
    copy = pickle.loads(pickle.dumps(table))
    assert [copy.read(i) for i in (11, 0)] == [expected[11], expected[0]]
    for index in (-1, 12):
        with pytest.raises(IndexError, match=f"row {index} of 12"):
            table.read(index)


def test_only_groups_with_a_selected_row_are_read_and_each_once(shards, counted):
    """Rows 1 and 2 of the first group, 7 and 9 of the second file's first: two groups of five."""
    source = ShardSource(TableShards(shards, ["n"]))
    counted.clear()
    mask = torch.zeros(12, dtype=torch.bool)
    mask[[1, 2, 7, 9]] = True
    seen = []
    for batch in Stream(source, blockwise_order(mask, 5, source.blocks, 2), batch_size=2):
        seen += batch["n"].tolist()
    assert sorted(seen) == [1, 2, 7, 9]
    assert sorted(counted.items()) == [(("0a", 0, "n"), 1), (("1a", 0, "n"), 1)]
    assert source.rows.groups.made == 2


def test_a_file_without_a_selected_row_is_not_opened(shards, monkeypatch):
    from attent.tasks.data.shards import tables

    table, opened = TableShards(shards), []
    monkeypatch.setattr(tables, "open_table", lambda path: opened.append(path) or open_table(path))
    for index in (8, 11, 7):
        table.read(index)
    assert opened == [table.paths[1]]


def test_many_threads_read_a_group_once(shards, counted):
    table = TableShards(shards)
    counted.clear()
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda i: table.read(i)["n"], [*range(12)] * 20))
    assert found == [*range(12)] * 20
    assert set(counted.values()) == {1}
    assert len(counted) == 5


def test_memory_is_bounded_and_the_window_fits_in_it(tmp_path, counted):
    """Groups of 1000 int64 are 8000 bytes and little more: two fit in 17,000, half of it one."""
    for s in range(4):
        path = tmp_path / f"{s}.parquet"
        parquet.write_table(pa.table({"n": np.arange(1000) + 1000 * s}), path, use_dictionary=False)
    table = TableShards(tmp_path, memory=17_000)
    assert table.window == 1
    counted.clear()
    for index in (0, 1000, 1, 1001, 2000, 1002, 0):  # the third takes the first one's place
        assert table.read(index) == {"n": index}
    assert [key[0] for key in counted.elements()] == ["0", "0", "1", "2"]
    assert TableShards(tmp_path, memory=100_000).window == 100_000 // 2 // 8000
    assert TableShards(tmp_path).window == 64


def test_rows_are_stacked_or_collated(shards):
    source = ShardSource(TableShards(shards, ["n", "square"]))
    batch = fetch_batch(source, torch.tensor([4, 2]))
    assert batch["n"].tolist() == [4, 2]
    assert batch["square"].tolist() == [16.0, 4.0]
    assert source.locate(4).endswith(f"{Path(source.rows.paths[0]).name} row group 1 row 1")
    text = ShardSource(TableShards(shards, ["t"]))
    with pytest.raises(ExampleError, match=r"rows of t cannot be stacked: .* give a collate"):
        fetch_batch(text, torch.tensor([0]))


# --- damage


def test_damage_is_told_with_file_group_and_row(tmp_path):
    """Of a parquet file's second group, with the checksums it is written with."""
    path = tmp_path / "a.parquet"
    parquet.write_table(
        numbers(0, 6), path, row_group_size=3, use_dictionary=False, write_page_checksum=True
    )
    about = parquet.ParquetFile(path).metadata.row_group(1).column(0)
    table, whole = TableShards(path), path.read_bytes()
    at = about.data_page_offset + about.total_compressed_size - 3
    path.write_bytes(whole[:at] + bytes(b ^ 255 for b in whole[at : at + 3]) + whole[at + 3 :])
    assert table.read(2)["n"] == 2
    with pytest.raises(ValueError, match=r"a\.parquet row group 1 row 1 cannot be read: .*CRC"):
        table.read(4)
    with pytest.raises(ValueError, match=r"a\.parquet row group 1 cannot be read"):
        list(table.of_column("n"))


def test_files_that_are_no_tables_are_refused(tmp_path):
    parquet.write_table(numbers(0, 6), tmp_path / "a.parquet")
    as_stream(numbers(0, 600), tmp_path / "b.arrow", 100)
    as_file(numbers(0, 600), tmp_path / "c.arrow", 100)
    cases = {
        "a.parquet": r"a\.parquet cannot be read as a table: .*",
        "b.arrow": r"b\.arrow cannot be read as a table: record batch \d at byte \d+: ",
        "c.arrow": r"c\.arrow cannot be read as a table: ",
    }
    for name, message in cases.items():
        path = tmp_path / name
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
        with pytest.raises(ValueError, match=message):
            TableShards(path)
        path.write_bytes(b"nothing of the kind")
        with pytest.raises(ValueError, match=rf"{name} cannot be read as a table"):
            TableShards(path)


def test_a_column_that_only_some_files_have_is_told(tmp_path):
    parquet.write_table(numbers(0, 2), tmp_path / "a.parquet")
    parquet.write_table(pa.table({"n": [1]}), tmp_path / "b.parquet")
    with pytest.raises(ValueError, match=r"b\.parquet has no column square; it has n"):
        TableShards(tmp_path)
    parquet.write_table(numbers(0, 0), tmp_path / "c.parquet")
    with pytest.raises(ValueError, match=r"c\.parquet and its like hold no rows"):
        TableShards(tmp_path / "c.parquet")


# --- pictures

NAMES = ["ant", "bee", "cat"]


def pictures(rows: range, *, names: bool = True) -> datasets.Dataset:
    """Noise as the hub has it: bytes and a name, and a ClassLabel of seed % 3."""
    label = datasets.ClassLabel(names=NAMES) if names else datasets.Value("int64")
    features = datasets.Features({"image": datasets.Image(), "label": label})
    values = {
        "image": [{"bytes": picture(i), "path": f"{i}.png"} for i in rows],
        "label": [i % 3 for i in rows],
    }
    return datasets.Dataset.from_dict(values, features=features)


def hub(folder: Path, *, names: bool = True) -> Path:
    """A folder as the hub has it, of ten pictures to train on and four held out."""
    (folder / "data").mkdir(parents=True)
    for name, rows in (
        ("train-00000-of-00002", range(6)),
        ("train-00001-of-00002", range(6, 10)),
        ("test-00000-of-00001", range(1, 5)),
    ):
        pictures(rows, names=names).to_parquet(folder / "data" / f"{name}.parquet", batch_size=2)
    return folder


def test_pictures_of_the_hub_are_read_with_their_classes(tmp_path):
    reader = TableImages(hub(tmp_path) / "data/train-*.parquet")
    assert reader.labels.tolist() == [i % 3 for i in range(10)]
    assert reader.classes == NAMES
    for i in range(10):
        assert np.array_equal(reader.read(i)["rgb"].numpy(), pixels(picture(i)))


def test_only_what_is_selected_is_decoded_and_its_groups_are_read(tmp_path, counted, monkeypatch):
    """Rows 1, 6 and 7 of groups of two: one of the first file, one of the second, of five."""
    source = Images(TableImages(hub(tmp_path) / "data/train-*.parquet"), size=8)
    assert blocks_of(source).tolist() == [0, 2, 4, 6, 8, 10]  # type: ignore[union-attr]
    assert source.window == 64
    decoded, rgb = [], decode.rgb
    monkeypatch.setattr(
        decode, "rgb", lambda file, **o: decoded.append(file.place()) or rgb(file, **o)
    )
    counted.clear()
    fetch_batch(source, torch.tensor([7, 1, 6]))
    assert decoded == [source.locate(i) for i in (7, 1, 6)]
    assert counted == {
        ("train-00000-of-00002", 0, "image"): 1,
        ("train-00001-of-00002", 0, "image"): 1,
    }


def test_columns_are_found_by_name_and_type(tmp_path):
    """Bytes in a column called img, names as labels; what is meant is the first of several."""
    path = tmp_path / "a.parquet"
    values = {"img": [picture(0), picture(1)], "blob": [b"", b""], "cls": ["b", "a"]}
    parquet.write_table(pa.table(values), path)
    reader = TableImages(path)
    assert (reader.labels.tolist(), reader.classes) == ([1, 0], ["a", "b"])
    assert np.array_equal(reader.read(1)["rgb"].numpy(), pixels(picture(1)))
    parquet.write_table(pa.table({**values, "fine": [3, 4]}), path)
    assert TableImages(path, label="fine").labels.tolist() == [3, 4]
    (tmp_path / "one.png").write_bytes(picture(5))
    files = [{"bytes": None, "path": "one.png"}, {"bytes": None, "path": None}]
    parquet.write_table(pa.table({"image": files, "label": [0, 1]}), path)
    reader = TableImages(path)
    assert np.array_equal(reader.read(0)["rgb"].numpy(), pixels(picture(5)))
    with pytest.raises(ValueError, match=r"a\.parquet row group 0 row 1 has no picture"):
        reader.read(1)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"label": [0]}, r"no column of pictures, .* it has label"),
        ({"image": [b""], "kind": [0]}, r"no column of labels .* it has image, kind"),
        ({"image": [b""], "label": [-1]}, r"row group 0 row 0 has the label '-1'"),
        ({"image": [b"", b""], "label": [0, None]}, r"row group 0 row 1 has no label"),
        ({"image": [b""], "label": [0.5]}, r"no column of labels"),
    ],
)
def test_tables_that_cannot_be_learned_from_are_refused(tmp_path, columns, message):
    parquet.write_table(pa.table(columns), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=message):
        TableImages(tmp_path)


def test_a_picture_that_does_not_decode_is_told_with_file_group_and_row(tmp_path):
    path = tmp_path / "a.parquet"
    table = pa.table({"image": [picture(0), b"no", picture(1)], "label": [0, 0, 0]})
    parquet.write_table(table, path, row_group_size=2)
    place = r"a\.parquet row group 0 row 1"
    with pytest.raises(ExampleError, match=rf"example 1 \(.*{place}\) .*{place} cannot be read"):
        fetch_batch(Images(TableImages(path), size=8), torch.tensor([2, 1]))


# --- the commands


def test_classify_takes_tables_of_pictures_for_pictures_and_others_for_texts(tmp_path):
    assert not are_rows(str(hub(tmp_path / "hub")))
    saved = datasets.DatasetDict({"train": pictures(range(4)), "test": pictures(range(2))})
    saved.save_to_disk(tmp_path / "saved")
    assert not are_rows(str(tmp_path / "saved"))
    saved["train"].save_to_disk(tmp_path / "one split")
    assert not are_rows(str(tmp_path / "one split"))
    parquet.write_table(numbers(0, 3), tmp_path / "train.parquet")
    assert are_rows(str(tmp_path))
    assert are_rows(str(tmp_path / "train.parquet"))
    for name, count in (("hub", 4), ("saved", 2)):
        config = ClassifyConfig(data=str(tmp_path / name), model="multivit_micro", image_size=8)
        train, val = load_data(config)
        assert isinstance(train, Images)
        assert isinstance(val, Images)
        assert (train.classes, val.classes, len(val)) == (NAMES, NAMES, count)


def test_labels_are_compared_by_name_where_both_splits_name_them(tmp_path):
    """The held-out split of another data set, whose numbers stand for other classes."""
    hub(tmp_path)
    path = tmp_path / "data" / "test-00000-of-00001.parquet"
    other = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "ant"])}
    )
    rows = {"image": [{"bytes": picture(0), "path": ""}] * 2, "label": [0, 1]}
    datasets.Dataset.from_dict(rows, features=other).to_parquet(path)
    config = ClassifyConfig(data=str(tmp_path), model="multivit_micro", image_size=8)
    assert load_data(config)[1].labels.tolist() == [2, 0]  # type: ignore[attr-defined]
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ConfigError, match=r"^data: .*test-00000-of-00001\.parquet cannot be read"):
        load_data(config)


def test_classify_trains_on_parquet(attent, tmp_path):
    hub(tmp_path / "data")
    status, out, err = attent(
        "classify", "--data", "data", "--model", "multivit_micro", "--patch_size", "4", "--method",
        "full", "--image_size", "8", "--epochs", "1", "--batch_size", "4", "--device", "cpu",
        "--output_dir", "run",
    )  # fmt: skip
    assert status == 0, out + err


def test_rows_of_text_may_be_arrow(tmp_path):
    as_stream(numbers(0, 5), tmp_path / "train.arrow", 2)
    as_file(numbers(5, 2), tmp_path / "test.arrow", 2)
    rows = read_rows(str(tmp_path))
    assert [row.values["t"] for row in rows] == [f"#{i}" for i in range(5)]
    assert rows[3].place == f"{tmp_path}/train.arrow row 4"
    assert [row.values["n"] for row in read_rows(str(tmp_path), split="test")] == [5, 6]


def test_a_png_of_pillow_is_kept_by_datasets_as_it_was(tmp_path):
    """What `datasets` writes of pictures in memory is read too, not only of their files."""
    image = Image.fromarray(np.arange(48, dtype=np.uint8).reshape(4, 4, 3))
    features = datasets.Features({"photo": datasets.Image(), "label": datasets.Value("int64")})
    rows = datasets.Dataset.from_dict({"photo": [image], "label": [1]}, features=features)
    rows.save_to_disk(tmp_path / "saved")
    reader = TableImages(tmp_path / "saved")
    assert np.array_equal(reader.read(0)["rgb"].numpy(), np.asarray(image).transpose(2, 0, 1))
    assert (reader.labels.tolist(), reader.classes) == ([1], None)
