"""Entries of a state: how they are named, found, viewed and compared.

An entry is named by a path of strings, ``("scores", "loss")``. Where a function takes a key, a bare
string stands for a path of one. A path names everything below it: a stage that reads ``"params"``
reads every parameter.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator

import torch
from tensordict import TensorDict
from torch import Tensor

Key = tuple[str, ...]
KeyLike = str | tuple[str, ...]


def key_of(key: KeyLike) -> Key:
    """The path a key-like names: ``"mask"`` is ``("mask",)``."""
    path = (key,) if isinstance(key, str) else tuple(key)
    if not path or not all(isinstance(part, str) and part for part in path):
        raise ValueError(f"a key is a string or a non-empty tuple of strings, not {key!r}")
    return path


def key_set(keys: Iterable[KeyLike] | KeyLike) -> frozenset[Key]:
    """A set of paths. One key alone is taken for a set of one; a tuple of strings is one path."""
    if isinstance(keys, str):
        return frozenset([key_of(keys)])
    if isinstance(keys, tuple) and keys and all(isinstance(part, str) for part in keys):
        return frozenset([key_of(tuple(str(part) for part in keys))])
    return frozenset(key_of(key) for key in keys)


def key_name(key: KeyLike) -> str:
    """How an entry is shown to people: ``scores/loss``."""
    return "/".join(key_of(key))


def covers(outer: Key, inner: Key) -> bool:
    """Whether ``outer`` names ``inner`` or something that holds it."""
    return inner[: len(outer)] == outer


def covered(key: Key, keys: Iterable[Key]) -> bool:
    """Whether one of ``keys`` names ``key`` or something that holds it."""
    if isinstance(keys, set | frozenset):  # by its own prefixes, however many the set has
        return any(key[:end] in keys for end in range(1, len(key) + 1))
    return any(covers(other, key) for other in keys)


def overlaps(key: Key, keys: Iterable[Key]) -> bool:
    """Whether ``key`` and one of ``keys`` have an entry in common."""
    return any(covers(other, key) or covers(key, other) for other in keys)


def leaves(state: TensorDict, prefix: Key = ()) -> Iterator[tuple[Key, Tensor]]:
    """Every tensor of a state with its path, in order of insertion."""
    for name, value in state.items():
        path = (*prefix, name)
        # Tensors first: asking whether something is a TensorDict is slow where it is not.
        if isinstance(value, Tensor):
            yield path, value
        elif isinstance(value, TensorDict):
            yield from leaves(value, path)
        else:
            raise TypeError(f"{key_name(path)!r} is a {type(value).__name__}, not a tensor")


def paths(state: TensorDict) -> list[Key]:
    """The paths of a state: its tensors and its containers, also empty ones."""
    found: list[Key] = []
    for name, value in state.items():
        found.append((name,))
        if isinstance(value, TensorDict):
            found += [(name, *inner) for inner in paths(value)]
    return found


def find(state: TensorDict, key: KeyLike) -> Tensor | TensorDict | None:
    """The entry at ``key``, or ``None`` where there is none."""
    value: Tensor | TensorDict | None = state
    for part in (key,) if isinstance(key, str) else key:
        if not isinstance(value, TensorDict):
            return None
        value = value.get(part, None)
    return value


def has(state: TensorDict, key: KeyLike) -> bool:
    """Whether a state has an entry."""
    return find(state, key) is not None


def tensor(state: TensorDict, *key: str) -> Tensor:
    """The tensor at a path.

    Raises:
        KeyError: no entry there, or a container; the nearest name is suggested.
    """
    value = find(state, key)
    if isinstance(value, Tensor):
        return value
    if value is None:
        raise _missing(state, key)
    raise KeyError(f"{key_name(key)!r} holds other entries; name one of {sorted(value.keys())}")


def branch(state: TensorDict, *key: str) -> TensorDict:
    """The container at a path.

    Raises:
        KeyError: no entry there, or a tensor.
    """
    value = find(state, key)
    if isinstance(value, TensorDict):
        return value
    if value is None:
        raise _missing(state, key)
    raise KeyError(f"{key_name(key)!r} is a tensor, not a container of entries")


def _missing(state: TensorDict, key: Key) -> KeyError:
    return KeyError(f"no entry {key_name(key)!r} in the state{nearest(key, paths(state))}")


def number(state: TensorDict, *key: str) -> int:
    """A scalar entry as a Python integer."""
    return int(tensor(state, *key).item())


def place(state: TensorDict, key: KeyLike, value: Tensor | TensorDict) -> None:
    """Set an entry of a state in place, making the containers on the way.

    Raises:
        ValueError: a tensor stands where a container would have to be.
    """
    path = key_of(key)
    for part in path[:-1]:
        inner = find(state, part)
        if isinstance(inner, Tensor):
            raise ValueError(f"{part!r} is a tensor; {key_name(path)!r} cannot be below it")
        if inner is None:
            inner = TensorDict({}, batch_size=[])
            state.set(part, inner)
        state = inner
    state.set(path[-1], value)


def ensure(state: TensorDict, key: KeyLike, value: Tensor) -> None:
    """Set an entry only where there is none yet: what an ``init`` does."""
    if not has(state, key):
        place(state, key, value)


def containers(state: TensorDict) -> TensorDict:
    """A state of new containers, nested ones too, that share every tensor."""
    return state.clone(recurse=False)


def view(state: TensorDict, keys: Iterable[Key]) -> TensorDict:
    """A state of new containers that holds only the named entries, sharing their tensors."""
    fresh = TensorDict({}, batch_size=[])
    for key in keys:
        value = find(state, key)
        if value is None:
            raise KeyError(key)
        place(fresh, key, containers(value) if isinstance(value, TensorDict) else value)
    return fresh


def clone(state: TensorDict) -> TensorDict:
    """A state that shares nothing with the original: every tensor copied, gradients left behind."""
    fresh = containers(state)
    for path, value in leaves(state):
        place(fresh, path, value.detach().clone())
    return fresh


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors have the same dtype, shape and bits (a NaN equals the same NaN)."""
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    a, b = a.detach().cpu().contiguous().reshape(-1), b.detach().cpu().contiguous().reshape(-1)
    return torch.equal(a.view(torch.uint8), b.view(torch.uint8))


def differences(a: TensorDict, b: TensorDict) -> list[Key]:
    """The paths at which two states do not hold the same bits, or only one holds anything."""
    left, right = dict(leaves(a)), dict(leaves(b))
    return [
        path
        for path in dict.fromkeys([*left, *right])
        if path not in left or path not in right or not same_bits(left[path], right[path])
    ]


def nearest(key: KeyLike, known: Iterable[Key]) -> str:
    """``; did you mean 'x'?`` for the known path most like ``key``, or the empty string."""
    matches = difflib.get_close_matches(key_name(key), [key_name(k) for k in known], n=1)
    return f"; did you mean {matches[0]!r}?" if matches else ""
