"""Keyed randomness: every random draw is a function of (seed, what it is for, clock).

No generator is ever carried from one stage to the next, so a resumed run draws what an
uninterrupted one would have drawn, and two stages that draw cannot disturb each other.
"""

from __future__ import annotations

import contextlib
import hashlib
import random
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

_GOLDEN = -7046029254386353131  # 0x9E3779B97F4A7C15 as int64: the step of splitmix64
_MIX_1 = -4658895280553007687  # 0xBF58476D1CE4E5B9
_MIX_2 = -7723592293110705685  # 0x94D049BB133111EB


def fold(seed: int, *parts: str | int) -> int:
    """A key in [0, 2^63) from a seed and what the draw is for.

    Args:
        seed: the run's one seed, any Python integer.
        *parts: what the draw is for (a string) and when (integers of the clock).

    Different parts give keys that are independent for every practical purpose (BLAKE2b).
    """
    # Each part with its type and length, so that no text can pass for two parts.
    named = [("s" if isinstance(part, str) else "i", str(part)) for part in (seed, *parts)]
    text = "".join(f"{kind}{len(value)}:{value}" for kind, value in named)
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def generator(key: int, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator that starts at a key."""
    return torch.Generator(device=device).manual_seed(key)


def _shift_right(x: Tensor, bits: int) -> Tensor:
    """Logical shift: torch shifts int64 arithmetically, so the copied sign bits are cleared."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def mix(x: Tensor) -> Tensor:
    """The finaliser of splitmix64 (Steele et al., OOPSLA 2014), elementwise on int64."""
    if x.device.type == "cpu":  # NumPy has unsigned integers, and less to do for each call
        bits = np.atleast_1d(x.numpy()).view(np.uint64) + np.uint64(_GOLDEN % 2**64)
        bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(_MIX_1 % 2**64)
        bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(_MIX_2 % 2**64)
        return torch.from_numpy((bits ^ (bits >> np.uint64(31))).view(np.int64)).reshape(x.shape)
    return _mix_by_torch(x)


def _mix_by_torch(x: Tensor) -> Tensor:
    """`mix` in torch's signed integers, where the tensor is on another device."""
    x = x + _GOLDEN
    x = (x ^ _shift_right(x, 30)) * _MIX_1
    x = (x ^ _shift_right(x, 27)) * _MIX_2
    return x ^ _shift_right(x, 31)


def example_keys(key: int, index: Tensor) -> Tensor:
    """One key per example, a function of ``key`` and the example's index alone.

    Args:
        key: from `fold`.
        index: int64 of any shape.

    Returns:
        int64 of the same shape.
    """
    return mix(index.to(torch.int64) ^ _mix_integer(key))


def _mix_integer(x: int) -> int:
    """`mix` of one Python integer: a few tensor operations fewer in every training step."""
    bits = 2**64 - 1
    x = (x + _GOLDEN) & bits
    x = ((x ^ (x >> 30)) * _MIX_1) & bits
    x = ((x ^ (x >> 27)) * _MIX_2) & bits
    x ^= x >> 31
    return x - 2**64 if x >= 2**63 else x


def uniform(keys: Tensor, draw: int = 0) -> Tensor:
    """One uniform number in [0, 1) per key, without any generator.

    Args:
        keys: int64 of any shape, from `example_keys`.
        draw: which of a key's numbers; different draws of one key are independent.

    Returns:
        float64 of the same shape.
    """
    offset = (draw * _GOLDEN + 2**63) % 2**64 - 2**63  # wrapped to int64, as the keys are
    return _shift_right(mix(keys + offset), 11).to(torch.float64) * 2.0**-53


def uniforms(keys: Tensor, count: int, start: int = 0) -> Tensor:
    """Many uniform numbers in [0, 1) per key: ``uniform(keys, d)`` for each d from ``start``.

    Args:
        keys: ``[B]`` int64, from `example_keys`.
        count: D, how many.
        start: the first draw.

    Returns:
        float64 of ``[B, D]``.
    """
    draws = torch.arange(start, start + count, device=keys.device) * _GOLDEN
    return uniform(keys[:, None] + draws)


@contextlib.contextmanager
def global_generators(*devices: torch.device) -> Iterator[None]:
    """Leave torch's global random state (CPU, and the CUDA devices given) as it was found.

    For what can only draw from the global state (dropout, module initialisation): seed it inside
    with `seed_global`.
    """
    cuda = sorted({d.index or 0 for d in devices if d.type == "cuda"})
    cpu_state = torch.default_generator.get_state()
    cuda_states = [torch.cuda.default_generators[i].get_state() for i in cuda]
    try:
        yield
    finally:
        torch.default_generator.set_state(cpu_state)
        for i, state in zip(cuda, cuda_states, strict=True):
            torch.cuda.default_generators[i].set_state(state)


def seed_global(key: int, *devices: torch.device) -> None:
    """Seed the generators that a step on these devices draws from; a microsecond on the CPU."""
    torch.default_generator.manual_seed(key)
    for device in devices:
        if device.type == "cuda":
            torch.cuda.default_generators[device.index or 0].manual_seed(key)


@contextlib.contextmanager
def all_global_generators(key: int) -> Iterator[None]:
    """Seed torch, NumPy and `random` for a block, and put all three back afterwards.

    For foreign code that draws from wherever it likes, such as model constructors.
    """
    python_state, numpy_state = random.getstate(), np.random.get_state()  # noqa: NPY002
    # Before CUDA is initialised there are no generators of it to keep; its first use seeds them.
    count = torch.cuda.device_count() if torch.cuda.is_initialized() else 0
    devices = [torch.device("cuda", i) for i in range(count)]
    with global_generators(*devices):
        try:
            random.seed(key)
            np.random.seed(key % 2**32)  # noqa: NPY002
            seed_global(key, *devices)
            yield
        finally:
            random.setstate(python_state)
            np.random.set_state(numpy_state)  # noqa: NPY002
