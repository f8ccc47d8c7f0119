"""Ghost norms: what is refused, and rare uses of parameters that are right all the same."""

from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from attent.pipeline import ghost
from attent.pipeline.ghost import GhostError
from tests.pipeline.test_ghost_models import loop_norms, parts
from tests.zoo import (
    MaskToken,
    Mixer,
    ZooTask,
    batched,
    normal,
    on_x,
    regression,
    scrambled,
    squared_error,
)


def measure(task, batch: TensorDict) -> Tensor:
    return ghost.grad_norms(task, *parts(task), batch)


class Written(nn.Module):
    """A forward written down in one place."""

    def __init__(self, run, **members) -> None:
        super().__init__()
        self.run = run
        for name, member in members.items():
            setattr(self, name, member)

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self, x)


def written(run, *shape: int, **members):
    return regression(Written(run, **members), *shape)


def parameter(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.zeros(shape))


# What cannot be had is refused


def test_batch_statistics_in_training_mode_are_refused():
    model = nn.Sequential(nn.Linear(5, 5), nn.BatchNorm1d(5), nn.Linear(5, 2))
    task, batch = regression(model, 4, 5)
    torch.testing.assert_close(measure(task, batch), loop_norms(task, batch), rtol=1e-4, atol=0)
    model.train()
    with pytest.raises(ValueError, match="BatchNorm with the statistics of the batch"):
        measure(task, batch)


def test_batch_statistics_by_hand_are_refused():
    """The gradient reaches the parameters by each example's own row all the same."""
    task, batch = written(lambda m, x: m.layer(x - x.mean(0)), 4, 5, layer=nn.Linear(5, 5))
    with pytest.raises(GhostError, match="not independent"):
        measure(task, batch)


def contrastive(output: Tensor, batch: TensorDict) -> Tensor:
    """Each example is told from all others: a loss over pairs."""
    unit = F.normalize(output, dim=1)
    return F.cross_entropy(unit @ unit.T / 0.5, torch.arange(len(unit)), reduction="none")


def balanced(output: Tensor, batch: TensorDict) -> Tensor:
    """A small term that keeps the outputs of a batch even, as for experts that share a load."""
    usage = output.softmax(1).mean(0)
    return squared_error(output, batch) + 0.1 * usage.square().sum()


@pytest.mark.parametrize("losses", [contrastive, balanced])
@pytest.mark.parametrize("first", ["all", "one", "two alike"])
def test_a_loss_over_several_examples_is_refused(losses, first):
    task = ZooTask(scrambled(nn.Linear(5, 4), 0.4), on_x, losses)
    batch = batched(x=normal(6, 5), y=normal(6, seed=4))
    alike = batch.clone()
    alike["x"][1], alike["y"][1] = alike["x"][0], alike["y"][0]
    given = {"all": batch, "one": batch[:1], "two alike": alike}[first]

    def both():
        measure(task, given)
        measure(task, batch)

    with pytest.raises(GhostError, match="not independent"):
        both()


def test_an_activation_changed_in_place_after_its_use_is_refused():
    def run(m, x):
        hidden = m.first(x)
        out = m.second(hidden)
        hidden.mul_(2)
        return out + hidden

    task, batch = written(run, 4, 5, first=nn.Linear(5, 5), second=nn.Linear(5, 5))
    with pytest.raises(GhostError, match=r"in ?place"):
        measure(task, batch)


def test_an_input_changed_in_place_after_its_use_is_refused():
    def run(m, x):
        x = x.clone()
        out = m.first(x)
        x.mul_(2)
        return out + x

    task, batch = written(run, 4, 5, first=nn.Linear(5, 5))
    with pytest.raises(GhostError, match=r"in ?place"):
        measure(task, batch)


def test_an_activation_changed_in_place_before_its_use_is_fine():
    def run(m, x):
        hidden = F.relu(m.first(x), inplace=True)
        out = m.second(hidden)
        out += m.shift
        return out.mul_(2).sigmoid_()

    layers = {"first": nn.Linear(5, 5), "second": nn.Linear(5, 5), "shift": parameter(5)}
    task, batch = written(run, 4, 5, **layers)
    torch.testing.assert_close(measure(task, batch), loop_norms(task, batch), rtol=1e-4, atol=0)


class Doubled(torch.autograd.Function):
    """A function of the user's own, which no mode sees."""

    @staticmethod
    def forward(ctx, x, weight):
        ctx.save_for_backward(x, weight)
        return 2 * x @ weight.T

    @staticmethod
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        return 2 * grad @ weight, 2 * grad.T @ x


def test_a_use_that_is_not_seen_is_refused():
    task, batch = written(
        lambda m, x: Doubled.apply(m.first(x).tanh(), m.weight),
        4, 5, first=nn.Linear(5, 5), weight=parameter(3, 5),
    )  # fmt: skip
    with pytest.raises(GhostError, match="weight"):
        measure(task, batch)


def test_what_vmap_cannot_map_is_refused_by_name():
    task, batch = regression(MaskToken(), 4, 5, 5)
    with pytest.raises(GhostError, match=r"MaskToken.* uses token .* vmap cannot map"):
        measure(task, batch)
    recurrent = nn.LSTM(5, 5, batch_first=True)
    task, batch = written(lambda m, x: m.recurrent(x)[0], 3, 4, 5, recurrent=recurrent)
    with pytest.raises(GhostError, match="weight_ih_l0"):
        measure(task, batch)


@pytest.mark.parametrize(
    ("losses", "message"),
    [
        (lambda o, b: squared_error(o, b).mean(), "one number for each example"),
        (lambda o, b: o.square(), "one number for each example"),
        (lambda o, b: squared_error(o.detach(), b), "do not depend on any trainable parameter"),
    ],
)
def test_losses_that_are_none_are_refused(losses, message):
    task, batch = regression(nn.Linear(5, 2), 4, 5)
    task.measure = losses
    with pytest.raises(GhostError, match=message):
        measure(task, batch)


# Paths that depend on the data


def either(first, second):
    """One way for batches of positive numbers, another for negative ones."""
    return lambda m, x: first(m, x) if x.mean() > 0 else second(m, x)


PATHS = {
    "another layer": (lambda m, x: m.first(x).tanh(), lambda m, x: m.second(x).tanh()),
    "another order": (
        lambda m, x: m.second(m.first(x).tanh()),
        lambda m, x: m.first(m.second(x).tanh()),
    ),
    "one layer more": (lambda m, x: m.first(x), lambda m, x: m.second(m.first(x).tanh())),
    "one use more": (lambda m, x: m.first(x), lambda m, x: m.first(m.first(x).tanh())),
    "another function": (
        lambda m, x: m.first(x) * m.scale,
        lambda m, x: torch.minimum(m.first(x), m.scale),
    ),
}


@pytest.mark.parametrize("name", PATHS)
def test_another_path_than_in_the_first_batch_is_refused(name):
    layers = {"first": nn.Linear(5, 5), "second": nn.Linear(5, 5), "scale": parameter(5)}
    task, batch = written(either(*PATHS[name]), 4, 5, **layers)
    above, below = batch.clone(), batch.clone()
    above["x"], below["x"] = above["x"] + 3, below["x"] - 3
    torch.testing.assert_close(measure(task, above), loop_norms(task, above), rtol=1e-4, atol=0)
    with pytest.raises(GhostError, match="path"):
        measure(task, below)


def test_a_path_that_ends_earlier_is_right():
    layers = {"first": nn.Linear(5, 5), "second": nn.Linear(5, 5)}
    short, long = PATHS["one layer more"]
    task, batch = written(either(long, short), 4, 5, **layers)
    for shift in (3, -3):
        moved = batch.clone()
        moved["x"] = moved["x"] + shift
        expected = loop_norms(task, moved)
        torch.testing.assert_close(measure(task, moved), expected, rtol=1e-4, atol=0)


# Ways of using a parameter that are met less often: right, whoever accounts for them


def rolled(m: nn.Module, x: Tensor) -> Tensor:
    x = x.clone()
    x[:, 1:] += m.first
    return x.tanh() * m.second


RARE = {
    "a weight of one row": (lambda m, x: F.linear(x, m.first)[:, None], [(5,)]),
    "a product with a vector": (lambda m, x: (x @ m.first)[:, None].tanh(), [(5,)]),
    "tokens in front": (
        lambda m, x: F.linear(torch.cat([m.first.expand(len(x), -1), x], 1), m.second),
        [(1, 2), (3, 7)],
    ),
    "parameters stacked": (
        lambda m, x: x * torch.stack([m.first, m.second.exp()]).sum(0),
        [(5,), (5,)],
    ),
    "divided, subtracted, reflected": (
        lambda m, x: (m.first - x / (2 + m.second)) / (3 + m.first.exp()) - (1 - m.second) * x,
        [(5,), (5,)],
    ),
    "rounded": (
        lambda m, x: x * m.first + torch.div(x, 2 + m.second, rounding_mode="floor"),
        [(5,), (5,)],
    ),
    "picked by an index of the data": (
        lambda m, x: F.linear(x, m.first) + m.second[(x[:, 0] > 0).long()],
        [(3, 5), (2, 3)],
    ),
    "added to a part in place": (rolled, [(4,), (5,)]),
    "added with a factor": (lambda m, x: torch.addcmul(m.first, x, m.second), [(5,), (5,)]),
    "a Fourier filter": (
        lambda m, x: torch.fft.irfft(torch.fft.rfft(x) * torch.view_as_complex(m.first)),
        [(3, 2)],
    ),
}


@pytest.mark.parametrize("name", RARE)
def test_rare_uses_are_right(name):
    run, shapes = RARE[name]
    members = dict(zip(("first", "second"), (parameter(*s) for s in shapes), strict=False))
    task, batch = written(run, 5, 5, **members)
    torch.testing.assert_close(measure(task, batch), loop_norms(task, batch), rtol=1e-4, atol=0)


def test_a_mapped_module_called_on_examples_and_on_a_parameter():
    def run(m, x):
        return m.mixer(m.table[None]).mean(1) + m.mixer(x).tanh().mean(1)

    task, batch = written(run, 4, 5, 5, mixer=Mixer(), table=parameter(5, 5))
    torch.testing.assert_close(measure(task, batch), loop_norms(task, batch), rtol=1e-4, atol=0)


def test_a_parameter_that_is_mapped_in_two_modules_one_in_the_other():
    def run(m, x):
        return torch.einsum("btd,te->bed", m.mixer(x), m.mixer.weight).tanh()

    task, batch = written(run, 4, 5, 5, mixer=Mixer())
    torch.testing.assert_close(measure(task, batch), loop_norms(task, batch), rtol=1e-4, atol=0)


def test_what_is_computed_again_for_the_backward_is_refused():
    """Checkpointing that is no flag of the module; what is computed again would not be seen."""

    def run(m, x):
        return m.second(checkpoint(lambda h: m.first(h).tanh(), x, use_reentrant=False))

    task, batch = written(run, 4, 5, first=nn.Linear(5, 5), second=nn.Linear(5, 2))
    with pytest.raises(GhostError, match=r"first.weight|checkpoint"):
        measure(task, batch)


def test_a_weight_that_is_made_and_then_changed_in_place_is_refused():
    def run(m, x):
        made = m.weight * 1.5
        made.mul_(2)
        return F.linear(x, made).tanh()

    task, batch = written(run, 4, 5, weight=parameter(3, 5))
    with pytest.raises(GhostError, match=r"weight.* changed in place"):
        measure(task, batch)


def test_some_of_the_parameters_may_be_asked_for():
    task, batch = regression(nn.Sequential(nn.Linear(5, 5), nn.Tanh(), nn.Linear(5, 2)), 4, 5)
    params, buffers = parts(task)
    chosen = {name: params[name] for name in ("2.weight", "2.bias")}
    measured = ghost.grad_norms(task, chosen, buffers, batch)
    expected = loop_norms(task, batch, list(chosen))
    torch.testing.assert_close(measured, expected, rtol=1e-4, atol=0)
