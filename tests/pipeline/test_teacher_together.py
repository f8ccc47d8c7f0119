"""Teacher in several processes: they choose the same, and their average is one process's step."""

from __future__ import annotations

import datetime
import tempfile
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, TensorDataset

from attent.pipeline import Teacher, constant, hard, infobatch
from attent.pipeline.processes import processes
from tests.pipeline.several import Deep
from tests.tiny import tiny_source

N = 21  # in batches of 4: tails; of 2: some have no part of a batch


def trained(
    *, batch_size: int = 4, stop: int = 10**9, saved: Any = None, **options: Any
) -> dict[str, Any]:
    """A run by hand: its batches, masks, gradients, weights and what it knows at the end."""
    rows = tiny_source(N).fields
    data = TensorDataset(rows["x"].double(), rows["y"].double())
    options = {"rule": infobatch(), "signal": "relative_loss", "seed": 3} | options
    teacher = Teacher(N, ratio=constant(0.4), budget=4 * N + 2, **options)
    if saved is not None:
        teacher.load_state_dict(saved)
    loader = DataLoader(teacher.with_index(data), batch_sampler=teacher.batches(batch_size))
    model = Deep().double()
    wrapped = model if processes().alone else DistributedDataParallel(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    batches, masks, grads = [], [], []
    for index, (x, y) in teacher.loop(loader):
        optimizer.zero_grad()
        teacher.observe(index, (wrapped(x) - y).square()).backward()
        grads.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
        optimizer.step()
        batches.append(index.tolist())
        state = teacher.state
        masks.append((int(state["clock", "passes"]), (state["mask"] * state["weight"]).tolist()))
        if len(batches) == stop:
            break
    found = {"batches": batches, "masks": masks, "grads": grads, "len": len(teacher.loop(loader))}
    return found | {"saved": teacher.state_dict()}


def infobatch_in_fours() -> dict[str, Any]:
    return trained()


def hard_in_twos() -> dict[str, Any]:
    return trained(batch_size=2, rule=hard(), signal="loss")


def saved_and_gone_on() -> dict[str, Any]:
    """Within a pass; every process takes the main one's state."""
    first = trained(stop=8, rule=hard(), signal="loss_drop")
    given = processes().gather_objects(first["saved"])
    second = trained(saved=given[0], rule=hard(), signal="loss_drop")
    return {"first": first["saved"]["state"], "second": second["batches"], "given": given[-1]}


def another_ones_part() -> dict[str, Any]:
    teacher = Teacher(N, budget=4 * N)
    present = teacher.begin(4)
    assert present is not None
    batch, own = present.batch(0), next(present.batches())
    teacher.observe(own, torch.ones(len(own)))
    theirs = [int(i) for i in batch if int(i) not in own][:1]
    try:
        teacher.observe(theirs, torch.ones(1))
    except ValueError as error:
        return {"error": str(error), "theirs": theirs}
    raise AssertionError


def one_bad_loss() -> dict[str, Any]:
    """The last process meets a NaN at its fourth batch, in a plain loop; then all go on."""
    rows = tiny_source(N).fields
    data = TensorDataset(rows["x"].double(), rows["y"].double())
    teacher, world = Teacher(N, budget=4 * N), processes()
    loader = DataLoader(teacher.with_index(data), batch_sampler=teacher.batches(4))
    model = Deep().double()
    wrapped = model if world.alone else DistributedDataParallel(model)
    found: dict[str, Any] = {}
    for number, (index, (x, y)) in enumerate(teacher.loop(loader)):
        losses = (wrapped(x) - y).square()
        if number == 3:
            bad = torch.where(index == index[-1], torch.nan, losses)
            before = teacher.state_dict()["state"]
            try:
                teacher.observe(index, bad if world.rank == world.count - 1 else losses)
            except ValueError as error:
                found |= {"error": str(error), "kind": type(error).__name__}
            after = teacher.state_dict()["state"]
            found["moved"] = [name for name in after if not torch.equal(before[name], after[name])]
            found["example"] = int(index[-1])
        teacher.observe(index, losses).backward()
    return found | {"finished": teacher.finished}


def a_bad_later_part() -> dict[str, Any]:
    """All have told a half of a batch; what is wrong with the last one's other half is its own."""
    world, teacher = processes(), Teacher(N, budget=4 * N)
    present = teacher.begin(12)
    assert present is not None
    one, other = torch.tensor(next(present.batches())).chunk(2)
    teacher.observe(one, torch.ones(len(one)))
    found = {}
    if world.rank == world.count - 1:
        for index, losses in ((other, torch.full((len(other),), torch.inf)), (other, other)):
            try:
                teacher.observe(index, losses)
            except ValueError as error:
                found[type(error).__name__] = str(error)
    teacher.observe(other, torch.ones(len(other)))
    return found | {"step": int(teacher._state["clock", "step"])}


def made_otherwise() -> dict[str, Any]:
    """Of what all must have alike, something that the last process has another way."""
    world, found = processes(), {}
    last = world.rank == world.count - 1
    ways = {"seed": ({"seed": int(last)}, 4), "batch_size": ({}, 4 + last), "plan": (
        {"ratio": constant(0.3 if last else 0.4)}, 4
    )}  # fmt: skip
    for name, (options, batch_size) in ways.items():
        try:
            Teacher(N, budget=4 * N, **options).begin(batch_size)
        except ValueError as error:
            found[name] = str(error)
    first = Teacher(N, budget=4 * N)
    saved = first.state_dict()
    own = next(first.begin(4).batches())
    first.observe(own, torch.ones(len(own)))
    second = Teacher(N, budget=4 * N)
    later = first.state_dict()
    second.load_state_dict(saved if last else later)
    try:
        second.begin(4)
    except ValueError as error:
        found["seen"] = str(error)
    return found


def in_parts() -> dict[str, Any]:
    """The first batch of 12, by two calls of what each has of it: their mean is the batch's."""
    teacher = Teacher(N, budget=4 * N)
    state, draw = teacher._state, torch.Generator().manual_seed(0)
    state["weight"].copy_(torch.rand(N, generator=draw) + 0.5)
    present = teacher.begin(12)
    assert present is not None
    losses = torch.rand(N, generator=draw, dtype=torch.float64)
    own = torch.tensor(next(present.batches()))
    halves = [teacher.observe(half, losses[half]) for half in own.chunk(2)]
    batch = present.batch(0)
    weights = state["weight"][batch]
    expected = float((weights * losses[batch]).sum() / weights.sum())
    return {"found": float(sum(halves) / 2), "expected": expected}


SCENARIOS = {
    made.__name__: made
    for made in (
        infobatch_in_fours,
        hard_in_twos,
        saved_and_gone_on,
        another_ones_part,
        one_bad_loss,
        a_bad_later_part,
        made_otherwise,
        in_parts,
    )
}
SEVERAL = {"another_ones_part", "a_bad_later_part", "made_otherwise"}
"""What a single process does not show."""


def _one(rank: int, count: int, folder: str) -> None:
    torch.set_num_threads(1)
    store, limit = f"file://{folder}/store", datetime.timedelta(seconds=60)
    dist.init_process_group("gloo", store, timeout=limit, rank=rank, world_size=count)
    found = {name: make() for name, make in SCENARIOS.items()}
    torch.save(found, Path(folder, f"{rank}.pt"))
    dist.barrier()
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def alone():
    return {name: make() for name, make in SCENARIOS.items() if name not in SEVERAL}


@pytest.fixture(scope="module")
def several():
    """Three: they share no batch evenly, and one of them has no part of a batch of two."""
    count = 3
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(_one, (count, folder), count)
        return [torch.load(Path(folder, f"{r}.pt"), weights_only=False) for r in range(count)]


RUNS = ["infobatch_in_fours", "hard_in_twos"]


@pytest.mark.parametrize("name", RUNS)
def test_they_choose_what_one_process_chooses(alone, several, name):
    one = alone[name]
    assert len({tuple(mask) for _, mask in one["masks"]}) > 3
    for found in several:
        assert found[name]["masks"] == one["masks"]
        assert found[name]["len"] == one["len"] == 0
    for step, batch in enumerate(one["batches"]):
        parts = [found[name]["batches"][step] for found in several[: len(batch)]]
        assert list(chain.from_iterable(parts)) == batch  # in tails too


@pytest.mark.parametrize("name", RUNS)
def test_their_average_is_the_gradient_of_the_whole_batch(alone, several, name):
    steps = alone[name]["grads"]
    assert len(steps) > 20
    for step, one in enumerate(steps):
        for found in several:
            for mine, theirs in zip(one, found[name]["grads"][step], strict=True):
                torch.testing.assert_close(theirs, mine, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", RUNS)
def test_what_one_observes_all_know_when_it_is_saved(alone, several, name):
    one = alone[name]["saved"]["state"]
    first = several[0][name]["saved"]["state"]
    for found in several[1:]:
        for entry, value in found[name]["saved"]["state"].items():
            assert torch.equal(value, first[entry]), entry
    assert first.keys() == one.keys()
    for entry, value in one.items():
        torch.testing.assert_close(first[entry], value, rtol=1e-6, atol=1e-9, msg=entry)
    assert int((one["scores/step"] < 0).sum()) == 0


def test_they_go_on_where_they_were_saved(alone, several):
    """8 batches, of which the last 3 are of the second pass: 4, 4, 4, 4, 5; 4, 4, ..."""
    one = alone["saved_and_gone_on"]
    assert int(one["first"]["clock/seen"]) == 33 == N + 3 * 4
    for found in several:
        state = found["saved_and_gone_on"]["given"]["state"]
        assert torch.equal(state["scores/step"], one["first"]["scores/step"])
    for step, batch in enumerate(one["second"]):
        parts = [found["saved_and_gone_on"]["second"][step] for found in several[: len(batch)]]
        assert list(chain.from_iterable(parts)) == batch


def test_a_batch_may_be_told_in_parts(alone, several):
    expected = alone["in_parts"]["expected"]
    assert alone["in_parts"]["found"] == pytest.approx(expected, rel=1e-6)
    found = [one["in_parts"]["found"] for one in several]
    assert sum(found) / 3 == pytest.approx(expected, rel=1e-6)
    assert found[0] != pytest.approx(expected, rel=1e-2)


def test_another_ones_part_is_not_to_be_observed(several):
    """All of them try; what the first has met all are told."""
    (example,) = several[0]["another_ones_part"]["theirs"]
    for found in several:
        error = found["another_ones_part"]["error"]
        assert error.startswith(f"process 0 of 3: the batch of example {example} is shared out")


def test_a_bad_loss_of_one_is_raised_in_all(alone, several):
    """Before its batch is taken in anywhere, so that all can go on."""
    one = alone["one_bad_loss"]
    bad = several[-1]["one_bad_loss"]["example"]
    assert one.pop("error") == f"the loss of example {one.pop('example')} is not finite (nan)"
    assert one == {"kind": "ValueError", "moved": [], "finished": True}
    for found in (found["one_bad_loss"] for found in several):
        assert found["error"] == f"process 2 of 3: the loss of example {bad} is not finite (nan)"
        assert (found["kind"], found["moved"], found["finished"]) == ("AgreedError", [], True)


def test_a_bad_later_part_leaves_nobody_waiting(several):
    """Others may have no such part: they are not asked."""
    *others, last = (found["a_bad_later_part"] for found in several)
    assert others == [{"step": 1}] * 2
    assert last.keys() == {"ValueError", "step"}
    assert "losses are one number for each of 2 examples" in last["ValueError"]


def test_teachers_that_were_not_made_alike_are_refused_in_all(several):
    for found in (found["made_otherwise"] for found in several):
        assert found["seed"].startswith("seed is 0 in process 0 and 1 in process 2: all of them")
        assert found["batch_size"].startswith("batch_size is 4 in process 0 and 5 in process 2")
        assert found["plan"].startswith("plan is ratio 0.4 in phase 2 in process 0 and ratio 0.3")
        assert found["seen"].startswith("seen is 4 in process 0 and 0 in process 2")
