"""Workers that are kept from stream to stream: the same processes, and never another batch."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import threading
import time
from dataclasses import dataclass, replace

import pytest
import torch
from tensordict import TensorDict

from attent.pipeline import (
    ExampleError,
    Loading,
    assert_stage_laws,
    attent_complex,
    constant,
    fit,
    fixed_interval,
    full,
    hard,
    initial_state,
    initialize,
)
from attent.pipeline.fetch import stand_in
from attent.pipeline.keys import differences
from attent.pipeline.skipped import SkippedList
from attent.pipeline.source import TensorSource
from attent.pipeline.stream import Stream
from attent.pipeline.workers import KeptWorkers
from tests.pipeline.faults import Augmenting, Rows
from tests.tiny import TinyTask, tiny_source, tiny_train


@pytest.fixture(autouse=True)
def nothing_is_left():
    """No process and no thread outlives who keeps it, no file stays open."""
    threads, files = threading.active_count(), len(os.listdir("/proc/self/fd"))
    yield
    gc.collect()
    assert multiprocessing.active_children() == []
    assert threading.active_count() <= threads
    assert len(os.listdir("/proc/self/fd")) <= files


def loading(**options) -> Loading:
    return Loading(workers=2, processes=True, kept=KeptWorkers(), **options)


class Where(TensorSource):
    """Each example with the process that fetched it."""

    def fetch(self, index: torch.Tensor) -> TensorDict:
        return super().fetch(index).set("pid", torch.full_like(index, os.getpid()))


def where(source, how, batches: int | None = None) -> set[int]:
    """The processes that are there once some batches of a stream were read, or all."""
    stream = Stream(source, range(40), 4, loading=how)
    for _ in range(10 if batches is None else batches):
        assert int(next(stream)["pid"][0]) != os.getpid()
    del stream
    return {process.pid or 0 for process in multiprocessing.active_children()}


def where_source() -> Where:
    return Where({"x": torch.arange(40)})


# --- which are kept


def test_later_streams_of_a_source_have_the_same_processes():
    source, how = where_source(), loading()
    first = where(source, how)
    assert len(first) == 2
    assert where(source, how) == where(source, how) == first


def test_they_are_kept_when_the_end_was_read_and_when_the_last_batch_was():
    source, how = where_source(), loading()
    first = where(source, how)
    stream = Stream(source, range(40), 4, loading=how)
    assert len(list(stream)) == 10
    stream.close()
    assert {process.pid for process in multiprocessing.active_children()} == first


def test_those_of_a_stream_left_half_way_end():
    source, how = where_source(), loading()
    first = where(source, how)
    assert where(source, how, batches=9) == set()
    second = where(source, how)
    assert len(second) == 2
    assert second.isdisjoint(first)


def test_each_source_has_its_own():
    source, other, how = where_source(), where_source(), loading()
    first = where(source, how)
    both = where(other, how)
    assert len(both) == 4
    assert first < both


def test_of_two_streams_at_once_those_of_one_are_kept():
    source, how = where_source(), loading()
    streams = [Stream(source, range(40), 4, loading=how) for _ in range(2)]
    for _ in range(10):
        a, b = (next(stream) for stream in streams)
        assert torch.equal(a["x"], b["x"])
    assert len(multiprocessing.active_children()) == 4
    del streams
    assert len(multiprocessing.active_children()) == 2


def test_one_that_died_in_between_is_replaced():
    source, how = where_source(), loading()
    killed, other = sorted(where(source, how))
    os.kill(killed, signal.SIGKILL)
    until = time.monotonic() + 30
    while len(multiprocessing.active_children()) > 1 and time.monotonic() < until:
        time.sleep(0.01)
    assert where(source, how).isdisjoint({killed, other})


def test_they_end_with_who_keeps_them_and_when_told():
    source, how = where_source(), loading()
    where(source, how)
    assert how.kept is not None
    how.kept.close()
    assert multiprocessing.active_children() == []
    assert len(where(source, how)) == 2  # one that was closed keeps others
    del how
    gc.collect()
    assert multiprocessing.active_children() == []


def test_one_that_dies_at_work_is_an_error_and_the_next_stream_has_others(tmp_path):
    source = Rows(40, {37: "is killed"}, tmp_path / "mended")
    how = loading()
    with pytest.raises(ExampleError, match=r"died \(SIGKILL, .* example 37 "):
        list(Stream(source, range(40), 4, loading=how))
    assert multiprocessing.active_children() == []
    (tmp_path / "mended").touch()
    assert len(list(Stream(source, range(40), 4, loading=how))) == 10


# --- what they fetch


@dataclass(frozen=True)
class Keys:
    passes: int

    def __call__(self, index: torch.Tensor) -> torch.Tensor:
        return 100 * self.passes + index


def test_each_stream_has_its_own_keys():
    source, how = Augmenting(12), loading()
    pids = set()
    for pass_ in range(3):
        batches = list(Stream(source, range(12), 4, loading=how, keys=Keys(pass_)))
        found = torch.cat([batch["key"] for batch in batches])
        assert found.tolist() == list(range(100 * pass_, 100 * pass_ + 12))
        pids |= {process.pid for process in multiprocessing.active_children()}
    (plain, *_) = Stream(source, range(12), 4, loading=how)
    assert "key" not in plain  # without keys it is scored: nothing is augmented
    assert len(pids) == 2


def test_keys_that_cannot_be_pickled_have_new_processes():
    source, how = Augmenting(12), loading()
    for add in (5, 7):
        keys = lambda index, add=add: index + add  # noqa: E731
        batches = list(Stream(source, range(12), 4, loading=how, keys=keys))
        found = torch.cat([batch["key"] for batch in batches])
        assert found.tolist() == list(range(add, add + 12))


def test_what_one_stream_found_unreadable_the_next_knows():
    """Its own list, though: without one it is an error again."""
    skipped = SkippedList()
    source, how = Rows(24, {5: "raises"}), loading(skipped=skipped)
    instead = 10 * stand_in(5, 24, {5})
    for _ in range(2):
        batches = list(Stream(source, range(24), 4, loading=how))
        assert batches[1]["x"].tolist() == [40, instead, 60, 70]
    assert [entry.index for entry in skipped] == [5]
    with pytest.raises(ExampleError, match="example 5 "):
        list(Stream(source, range(24), 4, loading=replace(how, skipped=None)))


# --- a run


def finished(how: Loading | None):
    task, source = TinyTask(dropout=0.5, noise=0.3), Rows(20, fields=tiny_source(20).fields)
    stage = tiny_train(task, source, steps=2, loading=how)
    tick = attent_complex(
        task, source, train=stage, epochs=4, ratio=constant(0.5), interval=fixed_interval(1),
        cycles=2, rule=hard(), score_batch_size=5, loading=how,
    )  # fmt: skip
    return fit(tick, initial_state(task, source, seed=1))


def test_a_run_is_the_same_with_them():
    assert differences(finished(loading()), finished(None)) == []


def test_the_stage_of_training_keeps_the_laws():
    task, source = TinyTask(noise=0.3), tiny_source()
    tick = full(source, train=tiny_train(task, source, steps=3, loading=loading()), epochs=2)
    assert_stage_laws(tick, initialize(tick, initial_state(task, source, seed=1)))
