"""Shapes: B images in a batch, C channels, S pixels a side, K classes."""

from __future__ import annotations

import random
from math import log

import numpy as np
import pytest
import torch
from tensordict import TensorDict
from torch import nn
from torch.nn import functional as F

from attent.pipeline import (
    Step,
    TensorSource,
    adamw,
    assert_stage_laws,
    example_keys,
    fold,
    initial_state,
    initialize,
    run,
    train,
)
from attent.pipeline.task import view_keys
from attent.tasks.classification import Augment, Classification
from attent.tasks.classification.task import Mixing

# Two classes: softmax(0, ln 3) = (1/4, 3/4).
LOGITS = torch.tensor([[0.0, log(3)], [0.0, log(3)]])
LABELS = torch.tensor([1, 0])


def keys_of(num_examples: int) -> torch.Tensor:
    return example_keys(fold(0, "test"), torch.arange(num_examples))


def batch_of(images: torch.Tensor, labels: torch.Tensor) -> TensorDict:
    index = torch.arange(len(labels))
    fields = {"image": images, "label": labels, "index": index}
    return TensorDict(fields, batch_size=[len(labels)])


def two_class_batch() -> TensorDict:
    return batch_of(torch.zeros(2, 1, 4, 4), LABELS)


def task_of(**options) -> Classification:
    return Classification(nn.Flatten(), 2, **options)


def shifts_of(image_CSS: torch.Tensor, shift: int) -> dict[tuple[int, int], torch.Tensor]:
    """Every translation of one image by whole pixels, zero-filled, by (down, right)."""
    size = image_CSS.shape[-1]
    padded = F.pad(image_CSS, [shift] * 4)
    steps = range(-shift, shift + 1)
    return {
        (dy, dx): padded[:, shift - dy :, shift - dx :][:, :size, :size]
        for dy in steps
        for dx in steps
    }


def test_losses_are_each_examples_cross_entropy():
    losses = task_of().losses(LOGITS, two_class_batch())
    # -ln(3/4) for the class of probability 3/4, -ln(1/4) for the other.
    torch.testing.assert_close(losses, torch.tensor([log(4 / 3), log(4)]))


def test_label_smoothing_spreads_its_share_over_all_classes():
    losses = task_of(label_smoothing=0.2).losses(LOGITS, two_class_batch())
    # Targets 0.8 + 0.2/2 = 0.9 and 0.2/2 = 0.1: 0.9 * ln(4/3) + 0.1 * ln 4, and the reverse.
    expected = [0.9 * log(4 / 3) + 0.1 * log(4), 0.9 * log(4) + 0.1 * log(4 / 3)]
    torch.testing.assert_close(losses, torch.tensor(expected))


def test_a_prior_is_added_to_the_logits_of_the_loss_and_of_no_metric():
    task = task_of(prior=torch.tensor([0.75, 0.25]).log())
    # (0, ln 3) + (ln 3/4, ln 1/4) = (ln 3/4, ln 3/4): both classes are as likely.
    losses = task.losses(LOGITS, two_class_batch())
    torch.testing.assert_close(losses, torch.tensor([log(2), log(2)]))
    metrics = task.metrics()
    task.update(metrics, LOGITS, two_class_batch())
    plain = task_of().losses(LOGITS, two_class_batch())
    torch.testing.assert_close(metrics["loss"].compute(), plain.mean())
    assert metrics["accuracy"].compute() == 0.5  # the first, of class 1, by the larger logit


@pytest.mark.parametrize(
    ("prior", "message"),
    [([0.0, 0.0, 0.0], r"prior is \[2\].*got \[3\]"), ([0.0, -float("inf")], "never there")],
)
def test_a_prior_that_is_none_is_refused(prior, message):
    with pytest.raises(ValueError, match=message):
        task_of(prior=torch.tensor(prior))


def test_losses_of_bfloat16_logits_are_float32():
    assert task_of().losses(LOGITS.bfloat16(), two_class_batch()).dtype == torch.float32


@pytest.mark.parametrize("smoothing", [-0.1, 1.0])
def test_label_smoothing_out_of_range(smoothing):
    with pytest.raises(ValueError, match=r"label_smoothing is in \[0, 1\), got"):
        task_of(label_smoothing=smoothing)


def test_forward_gives_the_model_the_images():
    images = torch.rand(2, 1, 4, 4)
    logits = task_of().forward(nn.Flatten(), batch_of(images, LABELS))
    assert torch.equal(logits, images.flatten(1))


def test_metrics_are_over_all_batches_and_without_smoothing():
    task = task_of(label_smoothing=0.2)
    metrics = task.metrics()
    task.update(metrics, LOGITS, two_class_batch())
    task.update(metrics, LOGITS[:1], batch_of(torch.zeros(1, 1, 4, 4), LABELS[:1]))
    # Right, wrong, right.
    assert float(metrics["accuracy"].compute()) == pytest.approx(2 / 3)
    mean = (log(4 / 3) + log(4) + log(4 / 3)) / 3
    assert float(metrics["loss"].compute()) == pytest.approx(mean)


def test_metrics_are_fresh_for_each_evaluation():
    task = task_of()
    task.update(task.metrics(), LOGITS, two_class_batch())
    metrics = task.metrics()
    task.update(metrics, LOGITS[:1], batch_of(torch.zeros(1, 1, 4, 4), LABELS[:1]))
    assert float(metrics["accuracy"].compute()) == 1.0


@pytest.mark.parametrize("shift", [1, 2])
def test_shift_moves_by_whole_pixels_with_zero_fill_and_every_translation_occurs(shift):
    image = torch.arange(1.0, 33.0).reshape(2, 4, 4)  # no zero in it, no two pixels alike
    num = 40 * (2 * shift + 1) ** 2
    moved = Augment(shift=shift)(image.expand(num, -1, -1, -1), keys_of(num))
    candidates = shifts_of(image, shift)
    seen = [[at for at, c in candidates.items() if torch.equal(one, c)] for one in moved]
    assert all(len(found) == 1 for found in seen)
    counts = {at: sum(found == [at] for found in seen) for at in candidates}
    # 40 of each are expected; 5 standard deviations of a binomial of mean 40 are 32 below.
    assert min(counts.values()) > 8, counts


@pytest.mark.parametrize("augment", [Augment(shift=2), Augment(flip=0.5), Augment(shift=1, flip=1)])
def test_an_augmented_image_depends_on_its_own_key_only(augment):
    images, keys = torch.rand(32, 3, 6, 6), keys_of(32)
    together = augment(images, keys)
    alone = torch.cat([augment(images[i : i + 1], keys[i : i + 1]) for i in range(32)])
    reverse = augment(images.flip(0), keys.flip(0)).flip(0)
    assert torch.equal(together, alone)
    assert torch.equal(together, reverse)


def test_flip_has_its_probability():
    num = 10_000
    images = torch.tensor([[[[0.0, 1.0]]]]).expand(num, 1, 1, 2)
    flipped = Augment(flip=0.3)(images, keys_of(num))[:, 0, 0, 0]
    # The standard deviation of the share is sqrt(0.3 * 0.7 / 10,000) = 0.0046.
    assert float(flipped.mean()) == pytest.approx(0.3, abs=5 * 0.0046)


def test_flip_mirrors_left_and_right():
    images = torch.rand(8, 3, 4, 4)
    assert torch.equal(Augment(flip=1.0)(images, keys_of(8)), images.flip(-1))


def test_flip_and_shift_are_independent():
    image = torch.arange(1.0, 17.0).reshape(1, 4, 4)
    moved = Augment(shift=1, flip=0.5)(image.expand(800, -1, -1, -1), keys_of(800))
    kinds = [*shifts_of(image, 1).values(), *shifts_of(image.flip(-1), 1).values()]
    counts = [sum(torch.equal(one, kind) for one in moved) for kind in kinds]
    # 18 kinds of 800 / 18 = 44 images each; 5 standard deviations are 33.
    assert sum(counts) == 800
    assert min(counts) > 11, counts


def test_only_training_views_are_augmented():
    batch, keys = batch_of(torch.rand(16, 1, 4, 4), torch.zeros(16).long()), keys_of(16)
    original = batch["image"].clone()
    task = task_of(augment=Augment(flip=1.0))
    assert torch.equal(task.view(batch, keys, training=False)["image"], original)
    assert torch.equal(task.view(batch, keys, training=True)["image"], original.flip(-1))
    assert torch.equal(batch["image"], original)  # the source's batch is left alone


def test_augmentation_draws_from_no_generator():
    before = torch.default_generator.get_state()
    Augment(shift=1, flip=0.5)(torch.ones(8, 1, 4, 4), keys_of(8))
    assert torch.equal(torch.default_generator.get_state(), before)


def test_no_augmentation_changes_nothing():
    images = torch.rand(4, 1, 4, 4)
    assert torch.equal(Augment()(images, keys_of(4)), images)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shift": -1}, "shift is at least 0 pixels, got -1"),
        ({"flip": 1.1}, r"flip is a probability in \[0, 1\], got 1.1"),
        ({"flip": -0.1}, r"flip is a probability in \[0, 1\], got -0.1"),
    ],
)
def test_augmentation_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        Augment(**options)


# --- images mixed with one another


def plain_images(num: int, classes: int = 4, side: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    """Image i is i + 1 everywhere, its label i modulo the classes."""
    values = torch.arange(1.0, num + 1)
    return values[:, None, None, None].expand(-1, 3, side, side), torch.arange(num) % classes


def shares_by_hand(targets: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Each image's share of itself, once its target is seen to be of it and one other."""
    assert torch.equal(targets.sum(1), torch.ones(len(targets)))
    own = targets.gather(1, labels[:, None])[:, 0]
    partner = targets.gather(1, labels.roll(1)[:, None])[:, 0]
    torch.testing.assert_close(own + partner, torch.ones(len(targets)))
    return own


def test_mixup_adds_an_image_and_the_one_before_it_and_so_do_the_targets():
    images, labels = plain_images(4)
    mixing = Mixing(mixup=0.8, num_classes=4)
    shares = set()
    for key in range(20):
        mixed, targets = mixing(images, labels, key)
        own = shares_by_hand(targets, labels)
        share = own[0]
        assert torch.equal(own, share.expand(4))  # one share for the batch
        expected = share * images + (1 - share) * images.roll(1, 0)
        torch.testing.assert_close(mixed, expected)
        shares.add(round(float(share), 5))
    assert len(shares) == 20
    assert all(0 <= share <= 1 for share in shares)


def test_cutmix_puts_a_rectangle_of_another_in_and_targets_are_the_true_shares():
    images, labels = plain_images(4)
    sizes = set()
    for key in range(40):
        mixed, targets = Mixing(cutmix=1.0, num_classes=4)(images, labels, key)
        kept = mixed == images
        assert torch.equal(mixed, torch.where(kept, images, images.roll(1, 0)))
        assert torch.equal(kept, kept[:1, :1].expand_as(kept))  # one rectangle for the batch
        gone = ~kept[0, 0]
        rows, columns = gone.any(1), gone.any(0)
        assert torch.equal(gone, rows[:, None] & columns[None, :])
        for line in (rows, columns):
            where = line.nonzero()[:, 0]
            assert len(where) == 0 or int(where[-1] - where[0]) == len(where) - 1
        # Of 64 pixels, what is left of the rectangle inside the image counts.
        share = 1 - float(gone.sum()) / 64
        torch.testing.assert_close(shares_by_hand(targets, labels), torch.full((4,), share))
        sizes.add(int(gone.sum()))
    assert len(sizes) > 10


def test_both_are_drawn_half_the_time_each():
    images, labels = plain_images(4)
    mixing = Mixing(mixup=1.0, cutmix=1.0, num_classes=4)
    cut = 0
    for key in range(300):
        mixed, _ = mixing(images, labels, key)
        cut += bool(((mixed == images) | (mixed == images.roll(1, 0))).all())
    # The standard deviation is sqrt(300) / 2 = 8.7.
    assert abs(cut - 150) < 5 * 8.7


@pytest.mark.parametrize("options", [{"mixup": 0.8}, {"cutmix": 1.0}, {"mixup": 0.8, "cutmix": 1}])
def test_a_mixture_is_a_function_of_its_key_and_leaves_generators_and_images_alone(options):
    mixing = Mixing(num_classes=5, **options)
    images, labels = torch.rand(6, 3, 8, 8), torch.tensor([4, 0, 0, 2, 1, 3])
    before, states = images.clone(), (torch.get_rng_state(), np.random.get_state()[1].copy())  # noqa: NPY002
    python = random.getstate()
    first, again, other = (mixing(images, labels, key) for key in (1, 1, 2))
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    assert not torch.equal(first[0], other[0])
    assert torch.equal(images, before)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert np.array_equal(np.random.get_state()[1], states[1])  # noqa: NPY002
    assert random.getstate() == python


def test_nothing_to_mix_is_one_hot_and_alpha_is_not_negative():
    images, labels = torch.rand(3, 3, 4, 4), torch.tensor([1, 0, 2])
    same, targets = Mixing(num_classes=3)(images, labels, 0)
    assert torch.equal(same, images)
    assert targets.tolist() == [[0, 1, 0], [1, 0, 0], [0, 0, 1]]
    for name in ("mixup", "cutmix"):
        with pytest.raises(ValueError, match=f"{name} is at least 0, got -1"):
            Mixing(num_classes=3, **{name: -1})


def mixing_task(**options) -> Classification:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 4))
    mixing = Mixing(mixup=0.8, cutmix=1.0, num_classes=4)
    return Classification(model, 4, mixing=mixing, **options)


def test_a_batch_that_begins_with_the_same_example_is_mixed_otherwise_in_the_next_pass():
    task, mixed = mixing_task(), []
    batch = batch_of(torch.rand(6, 3, 4, 4), torch.arange(6) % 4)
    for passes in range(4):
        keys = view_keys(3, torch.arange(6), purpose="train", passes=passes)
        mixed.append(task.view(batch, keys, training=True)["image"])
    for i, one in enumerate(mixed):
        assert not any(torch.equal(one, other) for other in mixed[:i])


def test_only_training_views_are_mixed_and_their_loss_is_that_of_the_shares():
    task, keys = mixing_task(), keys_of(6)
    batch = batch_of(torch.rand(6, 3, 4, 4), torch.arange(6) % 4)
    original = batch["image"].clone()
    assert "target" not in task.view(batch, keys, training=False)
    mixed = task.view(batch, keys, training=True)
    assert torch.equal(batch["image"], original)
    assert "target" not in batch
    assert not torch.equal(mixed["image"], original)
    logits = task.forward(task.model, mixed)
    by_hand = -(mixed["target"] * logits.log_softmax(1)).sum(1)
    torch.testing.assert_close(task.losses(logits, mixed), by_hand)
    smoothed = mixing_task(label_smoothing=0.1).losses(logits, mixed)
    spread = -(logits.log_softmax(1)).mean(1)
    torch.testing.assert_close(smoothed, 0.9 * by_hand + 0.1 * spread)


@pytest.mark.parametrize("observe", [False, "loss", "grad_norm"])
def test_training_on_mixtures_keeps_the_laws_and_observes_finite_scores(observe):
    task = mixing_task(augment=Augment(flip=0.5))
    draw = torch.Generator().manual_seed(3)
    fields = {
        "image": torch.randn(14, 3, 4, 4, generator=draw),
        "label": torch.randint(4, (14,), generator=draw),
    }
    source = TensorSource(TensorDict(fields, batch_size=[14]))
    step = Step(batch_size=4, accumulate=2)
    stage = train(task, source, optimizer=adamw(1e-2), step=step, steps=2, observe=observe)
    state = initial_state(task, source, seed=0)
    state["plan", "budget"], state["plan", "pause"] = torch.tensor(28), torch.tensor(28)
    state = initialize(stage, state)
    assert_stage_laws(stage, state)
    for _ in range(3):
        state = run(stage, state)
    assert int(state["clock", "seen"]) > 8
    if observe:
        seen = state["scores", "step"] >= 0
        assert int(seen.sum()) >= 8
        scores = state["scores", observe][seen]
        assert bool(scores.isfinite().all())
        assert bool((scores > 0).all())


def test_a_batch_of_one_is_mixed_with_itself():
    task = mixing_task()
    batch = batch_of(torch.rand(1, 3, 4, 4), torch.tensor([2]))
    mixed = task.view(batch, keys_of(1), training=True)
    torch.testing.assert_close(mixed["image"], batch["image"])
    torch.testing.assert_close(mixed["target"], torch.tensor([[0.0, 0, 1, 0]]))


# --- top 5


def test_top5_is_measured_where_there_are_more_than_five_classes():
    assert "top5" not in Classification(nn.Flatten(), 5).metrics()
    task = Classification(nn.Flatten(), 7)
    logits = torch.tensor([[7.0, 6, 5, 4, 3, 2, 1]]).expand(4, 7)
    # Ranks 1, 5, 6 and 2.
    batch = batch_of(torch.zeros(4, 1, 1, 1), torch.tensor([0, 4, 5, 1]))
    metrics = task.metrics()
    task.update(metrics, logits[:3], batch[:3])
    task.update(metrics, logits[3:], batch[3:])
    assert float(metrics["accuracy"].compute()) == pytest.approx(1 / 4)
    assert float(metrics["top5"].compute()) == pytest.approx(3 / 4)


def test_a_model_may_give_its_logits_by_name():
    class Named(nn.Module):
        def forward(self, images):
            return {"cls": images.flatten(1)}

    images = torch.rand(2, 1, 1, 2)
    logits = Classification(Named(), 2).forward(Named(), batch_of(images, LABELS))
    assert torch.equal(logits, images.flatten(1))
