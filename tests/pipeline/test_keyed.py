"""Keyed randomness: a function of the key alone, uniform, independent, and no global state."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from attent.pipeline.keyed import (
    all_global_generators,
    example_keys,
    fold,
    generator,
    global_generators,
    mix,
    seed_global,
    uniform,
    uniforms,
)

N = 100_000
WORD = 2**64 - 1


def slow_mix(x: int) -> int:
    """splitmix64 (Steele et al. 2014) one number at a time, in Python's integers."""
    x = (x + 0x9E3779B97F4A7C15) & WORD
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & WORD
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & WORD
    return x ^ (x >> 31)


def signed(x: int) -> int:
    """An unsigned 64-bit number as int64 holds it."""
    return x - 2**64 if x >= 2**63 else x


def global_state() -> tuple:
    name, words, *rest = np.random.get_state(legacy=True)  # noqa: NPY002
    return torch.get_rng_state().tolist(), name, words.tolist(), rest, random.getstate()


def global_draws() -> tuple:
    return torch.rand(()).item(), np.random.rand(), random.random()  # noqa: NPY002


def excess(*samples: torch.Tensor) -> float:
    """Chi-square of samples in [0, 1) over a grid of 100 cells, in its standard deviations.

    99 degrees of freedom: mean 99, variance 2 * 99, so that sqrt(198) = 14.07 is one of them.
    """
    edge = 100 if len(samples) == 1 else 10
    cell = torch.zeros(len(samples[0]), dtype=torch.int64)
    for sample in samples:
        cell = cell * edge + (sample * edge).long()
    counts = torch.bincount(cell, minlength=100).double()
    expected = len(cell) / 100
    return float((((counts - expected) ** 2 / expected).sum() - 99) / 198**0.5)


# --- fold


def test_fold_differs_with_each_part_its_type_and_its_place():
    arguments = [
        (0,), (1,), (-1,), (2**70,), (0, 1), (0, "1"), (0, "i1"), (0, 1, 2), (0, 2, 1), (0, 12),
        (0, "a"), (0, "b"), (0, ""), (0, "ab"), (0, "a", "b"), (0, "b", "a"), (0, "a", 1),
        (0, "a", "1"), (1, "a", 1), (0, "a", 1, 2), (0, "a", 12),
    ]  # fmt: skip
    keys = [fold(*parts) for parts in arguments]
    assert len(set(keys)) == len(arguments)
    assert all(0 <= key < 2**63 for key in keys)
    assert keys == [fold(*parts) for parts in arguments]


def test_no_part_can_pass_for_two():
    assert fold(0, "a\x1fsb") != fold(0, "a", "b")


# --- mix and uniform


def test_mix_is_splitmix64():
    # The published first outputs of splitmix64 from the seed 1234567; the second is the finaliser
    # of the seed moved on by the golden-ratio step.
    second = signed((1234567 + 0x9E3779B97F4A7C15) & WORD)
    assert slow_mix(1234567) == 6457827717110365317
    assert mix(torch.tensor([1234567, second])).tolist() == [
        6457827717110365317,
        3203168211198807973,
    ]


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=8))
def test_mix_agrees_with_python_modulo_two_to_the_64(numbers):
    assert mix(torch.tensor(numbers)).tolist() == [signed(slow_mix(x & WORD)) for x in numbers]


@settings(deadline=None, max_examples=50)
@given(st.integers(-(2**63), 2**63 - 1), st.integers(0, 2**40))
def test_uniform_is_the_upper_53_bits(key, draw):
    # The draw-th number of the splitmix64 that starts at the key.
    expected = (slow_mix((key + draw * 0x9E3779B97F4A7C15) & WORD) >> 11) / 2**53
    assert uniform(torch.tensor(key), draw).item() == expected
    assert 0 <= expected < 1


def test_uniforms_are_the_numbers_of_each_draw():
    keys = example_keys(fold(0, "view"), torch.arange(7))
    many = uniforms(keys, 5, start=3)
    assert torch.equal(many, torch.stack([uniform(keys, draw) for draw in range(3, 8)], dim=1))


def test_uniform_is_uniform():
    u = uniform(example_keys(fold(0, "view"), torch.arange(N)))
    assert u.dtype == torch.float64
    assert 0 <= u.min() < 1e-4  # expected 1 / N = 1e-5
    assert 1 - 1e-4 < u.max() < 1
    # The mean of N uniforms has the standard deviation sqrt(1 / (12 * 1e5)) = 0.0009: 5 of them.
    assert abs(u.mean() - 0.5) < 0.0046
    assert abs(excess(u)) < 5


@pytest.mark.parametrize("other", ["draw", "pass", "purpose", "seed", "example"])
def test_uniform_is_independent_across(other):
    index = torch.arange(N)
    first = uniform(example_keys(fold(0, "view", 1), index))
    second = {
        "draw": lambda: uniform(example_keys(fold(0, "view", 1), index), 1),
        "pass": lambda: uniform(example_keys(fold(0, "view", 2), index)),
        "purpose": lambda: uniform(example_keys(fold(0, "score", 1), index)),
        "seed": lambda: uniform(example_keys(fold(1, "view", 1), index)),
        "example": lambda: uniform(example_keys(fold(0, "view", 1), index + 1)),
    }[other]()
    assert abs(excess(first, second)) < 5


# --- keys of examples


def test_the_key_of_an_example_depends_on_its_index_alone():
    key = fold(0, "view")
    alone = example_keys(key, torch.arange(10))
    shuffled = torch.tensor([[7, 0, 7], [3, 9, 1]])
    assert torch.equal(example_keys(key, shuffled), alone[shuffled])
    assert torch.equal(example_keys(key, shuffled.int()), alone[shuffled])


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 2**63 - 1), st.integers(0, 2**40))
def test_the_key_of_an_example_mixes_its_index_with_the_mixed_key(key, index):
    expected = signed(slow_mix(index ^ slow_mix(key)))
    assert example_keys(key, torch.tensor([index])).tolist() == [expected]


def test_no_two_examples_share_a_key():
    keys = example_keys(fold(0, "view"), torch.arange(N))
    assert keys.dtype == torch.int64
    assert len(keys.unique()) == N
    assert not (keys == example_keys(fold(1, "view"), torch.arange(N))).any()


# --- the global generators


def test_draws_leave_the_global_state_alone():
    before = global_state()
    keys = example_keys(fold(0, "view"), torch.arange(3))
    uniform(keys, 2)
    torch.rand(3, generator=generator(fold(0, "order")))
    assert global_state() == before


def test_a_generator_starts_at_its_key():
    first, same, other = (torch.rand(4, generator=generator(key)) for key in (5, 5, 6))
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("fails", [False, True])
def test_global_generators_puts_torch_back(fails):
    before = global_state()
    try:
        with global_generators(torch.device("cpu")):
            seed_global(5, torch.device("cpu"))
            drawn = torch.rand(4)
            if fails:
                raise RuntimeError("in the block")
    except RuntimeError:
        assert fails
    assert global_state() == before
    assert torch.equal(drawn, torch.rand(4, generator=generator(5)))


@pytest.mark.parametrize("fails", [False, True])
def test_all_global_generators_puts_all_three_back(fails):
    before = global_state()
    draws = []
    for key in (2**62, 2**62, 2**62 + 1):  # more than NumPy's 32 bits
        try:
            with all_global_generators(key):
                draws.append(global_draws())
                if fails:
                    raise RuntimeError("in the block")
        except RuntimeError:
            assert fails
        assert global_state() == before
    first, same, other = draws
    assert first == same
    assert all(a != b for a, b in zip(first, other, strict=True))


def test_a_gpu_that_was_not_used_yet_is_no_matter(monkeypatch):
    """Before CUDA is initialised it counts its devices but has no generators for them."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    with all_global_generators(3):
        first = torch.rand(2)
    with all_global_generators(3):
        assert torch.equal(torch.rand(2), first)


def test_mix_is_the_same_on_every_device():
    from attent.pipeline.keyed import _mix_by_torch, mix

    draw = generator(0)
    x = torch.randint(-(2**63), 2**63 - 1, (1000,), generator=draw)
    assert torch.equal(_mix_by_torch(x), mix(x))
    assert torch.equal(_mix_by_torch(x[0]), mix(x[0]))
