"""Lines of JSON: indexed in files of any size, and as rows of text; also compressed."""

from __future__ import annotations

import gzip
import json
import os
import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pytest
import torch

from attent.pipeline.source import ExampleError, blocks_of, fetch_batch
from attent.tasks.data.rows import are_rows, read_rows
from attent.tasks.data.shards import LineShards, ShardSource, lines
from attent.tasks.text.build import rows_of_other


def zst(data: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as out:
        out.write(data)
    return sink.getvalue().to_pybytes()


PACKED: dict[str, Callable[[bytes], bytes]] = {
    "": lambda data: data,
    ".gz": lambda data: gzip.compress(data, mtime=0),
    ".zst": zst,
}


def text(rows: range, end: str = "\n") -> bytes:
    return "".join(json.dumps({"n": i, "t": "ü" * (i % 5)}) + end for i in rows).encode()


def values(i: int) -> dict:
    return {"n": i, "t": "ü" * (i % 5)}


@pytest.fixture(params=PACKED)
def shards(request, tmp_path):
    """Files of 5, 1 and 6 rows."""
    for s, rows in enumerate((range(5), range(5, 6), range(6, 12))):
        (tmp_path / f"{s}.jsonl{request.param}").write_bytes(PACKED[request.param](text(rows)))
    return tmp_path


# --- by index


def test_rows_are_those_that_were_written(shards, monkeypatch):
    """However few bytes are looked through at once."""
    for piece in (7, 64, 2**24):
        monkeypatch.setattr(lines, "_PIECE", piece)
        for kept in shards.glob(".*"):
            kept.unlink()
        rows = LineShards(shards)
        assert [rows.read(i) for i in range(len(rows))] == [values(i) for i in range(12)]
        blocks = blocks_of(rows)
        assert blocks is not None
        assert blocks.tolist() == [0, 5, 6, 12]
    assert pickle.loads(pickle.dumps(rows)).read(7) == values(7)
    for index in (-1, 12):
        with pytest.raises(IndexError, match=f"row {index} of 12"):
            rows.read(index)


@pytest.mark.parametrize("packed", PACKED)
def test_blank_lines_are_no_rows_and_a_last_line_needs_no_end(tmp_path, packed):
    data = b"\n" + text(range(2), "\r\n") + b"  \n\r\n" + text(range(2, 4)).rstrip()
    (tmp_path / f"a.jsonl{packed}").write_bytes(PACKED[packed](data))
    rows = LineShards(tmp_path)
    assert [rows.read(i) for i in range(len(rows))] == [values(i) for i in range(4)]
    at = data.index(b'{"n": 2')
    assert rows.locate(2) == f"{tmp_path}/a.jsonl{packed} row 3 at byte {at}"


def test_of_plain_files_exactly_the_lines_asked_for_are_read(tmp_path, monkeypatch):
    (tmp_path / "a.jsonl").write_bytes(text(range(6)))
    (tmp_path / "b.jsonl").write_bytes(text(range(6, 9)))
    rows, read = LineShards(tmp_path), []
    pread = os.pread
    monkeypatch.setattr(os, "pread", lambda *a: read.append(a[1]) or pread(*a))
    (tmp_path / "b.jsonl").unlink()
    for index in (4, 0):
        rows.read(index)
    assert read == [len(text(range(i, i + 1))) - 1 for i in (4, 0)]
    with pytest.raises(ValueError, match=r"b\.jsonl cannot be read at byte 0: .*No such file"):
        rows.read(6)


@pytest.mark.parametrize("packed", [".gz", ".zst"])
def test_a_packed_file_is_unpacked_once_when_a_row_is_asked_for(tmp_path, monkeypatch, packed):
    for s, rows in enumerate((range(5), range(5, 6), range(6, 12))):
        (tmp_path / f"{s}.jsonl{packed}").write_bytes(PACKED[packed](text(rows)))
    LineShards(tmp_path)  # finds the lines
    unpacked, inflate = [], lines.inflate
    monkeypatch.setattr(lines, "inflate", lambda path: unpacked.append(path) or inflate(path))
    rows = LineShards(tmp_path)
    assert unpacked == []
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda i: rows.read(i)["n"], [7, 11, 0, 6, 4] * 20))
    assert found == [7, 11, 0, 6, 4] * 20
    assert sorted(Path(path).name[0] for path in unpacked) == ["0", "2"]
    small = LineShards(tmp_path, memory=1)  # one at a time
    for index in (0, 7, 1):
        small.read(index)
    assert small.unpacked.made == 3
    assert (small.window, rows.window) == (1, 8)


def test_a_file_that_changes_is_looked_through_again(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(text(range(3)))
    assert len(LineShards(tmp_path)) == 3
    path.write_bytes(text(range(3, 10)))
    rows = LineShards(tmp_path)
    assert [rows.read(i) for i in range(len(rows))] == [values(i) for i in range(3, 10)]


def test_a_row_that_is_none_is_told_with_file_row_and_byte(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"n": 1}\n{"n": }\n[1, 2]\n"\xff"\n' + b" " * 20 + b"\n")
    rows = LineShards(path)
    for index, at, why in (
        (1, 9, "is not JSON: "),
        (2, 17, r"is not an object of fields, but \[1, 2\]"),
        (3, 24, "is not JSON: "),
        (4, 28, "is not JSON: "),
    ):
        with pytest.raises(ValueError, match=rf"a\.jsonl row {index + 1} at byte {at} {why}"):
            rows.read(index)
    source = ShardSource(rows)
    assert fetch_batch(source, torch.tensor([0]))["n"].tolist() == [1]
    with pytest.raises(ExampleError, match=r"example 1 \(.*a\.jsonl row 2 at byte 9\) cannot be"):
        fetch_batch(source, torch.tensor([0, 1]))
    path.write_bytes(b'{"n": 1}\n{"n')
    with pytest.raises(ValueError, match=r"row 2 at byte 9 is cut off: 3 of 7 bytes are there"):
        rows.read(1)


@pytest.mark.parametrize("packed", [".gz", ".zst"])
def test_a_packed_file_that_is_cut_off_or_damaged_says_where_it_ends(tmp_path, packed):
    """Bytes that cannot be made smaller: half of the file is half of the rows, about."""
    hard = os.urandom(150_000).hex()
    rows = b"".join(
        json.dumps({"t": hard[i * 300 : i * 300 + 300]}).encode() + b"\n" for i in range(1000)
    )
    path = tmp_path / f"train.jsonl{packed}"
    whole = PACKED[packed](rows)
    path.write_bytes(whole[: len(whole) // 2])
    for read in (LineShards, lambda p: read_rows(str(p))):
        with pytest.raises(
            ValueError, match=rf"jsonl\{packed} cannot be read whole: it ends in row"
        ) as told:
            read(path)
        row = int(str(told.value).partition("in row ")[2].partition(",")[0])
        assert 300 < row < 600
    path.write_bytes(b"plain text\n")
    with pytest.raises(ValueError, match=r"cannot be read whole: it ends in row 1, after 0 bytes"):
        LineShards(path)
    path.write_bytes(PACKED[packed](b"\n"))
    with pytest.raises(ValueError, match=r"and its like hold no rows"):
        LineShards(path)


# --- as rows of text


@pytest.mark.parametrize("name", ["train.jsonl", "train.json", "train-00000.jsonl"])
@pytest.mark.parametrize("packed", PACKED)
def test_rows_of_text_may_be_compressed(tmp_path, name, packed):
    path = tmp_path / f"{name}{packed}"
    path.write_bytes(PACKED[packed](text(range(4))))
    (tmp_path / f"test.jsonl{packed}").write_bytes(PACKED[packed](text(range(9, 11))))
    for data in (path, tmp_path):
        assert are_rows(str(data))
        found = read_rows(str(data))
        assert [row.values for row in found] == [values(i) for i in range(4)]
        assert found[2].place == f"{path} row 3"
    assert [row.values["n"] for row in rows_of_other(str(tmp_path))] == [9, 10]
    if name.endswith(".json"):
        path.write_bytes(PACKED[packed](json.dumps([values(3)]).encode()))
        assert [row.values for row in read_rows(str(path))] == [values(3)]


def test_several_packed_files_put_end_to_end_are_one(tmp_path):
    """As parallel compressors write them."""
    for packed, pack in PACKED.items():
        path = tmp_path / f"a.jsonl{packed}"
        path.write_bytes(pack(text(range(3))) + pack(text(range(3, 5))))
        assert [row.values["n"] for row in read_rows(str(path))] == [0, 1, 2, 3, 4]


def test_a_row_that_is_not_json_is_told_in_compressed_files_too(tmp_path):
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"a": 1}\n{"a": }\n'))
    with pytest.raises(ValueError, match=r"^data: .*a\.jsonl\.gz row 2 is not JSON"):
        read_rows(str(path))
    path.write_bytes(gzip.compress(b'{"a": "\xff"}\n'))
    with pytest.raises(ValueError, match=r"^data: .*a\.jsonl\.gz is not UTF-8"):
        read_rows(str(path))
    with pytest.raises(ValueError, match=r"there is no file or folder b\.jsonl\.zst"):
        read_rows("b.jsonl.zst")
