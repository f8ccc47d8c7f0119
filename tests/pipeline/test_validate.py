"""A graph is checked before it runs; the message says what is wrong and what was meant."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
import torch
from tensordict import TensorDict

from attent.pipeline.combinators import repeat, sequence, when
from attent.pipeline.keys import KeyLike
from attent.pipeline.stage import Stage, allocate, initialize, run
from attent.pipeline.validate import GraphError, validate, walk
from tests.pipeline.test_stage import assign, floats


def stage(name: str, reads: Iterable[KeyLike], writes: Iterable[KeyLike], **options) -> Stage:
    return Stage(name=name, reads=list(reads), writes=list(writes), apply=lambda s: s, **options)


def problems(graph: Stage, inputs: TensorDict | Iterable[KeyLike]) -> list[str]:
    """The lines of the error, without their dashes."""
    with pytest.raises(GraphError, match=f"graph '{graph.name}' cannot run:") as caught:
        validate(graph, inputs)
    return [line.removeprefix("- ") for line in str(caught.value).splitlines()[1:]]


def test_walk_is_in_the_order_of_the_run_parents_first():
    a, b = stage("a", [], ["x"]), stage("b", [], ["x"])
    graph = sequence("all", repeat("twice", a, 2), when("on", b))
    names = [(depth, s.name) for depth, s in walk(graph)]
    assert names == [(0, "all"), (1, "twice"), (2, "a"), (1, "when on: b"), (2, "b")]


def test_a_good_graph_passes_and_runs():
    mean = assign("mean", "m", ["x"], lambda x: x.mean(), init=lambda s: s, provides=())
    centre = assign("centre", "c", ["x", "m"], lambda x, m: x - m, init=allocate("c", like="x"))
    graph = sequence("all", mean, when("on", repeat("twice", centre, 2)))
    state = floats(x=[1.0, 3.0], m=0.0)
    state["on"] = torch.tensor(True)
    validate(graph, state)
    validate(graph, ["x", "m", "on"])
    assert run(graph, initialize(graph, state))["c"].tolist() == [-1, 1]


def test_a_container_stands_for_what_it_holds_and_the_other_way_round():
    state = TensorDict({"params": floats(w=1.0), "buffers": TensorDict({})})
    graph = stage("s", ["buffers", "params"], [("params", "w")])
    validate(graph, state)
    validate(graph, ["buffers", "params"])
    validate(stage("s", ["params"], []), [("params", "w")])


def test_an_entry_supplied_by_an_init_is_there():
    reader = stage("reader", [("scores", "loss")], ["x"])
    scorer = stage("scorer", ["x"], [("scores", "loss")], init=lambda s: s)
    validate(sequence("all", reader, scorer), ["x"])  # whichever runs first: inits come before


def test_a_missing_entry_is_named():
    assert problems(stage("s", ["x"], ["far", "x"]), ["x"]) == [
        "stage 's' writes 'far', which is neither in the state nor provided by any stage's init; "
        "add it to the state, or give a stage an init for it"
    ]


@pytest.mark.parametrize(
    "inputs",
    [
        [("scores", "loss"), ("plan", "due"), "weight"],
        TensorDict({"scores": floats(loss=0.0), "plan": floats(due=0.0), "weight": torch.ones(())}),
    ],
    ids=["names", "state"],
)
@pytest.mark.parametrize(
    ("graph", "start", "meant"),
    [
        (stage("s", ["wieght"], []), "stage 's' reads 'wieght'", "weight"),
        (stage("s", [("scores", "los")], []), "stage 's' reads 'scores/los'", "scores/loss"),
        (stage("s", [], [("scores", "lss")]), "stage 's' writes 'scores/lss'", "scores/loss"),
        (when(("plan", "deu"), stage("s", [], [])), "'when plan/deu: s' asks the", "plan/due"),
    ],
    ids=["read", "read below", "write below", "flag"],
)
def test_a_misspelt_entry_is_named_with_what_was_meant(graph, start, meant, inputs):
    (line,) = problems(graph, inputs)
    assert line.startswith(start)
    assert line.endswith(f"did you mean '{meant}'?")


def test_an_unknown_flag():
    assert problems(when("tired", stage("s", ["x"], ["x"]), name="maybe"), ["x"]) == [
        "'maybe' asks the flag 'tired', which nothing supplies"
    ]


def test_what_only_a_later_stage_writes():
    graph = sequence("all", stage("early", ["y"], ["x"]), stage("late", ["x"], ["y"]))
    first, second = problems(graph, ["x"])
    assert first == (
        "stage 'early' reads 'y', which only the later stage 'late' writes: put 'late' before it, "
        "or give 'late' an init that provides a first value"
    )
    assert second.startswith("stage 'late' writes 'y', which is neither in the state nor provided")


def test_an_entry_is_not_suggested_for_itself():
    graph = sequence("all", stage("first", ["x"], ["y"]), stage("then", ["y"], ["x"]))
    for line in problems(graph, ["x"]):
        assert "'y', which is neither in the state nor provided by any stage's init; add it" in line


def test_two_stages_of_one_name():
    graph = sequence("all", stage("s", ["x"], ["x"]), when("x", stage("s", ["x"], []), name="all"))
    assert problems(graph, ["x"]) == [
        "2 stages are named 'all': give each its own name",
        "2 stages are named 's': give each its own name",
    ]


def test_everything_wrong_is_listed():
    graph = sequence(
        "all", stage("s", ["a"], []), when("b", stage("s", [], ["c"])), stage("t", ["x"], ["x"])
    )
    named, flag, read, written = problems(graph, ["x"])
    assert "2 stages are named 's'" in named
    assert "asks the flag 'b'" in flag
    assert "'s' reads 'a'" in read
    assert "'s' writes 'c'" in written
