"""Several processes: they select the same, train on the same batches, and stop together."""

from __future__ import annotations

from itertools import chain

import pytest
import torch
from torchdata.nodes import IterableWrapper, Loader

from attent.pipeline.keys import differences, leaves
from attent.pipeline.processes import Dealt, Processes
from tests.pipeline.several import together

EXACT = ("cycles_in_float64", "observing", "observing_in_parts", "batches_of_two")
ALL = (
    *EXACT,
    "cycles_in_float32",
    "an_example_cannot_be_read",
    "the_second_step_fails",
    "a_loss_is_not_finite",
    "a_loss_of_a_part_is_not_finite",
    "a_score_is_not_finite",
    "statistics_of_a_batch",
    "a_stream_fails",
    "weights_of_ones_own",
    "a_wrapper_of_ones_own",
    "a_wrapper_around_torchs",
    "a_wrapper_that_is_not_torchs",
    "dropout",
    "metrics_of_ones_own",
    "interrupted",
    "it_is_mended",
    "what_main_makes",
)


@pytest.fixture(scope="module")
def alone():
    return together(1, *(name for name in ALL if name != "what_main_makes"))[0]


@pytest.fixture(scope="module", params=[2, 4])
def several(request):
    return together(request.param, *ALL)


def state_of(found):
    return found["state"] if isinstance(found, dict) else found


def far_apart(a, b) -> float:
    """The largest relative difference of two states' weights and moments."""
    worst = 0.0
    for group in ("params", "optim"):
        for (_, x), (_, y) in zip(leaves(a[group]), leaves(b[group]), strict=True):
            worst = max(worst, float((x - y).norm() / x.norm().clamp_min(1e-12)))
    return worst


@pytest.mark.parametrize("name", [*EXACT, "cycles_in_float32", "statistics_of_a_batch", "dropout"])
def test_every_process_holds_the_same_state(several, name):
    first = state_of(several[0][name])
    for other in several[1:]:
        assert differences(first, state_of(other[name])) == []


def test_the_same_examples_are_selected_in_every_cycle(alone, several):
    masks = several[0]["cycles_in_float64"]["masks"]
    assert masks == alone["cycles_in_float64"]["masks"]
    assert len(masks) >= 6  # six cycles, and everything between them


def test_the_same_batches_are_trained_on(alone, several):
    """Step for step, under the same keys: what they fetched together is what one fetches alone."""
    fetched = alone["cycles_in_float64"]["fetched"]
    parts = [found["cycles_in_float64"]["fetched"] for found in several]
    assert len(fetched) > 100
    for step, batch in enumerate(fetched):
        taken = (part[step] for part in parts[: len(batch)])  # the others stand in
        assert list(chain.from_iterable(taken)) == batch


def test_weights_agree_after_a_hundred_steps(alone, several):
    for name, bound in (("cycles_in_float64", 1e-12), ("cycles_in_float32", 1e-4)):
        one, many = alone[name]["state"], several[0][name]["state"]
        assert int(one["clock", "step"]) == int(many["clock", "step"]) > 100
        assert far_apart(one, many) < bound


@pytest.mark.parametrize(
    "name",
    ["a_wrapper_of_ones_own", "a_wrapper_around_torchs", "a_wrapper_that_is_not_torchs"],
)
def test_a_wrapper_may_do_it_its_own_way(alone, several, name):
    one, many = (found[name] for found in (alone, several[0]))
    assert far_apart(one, many) < 1e-12
    assert int(many["clock", "step"]) == 10  # two passes in batches of 4, 4, 4, 4, 5


@pytest.mark.parametrize("name", EXACT)
def test_clock_ledger_and_plan_do_not_know_how_many_there_are(alone, several, name):
    one, many = state_of(alone[name]), state_of(several[0][name])
    for group in ("clock", "plan", "ledger"):
        assert differences(one[group], many[group]) == []
    figures, others = (
        {path: float(value) for path, value in leaves(state["metrics"])} for state in (one, many)
    )
    assert others == pytest.approx(figures, rel=1e-6)  # sums of float32


@pytest.mark.parametrize("name", ["observing", "observing_in_parts", "batches_of_two"])
def test_what_one_process_observes_all_of_them_know(alone, several, name):
    one, many = alone[name], several[0][name]
    assert torch.equal(one["scores", "step"], many["scores", "step"])
    assert torch.equal(one["mask"], many["mask"])
    for signal in ("loss", "grad_norm"):
        torch.testing.assert_close(one["scores", signal], many["scores", signal])
    assert far_apart(one, many) < 1e-10
    for (_, x), (_, y) in zip(leaves(one["ema"]), leaves(many["ema"]), strict=True):
        torch.testing.assert_close(x, y)


def test_an_example_that_cannot_be_read_stops_all_of_them(several):
    for found in several:
        assert found["an_example_cannot_be_read"]["kind"] == "AgreedError"
        assert (
            f"of {len(several)}: example 13 (row 13) cannot"
            in found["an_example_cannot_be_read"]["error"]
        )
    errors = {found["an_example_cannot_be_read"]["error"] for found in several}
    assert len(errors) == 1


@pytest.mark.parametrize(
    "name",
    [
        "an_example_cannot_be_read",
        "the_second_step_fails",
        "a_loss_is_not_finite",
        "a_loss_of_a_part_is_not_finite",
        "a_stream_fails",
    ],
)
def test_what_was_done_before_is_kept(alone, several, name):
    """The state is as after the last good step, in every process, its observed losses too."""
    one, many = alone[name]["state"], [found[name]["state"] for found in several]
    assert 0 < int(one["clock", "step"]) < 7
    for other in many:
        assert differences(many[0], other) == []
    for group in ("clock", "ledger"):
        assert differences(one[group], many[0][group]) == []
    assert torch.equal(one["scores", "step"], many[0]["scores", "step"])


def test_a_bad_example_may_come_at_any_step(alone, several):
    assert int(alone["the_second_step_fails"]["state"]["clock", "step"]) == 1
    for found in several:
        assert "example 13 (row 13) cannot" in found["the_second_step_fails"]["error"]
        assert "example 13 is inf" in found["a_loss_of_a_part_is_not_finite"]["error"]


def test_a_run_goes_on_when_the_bad_example_is_mended(alone, several):
    """By the same program: a step that failed has left nothing behind, in any process."""
    for name, (mended, whole) in several[0]["it_is_mended"].items():
        assert int(mended["clock", "step"]) == int(whole["clock", "step"]) == 10, name
        assert far_apart(mended, whole) < 1e-12, name
        assert differences(mended["buffers"], whole["buffers"]) == [], name
        assert far_apart(alone["it_is_mended"][name][0], mended) < 1e-12 or "unused" in name, name
        for other in several[1:]:
            assert differences(mended, other["it_is_mended"][name][0]) == [], name


def test_a_stream_that_fails_in_one_stops_all_of_them(several):
    for found in several:
        assert "position 40 of the stream cannot be read" in found["a_stream_fails"]["error"]


def test_all_begin_with_the_weights_of_the_main_process(alone, several):
    for found in several:
        assert far_apart(alone["weights_of_ones_own"], found["weights_of_ones_own"]) < 1e-12


def test_a_score_that_is_not_finite_stops_all_of_them(several):
    for found in several:
        assert "loss of example 13 is nan" in found["a_score_is_not_finite"]["error"]


def test_metrics_are_of_every_example_once(alone, several):
    """Of torchmetrics what each has seen is added up; of others each process measures all."""
    for found in several:
        assert found["metrics_of_ones_own"] == pytest.approx(alone["metrics_of_ones_own"])
    counted = [v for name, v in alone["metrics_of_ones_own"].items() if name.endswith(("m", "nt"))]
    assert counted == [11, 11, 11, 11]


def test_an_interrupt_of_one_stops_all_after_the_same_tick(several):
    steps = {found["interrupted"]["step"] for found in several}
    assert len(steps) == 1
    assert 0 < steps.pop() < 50  # of 50


def test_what_the_main_process_makes(several):
    for rank, found in enumerate(one["what_main_makes"] for one in several):
        assert found["made"] == (rank == 0)
        assert found["found"] == {"a": (1, "b")}
        assert found["error"] == "AgreedError: there is no such folder"
        assert found["disk"] == "AgreedError: the disk is full"
        assert found["rank"] == rank
        assert found["sent"][0].tolist() == [0, 1, 2]
        assert float(found["sent"][1].max()) < 1
        index = [2**40 + i for r in range(len(several)) for i in range(r)]
        assert found["gathered"][0].tolist() == index
        expected = torch.tensor([i / 3 for r in range(len(several)) for i in range(r)])
        torch.testing.assert_close(found["gathered"][1], expected)


def test_only_the_main_process_is_looked_at(several):
    assert several[0]["cycles_in_float64"]["masks"]
    assert all(not found["cycles_in_float64"]["masks"] for found in several[1:])


def test_parts_are_every_example_once():
    for count in (1, 2, 3, 4):
        for size in range(1, 9):
            batch = torch.arange(size)
            worlds = [Processes(rank, count) for rank in range(count)]
            parts = [w.part(batch).tolist() for w in worlds if w.takes_part(size)]
            assert list(chain.from_iterable(parts)) == batch.tolist()
            assert all(w.part(batch).tolist() == [0] for w in worlds if not w.takes_part(size))


def test_batches_are_dealt_like_cards():
    batches = [torch.tensor([i]) for i in range(7)]
    dealt = [
        [int(b) for b in Loader(Dealt(IterableWrapper(batches), rank, 3))] for rank in range(3)
    ]
    assert dealt == [[0, 3, 6], [1, 4], [2, 5]]


def test_one_process_adds_nothing():
    world = Processes()
    assert world.alone
    assert world.main
    batch = torch.arange(3)
    assert world.part(batch) is batch
    assert world.agree(None, 1.5) == [1.5]
    with pytest.raises(KeyError, match="own"):
        world.agree(KeyError("own"))
    with pytest.raises(ValueError, match="mine"):
        world.on_main(lambda: (_ for _ in ()).throw(ValueError("mine")))
