"""The task of detection: losses of one picture as torchvision's, whoever else is in the batch."""

from __future__ import annotations

import math

import pytest
import torch
from tensordict import TensorDict
from torch.nn import functional as F
from torchvision.models.detection.image_list import ImageList

from attent.models.detection import Assigned, MaskRCNN, Predictions
from attent.models.multimae import build_multivit
from attent.pipeline import (
    Step,
    TensorSource,
    adamw,
    assert_stage_laws,
    evaluate,
    example_keys,
    fold,
    initial_state,
    initialize,
    run,
    score,
    train,
)
from attent.pipeline.ghost import GhostError
from attent.pipeline.keyed import all_global_generators
from attent.tasks.detection import Detection
from attent.tasks.detection.losses import PARTS, part_losses

SIDE, CLASSES = 64, 3
SIGNALS = ("loss", "looped_grad_norm", "output_grad_norm")


def make(seed=0, **options) -> Detection:
    with all_global_generators(seed):
        encoder = build_multivit(
            "multivit_micro",
            image_size=SIDE,
            patch_size=8,
            model_args={"dim": 32, "depth": 1, "num_heads": 2},
        )
        small = {
            "channels": 16, "box_dim": 32, "anchor_sizes": (8, 16, 32, 64), "num_proposals": 40,
            "anchors_drawn": 32, "regions_drawn": 16,
        }  # fmt: skip
        return Detection(MaskRCNN(encoder, CLASSES, **(small | options)))


def pictures(count=6, places=3) -> TensorSource:
    """Noise with bright rectangles; the i-th picture has i % 3 objects, a crowd in the last."""
    draw = torch.Generator().manual_seed(4)
    rgb = 0.3 * torch.randn(count, 3, SIDE, SIDE, generator=draw)
    boxes, labels = torch.zeros(count, places, 4), torch.zeros(count, places, dtype=torch.int64)
    masks = torch.zeros(count, places, SIDE, SIDE, dtype=torch.bool)
    crowd = torch.zeros(count, places, dtype=torch.bool)
    for i in range(count):
        for j in range(i % 3):
            left, top = torch.randint(0, 32, (2,), generator=draw).tolist()
            wide, high = torch.randint(12, 32, (2,), generator=draw).tolist()
            label = int(torch.randint(1, CLASSES + 1, (), generator=draw))
            place = 2 * j  # an empty place in between
            boxes[i, place] = torch.tensor([left, top, left + wide, top + high])
            labels[i, place] = label
            masks[i, place, top : top + high, left : left + wide] = True
            rgb[i, label - 1, top : top + high, left : left + wide] += 3
    crowd[-1, 2] = True
    fields = {"rgb": rgb, "boxes": boxes, "labels": labels, "masks": masks, "crowd": crowd}
    return TensorSource(fields)


def batch_of(task, source, index, *, passes=0, training=False) -> TensorDict:
    index = torch.as_tensor(index)
    batch = source.fetch(index).set("index", index)
    return task.view(batch, example_keys(fold(0, "view", passes), index), training=training)


def parts_of(task, batch) -> torch.Tensor:
    with torch.no_grad():
        return task.part_losses(task.forward(task.model, batch))


def torchvisions(task, batch) -> torch.Tensor:
    """The losses of torchvision's own forward for a batch of one, under the example's key."""
    (objects,) = task.objects(batch, crowds=False)
    model = task.model.train()
    images = ImageList(batch["rgb"], [(SIDE, SIDE)])
    with torch.no_grad(), all_global_generators(int(batch["key"])):
        maps = model._encode(batch["rgb"]).maps
        proposals, first = model.rpn(images, maps, [objects])
        _, second = model.roi_heads(maps, proposals, images.image_sizes, [objects])
    losses = first | second
    return torch.stack([losses[name] for name in PARTS])


@pytest.mark.parametrize("i", range(6))
def test_the_losses_of_a_picture_are_torchvisions(i):
    task, source = make(), pictures()
    batch = batch_of(task, source, [i])
    measured = parts_of(task, batch)[0]
    torch.testing.assert_close(measured, torchvisions(task, batch), rtol=1e-5, atol=1e-6)
    assert bool((measured[[0, 2]] > 0).all())
    # Without objects nothing is said of boxes and masks.
    assert bool((measured[[1, 3, 4]] > 0).all()) == (i % 3 > 0)


def test_losses_by_hand():
    """Two anchors of three, three regions of four, one mask of two are drawn."""
    zero = Predictions(
        objectness=torch.tensor([[math.log(3.0), 0.0, 9.0]]),
        anchor_deltas=torch.tensor([[[1.0, 0, 0, 0], [5.0, 5, 5, 5], [5.0, 5, 5, 5]]]),
        class_logits=torch.zeros(1, 4, 3),
        box_deltas=torch.zeros(1, 4, 3, 4),
        mask_logits=torch.zeros(1, 2, 1, 2),
    )
    zero.box_deltas[0, 0, 2, 1] = 0.1
    zero.box_deltas[0, 0, 1] = 7  # another class's box
    assigned = Assigned(
        anchor_labels=torch.tensor([[1.0, 0, -1]]),
        anchor_targets=torch.zeros(1, 3, 4),
        labels=torch.tensor([[2, 0, 0, -1]]),
        box_targets=torch.zeros(1, 4, 4),
        mask_targets=torch.tensor([[[[1.0, 0]], [[0.0, 0]]]]),
        has_mask=torch.tensor([[True, False]]),
    )
    expected = [
        (math.log(4 / 3) + math.log(2)) / 2,  # the logit of 3/4 and of 1/2
        (1 - 1 / 18) / 2,  # |x| - beta / 2, over two anchors
        math.log(3),
        0.5 * 0.1**2 * 9 / 3,  # x^2 / (2 beta), over three regions
        math.log(2),
    ]
    torch.testing.assert_close(part_losses(zero, assigned), torch.tensor([expected]))


def test_neither_company_nor_padding_changes_a_loss():
    task, source = make(), pictures()
    alone = torch.cat([parts_of(task, batch_of(task, source, [i])) for i in range(6)])
    torch.testing.assert_close(parts_of(task, batch_of(task, source, range(6))), alone)
    some = parts_of(task, batch_of(task, source, [5, 0, 2]))
    torch.testing.assert_close(some, alone[[5, 0, 2]])
    longer = TensorSource(
        {
            name: F.pad(value, (0, 0) * (value.ndim - 2) + (0, 4))
            if name not in ("rgb", "crowd")
            else (value if name == "rgb" else F.pad(value, (0, 4), value=True))
            for name, value in source.fields.items()
        }
    )
    assert longer.fields["masks"].shape[1] == 7
    torch.testing.assert_close(parts_of(task, batch_of(task, longer, range(6))), alone)


def test_a_loss_is_the_same_in_either_mode_and_differs_by_key():
    task, source = make(), pictures()
    batch = batch_of(task, source, range(6))
    task.model.train()
    training = parts_of(task, batch)
    task.model.eval()
    assert torch.equal(parts_of(task, batch), training)
    other = parts_of(task, batch_of(task, source, range(6), passes=1))
    assert not torch.isclose(other.sum(1), training.sum(1)).any()
    assert not torch.equal(batch_of(task, source, [1], passes=1)["key"], batch["key"][1:2])


def test_crowds_are_not_learned_from():
    task, source = make(), pictures()
    batch = batch_of(task, source, [5])
    assert len(task.objects(batch)[0]["labels"]) == 2
    without = batch.clone()
    without["labels"][0, 2] = 0
    assert torch.equal(parts_of(task, batch), parts_of(task, without))
    del without["crowd"]
    assert torch.equal(parts_of(task, batch), parts_of(task, without))


def test_global_generators_are_left_alone():
    task, source = make(), pictures()
    batch = batch_of(task, source, range(6))
    torch.manual_seed(3)
    before = torch.get_rng_state()
    parts_of(task, batch)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_label_that_is_no_class():
    task, source = make(), pictures()
    source.fields["labels"][4, 1] = CLASSES + 1
    with pytest.raises(ValueError, match="example 4 has an object of label 4; labels are 1 to 3"):
        batch_of(task, source, range(6))


def test_a_score_detects_nothing(monkeypatch):
    task, source = make(), pictures()
    monkeypatch.setattr(MaskRCNN, "_detect", None)
    stage = score(task, source, "loss", batch_size=3)
    scored = run(stage, initialize(stage, initial_state(task, source)))
    assert len(scored["scores", "loss"].unique()) == 6


@pytest.mark.parametrize("signal", SIGNALS)
def test_two_scorings_agree_exactly_and_batches_do_not_matter(signal):
    task, source = make(), pictures()

    def scored(size):
        stage = score(task, source, signal, batch_size=size)
        state = initialize(stage, initial_state(task, source))
        state["clock", "step"] = torch.tensor(size)
        torch.manual_seed(size)
        return run(stage, state)["scores", signal]

    first = scored(4)
    assert torch.equal(scored(4), first)
    torch.testing.assert_close(scored(1), first, rtol=1e-3, atol=1e-4)
    assert len(first.unique()) == 6
    assert bool((first > 0).all())


def test_the_norm_of_the_outputs_gradient():
    """Of everything a loss is a function of: anchors, regions and masks."""
    task, source = make(), pictures()
    batch = batch_of(task, source, [4])
    output = task.forward(task.model.eval(), batch)
    predictions = output.predictions
    given = [
        predictions.objectness, predictions.anchor_deltas, predictions.class_logits,
        predictions.box_deltas, predictions.mask_logits,
    ]  # fmt: skip
    grads = torch.autograd.grad(task.losses(output, batch).sum(), given)
    assert all(bool(g.any()) for g in grads)
    expected = math.sqrt(sum(float(g.square().sum()) for g in grads))
    from attent.pipeline.signals import SIGNALS as ALL

    params = {k: p.detach() for k, p in task.model.named_parameters() if p.requires_grad}
    buffers = dict(task.model.named_buffers())
    measured = ALL["output_grad_norm"].measure(task, params, buffers, batch, None)
    torch.testing.assert_close(float(measured), expected)


@pytest.mark.parametrize(
    ("signal", "message"),
    [
        ("grad_norm", "use looped_grad_norm for such a model"),
        ("last_layer", "the model has no head that is covered"),
    ],
)
def test_ghost_norms_refuse_rows_that_are_no_examples(signal, message):
    task, source = make(), pictures()
    stage = score(task, source, signal, batch_size=3)
    with pytest.raises(GhostError, match=message):
        run(stage, initialize(stage, initial_state(task, source)))


def fitted(task, source, steps, **options):
    """The state after some steps of training."""
    stage = train(
        task, source, optimizer=adamw(2e-3), step=Step(batch_size=6, **options), steps=steps
    )
    state = initial_state(task, source)
    state["plan", "budget"] = torch.tensor(6 * steps)
    state = initialize(stage, state)
    for epoch in range(steps):
        state = run(stage, state)
        state["clock", "offset"] = torch.tensor(0)
        state["clock", "passes"] = torch.tensor(epoch + 1)
    return state


@pytest.mark.parametrize("options", [{}, {"accumulate": 2}, {"bfloat16": True}])
def test_training_lowers_the_loss(options):
    task, source = make(), pictures()
    stage = score(task, source, "loss")
    before = run(stage, initialize(stage, initial_state(task, source)))["scores", "loss"]
    state = fitted(task, source, 25, **options)
    after = run(stage, initialize(stage, state))["scores", "loss"]
    assert after.mean() < 0.7 * before.mean()


def evaluated(task, source, state, size):
    stage = evaluate(task, source, batch_size=size)
    measured = run(stage, initialize(stage, state))["metrics"]
    return {name: float(value) for name, value in measured.items() if name.startswith("val_")}


def test_precisions_of_perfect_and_of_no_detections(monkeypatch):
    task, source = make(), pictures()
    state = initial_state(task, source)
    batch = batch_of(task, source, range(6))
    truth = [
        {name: value for name, value in one.items() if name != "iscrowd"}
        | {"scores": torch.ones(len(one["labels"]))}
        for one in task.objects(batch)
    ]
    monkeypatch.setattr(MaskRCNN, "_detect", lambda *_: truth)
    names = ("val_box_map", "val_box_map_50", "val_mask_map", "val_mask_map_50")
    perfect = evaluated(task, source, state, 6)
    # The crowd is found too, which counts for nothing.
    assert [perfect[name] for name in names] == [1.0] * 4
    # Masks that are empty: boxes are right still.
    for one in truth:
        one["masks"] = torch.zeros_like(one["masks"])
    assert [evaluated(task, source, state, 6)[name] for name in names] == [1.0, 1.0, 0.0, 0.0]
    nothing = [{name: value[:0] for name, value in one.items()} for one in truth]
    monkeypatch.setattr(MaskRCNN, "_detect", lambda *_: nothing)
    assert [evaluated(task, source, state, 6)[name] for name in names] == [0.0] * 4


def test_evaluation_is_repeatable_and_independent_of_the_batches():
    task, source = make(min_score=0.01), pictures()
    state = fitted(task, source, 60)
    whole = evaluated(task, source, state, 6)
    assert set(whole) == {
        f"val_{name}"
        for name in (
            "loss", *PARTS, "box_map", "box_map_50", "mask_map", "mask_map_50", "step",
        )
    }  # fmt: skip
    assert 0 < whole["val_box_map"] <= whole["val_box_map_50"] <= 1
    assert 0 < whole["val_mask_map"] <= whole["val_mask_map_50"] <= 1
    assert whole["val_loss"] == pytest.approx(sum(whole[f"val_{name}"] for name in PARTS))
    assert evaluated(task, source, state, 6) == whole
    assert evaluated(task, source, state, 1) == pytest.approx(whole, rel=1e-4)
    assert evaluated(task, source, state, 4) == pytest.approx(whole, rel=1e-4)


STAGES = {
    **{
        f"score {signal}": lambda t, s, n=signal: score(t, s, n, batch_size=3) for signal in SIGNALS
    },
    "train": lambda t, s: train(t, s, optimizer=adamw(1e-3), step=Step(batch_size=3), steps=2),
    "evaluate": lambda t, s: evaluate(t, s, batch_size=3),
}


@pytest.mark.parametrize("name", STAGES)
def test_laws(name):
    task, source = make(), pictures()
    stage = STAGES[name](task, source)
    state = initial_state(task, source)
    state["plan", "budget"] = torch.tensor(60)
    assert_stage_laws(stage, initialize(stage, state))
