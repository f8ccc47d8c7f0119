"""The file in which a run lists what it could not read."""

from __future__ import annotations

import json

import pytest

from attent.pipeline import bare_state
from attent.pipeline.skipped import SkippedList
from attent.tasks.unreadable import UnreadableExamples
from tests.pipeline.faults import Rows

STATE = bare_state(4)


@pytest.fixture
def sources():
    return {"train": Rows(30), "val": Rows(30)}


def lines(path) -> list[tuple]:
    found = [json.loads(line) for line in path.read_text().splitlines()]
    assert all(list(line) == ["split", "index", "place", "reason"] for line in found)
    return [tuple(line.values()) for line in found]


def test_each_is_listed_when_it_is_met_also_by_a_tick_that_fails(tmp_path, sources):
    skipped, path = SkippedList(), tmp_path / "skipped.jsonl"
    observer = UnreadableExamples(path, skipped, sources)
    observer.start(STATE)
    observer.tick(STATE)
    assert not path.exists()
    assert observer.summary is None
    skipped.add(sources["train"], {7: "torn"})
    observer.tick(STATE)
    observer.tick(STATE)
    assert lines(path) == [("train", 7, "example 7 (shard-0.tar, row 7)", "torn")]
    assert observer.summary == (
        f"1 example could not be read and was passed over; it is listed in {path}"
    )
    skipped.add(sources["val"], {7: "empty", 12: "torn"})
    observer.stop(STATE, "failed")
    assert lines(path)[1:] == [
        ("val", 7, "example 7 (shard-0.tar, row 7)", "empty"),
        ("val", 12, "example 12 (shard-1.tar, row 2)", "torn"),
    ]
    assert observer.summary == (
        f"3 examples could not be read and were passed over; they are listed in {path}"
    )


def test_a_resumed_run_adds_to_what_it_had_found(tmp_path, sources):
    path = tmp_path / "skipped.jsonl"
    first = SkippedList()
    first.add(sources["train"], {7: "torn"})
    observer = UnreadableExamples(path, first, sources)
    observer.start(STATE)
    observer.stop(STATE, "interrupted")
    with path.open("a") as file:
        file.write('{"split": "tra')  # cut short by a kill
    second = SkippedList()
    second.add(sources["train"], {7: "torn", 8: "torn"})
    observer = UnreadableExamples(path, second, sources)
    observer.start(STATE)
    observer.stop(STATE, "finished")
    assert [line[:2] for line in lines(path)] == [("train", 7), ("train", 8)]
    assert observer.summary is not None
    assert observer.summary.startswith("2 examples")


def test_where_such_an_example_is_an_error_there_is_no_list(tmp_path, sources):
    observer = UnreadableExamples(tmp_path / "skipped.jsonl", None, sources)
    observer.start(STATE)
    observer.stop(STATE, "failed")
    assert observer.summary is None
    assert list(tmp_path.iterdir()) == []
