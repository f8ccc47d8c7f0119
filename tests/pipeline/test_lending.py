"""Lent memory: used again once nothing refers to it, and never before."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from attent.pipeline.lending import SMALL, Borrower, Lender, Message

LARGE = SMALL // 4 + 1  # float32 numbers that are more than SMALL bytes


class Pair:
    """A lender and its borrower, in one process."""

    def __init__(self) -> None:
        self.lender, self.borrower = Lender(), Borrower()
        self.made: list[int] = []
        self.dropped: list[int] = []

    def send(self, value):
        message = self.lender.packed(value, self.borrower.busy())
        assert isinstance(message, Message)
        self.made += message.made
        self.dropped += message.dropped
        return self.borrower.unpacked(message)


def large(value: float, numbers: int = LARGE) -> Tensor:
    return torch.full((numbers,), value)


def test_memory_is_used_again_when_nothing_refers_to_it():
    pair = Pair()
    for i in range(5):
        received = pair.send(large(i))
        assert torch.equal(received, large(i))
        del received
    assert pair.made == [0]


@pytest.mark.parametrize(
    "hold",
    [
        lambda t: t,
        lambda t: t[5:9],
        lambda t: t.view(torch.int32),
        lambda t: t.detach().numpy(),
        lambda t: t.untyped_storage(),
        lambda t: {"nested": [t.reshape(1, -1)]},
    ],
    ids=["tensor", "part", "other type", "array", "storage", "nested"],
)
def test_memory_is_left_alone_while_anything_refers_to_it(hold):
    pair = Pair()
    held = hold(pair.send(large(1.0)))
    others = [pair.send(large(2.0)) for _ in range(3)]
    assert pair.made == [0, 1, 2, 3]
    del held
    assert pair.borrower.busy() == [1, 2, 3]
    assert all(torch.equal(other, large(2.0)) for other in others)
    last = pair.send(large(3.0))
    assert pair.made == [0, 1, 2, 3]  # the first piece again
    assert torch.equal(last, large(3.0))
    assert all(torch.equal(other, large(2.0)) for other in others)


def test_what_is_held_outlives_both_sides():
    pair = Pair()
    held = pair.send({"x": large(1.0)})["x"][3:]
    del pair
    assert torch.equal(held, large(1.0)[3:])


def test_tensors_of_one_message_do_not_share_memory():
    pair = Pair()
    a, b = pair.send([large(1.0), large(2.0)])
    assert torch.equal(a, large(1.0))
    assert torch.equal(b, large(2.0))
    a.zero_()
    assert torch.equal(b, large(2.0))


def test_small_tensors_come_by_value():
    pair = Pair()
    assert pair.send(torch.arange(10)).tolist() == list(range(10))
    assert pair.made == []


def test_lengths_that_vary_leave_no_trail():
    """One that does not fit takes the place of a free one."""
    pair = Pair()
    for step in range(200):
        numbers = LARGE * (1 + step * 7919 % 23)
        received = pair.send(large(step, numbers))
        assert torch.equal(received, large(step, numbers))
        del received
    assert len(pair.made) - len(pair.dropped) == 1
    assert len(pair.made) < 8  # it grows by rounding up, then all fit


def test_a_message_that_fails_half_way_does_no_harm():
    pair = Pair()
    with pytest.raises(Exception, match="lambda"):
        pair.send([large(1.0), lambda: 0])
    a, b = pair.send([large(2.0), large(3.0)])
    assert torch.equal(a, large(2.0))
    assert torch.equal(b, large(3.0))
    assert pair.made == [0, 1]


@pytest.mark.parametrize(
    "tensor",
    [
        torch.arange(40_000).reshape(200, 200).t(),
        torch.rand(300, 300)[:, ::2],
        torch.rand(40_000).bfloat16(),
        torch.full((2,), 1.5, dtype=torch.bfloat16),
        torch.rand(40_000, dtype=torch.complex64).conj(),
        torch.arange(100_000) % 2 == 0,
        torch.ones(1).expand(300, 300),
        torch.zeros(0, 7, dtype=torch.complex64),
    ],
    ids=["turned", "strided", "bfloat16", "few", "conjugate", "bool", "expanded", "empty"],
)
def test_any_tensor_is_what_it_was(tensor):
    received = Pair().send(tensor)
    assert received.dtype == tensor.dtype
    assert torch.equal(received, tensor)
    received.copy_(received.clone())  # it can be written to
