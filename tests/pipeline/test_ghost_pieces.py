"""Pieces of per-example gradients: their norms against gradients that are formed."""

from __future__ import annotations

import contextlib
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from attent.pipeline import generator
from attent.pipeline.ghost import pieces
from attent.pipeline.ghost.pieces import Dense, Lookup, Outer, Rows, squared_norms

SIZES = st.integers(1, 6)
LENGTHS = st.integers(1, 6) | st.integers(15, 19)  # Gram matrices of long ones are halved
FORMS = st.sampled_from(["direct", "gram"])


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=generator(seed), dtype=torch.float64)


@contextlib.contextmanager
def form(name: str):
    """Have products computed in one of the two ways, whichever is cheaper."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pieces, "GRAM_COST", math.inf if name == "direct" else 0.0)
        yield


def outer(size: int, positions: int, m: int, n: int, seed: int = 0) -> tuple[Outer, torch.Tensor]:
    """A piece, and its gradient."""
    left, right = drawn(size, positions, m, seed=seed), drawn(size, positions, n, seed=seed + 100)
    formed = torch.einsum("btm,btn->bmn", left, right)
    return Outer(Rows(left), Rows(right), torch.Size([m, n])), formed


def table(size: int, positions: int, m: int, n: int, seed: int = 0) -> tuple[Lookup, torch.Tensor]:
    """A piece, and its gradient; rows repeat where there are more positions than rows."""
    index = torch.randint(0, m, (size, positions), generator=generator(seed))
    right = drawn(size, positions, n, seed=seed + 100)
    formed = torch.einsum("btm,btn->bmn", F.one_hot(index, m).double(), right)
    return Lookup(index, Rows(right), torch.Size([m, n])), formed


def squares(grad: torch.Tensor) -> torch.Tensor:
    return grad.flatten(1).square().sum(1)


@settings(deadline=None, max_examples=60)
@given(SIZES, LENGTHS, SIZES, SIZES, FORMS)
def test_one_piece(size, positions, m, n, way):
    for make in (outer, table):
        piece, formed = make(size, positions, m, n)
        with form(way):
            torch.testing.assert_close(squared_norms([piece]), squares(formed))
        torch.testing.assert_close(piece.dense(), formed)
        torch.testing.assert_close(squared_norms([Dense(formed)]), squares(formed))


@settings(deadline=None, max_examples=100)
@given(
    SIZES,
    SIZES,
    SIZES,
    st.lists(
        st.tuples(st.sampled_from(["outer", "table", "dense"]), LENGTHS), min_size=2, max_size=5
    ),
    FORMS,
)
def test_pieces_of_one_parameter_are_summed_before_they_are_squared(size, m, n, uses, way):
    made, whole = [], torch.zeros(size, m, n, dtype=torch.float64)
    for seed, (kind, positions) in enumerate(uses):
        make = table if kind == "table" else outer
        piece, formed = make(size, positions, m, n, seed)
        made.append(Dense(formed) if kind == "dense" else piece)
        whole += formed
    with form(way):
        measured = squared_norms(made)
    # The product of a table with a head is taken in float32.
    torch.testing.assert_close(measured, squares(whole), rtol=1e-5, atol=1e-5)


def test_the_form_with_fewer_multiplications_is_taken():
    # Two Gram matrices take T (m + n) for each pair of positions, the product m n.
    assert outer(1, 4, 64, 64)[0].ratio == 4 * 128 / 64**2
    assert outer(1, 64, 32, 16)[0].ratio == 64 * 48 / 512


@settings(deadline=None, max_examples=30)
@given(SIZES, LENGTHS, SIZES, SIZES, st.sampled_from([1, 20, 1 << 18]))
def test_a_gradient_is_formed_for_a_few_examples_at_a_time(size, positions, m, n, held):
    piece, formed = outer(size, positions, m, n)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(pieces.HELD, "cpu", held)
        squared, total = piece.formed(summed=True)
        torch.testing.assert_close(squared, squares(formed))
        torch.testing.assert_close(total, formed.sum(0))
        assert piece.formed()[1] is None


def test_a_parameter_of_other_dimensions_than_its_product():
    piece, formed = outer(3, 4, 2, 12)
    convolution = Outer(piece.left, piece.right, torch.Size([2, 3, 2, 2]))
    assert convolution.dense().shape == (3, 2, 3, 2, 2)
    both = squared_norms([convolution, Dense(convolution.dense())])
    torch.testing.assert_close(both, 4 * squares(formed))


def test_layers_that_share_an_input_share_its_products():
    rows = Rows(drawn(2, 3, 8))
    assert rows.gram() is not rows.gram()
    rows.share()
    assert rows.gram() is rows.gram()
    torch.testing.assert_close(rows.gram()[0], rows.values @ rows.values.mT)


def test_rows_that_were_written_over_are_refused():
    held = drawn(2, 3, 4)
    rows = Rows(held.reshape(2, 3, 4), held)
    held[0] = 0
    with pytest.raises(RuntimeError, match="changed in place"):
        Outer(rows, Rows(drawn(2, 3, 4)), torch.Size([4, 4])).squares()


@pytest.mark.parametrize("way", ["direct", "gram"])
@pytest.mark.parametrize("other", [torch.float32, torch.bfloat16])
def test_pieces_in_bfloat16(way, other):
    """As in autocast: what a layer was given may have another type than its gradient."""
    piece, _ = outer(4, 6, 32, 32)
    left, right = piece.left.values.bfloat16(), piece.right.values.to(other)
    formed = torch.einsum("btm,btn->bmn", left.double(), right.double())
    halved = Outer(Rows(left), Rows(right), piece.shape)
    swapped = Outer(Rows(right), Rows(left), piece.shape)
    looked, summed = table(4, 6, 32, 32)
    looked = Lookup(looked.index, Rows(looked.right.values.to(other)), looked.shape)
    with form(way):
        for found in (halved, swapped):
            measured = squared_norms([found])
            assert measured.dtype == torch.float32
            torch.testing.assert_close(measured.double(), squares(formed), rtol=1e-2, atol=0)
        both = squared_norms([halved, looked])
        torch.testing.assert_close(both.double(), squares(formed + summed), rtol=1e-2, atol=0)


def test_a_row_that_is_looked_up_often_is_summed_in_float32():
    index = torch.zeros(1, 1000, dtype=torch.int64)
    ones = torch.ones(1, 1000, 2, dtype=torch.bfloat16)
    piece = Lookup(index, Rows(ones), torch.Size([3, 2]))
    assert squared_norms([piece]).tolist() == [2 * 1000.0**2]
    twice = squared_norms([piece, Dense(torch.zeros(1, 3, 2))])
    assert twice.tolist() == [2 * 1000.0**2]


def test_a_gradient_of_zero_has_a_norm_of_zero():
    zeros = Rows(torch.zeros(2, 3, 4))
    for piece in (
        Outer(zeros, Rows(torch.ones(2, 3, 5)), torch.Size([4, 5])),
        Lookup(torch.zeros(2, 3, dtype=torch.int64), zeros, torch.Size([7, 4])),
        Dense(torch.zeros(2, 4)),
    ):
        assert squared_norms([piece]).tolist() == [0, 0]
