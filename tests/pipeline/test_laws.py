"""assert_stage_laws passes what keeps the laws and catches what breaks each of them."""

from __future__ import annotations

import gc
import random

import numpy as np
import pytest
import torch
from tensordict import TensorDict

from attent.pipeline.combinators import repeat, sequence, when
from attent.pipeline.keyed import example_keys, fold, uniform
from attent.pipeline.keys import clone, differences
from attent.pipeline.laws import assert_stage_laws
from attent.pipeline.stage import Stage
from tests.pipeline.test_stage import assign, floats, stage_of, swap


@pytest.fixture
def state() -> TensorDict:
    """One entry of each kind that the laws scramble (float, integer, boolean), and some more."""
    state = floats(x=[1.0, 2.0, 3.0], y=[0.0, 0.0, 0.0], a=[1.0], b=[2.0], z=[5.0])
    state["count"] = torch.tensor(4)
    state["on"] = torch.tensor(True)
    return state


def add(state: TensorDict) -> TensorDict:
    state["y"].add_(state["x"])
    return state


ADD = Stage(name="add", reads=["x", "y"], writes=["y"], apply=add)
THREE = torch.arange(3)
GOOD = [
    ADD,
    assign("copy", "y", ["x"], torch.clone),
    assign("mean", "y", ["x"], lambda x: x.mean().expand(3).clone()),
    assign("draw", "y", ["count"], lambda n: uniform(example_keys(fold(n), n + THREE)).float()),
    assign("next", "count", ["on"], lambda on: on + torch.tensor(1)),
    assign("toss", "on", ["count"], lambda n: n % 2 == 0),
    stage_of(swap, reads="ab", writes="ab"),
    sequence("both", ADD, assign("sum", "count", ["y"], lambda y: y.sum().long())),
    repeat("twice", ADD, 2),
    when("on", ADD),
    sequence("aliased inside", assign("alias", "y", ["x"], lambda x: x), ADD),
]  # fmt: skip


@pytest.mark.parametrize("stage", GOOD, ids=lambda stage: stage.name)
def test_a_good_stage_passes_and_its_state_is_left_alone(stage, state):
    before = clone(state)
    assert_stage_laws(stage, state)
    assert differences(state, before) == []


def breaks(stage: Stage, state: TensorDict, message: str) -> None:
    with pytest.raises(AssertionError, match=f"stage '{stage.name}' breaks a law: .*{message}"):
        assert_stage_laws(stage, state)


# --- 1: as declared; the runner's own errors say it


def test_law_1_it_returns_what_it_writes(state):
    with pytest.raises(ValueError, match="stage 'odd' writes 'y' but did not return it"):
        assert_stage_laws(stage_of(lambda s: TensorDict({})), state)


# --- 2: the input is not touched


def test_law_2_a_stage_that_holds_the_state_and_changes_it(state):
    breaks(
        assign("s", "y", ["x"], lambda x: x + state["z"].add_(1)), state, "changed its input at z"
    )


# --- 3: the global random state is not touched


@pytest.mark.parametrize(
    "draw", [torch.rand, np.random.rand, random.random], ids=["torch", "numpy", "random"]
)
def test_law_3_a_stage_that_draws_from_a_global_generator(draw, state):
    def apply(state: TensorDict) -> TensorDict:
        draw(*() if draw is random.random else (1,))
        return TensorDict({"y": state["x"] + 1})

    breaks(stage_of(apply), state, "it touched the global random state")


# --- 4: twice gives the same bits


def test_law_4_a_stage_with_a_hidden_counter(state):
    calls = []

    def apply(state: TensorDict) -> TensorDict:
        calls.append(1)
        return TensorDict({"y": state["x"] + len(calls)})

    breaks(stage_of(apply), state, "twice did not give the same at y")


def test_law_4_a_stage_that_counts_in_the_tensor_it_returns(state):
    """Both results are then the same tensor: compared as they stand they are equal."""
    kept = torch.zeros(3)
    breaks(assign("s", "y", ["x"], lambda x: kept.add_(x)), state, "twice did not give the same at")


# --- 5: donated or not


def is_donated(state: TensorDict) -> bool:
    """Whether the caller's state holds this very y too: two dictionaries have it by its name."""
    y = state["y"]
    return sum(isinstance(r, dict) and r.get("y") is y for r in gc.get_referrers(y)) > 1


def test_law_5_a_stage_that_differs_when_donated(state):
    stage = stage_of(lambda s: TensorDict({"y": s["x"] + is_donated(s)}))
    breaks(stage, state, "donating the input changed the result at y")


# --- 6: what is only written is not read


@pytest.mark.parametrize(
    ("entry", "apply"),
    [
        ("y", lambda s: TensorDict({"y": s["y"] + 1})),
        ("count", lambda s: TensorDict({"count": s["count"] * 2})),
        ("on", lambda s: s),  # handing on what it was given is reading it
    ],
)
def test_law_6_a_stage_that_reads_what_it_only_writes(entry, apply, state):
    message = f"it read an entry it only writes, seen at {entry}"
    breaks(stage_of(apply, writes=[entry]), state, message)


# --- 7: what is only read is not written, and no memory is shared


def test_law_7_a_stage_that_changes_in_place_what_it_reads(state):
    # The first run is not donated, but entries only read are shared all the same: law 2 sees it.
    breaks(assign("s", "y", ["x"], lambda x: x.add_(1) + 0), state, "it changed its input at x")


def test_law_7_a_stage_that_changes_it_only_when_donated(state):
    def apply(state: TensorDict) -> TensorDict:
        result = TensorDict({"y": state["x"] + 1})
        if is_donated(state):
            state["x"].zero_()
        return result

    breaks(stage_of(apply), state, "it changed 'x', which it only reads")


@pytest.mark.parametrize(
    "function", [lambda x: x, lambda x: x.view(3)], ids=["the tensor", "a view of it"]
)
def test_law_7_a_stage_that_returns_the_memory_of_what_it_reads(function, state):
    breaks(assign("s", "y", ["x"], function), state, "shares memory with the input's 'x'")


def test_law_7_a_stage_that_returns_one_tensor_for_two_entries(state):
    """The next stage may change one in place, and would change the other with it."""

    def apply(state: TensorDict) -> TensorDict:
        both = state["x"].sum().reshape(1)
        return TensorDict({"a": both, "b": both})

    breaks(stage_of(apply, writes="ab"), state, "memory")


def test_law_7_a_stage_that_returns_a_tensor_it_keeps(state):
    """The next stage may change it in place, and with it what this one returns from then on."""
    kept = torch.ones(3)
    breaks(assign("s", "y", [], lambda: kept), state, "memory")


def test_law_7_a_stage_that_returns_one_number_seen_three_times(state):
    """Elements that share memory cannot be changed in place at all."""
    breaks(assign("s", "y", ["x"], lambda x: x.sum().expand(3)), state, "memory")
