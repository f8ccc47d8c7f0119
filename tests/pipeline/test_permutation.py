"""Permutations as functions: each place holds another number, in no order that a test can see."""

from __future__ import annotations

import itertools

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from scipy import stats

from attent.pipeline import Permutation, fold, permutation
from attent.pipeline.keyed import generator
from attent.pipeline.permutation import SMALL

keys = st.integers(0, 2**62)


def whole(size: int, key: int = 7) -> torch.Tensor:
    return Permutation(size, key)(slice(None))


def rank_correlation(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(torch.corrcoef(torch.stack([a, b]).double())[0, 1])


@settings(deadline=None)
@given(st.integers(1, 3 * SMALL), st.integers(0, 2**62))
def test_every_number_is_there_once(size, key):
    assert torch.equal(whole(size, key).sort().values, torch.arange(size))


@pytest.mark.parametrize("size", [2**13 - 1, 2**13, 2**13 + 1, 2**14 + 1, 1_000_003])
def test_it_is_a_permutation_about_powers_of_two(size):
    assert torch.equal(whole(size).sort().values, torch.arange(size))


@settings(deadline=None, max_examples=30)
@given(st.integers(SMALL - 5, 10**9), st.integers(0, 2**62), st.data())
def test_a_part_is_that_of_the_whole(size, key, data):
    permutation = Permutation(size, key)
    places = torch.tensor(data.draw(st.lists(st.integers(0, size - 1), min_size=1, max_size=20)))
    found = permutation(places)
    assert torch.equal(found, torch.stack([permutation(place) for place in places]))
    assert bool(((found >= 0) & (found < size)).all())
    assert len(found.unique()) == len(places.unique())


@pytest.mark.parametrize("size", [SMALL + 1, 2**15, 10**6, 2**31 + 7, 2**32])
def test_rounds_that_are_looked_up_are_those_that_are_computed(size, monkeypatch):
    places = torch.randint(0, size, (3, 500), generator=generator(1))
    looked_up = Permutation(size, 7)(places)
    monkeypatch.setattr(permutation, "TABLED", 0)
    assert torch.equal(looked_up, Permutation(size, 7)(places))


def test_work_is_done_in_parts_of_any_length(monkeypatch):
    whole_at_once = whole(10_007)
    monkeypatch.setattr(permutation, "CHUNK", 999)
    assert torch.equal(whole_at_once, whole(10_007))


@settings(deadline=None, max_examples=30)
@given(st.sampled_from([7, 200, SMALL + 900, 2**13 + 1]), keys, st.floats(0.05, 1.0))
def test_among_some_numbers_each_of_them_is_there_once(size, key, share):
    kept = torch.rand(size, generator=generator(key)) < share
    some = kept.nonzero().squeeze(1)
    found = Permutation(size, key).among(some, lambda index: ~kept[index])
    assert torch.equal(found.sort().values, some)
    alone = [Permutation(size, key).among(one, lambda index: ~kept[index]) for one in some[:3]]
    assert [int(one) for one in alone] == found[:3].tolist()


def test_of_a_thousand_million_a_part_at_once():
    permutation = Permutation(10**9, 3)
    parts = [permutation(slice(start, start + 10**5)) for start in (0, 10**9 // 3, 10**9 - 10**5)]
    assert len(torch.cat(parts).unique()) == 3 * 10**5


def test_another_key_is_another_permutation():
    seen = {tuple(whole(SMALL + 100, fold(0, "order", p))[:6].tolist()) for p in range(50)}
    assert len(seen) == 50


@pytest.mark.parametrize("size", [3, 4, 5])
def test_all_permutations_of_few_are_as_frequent(size):
    orders = list(itertools.permutations(range(size)))
    counts = dict.fromkeys(orders, 0)
    for key in range(60 * len(orders)):
        counts[tuple(whole(size, fold(1, "try", key)).tolist())] += 1
    assert stats.chisquare(list(counts.values())).pvalue > 1e-3


@pytest.mark.parametrize("size", [5000, 10_007, 2**16])
def test_numbers_are_anywhere(size):
    """Chi-square of where the first places' numbers fall, over many keys; rank correlations."""
    firsts = torch.stack([Permutation(size, fold(2, "k", k))(slice(0, 8)) for k in range(3000)])
    for place in range(8):
        counts = torch.histc(firsts[:, place].float(), bins=20, min=0, max=size)
        assert stats.chisquare(counts.numpy()).pvalue > 1e-4
    found = whole(size)
    assert abs(rank_correlation(torch.arange(size), found)) < 4 / size**0.5
    assert abs(rank_correlation(found[:-1], found[1:])) < 4 / size**0.5
    both = rank_correlation(whole(size, fold(3, "a")), whole(size, fold(3, "b")))
    assert abs(both) < 4 / size**0.5


def test_neighbours_are_as_far_apart_as_by_chance():
    """Of |p(i+1) - p(i)| the mean is a third of n, and steps of one come as often as by chance."""
    size = 2**17 + 5
    gaps = whole(size).diff().abs().double()
    assert float(gaps.mean()) == pytest.approx(size / 3, rel=0.01)
    ones = int((gaps == 1).sum())  # about Poisson of mean 2
    assert ones <= 12


def test_runs_up_and_down_are_as_long_as_by_chance():
    """The number of turning points of a random order: mean 2(n - 2)/3, variance (16n - 29)/90."""
    size = 100_003
    rises = whole(size).diff() > 0
    turns = int((rises[1:] != rises[:-1]).sum())
    z = (turns - 2 * (size - 2) / 3) / ((16 * size - 29) / 90) ** 0.5
    assert abs(z) < 4


def test_out_of_range():
    with pytest.raises(ValueError, match="1 to 2\\^62"):
        Permutation(0, 1)
    with pytest.raises(IndexError, match=r"places are in \[0, 5000\), got 3 to 5000"):
        Permutation(5000, 1)(torch.tensor([3, 5000]))
    assert len(Permutation(5000, 1)) == 5000
    assert Permutation(5000, 1)(slice(10, 10)).shape == (0,)
