"""Entries: their names, finding them, views that do not leak, comparison by bits."""

from __future__ import annotations

import math

import pytest
import torch
from tensordict import TensorDict

from attent.pipeline.keys import (
    branch,
    clone,
    containers,
    covered,
    covers,
    differences,
    ensure,
    find,
    has,
    key_name,
    key_of,
    key_set,
    leaves,
    nearest,
    number,
    overlaps,
    paths,
    place,
    same_bits,
    tensor,
    view,
)


@pytest.fixture
def state() -> TensorDict:
    return TensorDict(
        {
            "scores": TensorDict({"loss": torch.ones(2), "step": torch.zeros(2)}),
            "clock": TensorDict({"step": torch.tensor(7)}),
            "buffers": TensorDict({}),
            "mask": torch.tensor([True, False]),
        }
    )


def test_a_string_is_a_path_of_one():
    assert key_of("mask") == ("mask",)
    assert key_of(("scores", "loss")) == ("scores", "loss")
    assert key_name(("scores", "loss")) == "scores/loss"
    assert key_name("mask") == "mask"


@pytest.mark.parametrize("key", ["", (), ("scores", ""), ("scores", 3)])
def test_what_is_not_a_key_is_refused(key):
    with pytest.raises(ValueError, match="a key is a string or a non-empty tuple of strings"):
        key_of(key)


def test_a_set_of_keys_from_one_or_several():
    path = ("scores", "loss")
    assert key_set("mask") == {("mask",)}
    assert key_set(path) == {path}  # a tuple of strings is one path, not two keys
    assert key_set(["mask", path]) == {("mask",), path}
    assert key_set((path, "mask")) == {("mask",), path}
    assert key_set(()) == frozenset()


@pytest.mark.parametrize("keys", ["", ("scores", ""), ["mask", ""]])
def test_a_set_holds_only_keys(keys):
    with pytest.raises(ValueError, match="a key is a string or a non-empty tuple of strings"):
        key_set(keys)


def test_a_path_covers_what_is_below_it():
    outer, inner, other = ("params",), ("params", "w"), ("parameters",)
    assert covers(outer, inner)
    assert covers(inner, inner)
    assert not covers(inner, outer)
    assert not covers(outer, other)
    for kind in (list, frozenset):
        assert covered(inner, kind([other, outer]))
        assert covered(inner, kind([inner]))
        assert not covered(outer, kind([other, inner]))
    assert overlaps(outer, [other, inner])
    assert overlaps(inner, [outer])
    assert not overlaps(outer, [other])


def test_leaves_and_paths_are_in_order_of_insertion(state):
    assert [path for path, _ in leaves(state)] == [
        ("scores", "loss"),
        ("scores", "step"),
        ("clock", "step"),
        ("mask",),
    ]
    assert paths(state) == [
        ("scores",),
        ("scores", "loss"),
        ("scores", "step"),
        ("clock",),
        ("clock", "step"),
        ("buffers",),
        ("mask",),
    ]


def test_a_leaf_is_a_tensor(state):
    state["scores"].set_non_tensor("name", "loss")
    with pytest.raises(TypeError, match="'scores/name' is a NonTensorData, not a tensor"):
        list(leaves(state))


def test_find(state):
    assert find(state, ("scores", "loss")) is state["scores", "loss"]
    assert find(state, "scores") is state["scores"]
    assert has(state, "buffers")
    for absent in ["score", ("scores", "novelty"), ("mask", "loss")]:
        assert find(state, absent) is None
        assert not has(state, absent)


def test_typed_access(state):
    assert tensor(state, "scores", "loss") is state["scores", "loss"]
    assert branch(state, "scores") is state["scores"]
    assert number(state, "clock", "step") == 7


@pytest.mark.parametrize(
    ("access", "key", "message"),
    [
        (tensor, ("scores", "los"), "no entry 'scores/los' in the state; did you mean 'scores/lo"),
        (tensor, ("wholly", "other"), r"no entry 'wholly/other' in the state\W*$"),
        (tensor, ("scores",), r"'scores' holds other entries; name one of \['loss', 'step'\]"),
        (branch, ("score",), "no entry 'score' in the state; did you mean 'scores'"),
        (branch, ("mask",), "'mask' is a tensor, not a container of entries"),
        (number, ("clock", "stp"), "did you mean 'clock/step'"),
    ],
)
def test_what_is_not_there_is_named_with_its_nearest(state, access, key, message):
    with pytest.raises(KeyError, match=message):
        access(state, *key)


def test_nearest():
    known = [("scores", "loss"), ("mask",)]
    assert nearest(("scores", "lost"), known) == "; did you mean 'scores/loss'?"
    assert nearest("msak", known) == "; did you mean 'mask'?"
    assert nearest("weight", known) == ""
    assert nearest("mask", []) == ""


def test_place_makes_the_containers_on_the_way(state):
    moment = torch.ones(1)
    place(state, ("optim", "w", "moment"), moment)
    assert state["optim", "w", "moment"] is moment
    place(state, ("scores", "loss"), moment)
    assert state["scores", "loss"] is moment
    assert has(state, ("scores", "step"))


def test_ensure_sets_only_what_is_absent(state):
    loss = state["scores", "loss"]
    ensure(state, ("scores", "loss"), torch.zeros(2))
    ensure(state, ("scores", "novelty"), torch.full((2,), 3.0))
    assert state["scores", "loss"] is loss
    assert state["scores", "novelty"].tolist() == [3, 3]


@pytest.mark.parametrize(
    "taken",
    [containers, lambda s: view(s, [("scores",)]), lambda s: view(s, [("scores", "loss")])],
    ids=["containers", "view of a container", "view of an entry"],
)
def test_a_set_in_a_view_does_not_reach_the_original(state, taken):
    original = state["scores", "loss"]
    seen = taken(state)
    assert seen["scores", "loss"] is original  # shared, not copied
    seen["scores", "loss"] = torch.zeros(2)
    seen["scores", "novelty"] = torch.zeros(2)
    assert state["scores", "loss"] is original
    assert not has(state, ("scores", "novelty"))


def test_a_view_holds_only_what_is_named(state):
    assert paths(view(state, [("scores", "loss"), ("buffers",)])) == [
        ("scores",),
        ("scores", "loss"),
        ("buffers",),
    ]
    with pytest.raises(KeyError, match="novelty"):
        view(state, [("scores", "novelty")])


@pytest.mark.parametrize("keys", [["scores", "scores/loss"], ["scores/loss", "scores"]])
def test_a_view_by_overlapping_keys_holds_both(state, keys):
    seen = view(state, [tuple(key.split("/")) for key in keys])
    assert paths(seen["scores"]) == [("loss",), ("step",)]


def test_a_clone_shares_nothing(state):
    state["w"] = torch.ones(2, requires_grad=True)
    copy = clone(state)
    assert differences(copy, state) == []
    assert paths(copy) == paths(state)
    for path, value in leaves(copy):
        assert value.data_ptr() != state[path].data_ptr()
        assert not value.requires_grad
    copy["scores", "loss"].zero_()
    assert state["scores", "loss"].tolist() == [1, 1]


@pytest.mark.parametrize(
    ("a", "b", "same"),
    [
        (torch.tensor([math.nan]), torch.tensor([math.nan]), True),
        (torch.tensor([-0.0]), torch.tensor([0.0]), False),  # equal numbers, other sign bit
        (torch.tensor([1]), torch.tensor([1.0]), False),
        (torch.tensor([1.0]), torch.tensor(1.0), False),
        (torch.tensor(1.0), torch.tensor(1.0), True),
        (torch.tensor([True, False]), torch.tensor([True, True]), False),
        (torch.empty(0), torch.empty(0), True),
        (torch.arange(6).reshape(2, 3).T, torch.tensor([[0, 3], [1, 4], [2, 5]]), True),
        (torch.ones(1).expand(3), torch.ones(3), True),
        (torch.ones(1, requires_grad=True), torch.ones(1), True),
    ],
)
def test_same_bits(a, b, same):
    assert same_bits(a, b) is same
    assert same_bits(b, a) is same


def test_differences_are_named(state):
    other = clone(state)
    assert differences(state, other) == []
    other["scores", "loss"][1] = -1
    other["weight"] = torch.ones(2)
    del other["mask"]
    assert differences(state, other) == [("scores", "loss"), ("mask",), ("weight",)]


def test_a_tensor_is_not_replaced_by_a_container():
    state = TensorDict({"x": torch.ones(2)})
    with pytest.raises(ValueError, match="'x' is a tensor; 'x/y' cannot be below it"):
        place(state, ("x", "y"), torch.ones(1))
    assert torch.equal(state["x"], torch.ones(2))
