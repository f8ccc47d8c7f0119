"""Graphs of stages: ``sequence``, ``repeat`` and ``when`` make one stage of several.

What a combination reads and writes follows from its parts, so a graph is checked and run like any
other stage.
"""

from __future__ import annotations

from collections.abc import Iterable

from tensordict import TensorDict

from attent.pipeline.keys import Key, KeyLike, covered, key_name, key_of, tensor
from attent.pipeline.stage import Apply, Stage, initialize, run


def sequence(name: str, *stages: Stage) -> Stage:
    """One stage after another.

    Reads what its parts read, less what an earlier part has already written.

    Raises:
        ValueError: no stages.
    """
    if not stages:
        raise ValueError(f"sequence {name!r} has no stages")
    reads: set[Key] = set()
    writes: set[Key] = set()
    for stage in stages:
        reads |= {key for key in stage.read_keys if not covered(key, writes)}
        writes |= stage.write_keys

    def apply(state: TensorDict) -> TensorDict:
        for stage in stages:
            state = run(stage, state, donate=True)
        return state

    return _combine(name, "sequence", stages, reads, writes, apply)


def repeat(name: str, stage: Stage, times: int) -> Stage:
    """A stage, a fixed number of times.

    Raises:
        ValueError: fewer than one time.
    """
    if times < 1:
        raise ValueError(f"repeat {name!r} needs at least one time, got {times}")

    def apply(state: TensorDict) -> TensorDict:
        for _ in range(times):
            state = run(stage, state, donate=True)
        return state

    return _combine(
        name, "repeat", (stage,), stage.read_keys, stage.write_keys, apply, note=f"{times} times"
    )


def when(flag: KeyLike, stage: Stage, name: str | None = None) -> Stage:
    """A stage that runs only while a flag of the state is set.

    Args:
        flag: a boolean scalar entry.
        stage: what to run; if the flag is not set its entries pass through, and so what it writes
            counts as read.
        name: by default ``when <flag>: <stage>``.
    """
    path = key_of(flag)
    reads = {path} | stage.read_keys | stage.write_keys

    def apply(state: TensorDict) -> TensorDict:
        if bool(tensor(state, *path)):
            return run(stage, state, donate=True)
        return state

    return _combine(
        name or f"when {key_name(path)}: {stage.name}",
        "when",
        (stage,),
        reads,
        stage.write_keys,
        apply,
        flag=path,
    )


def _combine(
    name: str,
    kind: str,
    children: tuple[Stage, ...],
    reads: Iterable[Key],
    writes: Iterable[Key],
    apply: Apply,
    *,
    note: str = "",
    flag: Key | None = None,
) -> Stage:
    def init(state: TensorDict) -> TensorDict:
        for child in children:
            state = initialize(child, state)
        return state

    return Stage(
        name=name,
        reads=frozenset(reads),
        writes=frozenset(writes),
        apply=apply,
        init=init,
        provides=frozenset().union(*(child.provided_keys for child in children)),
        children=children,
        note=note,
        kind=kind,
        flag=flag,
    )
