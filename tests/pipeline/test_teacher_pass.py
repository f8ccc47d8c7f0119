"""What a Teacher makes of losses, however they are told: in any order, of any type, under defaults.

Batches told as they were given out go a short way; the long way, by each example's place, is the
reference that it must agree with.
"""

from __future__ import annotations

import copy
import itertools
from multiprocessing.reduction import ForkingPickler

import pytest
import torch
from torch.utils.data import default_collate

from attent.pipeline import Teacher, constant, hard, infobatch, random, soft
from attent.pipeline import order as order_module
from attent.pipeline.keys import differences
from tests.pipeline.test_teacher import N, losses_of, short


def told(teacher: Teacher, way, *, stop: int | None = None, dtype=torch.float32):
    """All batches of a run without a loader, told in some way; what was given out and returned."""
    found, returned = [], []
    while (present := teacher.begin(16)) is not None:
        for own in present.batches():
            if stop is not None and len(found) == stop:
                return found, returned
            index = torch.tensor(own)
            losses = losses_of(index, int(teacher._state["clock", "step"])).to(dtype)
            for part in way(len(own)):
                returned.append((len(part), float(teacher.observe(index[part], losses[part]))))
            found.append(own)
    return found, returned


def as_given(size: int) -> list[torch.Tensor]:
    return [torch.arange(size)]


def backwards(size: int) -> list[torch.Tensor]:
    return [torch.arange(size).flip(0)]


def in_halves(size: int) -> list[torch.Tensor]:
    return list(torch.arange(size).tensor_split(2))


@pytest.mark.parametrize("signal", ["loss", "relative_loss", "loss_drop"])
@pytest.mark.parametrize("rule", [hard(), infobatch()], ids=lambda rule: rule.name)
def test_the_short_way_agrees_with_the_long_one(rule, signal):
    one, other = (short(rule=rule, signal=signal) for _ in range(2))
    batches, means = told(one, as_given)
    found, also = told(other, backwards)
    assert found == batches
    assert len(batches) > 30
    torch.testing.assert_close(torch.tensor(means), torch.tensor(also))  # sums in another order
    for group in ("clock", "plan", "ledger"):
        assert differences(one.state[group], other.state[group]) == []
    assert torch.equal(one.state["mask"], other.state["mask"])
    torch.testing.assert_close(one.state["scores"].to_dict(), other.state["scores"].to_dict())


def test_an_order_that_is_made_as_it_is_read(monkeypatch):
    """As of more than `HELD` examples: the same by both ways, and the order of one of 64."""
    monkeypatch.setattr(order_module, "HELD", 64)
    monkeypatch.setattr(order_module, "PIECE", 32)
    one, other = (short(rule=infobatch()) for _ in range(2))
    assert not isinstance(one.begin(16).order, torch.Tensor)
    batches, _ = told(one, as_given)
    assert told(other, in_halves)[0] == batches
    assert sorted(itertools.chain.from_iterable(batches[:13])) == list(range(N))
    torch.testing.assert_close(one.state["scores"].to_dict(), other.state["scores"].to_dict())


@pytest.mark.parametrize("stop", [0, 1, 12, 20])
def test_ways_may_change_within_a_pass(stop):
    """The long way knows what went the short one."""
    whole, teacher = told(short(), as_given)[0], short()
    found = told(teacher, as_given, stop=stop)[0]
    if stop:
        last = found[-1]
        with pytest.raises(ValueError, match=f"example {last[1]} was observed in this pass"):
            teacher.observe(last[1:3], torch.ones(2))
    found += told(teacher, in_halves, stop=2)[0]
    assert found + told(teacher, as_given)[0] == whole
    assert teacher.finished


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
def test_losses_of_any_float_type(kind):
    """What is minimised has 32 bits at least, with weights and without; gradients are theirs."""
    teacher = short(rule=infobatch(), ratio=constant(0.5))
    for stop in (0, 13):  # all weigh 1; as the rule says
        told(teacher, as_given, stop=stop, dtype=kind)
        own = torch.tensor(next(teacher.begin(16).batches()))
        losses = losses_of(own, 0).to(kind).requires_grad_()
        mean = teacher.observe(own, losses)
        mean.backward()
        weights = teacher.weights(own).double()
        expected = (weights * losses.detach().double()).sum() / weights.sum()
        assert mean.dtype == torch.promote_types(kind, torch.float32)
        assert float(mean.detach()) == pytest.approx(float(expected), rel=1e-6)
        assert losses.grad.dtype == kind
        torch.testing.assert_close(losses.grad, (weights / weights.sum()).to(kind))
    assert sorted(set(teacher.weights(range(N)).tolist())) == [1.0, 2.0]


def test_a_loss_that_scores_cannot_hold():
    """float32 ends at 3.4e38: it would be kept as infinite. Their sum may be more than that."""
    teacher = short()
    own = next(teacher.begin(16).batches())
    huge = torch.full((16,), 1e300, dtype=torch.float64)
    with pytest.raises(ValueError, match=rf"example {own[0]} is more than float32 holds \(1e\+300"):
        teacher.observe(own, huge)
    large = torch.full((16,), 3e38)
    assert float(teacher.observe(own, large.double())) == pytest.approx(float(large[0]))
    assert float(teacher.state["metrics", "train_loss"]) == pytest.approx(float(large[0]))
    assert float(teacher.scores.max()) == float(large[0])


def test_more_exact_losses_may_follow():
    teacher = short()
    first, second = itertools.islice(teacher.begin(16).batches(), 2)
    teacher.observe(first, torch.full((16,), 0.1, dtype=torch.bfloat16))
    teacher.observe(second, torch.full((16,), 0.1))
    assert teacher.scores[first].unique().tolist() == [float(torch.tensor(0.1).bfloat16())]
    assert teacher.scores[second].unique().tolist() == [float(torch.tensor(0.1))]


@pytest.mark.parametrize("kind", [torch.int32, torch.int16, torch.uint8])
def test_indices_of_any_integer_type(kind):
    teacher, other = short(), short()
    own = torch.tensor(next(teacher.begin(16).batches()))
    other.begin(16)
    losses = losses_of(own, 0)
    assert torch.equal(teacher.observe(own.to(kind), losses), other.observe(own, losses))
    assert torch.equal(teacher.weights(own.to(kind)), torch.ones(16))


@pytest.mark.parametrize("rule", [hard(), soft(), infobatch(), random()], ids=lambda r: r.name)
@pytest.mark.parametrize("setting", ["float64", "bfloat16", "meta"])
def test_what_torch_makes_by_default_is_the_programs_own(rule, setting):
    """A default device other than the CPU is not to be had everywhere: that of no storage is."""
    expected = told(short(rule=rule), in_halves)
    try:
        if setting == "meta":
            torch.set_default_device("meta")
        else:
            torch.set_default_dtype(getattr(torch, setting))
        teacher, found = short(rule=rule), []
        left = sum(teacher.coming(16))
        while (present := teacher.begin(16)) is not None:
            for own in present.batches():
                index = torch.tensor(own, device="cpu")
                losses = losses_of(index, int(teacher._state["clock", "step"])).float()
                for part in in_halves_on_cpu(len(own)):
                    teacher.observe(index[part].tolist(), losses[part])
                found.append(own)
        saved = teacher.state_dict()
        assert torch.empty(0).device.type == ("meta" if setting == "meta" else "cpu")
        assert setting == "meta" or torch.get_default_dtype() == getattr(torch, setting)
    finally:
        torch.set_default_device(None)
        torch.set_default_dtype(torch.float32)
    assert found == expected[0]
    assert left > 30
    assert saved["state"]["clock/seen"] == 4 * N


def in_halves_on_cpu(size: int) -> list[torch.Tensor]:
    return list(torch.arange(size, device="cpu").tensor_split(2))


def test_a_pass_that_was_begun_is_not_begun_again():
    """A loader with workers asks for it twice."""
    teacher = short()
    present = teacher.begin(16)
    assert teacher.begin(16) is present
    assert teacher.begin(9) is not present
    own = next(teacher.begin(16).batches())
    present = teacher.begin(16)
    teacher.observe(own[:3], torch.ones(3))
    assert teacher.begin(16) is not present  # of which a part was told
    teacher.load_state_dict(teacher.state_dict())
    assert next(teacher.begin(16).batches()) == own


def test_a_copy_goes_its_own_way():
    teacher = short(rule=infobatch())
    told(teacher, as_given, stop=14)
    other = copy.deepcopy(teacher)
    before = teacher.progress
    assert told(other, as_given) == told(short_at(teacher), as_given)
    assert (teacher.progress, other.progress) == (before, 1)


def short_at(teacher: Teacher) -> Teacher:
    other = short(rule=infobatch())
    other.load_state_dict(teacher.state_dict())
    return other


def test_an_item_and_its_index_as_loaders_treat_them():
    data = [torch.full((2,), float(i)) for i in range(N)]
    batch = default_collate([short().with_index(data)[i] for i in (3, 1)])
    for same in (batch, ForkingPickler.loads(ForkingPickler.dumps(batch)), copy.deepcopy(batch)):
        index, item = same
        assert index.dtype == torch.int64
        assert index.tolist() == [3, 1]
        assert item.tolist() == [[3.0, 3.0], [1.0, 1.0]]
    index, item = ForkingPickler.loads(ForkingPickler.dumps(short().with_index(data)[3]))
    assert (index, item.tolist()) == (3, [3.0, 3.0])


def test_an_index_is_sent_without_shared_memory():
    """A handle of shared memory, as of other tensors, is as long as another for any batch."""
    rows = short().with_index(range(N))
    few, many = (default_collate([rows[0]] * size) for size in (2, 64))
    more = len(ForkingPickler.dumps(many)) - len(ForkingPickler.dumps(few))
    assert more == pytest.approx(8 * 62, abs=10)
