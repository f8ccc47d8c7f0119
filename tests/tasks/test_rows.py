"""Rows of text: which split is held out, which rows of it are measured, and what a CSV holds."""

from __future__ import annotations

import json
from pathlib import Path

import datasets
import pyarrow as pa
import pytest
from pyarrow import parquet

from attent.tasks.config import ConfigError
from attent.tasks.data.rows import NoSplit, read_rows
from attent.tasks.text.build import rows_of_other, sample_rows

GOOD = '{"a": "1"}\n{"a": "2"}\n'
OTHER = '{"a": "9"}\n'
BROKEN = '{"a": "1"}\n{"a": }\n'


def fill(folder: Path, **files: str) -> Path:
    """A folder of JSON lines by the name of their split."""
    folder.mkdir(exist_ok=True)
    for name, text in files.items():
        (folder / f"{name}.jsonl").write_text(text)
    return folder


def values(data: object) -> list[str]:
    return [row.values["a"] for row in rows_of_other(str(data))]


@pytest.mark.parametrize(
    "splits", [["validation", "test"], ["val", "test"], ["valid"], ["dev", "test"], ["test"]]
)
def test_what_is_held_out_is_never_the_training_split_if_there_is_another(tmp_path, splits):
    files = {splits[0]: OTHER} | dict.fromkeys([*splits[1:], "train"], GOOD)
    assert values(fill(tmp_path, **files)) == ["9"]


def test_of_data_without_a_held_out_split_all_is_measured(tmp_path):
    assert values(fill(tmp_path, train=GOOD)) == ["1", "2"]
    assert values(tmp_path / "train.jsonl") == ["1", "2"]
    rows = datasets.Dataset.from_list([{"a": "5"}])
    rows.save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"train": rows}).save_to_disk(tmp_path / "two")
    assert values(tmp_path / "one") == values(tmp_path / "two") == ["5"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (BROKEN, r"held_out_data: .*validation\.jsonl row 2 is not JSON"),
        ("[1]\n", r"held_out_data: .*validation\.jsonl row 1 is a list; it must be an object"),
        ("", r"held_out_data: .* holds no rows in validation"),
    ],
)
def test_a_broken_held_out_file_is_named_though_others_are_whole(tmp_path, content, message):
    folder = fill(tmp_path, train=GOOD, test=GOOD, validation=content)
    with pytest.raises(ConfigError, match=message):
        rows_of_other(str(folder))


def test_a_folder_without_rows_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"^data: .* has no file of the split train; found noth"):
        rows_of_other(str(tmp_path), "data")


def test_the_hub_is_asked_for_another_split_only_where_it_has_not_the_one(tmp_path, monkeypatch):
    """Its own words for a split that there is not; of failures none is taken for that."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    folder = fill(tmp_path / "files", train=GOOD, test=OTHER)
    load, cache = datasets.load_dataset, [str(tmp_path / "cache")]
    files = {split: str(folder / f"{split}.jsonl") for split in ("train", "test")}

    def load_dataset(name, *, data_dir, split):
        return load("json", data_files=files, split=split, cache_dir=cache[0])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert values("somebody/texts") == ["9"]
    with pytest.raises(NoSplit, match=r"somebody/texts has no split val: .*train.*test"):
        read_rows("somebody/texts", split="val")
    (folder / "test.jsonl").write_text('{"a": \n')
    cache[0] = str(tmp_path / "second")
    with pytest.raises(ConfigError, match=r"held_out_data: .* datasets cannot load it: "):
        values("somebody/texts")


def test_the_held_out_rows_that_are_measured_are_drawn_from_all_of_them(tmp_path):
    """Of data sorted by class a tenth has a tenth of each class, about."""
    lines = [json.dumps({"label": f"{i // 500}"}) for i in range(1000)]
    rows = read_rows(str(fill(tmp_path, a="\n".join(lines)) / "a.jsonl"))
    some = sample_rows(rows, 100, seed=3)
    assert len(some) == 100
    assert [row.number for row in some] == sorted({row.number for row in some})
    assert 30 < sum(row.values["label"] == "0" for row in some) < 70
    assert sample_rows(rows, 100, seed=3) == some
    assert sample_rows(rows, 100, seed=4) != some
    for count in (None, 1000, 2000):
        assert sample_rows(rows, count, seed=3) == rows


# --- CSV


def csv(folder: Path, text: str) -> list[dict]:
    (folder / "a.csv").write_text(text)
    return [row.values for row in read_rows(str(folder / "a.csv"))]


def test_a_csv_holds_what_is_written_in_it(tmp_path):
    """No value is taken for a number, a date or nothing: every column is text."""
    written = {
        "label": ["007", "12", "1e3"], "yes": ["True", "False", "true"], "all": ["4", "5", "6"],
        "day": ["2024-01-31", "2024-02-29", "now"], "none": ["", "NA", "null"],
    }  # fmt: skip
    rows = [
        dict(zip(written, column, strict=True)) for column in zip(*written.values(), strict=True)
    ]
    lines = [",".join(row) for row in (written, *(row.values() for row in rows))]
    assert csv(tmp_path, "\n".join(lines)) == rows


def test_a_field_of_csv_may_hold_lines_and_commas(tmp_path):
    found = csv(tmp_path, '\ufefftext,label\n"one, two\nthree",7\n"",8\n"4",\n')
    assert found == [
        {"text": "one, two\nthree", "label": "7"}, {"text": "", "label": "8"},
        {"text": "4", "label": ""},
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a,b\n1,2\n3\n", r"a\.csv cannot be read as csv: .* Expected 2 col"),
        (b"", r"a\.csv cannot be read as csv: .*[Ee]mpty"),
        (b"a,b\n", r"a\.csv holds no rows in train"),
        (b"a,b\nx,\xff\n", r"a\.csv cannot be read as csv: .*UTF"),
    ],
)
def test_a_malformed_csv_is_named(tmp_path, content, message):
    (tmp_path / "a.csv").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_rows(str(tmp_path / "a.csv"))


def test_a_csv_of_more_than_a_block_is_read_alike_to_its_end(tmp_path):
    """What a column is must not be guessed from the first megabyte."""
    found = csv(tmp_path, "a,b\n" + f"{'x' * 1000},1\n" * 3000 + "y,words\n")
    assert len(found) == 3001
    assert (found[0]["b"], found[-1]["b"]) == ("1", "words")


def test_classes_are_named_alike_in_a_parquet_file_and_in_a_saved_data_set(tmp_path):
    kind = datasets.ClassLabel(names=["bad", "good"])
    rows = datasets.Dataset.from_dict(
        {"text": ["x", "y", "z"], "label": [1, 0, None]},
        features=datasets.Features({"text": datasets.Value("string"), "label": kind}),
    )
    rows.to_parquet(tmp_path / "a.parquet")
    rows.save_to_disk(tmp_path / "saved")
    (arrow,) = (tmp_path / "saved").glob("*.arrow")
    for data in (tmp_path / "a.parquet", tmp_path / "saved", arrow):
        assert [row.values["label"] for row in read_rows(str(data))] == ["good", "bad", None]


def test_a_class_past_those_that_are_named_is_told_with_its_row(tmp_path):
    kind = datasets.ClassLabel(names=["bad", "good"])
    told = datasets.Features({"tags": datasets.List(datasets.Value("string")), "label": kind})
    schema = told.arrow_schema
    table = pa.table({"tags": [["a"], ["b"]], "label": [1, 2]}, schema=schema)
    parquet.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=r"a\.parquet row 2 has the label 2; expected 0 to 1, of"):
        read_rows(str(tmp_path / "a.parquet"))
