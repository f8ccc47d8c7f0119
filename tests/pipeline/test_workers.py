"""Workers: the same batches whoever fetches them; where one came to grief is said."""

from __future__ import annotations

import gc
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from tensordict import NonTensorData, TensorDict

from attent.pipeline import (
    CheckpointFolder,
    Checkpoints,
    ExampleError,
    Loading,
    TensorSource,
    assert_stage_laws,
    fit,
    full,
    initial_state,
    initialize,
    load_state,
    restore,
    workers,
)
from attent.pipeline.keys import differences, number
from attent.pipeline.stream import Stream
from attent.pipeline.worker_process import ProcessWorker
from tests.pipeline.faults import Augmenting, Rows, released
from tests.tiny import TinyTask, tiny_source, tiny_train

THREADS = Loading(workers=2, timeout=2.0)
PROCESSES = Loading(workers=2, processes=True, timeout=2.0)
PATIENT = Loading(workers=2, processes=True)
KINDS = {"in the thread": Loading(), "threads": Loading(workers=2), "processes": PATIENT}
every_kind = pytest.mark.parametrize("loading", KINDS.values(), ids=KINDS)
both_kinds = pytest.mark.parametrize("loading", [THREADS, PROCESSES], ids=["threads", "processes"])


@pytest.fixture(autouse=True)
def nothing_is_left():
    """No process outlives its test, no file stays open, no thread but those that hang."""
    threads, files = threading.active_count(), len(os.listdir("/proc/self/fd"))
    yield
    gc.collect()
    assert multiprocessing.active_children() == []
    assert len(os.listdir("/proc/self/fd")) <= files
    released.set()
    until = time.monotonic() + 30
    while threading.active_count() > threads and time.monotonic() < until:
        time.sleep(0.01)
    released.clear()
    assert threading.active_count() <= threads


def read(stream: Stream) -> tuple[list[list[int]], str]:
    """The indices of batches until an error, and what it says."""
    batches: list[list[int]] = []
    with pytest.raises(ExampleError) as caught:
        batches.extend(batch["index"].tolist() for batch in stream)
    assert list(stream) == []  # an error ends it
    return batches, str(caught.value)


# --- one that dies or hangs


@pytest.mark.parametrize(
    ("fault", "end"),
    [
        ("is killed", r"died \(SIGKILL, out of memory\?\)"),
        ("exits", "ended with exit code 3"),
        ("leaves", "ended with exit code 4"),
    ],
)
def test_a_process_that_dies_is_named_with_what_it_was_reading(fault, end):
    """Batches before it come first, though another worker has fetched those after it."""
    batches, message = read(Stream(Rows(40, {17: fault}), range(40), 4, loading=PATIENT))
    assert batches == [[i, i + 1, i + 2, i + 3] for i in (0, 4, 8, 12)]
    where = r"while reading example 17 \(shard-1.tar, row 7\)"
    assert re.fullmatch(rf"worker process \d+ {end} {where}", message)


def test_all_workers_may_die():
    faults = dict.fromkeys(range(40), "is killed")
    batches, message = read(Stream(Rows(40, faults), range(40), 4, loading=PATIENT))
    assert batches == []
    assert message.endswith("while reading example 0 (shard-0.tar, row 0)")


@both_kinds
def test_one_that_hangs_is_named_after_the_timeout(loading):
    batches, message = read(Stream(Rows(40, {17: "hangs"}), range(40), 4, loading=loading))
    assert batches[-1] == [12, 13, 14, 15]
    who = r"worker process \d+" if loading.processes else "worker thread"
    assert re.fullmatch(
        rf"{who} has been reading example 17 \(shard-1.tar, row 7\) for 2 s, the timeout of "
        "workers",
        message,
    )


class Silent(TensorSource):
    """Says nothing of what it reads."""

    def fetch(self, index: torch.Tensor) -> TensorDict:
        if 17 in index:
            os._exit(3)
        return super().fetch(index)


def test_of_a_source_that_does_not_say_what_it_reads_the_batch_is_named():
    source = Silent({"x": torch.arange(40)})
    batches, message = read(Stream(source, range(40), 4, loading=PATIENT))
    assert len(batches) == 4
    assert message.endswith("while reading a batch of 4 examples, the first example 16")
    assert read(Stream(source, range(40), 1, loading=PATIENT))[1].endswith("reading example 17")


def test_a_thread_cannot_leave_unheard():
    batches, message = read(Stream(Rows(40, {17: "leaves"}), range(40), 4, loading=THREADS))
    assert len(batches) == 4
    assert message == "example 17 (shard-1.tar, row 7) cannot be fetched: SystemExit: 4"


def test_an_error_in_a_process_brings_its_traceback():
    stream = Stream(Rows(8, {5: "raises"}), range(8), 4, loading=PATIENT)
    next(stream)
    with pytest.raises(ExampleError) as caught:
        next(stream)
    assert str(caught.value) == (
        "example 5 (shard-0.tar, row 5) cannot be fetched: OSError: cannot be decoded"
    )
    (note,) = caught.value.__notes__
    assert re.match(r"In worker process \d+:\nTraceback", note)
    assert "faults.py" in note


def test_a_reader_may_take_longer_than_the_timeout():
    stream = Stream(Rows(8), range(8), 2, loading=Loading(workers=1, timeout=1.0))
    next(stream)
    time.sleep(1.1)
    assert len(list(stream)) == 3


def test_who_is_interrupted_is_the_training_process_not_a_worker():
    stream = Stream(Rows(400), range(400), 4, loading=PATIENT)
    first = next(stream)
    for process in multiprocessing.active_children():
        os.kill(process.pid, signal.SIGINT)
    assert torch.cat([first["x"], *(b["x"] for b in stream)]).tolist() == list(range(0, 4000, 10))


# --- a run


@pytest.mark.parametrize(
    ("fault", "loading"),
    [("is killed", PATIENT), ("hangs", PROCESSES), ("hangs", THREADS)],
    ids=["is killed", "process hangs", "thread hangs"],
)
def test_a_run_stops_with_its_state_saved_and_goes_on_when_all_is_well(tmp_path, fault, loading):
    fields = tiny_source(20).fields

    def made(source):
        task = TinyTask(dropout=0.5)
        stage = tiny_train(task, source, steps=3, loading=loading)
        state = initial_state(task, source, seed=2)
        return full(source, train=stage, epochs=2), state

    tick, state = made(Rows(20, fields=fields))
    whole = fit(tick, state)

    source = Rows(20, {11: fault}, tmp_path / "mended", fields)
    tick, state = made(source)
    folder = CheckpointFolder(tmp_path)
    with pytest.raises(ExampleError, match=r"example 11 \(shard-1.tar, row 1\)"):
        fit(tick, state, observers=[Checkpoints(folder, every=1000)])
    saved, about = load_state(folder.path_of(max(folder.steps())))
    # The pass is cut into fours; the one with example 11 was not trained on.
    assert number(saved, "clock", "seen") == 4 * about["step"] < 20

    (tmp_path / "mended").touch()
    tick, state = made(source)
    state = restore(initialize(tick, state), saved, "the checkpoint")
    assert differences(fit(tick, state), whole) == []


@pytest.mark.parametrize("processes", [False, True])
def test_the_stage_of_training_keeps_the_laws(processes):
    task, source = TinyTask(noise=0.3), tiny_source()
    loading = Loading(workers=2, processes=processes)
    tick = full(source, train=tiny_train(task, source, steps=3, loading=loading), epochs=2)
    assert_stage_laws(tick, initialize(tick, initial_state(task, source, seed=1)))


# --- parity


@every_kind
def test_a_key_is_the_examples_own(loading):
    source = Augmenting(30)
    stream = Stream(source, range(30), 4, loading=loading, keys=lambda index: 7 * index)
    batches = list(stream)
    assert torch.cat([b["key"] for b in batches]).tolist() == list(range(0, 210, 7))
    assert torch.cat([b["x"] for b in batches]).tolist() == list(range(0, 300, 10))


def test_what_foreign_code_draws_in_a_process_is_a_function_of_the_keys():
    """Whichever worker fetches, and whatever the training process has drawn."""

    def drawn(count: int, pass_: int) -> torch.Tensor:
        stream = Stream(
            Augmenting(24), range(24), 4, keys=lambda index: index + 100 * pass_,
            loading=Loading(workers=count, processes=True),
        )  # fmt: skip
        return torch.cat([batch["foreign"] for batch in stream])

    first = drawn(1, 0)
    torch.rand(3)
    assert torch.equal(first, drawn(3, 0))
    assert not torch.equal(first, drawn(2, 1))
    assert first.unique().numel() == first.numel()  # no two examples, no two generators agree


# --- from process to process


class Odd(TensorSource):
    """Of each kind of tensor one, above and below what goes with the message."""

    def fetch(self, index: torch.Tensor) -> TensorDict:
        size = len(index)
        big = torch.arange(size * 40_000, dtype=torch.float32).reshape(size, 200, 200)
        more = torch.arange(size * 80_000).reshape(size, 80_000)
        return TensorDict(
            {
                "big": big,
                "turned": big.transpose(1, 2),
                "part": more[:, :20_000],
                "small part": more[:, :3],
                "expanded": torch.arange(size)[:, None].expand(size, 5),
                "bfloat16": torch.full((size, 2), 1.5, dtype=torch.bfloat16),
                "bool": index % 2 == 0,
                "half": index.half(),
                "complex": torch.full((size,), 1 + 2j),
                "empty": torch.zeros(size, 0),
                "nested": TensorDict({"x": index + 1}, batch_size=[size]),
                "text": NonTensorData("a text", batch_size=[size]),
            },
            batch_size=[size],
        )


def test_batches_come_through_as_they_are():
    source = Odd({"x": torch.zeros(8)})
    here, there = (
        list(Stream(source, range(8), 4, loading=loading)) for loading in (Loading(), PATIENT)
    )
    for mine, theirs in zip(here, there, strict=True):
        assert sorted(mine.keys()) == sorted(theirs.keys())
        for name, value in mine.items():
            if name == "text":
                assert theirs[name] == "a text"
            elif name == "nested":
                assert torch.equal(value["x"], theirs[name, "x"])
            else:
                assert theirs[name].dtype == value.dtype
                assert torch.equal(theirs[name], value), name
        theirs["bool"].logical_not_()  # a batch can be written to
        # No more than was seen of it: 4 * 20,000 numbers of eight bytes.
        assert theirs["part"].untyped_storage().nbytes() == 640_000


class Unsendable(TensorSource):
    def fetch(self, index: torch.Tensor) -> TensorDict:
        return super().fetch(index).set("f", NonTensorData(lambda: 0, batch_size=[len(index)]))


def test_a_batch_that_cannot_be_sent_is_an_error():
    source = Unsendable({"x": torch.zeros(8)})
    assert len(list(Stream(source, range(8), 4, loading=THREADS))) == 2
    message = read(Stream(source, range(8), 4, loading=PATIENT))[1]
    assert message.startswith("a batch of 4 examples, the first example 0 cannot be fetched: ")
    assert "lambda" in message


# --- ends


@both_kinds
def test_a_stream_that_is_closed_is_at_its_end(loading):
    stream = Stream(Rows(400), range(400), 4, loading=loading)
    next(stream)
    stream.close()
    assert list(stream) == []
    assert multiprocessing.active_children() == []
    stream.close()


def test_idle_workers_end_by_themselves(monkeypatch):
    """Also while those of a later stream hold copies of their pipes."""
    killed = []
    monkeypatch.setattr(workers, "GRACE", 60.0)
    monkeypatch.setattr(ProcessWorker, "kill", killed.append)
    first, second = (Stream(Rows(8), range(8), 4, loading=PATIENT) for _ in range(2))
    next(first), next(second)
    assert len(list(first)) == len(list(second)) == 1
    assert killed == []


def test_a_closed_stream_does_not_wait_for_who_hangs():
    source = Rows(8, dict.fromkeys(range(2, 8), "hangs"))
    stream = Stream(source, range(8), 2, loading=PATIENT)
    next(stream)
    del stream
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize("processes", [False, True])
def test_many_streams_leave_no_files_processes_and_threads(processes):
    """Read to the end, or left half-way; batches large enough to come in shared memory."""
    source = TensorSource({"x": torch.zeros(16, 30_000)})
    loading = Loading(workers=2, processes=processes)
    threads, files = threading.active_count(), len(os.listdir("/proc/self/fd"))
    for batches in (8, 2) * 4:
        stream = Stream(source, range(16), 2, loading=loading)
        for _ in range(batches):
            next(stream)
    del stream
    assert threading.active_count() == threads
    assert len(os.listdir("/proc/self/fd")) == files


def test_files_do_not_add_up_over_a_stream():
    source = TensorSource({"x": torch.zeros(4, 30_000), "y": torch.zeros(4, 30_000)})
    opened = [
        len(os.listdir("/proc/self/fd"))
        for _ in Stream(source, torch.arange(600) % 4, 4, loading=PATIENT)
    ]
    # Two files a batch; of batches five at most are alive: four ahead and the one in hand.
    assert len(opened) == 150
    assert max(opened[10:]) - min(opened[10:]) <= 10


PROGRAM = """
import multiprocessing, time
from attent.pipeline.stream import Loading, Stream
from tests.pipeline.faults import Rows

def opened(processes, fault):
    loading = Loading(workers=2, processes=processes)
    stream = Stream(Rows(8, {7: fault} if fault else {}), range(8), 4, loading=loading)
    print(next(stream)["index"].tolist(), flush=True)
    return stream
"""


def program(text: str) -> subprocess.Popen[str]:
    root = Path(__file__).parents[2]
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", PROGRAM + text], text=True, cwd=root,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def test_a_program_ends_though_workers_hang():
    with program("a = opened(True, 'hangs')\nb = opened(False, 'hangs')") as run:
        out, err = run.communicate(timeout=300)
    assert (run.returncode, out, err) == (0, "[0, 1, 2, 3]\n" * 2, "")


def test_workers_end_with_a_program_that_is_killed():
    """Also where those of a later stream hold copies of their pipes."""
    text = """
a, b = opened(True, None), opened(True, None)
print(*(p.pid for p in multiprocessing.active_children()), flush=True)
time.sleep(600)
"""
    with program(text) as run:
        assert run.stdout is not None
        batches = [run.stdout.readline() for _ in range(2)]
        pids = [int(pid) for pid in run.stdout.readline().split()]
        run.kill()
    assert (batches, len(pids)) == (["[0, 1, 2, 3]\n"] * 2, 4)
    until = time.monotonic() + 30
    while any(alive(pid) for pid in pids) and time.monotonic() < until:
        time.sleep(0.05)
    assert not any(alive(pid) for pid in pids)


def alive(pid: int) -> bool:
    """Whether a process is there, and not only waiting to be taken note of."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False
