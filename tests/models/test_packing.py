"""Texts packed into rows: every token has a place of its own, and counts from 0."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given

from attent.models.packing import pack


@given(st.lists(st.integers(1, 12), min_size=1, max_size=20))
def test_every_token_has_a_place_of_its_own_beside_those_of_its_text(lengths):
    sizes = torch.tensor(lengths)
    width = int(sizes.max())
    packed = pack(sizes, width)
    there = torch.arange(width) < sizes[:, None]
    places = packed.at[there]
    assert len(set(places.tolist())) == int(sizes.sum())
    assert bool((packed.at[:, :1] + torch.arange(width) == packed.at)[there].all())
    rows = packed.at // width
    assert bool((rows == rows[:, :1])[there].all())  # no text is on two rows
    assert packed.positions.shape == (packed.rows, width)
    expected = torch.arange(width).expand(len(sizes), -1)[there]
    assert torch.equal(packed.positions.flatten()[places], expected)
    fills = torch.zeros(packed.rows).index_add(0, rows[:, 0], sizes.float()).sort().values
    assert packed.rows == 1 or fills[0] + fills[1] > width  # no two rows go into one


def test_rows_by_hand():
    packed = pack(torch.tensor([3, 5, 2, 4]), 7)
    assert packed.rows == 2  # 5 + 2, 4 + 3
    assert packed.at[:, 0].tolist() == [11, 0, 5, 7]
    assert packed.positions.tolist() == [[0, 1, 2, 3, 4, 0, 1], [0, 1, 2, 3, 0, 1, 2]]
    tokens = torch.arange(1, 29).view(4, 7)
    there = torch.arange(7) < torch.tensor([3, 5, 2, 4])[:, None]
    assert packed.put(tokens, there).tolist() == [
        [8, 9, 10, 11, 12, 15, 16],
        [22, 23, 24, 25, 1, 2, 3],
    ]


def test_what_is_left_of_a_row_is_zeros():
    packed = pack(torch.tensor([3, 3]), 4)
    tokens, there = torch.full((2, 4), 9), torch.tensor([[True] * 3 + [False]] * 2)
    assert packed.put(tokens, there).tolist() == [[9, 9, 9, 0], [9, 9, 9, 0]]


def test_a_text_longer_than_a_row():
    with pytest.raises(ValueError, match="a text of 8 tokens in rows of 7"):
        pack(torch.tensor([3, 8]), 7)
