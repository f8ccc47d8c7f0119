"""Shapes: B images in a batch, C channels, S pixels a side, K classes."""

from __future__ import annotations

from math import log

import pytest
import torch
from tensordict import TensorDict
from torch import nn
from torch.nn import functional as F

from attent.pipeline import example_keys, fold
from attent.tasks.classification import Augment, Classification

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
