"""attent_paced: what it trains on, run to its end."""

import itertools

import numpy as np
import pytest
import torch

from attent.pipeline import (
    Observer,
    Selections,
    TensorSource,
    aged,
    attent_adaptive,
    attent_paced,
    blended,
    concentrated,
    constant,
    fit,
    hard,
    initial_state,
    patient,
    random,
)
from tests.tiny import TinyTask, tiny_source, tiny_train


class Selected(Observer):
    """The selection at each new pass: pass -> (ratio, mask)."""

    def __init__(self):
        self.passes = {}

    def tick(self, state):
        number = int(state["clock", "passes"])
        if not bool(state["plan", "select_due"]):
            self.passes.setdefault(number, (float(state["plan", "ratio"]), state["mask"].clone()))


def ran(rule=None, *, epochs=4, observe=True, source=None, **options):
    task, source = TinyTask(), source or tiny_source()
    trainer = tiny_train(task, source, steps=2, observe=observe)
    tick = attent_paced(source, train=trainer, epochs=epochs, rule=rule, **options)
    seen = Selected()
    return fit(tick, initial_state(task, source, seed=3), observers=[seen]), seen


def test_every_forward_is_trained_on_and_the_budget_is_spent():
    state, seen = ran(ratio=constant(0.5))
    assert int(state["clock", "seen"]) == 80 == int(state["ledger", "forwarded"])
    assert int(state["ledger", "backwarded"]) == 80
    sizes = [int(mask.sum()) for _, mask in seen.passes.values()]
    # 20; then 10 each until the end nearest to 70; then everything.
    assert sizes == [20, 10, 10, 10, 10, 10, 20]


def test_it_selects_anew_by_what_was_seen_last():
    _, seen = ran(hard(), ratio=constant(0.5))
    masks = [mask for _, mask in seen.passes.values()][1:-1]
    # Those trained on fall below the others: the choice moves.
    assert any(not torch.equal(a, b) for a, b in itertools.pairwise(masks))


def test_what_is_recorded_of_a_selection_are_the_scores_it_was_made_by(tmp_path):
    """Not those that training has observed since, of what was selected."""
    task, source = TinyTask(), tiny_source()
    trainer = tiny_train(task, source, steps=50, observe=True)
    tick = attent_paced(source, train=trainer, epochs=6, rule=hard(), ratio=constant(0.3))
    fit(tick, initial_state(task, source, seed=3), observers=[Selections(tmp_path)])
    subsets = 0
    for path in sorted(tmp_path.glob("*.npz")):
        with np.load(path) as kept:
            selected, scores = kept["selected"], kept["scores"]
        if 0 < selected.sum() < len(selected):
            subsets += 1
            assert scores[selected].min() >= scores[~selected].max()
    assert subsets > 5


def test_a_rule_without_scores_needs_none():
    state, _ = ran(random(), observe=False, first=0, ratio=constant(0.25), last=0.0)
    assert int(state["clock", "seen"]) == 80
    assert int(state["clock", "passes"]) == 16


def test_what_cannot_be():
    with pytest.raises(ValueError, match="does not observe loss"):
        ran(observe=False)
    with pytest.raises(ValueError, match="first epochs: at least 1"):
        ran(first=0)
    with pytest.raises(ValueError, match="'rank by aged' does not write scores/loss"):
        ran(rank=aged(20, bonus=1.0))


def test_the_adaptive_recipe_is_the_paced_one_with_a_ratio_that_the_losses_decide():
    task, source = TinyTask(), tiny_source()
    trainer = tiny_train(task, source, steps=2, observe="relative_loss")
    seen = Selected()
    tick = attent_adaptive(source, train=trainer, epochs=6)
    fit(tick, initial_state(task, source, seed=3), observers=[seen])
    rule = concentrated(blended(hard(), 0.3), 0.15, 0.9)
    _, same = ran(rule, epochs=6, observe="relative_loss", signal="relative_loss", last=0.05)
    assert len(seen.passes) == len(same.passes) > 4
    for (_, mask), (_, expected) in zip(seen.passes.values(), same.passes.values(), strict=True):
        assert torch.equal(mask, expected)
    sizes = {int(mask.sum()) for _, mask in seen.passes.values()}
    assert len(sizes) > 2  # the losses decide, not the schedule
    with pytest.raises(ValueError, match="relative_loss"):
        attent_adaptive(source, train=tiny_train(task, source, observe=True), epochs=6)


def test_the_adaptive_recipe_with_patience_is_the_paced_one_ranked_by_it():
    x, y = tiny_source().fields["x"], tiny_source().fields["y"].clone()
    y[:3] *= -1  # as wrong labels are
    source = TensorSource({"x": x, "y": y})
    rule = concentrated(blended(hard(), 0.3), 0.15, 0.9)
    passes = {}
    for patience in (None, 1, 10**6):
        seen, task = Selected(), TinyTask()
        trainer = tiny_train(task, source, steps=2, observe="relative_loss")
        tick = attent_adaptive(source, train=trainer, epochs=12, patience=patience)
        fit(tick, initial_state(task, source, seed=3), observers=[seen])
        passes[patience] = [mask.tolist() for _, mask in seen.passes.values()]
    _, ranked = ran(
        rule,
        epochs=12,
        source=source,
        observe="relative_loss",
        signal="patient",
        rank=patient(len(source), patience=1),
        last=0.05,
    )
    assert passes[1] == [mask.tolist() for _, mask in ranked.passes.values()] != passes[None]
    assert passes[10**6] == passes[None]  # nobody looks so often
    wrong = {key: [mask[:3] for mask in masks[1:-1]] for key, masks in passes.items()}
    assert np.mean(wrong[1]) < np.mean(wrong[None])
    with pytest.raises(ValueError, match="at least 1, got 0"):
        attent_adaptive(source, train=trainer, epochs=6, patience=0)
    unseen = tiny_train(task, source, observe=True)
    with pytest.raises(ValueError, match="does not observe relative_loss"):
        attent_adaptive(source, train=unseen, epochs=6, patience=4)
