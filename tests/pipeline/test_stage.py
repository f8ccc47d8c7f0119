"""A stage and its runner: what it gets, what it may return, who owns the memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import pytest
import torch
from tensordict import TensorDict

from attent.pipeline.keys import KeyLike, clone, differences, has, key_of, leaves, place
from attent.pipeline.stage import Stage, allocate, initialize, run


def floats(**entries: float | list[float]) -> TensorDict:
    """A state of float32 entries."""
    return TensorDict({name: torch.tensor(value).float() for name, value in entries.items()})


def assign(
    name: str, target: KeyLike, sources: Iterable[KeyLike], function: Callable, **options
) -> Stage:
    """A stage that sets one entry to a function of others: ``target = function(*sources)``."""
    sources = list(sources)

    def apply(state: TensorDict) -> TensorDict:
        result = TensorDict({})
        place(result, target, function(*(state[key_of(source)] for source in sources)))
        return result

    return Stage(name=name, reads=sources, writes=[target], apply=apply, **options)


def stage_of(apply: Callable, reads: Iterable[KeyLike] = ("x",), writes=("y",)) -> Stage:
    return Stage(name="odd", reads=list(reads), writes=list(writes), apply=apply)


def swap(state: TensorDict) -> TensorDict:
    return TensorDict({"a": state["b"], "b": state["a"]})


# --- what a stage is


def test_reads_and_writes_are_any_iterable_of_keys():
    loss = ("scores", "loss")
    stage = Stage(name="s", reads=(k for k in ["x", loss]), writes=loss, apply=lambda s: s)
    assert stage.read_keys == {("x",), loss}
    assert stage.write_keys == {loss}
    assert stage.provided_keys == frozenset()


def test_an_init_provides_what_is_written_unless_told():
    init = allocate("y", like="x")
    assert assign("s", "y", ["x"], lambda x: x, init=init).provided_keys == {("y",)}
    told = assign("s", "y", ["x"], lambda x: x, init=init, provides={"z"})
    assert told.provided_keys == {("z",)}


def test_a_stage_needs_a_name():
    with pytest.raises(ValueError, match="a stage needs a name"):
        assign("", "y", ["x"], lambda x: x)


# --- what it gets


def test_it_is_given_what_it_declares_and_nothing_else():
    seen = []

    def apply(state: TensorDict) -> TensorDict:
        seen.extend(path for path, _ in leaves(state))
        return state

    state = TensorDict({"p": floats(v=1.0, w=2.0), "x": torch.ones(1), "z": torch.ones(1)})
    run(stage_of(apply, reads=["x"], writes=[("p", "w")]), state)
    assert sorted(seen) == [("p", "w"), ("x",)]


@pytest.mark.parametrize(
    ("reads", "writes", "message"),
    [
        (["xx"], ["target"], "stage 'odd' reads 'xx', which is not in the state"),
        (["x"], ["targte"], "stage 'odd' writes 'targte', .*; did you mean 'target'"),
        (["x", ("p", "wieght")], ["target"], "reads 'p/wieght', .*; did you mean 'p/weight'"),
    ],
)
def test_an_entry_that_is_not_there_is_named(reads, writes, message):
    state = TensorDict({"x": torch.ones(1), "target": torch.ones(1), "p": floats(weight=1.0)})
    with pytest.raises(KeyError, match=message):
        run(stage_of(lambda s: s, reads, writes), state)


def test_an_undeclared_read_is_a_key_error_that_names_the_stage():
    peek = stage_of(lambda s: TensorDict({"y": s["hidden"]}))
    with pytest.raises(KeyError, match="stage 'odd'") as caught:
        run(peek, floats(x=1.0, y=0.0, hidden=5.0))
    assert "hidden" in str(caught.value)


# --- what it may return

COMPLETE = {"p": floats(v=1.0), "y": torch.ones(2)}


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        ({"y": torch.ones(2)}, "stage 'odd' writes 'p/v' but did not return it$"),
        ({}, r"stage 'odd' writes 'p/v' but did not return it \(nor 1 more\)"),
        (COMPLETE | {"z": torch.ones(2)}, "returned 'z', which it does not declare in writes"),
        (COMPLETE | {"x": torch.ones(2)}, "returned 'x', which it does not declare in writes"),
        (COMPLETE | {"yy": torch.ones(2)}, "returned 'yy', .*; did you mean 'y'"),
        (COMPLETE | {"p": floats(v=1.0, w=1.0)}, "'p/w', which the state does not have: allocate"),
        (COMPLETE | {"y": torch.ones(3)}, r"changed 'y' from \[2\] torch.float32 on cpu to \[3\]"),
        (COMPLETE | {"y": torch.ones(2).double()}, r"changed 'y' .* to \[2\] torch.float64 on cpu"),
        (
            COMPLETE | {"y": torch.ones(2, device="meta")},
            "changed 'y' from .* on cpu to .* on meta",
        ),
    ],
)
def test_what_is_returned_is_what_is_declared(returned, message):
    odd = stage_of(lambda s: TensorDict(returned), writes=["p", "y"])
    state = TensorDict({"x": torch.zeros(2), "y": torch.zeros(2), "p": floats(v=0.0)})
    before = clone(state)
    with pytest.raises(ValueError, match=message):
        run(odd, state)
    assert differences(state, before) == []


def test_a_stage_returns_a_tensordict():
    with pytest.raises(ValueError, match="stage 'odd' returned dict; apply returns a TensorDict"):
        run(stage_of(lambda s: {"y": s["x"]}), floats(x=1.0, y=0.0))


@pytest.mark.parametrize("entry", ["x", "yy"], ids=["read", "misspelt"])
def test_setting_an_undeclared_entry_of_the_view_is_refused(entry):
    """The usual way to write a stage is to set entries of the view and return it."""

    def apply(state: TensorDict) -> TensorDict:
        state[entry] = state["x"] + 1
        return state

    with pytest.raises(ValueError, match=f"returned '{entry}', which it does not declare"):
        run(stage_of(apply), floats(x=1.0, y=0.0))


def test_entries_of_the_view_that_were_only_read_are_passed_over():
    def apply(state: TensorDict) -> TensorDict:
        state["y"] = 2 * state["x"]
        return state

    after = run(stage_of(apply), floats(x=[1.0, 2.0], y=[0.0, 0.0]))
    assert after["y"].tolist() == [2, 4]
    assert after["x"].tolist() == [1, 2]


# --- who owns the memory


def test_the_input_is_left_alone_and_what_is_untouched_is_shared():
    state = TensorDict({"x": torch.ones(2), "y": torch.zeros(2), "p": floats(v=1.0, w=2.0)})
    before = clone(state)

    def apply(given: TensorDict) -> TensorDict:
        given["y"].add_(given["x"])  # written entries may be changed in place
        given["p", "w"].mul_(5)
        return given

    after = run(stage_of(apply, writes=["y", ("p", "w")]), state)
    assert after["y"].tolist() == [1, 1]
    assert after["p", "w"].item() == 10
    assert differences(state, before) == []
    for shared in ["x", ("p", "v")]:
        assert after[shared].data_ptr() == state[shared].data_ptr()


@pytest.mark.parametrize(
    "apply",
    [
        lambda s: TensorDict({"y": s["y"].add_(s["x"])}),
        lambda s: TensorDict({"y": s["y"] + s["x"]}),
    ],
    ids=["in place", "a new tensor"],
)
def test_a_donated_state_keeps_its_storage(apply):
    state = floats(x=[1.0, 2.0], y=[10.0, 10.0])
    slots = {path: value.data_ptr() for path, value in leaves(state)}
    after = run(stage_of(apply), state, donate=True)
    assert after["y"].tolist() == [11, 12]
    assert {path: value.data_ptr() for path, value in leaves(after)} == slots


@pytest.mark.parametrize("donate", [False, True])
def test_two_entries_can_be_swapped(donate):
    state = floats(a=[1.0, 2.0], b=[3.0, 4.0])
    slots = {name: state[name].data_ptr() for name in ("a", "b")}
    after = run(stage_of(swap, reads="ab", writes="ab"), state, donate=donate)
    assert after["a"].tolist() == [3, 4]
    assert after["b"].tolist() == [1, 2]
    if donate:
        assert {name: after[name].data_ptr() for name in ("a", "b")} == slots


@pytest.mark.parametrize("donate", [False, True])
def test_a_view_of_a_written_entry_can_be_returned(donate):
    def reverse(state: TensorDict) -> TensorDict:
        return TensorDict({"a": state["a"].reshape(2, 2).T.reshape(4), "b": state["a"][:2]})

    after = run(
        stage_of(reverse, "ab", "ab"), floats(a=[1.0, 2.0, 3.0, 4.0], b=[0.0, 0.0]), donate=donate
    )
    assert after["a"].tolist() == [1, 3, 2, 4]  # [[1, 2], [3, 4]] read down its columns
    assert after["b"].tolist() == [1, 2]


@pytest.mark.parametrize("donate", [False, True])
def test_a_state_carries_no_gradient_history(donate):
    state = floats(x=2.0, y=0.0)
    state["x"].requires_grad_()
    after = run(assign("square", "y", ["x"], lambda x: x * x), state, donate=donate)
    assert after["y"].item() == 4
    assert not after["y"].requires_grad


# --- init


def test_allocate():
    state = TensorDict({"scores": floats(loss=[1.0, 2.0, 3.0])})
    init = allocate(("scores", "novelty"), like=("scores", "loss"), value=7)
    init(state)
    allocate("count", like=("scores", "loss"), dtype=torch.int32)(state)
    assert state["scores", "novelty"].tolist() == [7, 7, 7]
    assert state["scores", "novelty"].dtype == torch.float32
    assert state["count"].tolist() == [0, 0, 0]
    assert state["count"].dtype == torch.int32


def test_allocate_leaves_what_is_there():
    state = floats(x=1.0, y=5.0)
    assert allocate("y", like="x")(state)["y"].item() == 5


def test_allocate_names_the_pattern_it_misses():
    with pytest.raises(KeyError, match="no entry 'losss' in the state; did you mean 'loss'"):
        allocate("y", like="losss")(floats(loss=1.0))


def test_initialize_adds_what_is_absent_and_leaves_its_input_alone():
    stage = assign("s", ("scores", "y"), ["x"], lambda x: x, init=allocate(("scores", "y"), "x"))
    state = TensorDict({"x": torch.ones(2), "scores": floats(loss=1.0)})
    once = initialize(stage, state)
    assert once["scores", "y"].tolist() == [0, 0]
    assert not has(state, ("scores", "y"))
    once["scores", "y"].fill_(3)
    twice = initialize(stage, once)
    assert [(p, v.data_ptr()) for p, v in leaves(twice)] == [
        (p, v.data_ptr()) for p, v in leaves(once)
    ]


def test_initialize_without_an_init_changes_nothing():
    state = floats(x=1.0)
    assert differences(initialize(assign("s", "y", ["x"], lambda x: x), state), state) == []


def test_an_init_provides_what_it_says():
    stage = assign("s", "y", ["x"], lambda x: x, init=allocate("z", like="x"))
    with pytest.raises(ValueError, match="the init of stage 's' did not add 'y'"):
        initialize(stage, floats(x=1.0))
