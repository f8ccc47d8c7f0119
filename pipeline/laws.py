"""The laws every stage keeps, as one check to run on yours.

``assert_stage_laws(stage, state)`` needs no model, no data set and no GPU: a state of a few small
tensors will do.
"""

from __future__ import annotations

import random

import numpy as np
import torch
from tensordict import TensorDict
from torch import Tensor

from attent.pipeline.keyed import generator
from attent.pipeline.keys import (
    Key,
    clone,
    covered,
    differences,
    key_name,
    leaves,
    overlaps,
    place,
    same_bits,
)
from attent.pipeline.stage import Stage, run


def assert_stage_laws(stage: Stage, state: TensorDict) -> None:
    """Check that a stage is what the engine takes it for.

    1. Reads and writes are as declared: it runs on a view of those alone and returns all it writes.
    2. The input is not touched.
    3. The global random state (torch, NumPy, `random`) is not touched.
    4. Twice gives the same bits.
    5. Donated or not gives the same bits.
    6. Entries that are only written are never read: other contents give the same result.
    7. What is only read is not written, even when donated, and nothing returned shares its memory:
       the next stage may change it in place.

    Args:
        stage: any stage, combinators included.
        state: a state on which it can run, as after `initialize`; left untouched.

    Raises:
        AssertionError: says which law is broken and at which entry.
    """
    before = clone(state)
    randomness = _global_random_state()
    held = run(stage, state)
    first = clone(held)  # a stage may keep what it returned, and change it at the next call
    _law(stage, randomness == _global_random_state(), "it touched the global random state")
    _same(stage, before, state, "it changed its input at")
    untouched = [p for p, _ in leaves(state) if not covered(p, stage.write_keys)]
    _same(stage, first, run(stage, state), "twice did not give the same at")
    _same(stage, first, held, "a second call changed what the first had returned at")

    donated_input = clone(state)
    donated = run(stage, donated_input, donate=True)
    read_only = dict(leaves(donated_input))
    original = dict(leaves(before))
    for path in untouched:
        same = same_bits(read_only[path], original[path])
        _law(stage, same, f"it changed {key_name(path)!r}, which it only reads")
    _same(stage, first, donated, "donating the input changed the result at")

    scrambled = clone(state)
    for path, value in list(leaves(scrambled)):
        if covered(path, stage.write_keys) and not overlaps(path, stage.read_keys):
            place(scrambled, path, _scramble(value, path))
    _same(stage, first, run(stage, scrambled), "it read an entry it only writes, seen at")

    fresh = clone(state)
    owners = {
        v.untyped_storage().data_ptr(): f"the input's {key_name(p)!r}" for p, v in leaves(fresh)
    }
    owners |= {
        v.untyped_storage().data_ptr(): f"what an earlier call returned at {key_name(p)!r}"
        for p, v in leaves(held)
        if covered(p, stage.write_keys)
    }
    for path, value in leaves(run(stage, fresh)):
        if not covered(path, stage.write_keys) or not value.numel():
            continue
        storage = value.untyped_storage().data_ptr()
        owner = owners.setdefault(storage, f"{key_name(path)!r}")
        start = f"what it returned at {key_name(path)!r} shares memory with "
        _law(stage, owner == repr(key_name(path)), f"{start}{owner}: return a copy")
        expanded = any(n > 1 and s == 0 for n, s in zip(value.shape, value.stride(), strict=True))
        _law(stage, not expanded, f"{start}itself (an expanded tensor): return a copy")


def _law(stage: Stage, held: bool, message: str) -> None:
    if not held:
        raise AssertionError(f"stage {stage.name!r} breaks a law: {message}")


def _same(stage: Stage, a: TensorDict, b: TensorDict, message: str) -> None:
    wrong = differences(a, b)
    _law(stage, not wrong, f"{message} {', '.join(key_name(p) for p in wrong[:5])}")


def _scramble(value: Tensor, path: Key) -> Tensor:
    """Other contents of the same shape and dtype; NaN where there can be one."""
    if value.dtype.is_floating_point:
        return torch.full_like(value, torch.nan)
    if value.dtype == torch.bool:
        return ~value
    noise = torch.randint(1, 100, value.shape, generator=generator(len(path)))
    return value + noise.to(value.dtype).to(value.device)


def _global_random_state() -> tuple:
    cuda = [g.get_state().cpu().numpy().tobytes() for g in torch.cuda.default_generators]
    numpy_state = np.random.get_state(legacy=True)  # noqa: NPY002
    return (
        torch.default_generator.get_state().numpy().tobytes(),
        *cuda,
        tuple(x.tobytes() if isinstance(x, np.ndarray) else x for x in numpy_state),
        random.getstate(),
    )
