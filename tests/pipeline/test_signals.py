"""Signals: vmap against a plain loop with autograd, and against formulae."""

from __future__ import annotations

import math

import pytest
import torch
from tensordict import TensorDict
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from torch.nn import functional as F

from attent.pipeline import SIGNALS, Signal, generator
from attent.pipeline.signals import (
    example_losses,
    looped_grad_norms,
    output_grad_norms,
    signal_of,
    vmap_grad_norms,
)
from attent.tasks.classification import Classification
from tests.tiny import TinyTask, tiny_source

CLASSES = 5
BATCH = 7


def small_vit(**options) -> VisionTransformer:
    model = VisionTransformer(
        img_size=16, patch_size=8, in_chans=1, num_classes=CLASSES, embed_dim=32, depth=2,
        num_heads=2, **options,
    )  # fmt: skip
    draw = generator(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.2 * torch.randn(parameter.shape, generator=draw))
    return model


def images() -> TensorDict:
    draw = generator(2)
    return TensorDict(
        {
            "image": torch.randn(BATCH, 1, 16, 16, generator=draw),
            "label": torch.randint(0, CLASSES, (BATCH,), generator=draw),
            "index": torch.arange(BATCH),
        },
        batch_size=[BATCH],
    )


def parts(task) -> tuple[dict, dict]:
    """Trainable parameters and buffers, as scoring is given them."""
    task.model.eval()
    params = {k: p.detach().clone() for k, p in task.model.named_parameters() if p.requires_grad}
    return params, dict(task.model.named_buffers())


def loop_norms(task, batch: TensorDict) -> torch.Tensor:
    """The definition: one example, one backward, at a time."""
    task.model.eval()
    trained = [p for p in task.model.parameters() if p.requires_grad]
    norms = []
    for i in range(len(batch)):
        one = batch[i : i + 1]
        loss = task.losses(task.forward(task.model, one), one)[0]
        gradients = torch.autograd.grad(loss, trained)
        norms.append(math.sqrt(sum(float(g.double().square().sum()) for g in gradients)))
    return torch.tensor(norms)


def tiny_batch() -> tuple[TensorDict, torch.Tensor, torch.Tensor]:
    """A batch, |x|, and the residuals r = w.x + b - y at w = (0.1, 0.2, 0.3), b = 0."""
    batch = tiny_source().fetch(torch.arange(20))
    x, y = batch["x"], batch["y"]
    return batch, x.norm(dim=1), x @ torch.tensor([0.1, 0.2, 0.3]) - y


@pytest.fixture(scope="module")
def vit():
    return Classification(small_vit(), CLASSES)


def test_losses_equal_a_loop(vit):
    batch = images()
    measured = example_losses(vit, *parts(vit), batch)
    with torch.no_grad():
        loop = [
            F.cross_entropy(vit.model(batch["image"][i : i + 1]), batch["label"][i : i + 1])
            for i in range(BATCH)
        ]
    torch.testing.assert_close(measured, torch.stack(loop), rtol=1e-5, atol=0)
    assert measured.std() > 0.1  # nothing to see if all were alike


@pytest.mark.parametrize("chunk", [None, 1, 3, 100])
def test_grad_norms_equal_a_loop(vit, chunk):
    batch = images()
    measured = vmap_grad_norms(vit, *parts(vit), batch, chunk)
    assert (measured.dtype, measured.shape) == (torch.float32, (BATCH,))
    torch.testing.assert_close(measured, loop_norms(vit, batch), rtol=1e-5, atol=0)
    assert measured.std() > 0.1


def test_looped_norms_equal_vmap_and_are_without_a_graph(vit):
    given = (vit, *parts(vit), images())
    with torch.no_grad():
        measured = looped_grad_norms(*given)
    assert (measured.dtype, measured.shape) == (torch.float32, (BATCH,))
    torch.testing.assert_close(measured, vmap_grad_norms(*given), rtol=1e-5, atol=0)


@pytest.mark.parametrize("chunk", [None, 1, 3, 100])
def test_output_grad_norms_of_cross_entropy(vit, chunk):
    batch = images()
    measured = output_grad_norms(vit, *parts(vit), batch, chunk)
    with torch.no_grad():
        p = vit.model(batch["image"]).softmax(1)
    expected = (p - F.one_hot(batch["label"], CLASSES)).norm(dim=1)
    torch.testing.assert_close(measured, expected, rtol=1e-5, atol=0)


def test_output_grad_norms_with_label_smoothing(vit):
    task, batch = Classification(vit.model, CLASSES, label_smoothing=0.2), images()
    measured = output_grad_norms(task, *parts(task), batch)
    with torch.no_grad():
        p = vit.model(batch["image"]).softmax(1)
    # The target is 0.8 of the one-hot and 0.2 / 5 = 0.04 everywhere.
    expected = (p - 0.8 * F.one_hot(batch["label"], CLASSES) - 0.04).norm(dim=1)
    torch.testing.assert_close(measured, expected, rtol=1e-5, atol=0)


def test_frozen_parameters_are_not_in_the_norm():
    task, batch = Classification(small_vit(), CLASSES), images()
    whole = vmap_grad_norms(task, *parts(task), batch)
    task.model.blocks.requires_grad_(False)
    params, buffers = parts(task)
    assert not any(name.startswith("blocks") for name in params)
    measured = vmap_grad_norms(task, params, buffers, batch)
    torch.testing.assert_close(measured, loop_norms(task, batch), rtol=1e-5, atol=0)
    assert bool((measured < 0.99 * whole).all())


def test_linear_regression_by_hand():
    task, (batch, size, r) = TinyTask(), tiny_batch()
    given = (task, *parts(task), batch)
    torch.testing.assert_close(example_losses(*given), r**2)
    # The loss r^2 has the gradients 2 r x in w and 2 r in b, and 2 r in the output.
    torch.testing.assert_close(vmap_grad_norms(*given), 2 * r.abs() * (size**2 + 1).sqrt())
    torch.testing.assert_close(looped_grad_norms(*given), 2 * r.abs() * (size**2 + 1).sqrt())
    torch.testing.assert_close(output_grad_norms(*given), 2 * r.abs())


class Above(TinyTask):
    """The sum of an example's entries above 0, by w; two or more of them add v."""

    def __init__(self) -> None:
        super().__init__()
        self.model = nn.Module()
        self.model.w = nn.Parameter(torch.tensor(3.0))
        self.model.v = nn.Parameter(torch.tensor(2.0))
        self.model.forward = self.rows

    def rows(self, x):
        found = [row[row > 0] for row in x]
        return torch.stack(
            [self.model.w * r.sum() + (self.model.v if len(r) > 1 else 0) for r in found]
        )

    def losses(self, output, batch):
        return output


def test_examples_of_different_numbers_of_rows():
    """The loss is w s + v [n > 1], with s the sum of the n entries above 0: no vmap can map it."""
    task = Above()
    x = torch.tensor([[1.0, 2.0, -1.0], [-1.0, -2.0, 4.0], [-1.0, -1.0, -1.0]])
    batch = TensorDict({"x": x}, batch_size=[3])
    # Gradients (s, [n > 1]): (3, 1), (4, 0), (0, 0).
    expected = torch.tensor([math.sqrt(10), 4.0, 0.0])
    torch.testing.assert_close(looped_grad_norms(task, *parts(task), batch), expected)
    with pytest.raises(RuntimeError, match="vmap"):
        vmap_grad_norms(task, *parts(task), batch)


def test_a_frozen_factor_by_hand():
    task, (batch, size, _) = TinyTask(), tiny_batch()
    task.model.frozen.data.fill_(3.0)
    r = 3 * batch["x"] @ torch.tensor([0.1, 0.2, 0.3]) - batch["y"]
    given = (task, *parts(task), batch)
    # f = 3 (w.x + b): the gradients are 6 r x and 6 r; that of the factor is not counted.
    torch.testing.assert_close(looped_grad_norms(*given), 6 * r.abs() * (size**2 + 1).sqrt())
    torch.testing.assert_close(vmap_grad_norms(*given), 6 * r.abs() * (size**2 + 1).sqrt())
    torch.testing.assert_close(output_grad_norms(*given), 2 * r.abs())


def test_the_given_weights_count_not_the_modules():
    task, (batch, _, _) = TinyTask(), tiny_batch()
    params, buffers = parts(task)
    params = {name: torch.zeros_like(value) for name, value in params.items()}
    # f = 0: the loss is y^2, and 2 |y| its output's gradient.
    torch.testing.assert_close(example_losses(task, params, buffers, batch), batch["y"] ** 2)
    torch.testing.assert_close(
        output_grad_norms(task, params, buffers, batch), 2 * batch["y"].abs()
    )


@pytest.mark.parametrize("name", list(SIGNALS))
def test_nothing_is_left_behind(name):
    task, (batch, _, _) = TinyTask(), tiny_batch()
    params, buffers = parts(task)
    before = {k: v.clone() for k, v in (params | buffers).items()}
    measured = SIGNALS[name].measure(task, params, buffers, batch, 4)
    assert not measured.requires_grad
    assert all(p.grad is None for p in task.model.parameters())
    assert all(torch.equal(value, before[k]) for k, value in (params | buffers).items())


class TwoHeads(TinyTask):
    """Outputs f and 2 f under two names; the loss is the sum of both squared errors."""

    def __init__(self, container) -> None:
        super().__init__()
        self.container = container

    def forward(self, model, batch):
        f = model(batch["x"])
        return self.container({"once": f, "twice": 2 * f}, f)

    def losses(self, output, batch):
        return (output["once"] - batch["y"]) ** 2 + (output["twice"] - batch["y"]) ** 2


@pytest.mark.parametrize(
    "container",
    [lambda heads, f: heads, lambda heads, f: TensorDict(heads, batch_size=[len(f)])],
    ids=["dict", "TensorDict"],
)
@pytest.mark.parametrize("chunk", [None, 3])
def test_outputs_of_several_tensors(container, chunk):
    task, (batch, size, r) = TwoHeads(container), tiny_batch()
    f = r + batch["y"]
    twice = 2 * f - batch["y"]
    given = (task, *parts(task), batch, chunk)
    torch.testing.assert_close(example_losses(*given), r**2 + twice**2)
    torch.testing.assert_close(output_grad_norms(*given), 2 * (r**2 + twice**2).sqrt())
    # d loss / d f = 2 r + 4 (2 f - y).
    expected = (2 * r + 4 * twice).abs() * (size**2 + 1).sqrt()
    torch.testing.assert_close(vmap_grad_norms(*given), expected)


class Tied(nn.Module):
    """f = w.x + w.x through one weight under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 1, bias=False), nn.Linear(3, 1, bias=False)
        self.b.weight = self.a.weight
        self.a.weight.data.copy_(torch.tensor([[0.1, 0.2, 0.3]]))

    def forward(self, x):
        return (self.a(x) + self.b(x)).squeeze(-1)


def test_tied_weights_count_once_with_both_uses():
    task, (batch, size, _) = TinyTask(), tiny_batch()
    task.model = Tied()
    r = 2 * batch["x"] @ torch.tensor([0.1, 0.2, 0.3]) - batch["y"]
    params, buffers = parts(task)
    assert list(params) == ["a.weight"]
    # f = 2 w.x: the gradient is 2 r * 2 x.
    torch.testing.assert_close(vmap_grad_norms(task, params, buffers, batch), 4 * r.abs() * size)


def test_signals_by_name():
    assert [signal_of(name).name for name in SIGNALS] == list(SIGNALS)
    backward = [name for name, signal in SIGNALS.items() if signal.backward]
    assert backward == ["grad_norm", "vmap_grad_norm", "looped_grad_norm"]
    own = Signal(name="own", measure=example_losses)
    assert signal_of(own) is own


def test_an_unknown_signal():
    message = f"no signal 'gradnorm'; there are {', '.join(SIGNALS)}"
    with pytest.raises(ValueError, match=message):
        signal_of("gradnorm")
