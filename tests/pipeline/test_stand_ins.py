"""What stands in for an example that cannot be read does not know who carries the run."""

from __future__ import annotations

import datetime
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from attent.pipeline import (
    Loading,
    Step,
    adamw,
    attent_complex,
    fit,
    fixed_interval,
    initial_state,
    train,
)
from attent.pipeline.fetch import TRIES, stand_in
from attent.pipeline.keys import differences, leaves
from attent.pipeline.skipped import SkippedList
from tests.pipeline.faults import Rows
from tests.tiny import TinyTask, tiny_source

BAD = tuple(range(0, 37, 5))  # eight of 37


def carried() -> dict[str, Any]:
    """A run over data of which a fifth cannot be read, in batches of 8."""
    fields = {name: value.double() for name, value in tiny_source(37).fields.items()}
    source, skipped = Rows(37, dict.fromkeys(BAD, "raises"), fields=fields), SkippedList()
    task, loading = TinyTask(), Loading(skipped=skipped)
    task.model.double()
    step = Step(batch_size=8)
    stage = train(task, source, optimizer=adamw(0.02), step=step, steps=3, loading=loading)
    tick = attent_complex(
        task, source, train=stage, epochs=8, interval=fixed_interval(2), cycles=3,
        score_batch_size=5, loading=loading,
    )  # fmt: skip
    state = fit(tick, initial_state(task, source, seed=2))
    return {"state": state, "skipped": [entry.index for entry in skipped]}


def _one(rank: int, count: int, folder: str) -> None:
    torch.set_num_threads(1)
    limit = datetime.timedelta(seconds=60)
    store = f"file://{folder}/store"
    dist.init_process_group("gloo", store, timeout=limit, rank=rank, world_size=count)
    torch.save(carried(), Path(folder, f"{rank}.pt"))
    dist.barrier()
    dist.destroy_process_group()


@pytest.mark.parametrize("count", [2, 4])
def test_it_is_the_same_in_any_number_of_processes(count):
    one = carried()
    assert sorted(one["skipped"]) == list(BAD)
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(_one, (count, folder), count)
        many = [torch.load(Path(folder, f"{r}.pt"), weights_only=False) for r in range(count)]
    assert {i for found in many for i in found["skipped"]} == set(BAD)
    state, other = one["state"], many[0]["state"]
    assert torch.equal(state["mask"], other["mask"])
    for group in ("clock", "plan", "ledger"):
        assert differences(state[group], other[group]) == []
    torch.testing.assert_close(state["scores", "loss"], other["scores", "loss"], rtol=1e-6, atol=0)
    for (path, a), (_, b) in zip(leaves(state["params"]), leaves(other["params"]), strict=True):
        assert float((a - b).norm() / a.norm().clamp_min(1e-12)) < 1e-12, path


def test_those_that_can_be_read_stand_for_themselves():
    assert [stand_in(i, 9, {4}) for i in range(9) if i != 4] == [0, 1, 2, 3, 5, 6, 7, 8]


def test_many_have_many():
    """Of a thousand that draw from as many, e^-1 are drawn by nobody: 632 differ, give or take."""
    bad = set(range(1000))
    chosen = [stand_in(i, 2000, bad) for i in bad]
    assert all(other is not None and other >= 1000 for other in chosen)
    assert 580 < len(set(chosen)) < 680


def test_one_that_cannot_be_read_itself_is_passed_over():
    first = stand_in(3, 50, {3})
    second = stand_in(3, 50, {3, first})
    assert len({3, first, second}) == 3
    assert stand_in(3, 50, {3, second}) == first  # which of them is known first changes nothing


def test_there_may_be_none():
    assert stand_in(0, 10, range(10)) is None
    # One of a thousand: sixteen draws find it once in 63, of 999 times about 16.
    assert 0 < sum(stand_in(i, 1000, range(1, 1000)) == 0 for i in range(1, 1000)) < 4 * TRIES
