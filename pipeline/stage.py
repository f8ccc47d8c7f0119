"""A stage: the pure pair (init, apply), what it reads and writes, and the one runner.

Every part of a training program is such a value. ``run`` is the only way in, so that what a stage
declares is what it gets: an entry it did not name is not there to be read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import cast

import torch
from tensordict import TensorDict
from torch import Tensor

from attent.pipeline.keys import (
    Key,
    KeyLike,
    clone,
    containers,
    covered,
    ensure,
    find,
    has,
    key_name,
    key_of,
    key_set,
    leaves,
    nearest,
    paths,
    place,
    tensor,
    view,
)

Apply = Callable[[TensorDict], TensorDict]


def identity(state: TensorDict) -> TensorDict:
    """The state as it is: the init of a stage that owns no entry."""
    return state


def allocate(
    key: KeyLike, like: KeyLike, value: float = 0.0, dtype: torch.dtype | None = None
) -> Apply:
    """An ``init`` that adds one entry, shaped like another and filled with a value.

    Example:
        ``Stage(..., init=allocate(("scores", "novelty"), like=("scores", "loss")))``
    """

    def init(state: TensorDict) -> TensorDict:
        pattern = tensor(state, *key_of(like))
        ensure(state, key, torch.full_like(pattern, value, dtype=dtype or pattern.dtype))
        return state

    return init


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A named, pure transformation of the state.

    Attributes:
        name: unique in its graph.
        reads: entries that may influence the result.
        writes: entries it returns, all of them, with the shapes and dtypes they had before.
        apply: takes a view holding only what is read or written, returns one holding what is
            written (other entries of the view are passed over). It owns the entries it writes and
            may change them in place; the others it must leave alone.
        init: adds the entries it owns to a state, where they are absent; called once, in the order
            of the graph, before the first step.
        provides: entries that exist after ``init``; by default what it writes, if it has an init.
        children: the stages a combinator is made of, for `describe` and `validate`.
        note: a word on what it does, shown by `describe`; or a function that finds it out.
        kind: how a graph is drawn: ``stage``, ``sequence``, ``repeat`` or ``when``.
        flag: the entry a ``when`` asks.
        made_from: what it was made from, for tools that look at graphs (a reschedule's `Plan`).

    Reads and writes may be given as any iterable of keys; a key is a string or a tuple of strings.

    Example:
        >>> import torch
        >>> from tensordict import TensorDict
        >>> double = Stage(
        ...     name="double", reads={"x"}, writes={"y"},
        ...     apply=lambda s: TensorDict({"y": 2 * s["x"]}),
        ... )
        >>> run(double, TensorDict({"x": torch.ones(2), "y": torch.zeros(2)}))["y"]
        tensor([2., 2.])
    """

    name: str
    reads: Iterable[KeyLike]
    writes: Iterable[KeyLike]
    apply: Apply
    init: Apply = identity
    provides: Iterable[KeyLike] | None = None
    children: tuple[Stage, ...] = ()
    note: str | Callable[[], str] = ""
    kind: str = field(default="stage", repr=False)
    flag: Key | None = field(default=None, repr=False)
    made_from: object = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if not self.name:
            raise ValueError("a stage needs a name")
        object.__setattr__(self, "reads", key_set(self.reads))
        object.__setattr__(self, "writes", key_set(self.writes))
        if self.provides is None:
            given = self.writes if self.init is not identity else ()
        else:
            given = self.provides
        object.__setattr__(self, "provides", key_set(given))

    @property
    def read_keys(self) -> frozenset[Key]:
        """What it reads, as paths."""
        return cast(frozenset[Key], self.reads)

    @property
    def write_keys(self) -> frozenset[Key]:
        """What it writes, as paths."""
        return cast(frozenset[Key], self.writes)

    @property
    def provided_keys(self) -> frozenset[Key]:
        """What exists after its init, as paths."""
        return cast(frozenset[Key], self.provides)


def run(stage: Stage, state: TensorDict, *, donate: bool = False) -> TensorDict:
    """Apply a stage to a state.

    Args:
        stage: any stage, combinators included.
        state: a TensorDict of batch size ``[]``.
        donate: give the input up, so that what the stage writes is updated in place: a training
            loop donates and pays no copy. The input must not be used afterwards. (The idea is
            that of JAX's ``donate_argnums``.)

    Returns:
        A new state that shares every entry the stage does not write; the input itself, updated,
        if it was donated.

    Raises:
        KeyError: an entry the stage reads or writes is not in the state.
        ValueError: the stage did not return all it writes, returned something else as well, or
            changed a shape, a dtype or a device.
    """
    given, owned = view_of(stage, state, donate=donate)
    # apply may set entries of the view; this is what it was given
    handed = dict(leaves(given))
    before = {path: (value.shape, value.dtype, value.device) for path, value in owned.items()}
    try:
        returned = stage.apply(given)
    except KeyError as error:
        error.add_note(f"in stage {stage.name!r}, which sees only what it reads and writes")
        raise
    if not isinstance(returned, TensorDict):
        raise ValueError(
            f"stage {stage.name!r} returned {type(returned).__name__}; apply returns a TensorDict "
            "of the entries it writes"
        )
    after = _checked(stage, before, handed, dict(leaves(returned)))
    if donate:
        _store(after, owned)  # donated: what it was handed are the state's own tensors
        return state
    result = containers(state)
    for path, value in after.items():
        place(result, path, value.detach() if value.requires_grad else value)
    return result


def _store(values: dict[Key, Tensor], slots: dict[Key, Tensor]) -> None:
    """Copy what a stage returned into the donated tensors, unless it is there already.

    A donated state keeps its tensors for the whole run: whoever holds it when a later stage fails
    holds the last committed values.
    """
    moved = {path: value for path, value in values.items() if value is not slots[path]}
    if not moved:
        return
    owned = {slot.untyped_storage().data_ptr() for slot in slots.values()}
    for path, value in moved.items():
        # A stage may swap two of its entries: what is about to be overwritten is copied first.
        if value.untyped_storage().data_ptr() in owned:
            moved[path] = value.clone()
    with torch.no_grad():
        for path, value in moved.items():
            slots[path].copy_(value)


def view_of(
    stage: Stage, state: TensorDict, *, donate: bool
) -> tuple[TensorDict, dict[Key, Tensor]]:
    """What ``apply`` is handed: the declared entries, the written ones cloned unless donated.

    Returns:
        The view, and of its tensors those that are written, by path.
    """
    reads, writes = stage.read_keys, stage.write_keys
    for key in sorted(reads | writes):
        if not has(state, key):
            verb = "reads" if key in reads else "writes"
            raise KeyError(
                f"stage {stage.name!r} {verb} {key_name(key)!r}, which is not in the state"
                f"{nearest(key, paths(state))}"
            )
    given = view(state, (key for key in reads if not covered(key, writes)))
    owned: dict[Key, Tensor] = {}
    for key in writes:
        entry = find(state, key)
        assert entry is not None
        if isinstance(entry, TensorDict):
            entry = containers(entry) if donate else clone(entry)
            owned.update(leaves(entry, key))
        else:
            entry = owned[key] = entry if donate else entry.detach().clone()
        place(given, key, entry)
    return given, owned


def _checked(
    stage: Stage,
    before: dict[Key, tuple],
    handed: dict[Key, Tensor],
    found: dict[Key, Tensor],
) -> dict[Key, Tensor]:
    """What a stage returned of what it writes; anything it did not declare is refused."""
    after: dict[Key, Tensor] = {}
    for path, value in found.items():
        was = before.get(path)
        if was is not None:
            now = (value.shape, value.dtype, value.device)
            if now != was:
                raise ValueError(
                    f"stage {stage.name!r} changed {key_name(path)!r} from {list(was[0])} {was[1]} "
                    f"on {was[2]} to {list(now[0])} {now[1]} on {now[2]}; shapes, dtypes and "
                    "devices are fixed"
                )
            after[path] = value
        elif covered(path, stage.write_keys):
            raise ValueError(
                f"stage {stage.name!r} returned {key_name(path)!r}, which the state does not have: "
                "allocate it in init"
            )
        elif handed.get(path) is not value:
            raise ValueError(
                f"stage {stage.name!r} returned {key_name(path)!r}, which it does not declare in "
                f"writes{nearest(path, stage.write_keys)}"
            )
    if len(after) < len(before):
        missing = sorted(key_name(path) for path in before if path not in after)
        raise ValueError(
            f"stage {stage.name!r} writes {missing[0]!r} but did not return it"
            + (f" (nor {len(missing) - 1} more)" if len(missing) > 1 else "")
        )
    return after


def initialize(stage: Stage, state: TensorDict) -> TensorDict:
    """Call every stage's ``init`` in the order of the graph; the input state is left alone.

    Raises:
        ValueError: a stage's init did not add an entry that the stage says it provides.
    """
    result = containers(state)
    if stage.children:
        for child in stage.children:
            result = initialize(child, result)
        return result
    result = stage.init(result)
    for key in stage.provided_keys:
        if not has(result, key):
            raise ValueError(f"the init of stage {stage.name!r} did not add {key_name(key)!r}")
    return result
