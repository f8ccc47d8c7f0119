"""sequence, repeat, when: what they read and write follows, and they run like any stage."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tensordict import TensorDict

from attent.pipeline.combinators import repeat, sequence, when
from attent.pipeline.keys import clone, differences, has
from attent.pipeline.stage import Stage, allocate, initialize, run
from tests.pipeline.test_stage import assign, floats, stage_of

DOUBLE = assign("double", "y", ["y"], lambda y: 2 * y)
ADD = assign("add", "y", ["x", "y"], lambda x, y: y.add_(x))
COPY = assign("copy", "z", ["y"], lambda y: y.clone())


def flagged(on: bool, **entries: float) -> TensorDict:
    state = floats(**entries)
    state["on"] = torch.tensor(on)
    return state


# --- what they read and write


def test_a_sequence_does_not_read_what_an_earlier_part_writes():
    both = sequence("both", COPY, assign("sum", "w", ["x", "z"], lambda x, z: x + z))
    assert both.read_keys == {("y",), ("x",)}  # not z
    assert both.write_keys == {("z",), ("w",)}


def test_a_sequence_reads_what_only_a_later_part_writes():
    both = sequence("both", assign("sum", "w", ["z"], lambda z: z + 1), COPY)
    assert both.read_keys == {("z",), ("y",)}


def test_a_container_written_before_is_not_read_but_a_part_of_it_is_not_enough():
    weight, params = ("params", "w"), ("params",)

    def between(writes, reads):
        first = Stage(name="first", reads=[], writes=[writes], apply=lambda s: s)
        return sequence("s", first, Stage(name="then", reads=[reads], writes=[], apply=lambda s: s))

    assert between(params, weight).read_keys == frozenset()
    assert between(weight, params).read_keys == {params}


def test_a_repeat_reads_and_writes_what_its_stage_does():
    thrice = repeat("thrice", ADD, 3)
    assert thrice.read_keys == ADD.read_keys
    assert thrice.write_keys == ADD.write_keys


def test_a_when_reads_its_flag_and_what_it_writes():
    maybe = when(("plan", "due"), COPY)
    assert maybe.read_keys == {("plan", "due"), ("y",), ("z",)}
    assert maybe.write_keys == {("z",)}
    assert maybe.name == "when plan/due: copy"
    assert when("on", COPY, name="maybe").name == "maybe"


# --- what they do


@pytest.mark.parametrize("donate", [False, True])
def test_a_sequence_runs_its_parts_in_order(donate):
    state = floats(x=3.0, y=1.0, z=0.0)
    after = run(sequence("all", DOUBLE, ADD, COPY), state, donate=donate)
    assert after["y"].item() == after["z"].item() == 5  # 2 * 1 + 3
    assert (state["y"].item() == 1) is not donate


def test_a_repeat_is_its_stage_by_hand():
    state = floats(x=3.0, y=1.0)
    by_hand = state
    for _ in range(3):
        by_hand = run(ADD, by_hand)
    repeated = run(repeat("thrice", ADD, 3), state)
    assert repeated["y"].item() == 10  # 1 + 3 * 3
    assert differences(repeated, by_hand) == []
    assert state["y"].item() == 1


@pytest.mark.parametrize("donate", [False, True])
@pytest.mark.parametrize(("on", "expected"), [(True, 2), (False, 1)])
def test_a_when_runs_only_while_its_flag_is_set(on, expected, donate):
    after = run(when("on", DOUBLE), flagged(on, y=1.0), donate=donate)
    assert after["y"].item() == expected
    assert after["on"].item() is on


def test_a_when_asks_the_flag_as_it_is_by_then():
    off = Stage(
        name="off", reads=["on"], writes=["on"], apply=lambda s: TensorDict({"on": ~s["on"]})
    )
    graph = repeat("thrice", sequence("once", when("on", DOUBLE), off), 3)
    assert run(graph, flagged(True, y=1.0))["y"].item() == 4  # on, off, on: doubled twice


@pytest.mark.parametrize(("on", "expected"), [(True, 7), (False, 4)])
def test_nested(on, expected):
    inner = sequence("inner", DOUBLE, when("on", ADD))
    state = flagged(on, x=1.0, y=1.0)
    # on: 1 -> 2 + 1 -> 6 + 1; off: 1 -> 2 -> 4
    assert run(sequence("outer", repeat("twice", inner, 2)), state)["y"].item() == expected


STAGES = [
    DOUBLE,
    ADD,
    COPY,
    when("on", DOUBLE),
    repeat("twice", ADD, 2),
    stage_of(lambda s: TensorDict({"y": s["z"], "z": s["y"]}), "yz", "yz"),
    assign("alias", "y", ["x"], lambda x: x),
    sequence("both", COPY, ADD),
]


@settings(deadline=None, max_examples=40)
@given(st.lists(st.sampled_from(STAGES), min_size=1, max_size=5), st.booleans())
def test_a_sequence_is_its_parts_by_hand_donated_or_not(stages, on):
    state = flagged(on, x=3.0, y=1.0, z=2.0)
    before, by_hand = clone(state), state
    for stage in stages:
        by_hand = run(stage, by_hand)
    graph = sequence("all", *stages)
    assert differences(run(graph, state), by_hand) == []
    assert differences(state, before) == []
    assert differences(run(graph, state, donate=True), by_hand) == []


def test_a_donated_state_holds_what_was_committed_before_a_failure():
    def fail(state: TensorDict) -> TensorDict:
        raise RuntimeError("half-way")

    state = floats(x=0.0, y=1.0)
    with pytest.raises(RuntimeError, match="half-way"):
        run(sequence("both", DOUBLE, stage_of(fail)), state, donate=True)
    assert state["y"].item() == 2


def test_an_error_names_the_part_that_failed():
    odd = stage_of(lambda s: TensorDict({}))
    with pytest.raises(ValueError, match="stage 'odd' writes 'y' but did not return it"):
        run(sequence("outer", DOUBLE, sequence("inner", odd)), floats(x=0.0, y=1.0))


# --- init, and what is refused


def test_parts_are_initialized_in_order():
    first = assign("first", "a", ["x"], lambda x: x, init=allocate("a", like="x", value=2))
    second = assign("second", "b", ["a"], lambda a: a, init=allocate("b", like="a", value=3))
    graph = sequence("outer", when("on", first), repeat("twice", second, 2))
    state = flagged(False, x=1.0)
    after = initialize(graph, state)
    assert (after["a"].item(), after["b"].item()) == (2, 3)
    assert not has(state, "a")
    assert differences(initialize(graph, after), after) == []
    assert differences(graph.init(clone(state)), after) == []  # as a caller's own combinator might
    assert graph.provided_keys == {("a",), ("b",)}


def test_a_sequence_needs_a_stage():
    with pytest.raises(ValueError, match="sequence 'none' has no stages"):
        sequence("none")


@pytest.mark.parametrize("times", [0, -1])
def test_a_repeat_needs_a_time(times):
    with pytest.raises(ValueError, match=f"repeat 'never' needs at least one time, got {times}"):
        repeat("never", DOUBLE, times)
