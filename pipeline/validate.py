"""Check a graph before anything runs: what is missing, misspelt, out of order or named twice."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from tensordict import TensorDict

from attent.pipeline.keys import Key, KeyLike, covered, key_name, key_set, nearest, overlaps, paths
from attent.pipeline.stage import Stage


class GraphError(ValueError):
    """A graph that cannot run; the message has one line for each thing that is wrong."""


def walk(stage: Stage, depth: int = 0) -> Iterator[tuple[int, Stage]]:
    """A graph's stages with their depths, parents before children, in the order they run."""
    yield depth, stage
    for child in stage.children:
        yield from walk(child, depth + 1)


def validate(graph: Stage, inputs: TensorDict | Iterable[KeyLike]) -> None:
    """Check that every entry a graph needs will be there when it is needed.

    An entry is there if the inputs hold it or some stage's ``init`` provides it.

    Args:
        graph: any stage.
        inputs: the state the graph will be given, or the names of its entries.

    Raises:
        GraphError: two stages of one name; a stage that reads or writes an entry nobody supplies
            (with the entry it may have meant); a stage that reads what only a later one writes.
    """
    present = set(_innermost(inputs) if isinstance(inputs, TensorDict) else key_set(inputs))
    stages = [stage for _, stage in walk(graph)]
    primitive = [stage for stage in stages if not stage.children]
    provided = {key for stage in primitive for key in stage.provided_keys}
    known = present | provided
    problems = _same_names(stages)
    flags = [(s.name, s.flag) for s in stages if s.flag is not None]
    for name, flag in flags:
        if not covered(flag, known):
            problems.append(
                f"{name!r} asks the flag {key_name(flag)!r}, which nothing supplies"
                f"{nearest(flag, known)}"
            )
    for position, stage in enumerate(primitive):
        for verb, keys in (("reads", stage.read_keys), ("writes", stage.write_keys)):
            for key in sorted(keys):
                if covered(key, known) or any(key == k[: len(key)] for k in known):
                    continue
                problems.append(_unsupplied(stage, verb, key, primitive, position, known))
    if problems:
        raise GraphError(
            f"graph {graph.name!r} cannot run:\n" + "\n".join(f"- {p}" for p in problems)
        )


def _innermost(state: TensorDict) -> list[Key]:
    """Tensors and empty containers; that a container is there says nothing of what is in it."""
    found = paths(state)
    parents = {key[:-1] for key in found}
    return [key for key in found if key not in parents]


def _same_names(stages: list[Stage]) -> list[str]:
    """A line for each name that stands more than once in the graph."""
    by_name: dict[str, list[Stage]] = {}
    for stage in stages:
        by_name.setdefault(stage.name, []).append(stage)
    return [
        f"{len(same)} stages are named {name!r}: give each its own name"
        for name, same in by_name.items()
        if len(same) > 1
    ]


def _unsupplied(
    stage: Stage, verb: str, key: Key, primitive: list[Stage], position: int, known: set[Key]
) -> str:
    """Why an entry is not there, as precisely as can be told."""
    start = f"stage {stage.name!r} {verb} {key_name(key)!r}, which "
    if verb == "reads":
        earlier = [s.name for s in primitive[:position] if overlaps(key, s.write_keys)]
        later = [s.name for s in primitive[position + 1 :] if overlaps(key, s.write_keys)]
        if later and not earlier:
            return start + (
                f"only the later stage {later[0]!r} writes: put {later[0]!r} before it, or give "
                f"{later[0]!r} an init that provides a first value"
            )
    writers = {k for s in primitive for k in s.write_keys if s is not stage}
    hint = (
        nearest(key, (known | writers) - {key})
        or "; add it to the state, or give a stage an init for it"
    )
    return start + f"is neither in the state nor provided by any stage's init{hint}"
