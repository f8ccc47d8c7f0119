"""Every arm of the proof spends its budget, no more, and says what on."""

import dataclasses

import pytest
import torch
from sklearn.datasets import load_digits

from attent.models.vit import build_vit
from attent.pipeline import TensorSource, fit
from attent.pipeline.keyed import all_global_generators
from attent.tasks.classification import Classification
from benchmarks.proof.arms import ARMS
from benchmarks.proof.job import record_of
from benchmarks.proof.setting import Setting, Spent
from benchmarks.proof.world import World

TINY = {"embed_dim": 16, "depth": 1, "num_heads": 2, "patch_size": 4}


@pytest.fixture(scope="module")
def world_of():
    """A function that makes a world of 96 digits of three classes, 4 to 1, and 10 epochs."""
    images, labels = load_digits(return_X_y=True)
    images = torch.from_numpy(images).float().reshape(-1, 1, 8, 8) / 16
    labels = torch.from_numpy(labels).long()
    rows = [(labels == c).nonzero().squeeze(1) for c in range(3)]
    kept = torch.cat([r[:n] for r, n in zip(rows, (48, 36, 12), strict=True)])
    held = torch.cat([r[100:120] for r in rows])

    def task(**options) -> Classification:
        with all_global_generators(0):
            model = build_vit("vit_digits", num_classes=3, in_chans=1, img_size=8, model_args=TINY)
        return Classification(model, 3, **options)

    def make() -> World:
        source = TensorSource({"image": images[kept], "label": labels[kept]})
        other = TensorSource({"image": images[held], "label": labels[held]})
        return World(
            name="tiny",
            seed=3,
            source=source,
            val=other,
            test=other,
            make_task=task,
            epochs=10,
            batch_size=16,
            labels=labels[kept],
            num_classes=3,
            recipe={"clip": 1.0, "weight_decay": 0.05, "warmup": 0.05},
        )

    return make


@pytest.mark.parametrize("arm", ARMS)
def test_an_arm_spends_its_budget(arm, world_of):
    world = world_of()
    record = record_of(world, arm, budget=0.8, lr=3e-3)
    # The last window's candidates are all measured: up to 64 forwards of 96 * 10 * 3.
    assert record["units"] == pytest.approx(0.8, abs=64 / 2880)
    assert record["backwarded"] <= 0.8 * 960
    assert 0 <= record["test"]["accuracy"] <= 1
    assert record["test"].keys() == record["val"].keys()


def test_plain_training_at_budget_1_is_all_epochs(world_of):
    record = record_of(world_of(), "full", budget=1.0, lr=3e-3)
    assert (record["forwarded"], record["backwarded"], record["units"]) == (960, 960, 1.0)


@pytest.mark.parametrize("arm", ["full", "paced_concentrated", "selective_backprop", "rho"])
def test_a_run_is_a_function_of_its_seed(arm, world_of):
    first, again = (record_of(world_of(), arm, budget=0.5, lr=3e-3) for _ in range(2))
    for key in ("val", "test", "units", "forwarded", "extra"):
        assert first[key] == again[key]


def test_what_scoring_models_cost_is_counted(world_of):
    world = world_of()
    built = ARMS["el2n"](Setting(world=world, budget=0.8, lr=3e-3))
    # One epoch of 96, and a forward of each; 0.8 * 960 * 3 less 96 * 4 buys 640 examples.
    assert built.before == Spent(forwarded=192, backwarded=96)
    state = fit(built.tick, built.state(world.seed))
    assert int(state["clock", "seen"]) == (0.8 * 960 * 3 - 96 * 4) / 3


def test_a_rare_example_is_told_from_others(world_of):
    record = record_of(world_of(), "full", budget=1.0, lr=3e-3)
    assert record["extra"]["rare_share"] == pytest.approx(12 / 96)  # one class of three
    even = dataclasses.replace(world_of(), labels=torch.arange(96) % 3)
    assert "rare_share" not in record_of(even, "full", budget=0.1, lr=3e-3)["extra"]
