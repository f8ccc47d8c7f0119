"""Gradient norms observed in the training step: the norms, and the gradient beside them."""

import dataclasses
import gc
import math
import weakref

import pytest
import torch
from torch import nn

from attent.pipeline import Step, adamw, fold, initial_state, initialize, run, score, sgd, train
from attent.pipeline.ghost import GhostError, norms
from attent.pipeline.ghost.tape import Tape
from attent.pipeline.keyed import all_global_generators, global_generators, seed_global
from tests.pipeline.test_train import budgeted, vit_source, vit_task
from tests.tiny import TinyTask, tiny_source, tiny_train
from tests.zoo import ZOO


class Held:
    """A batch as a source of its own examples."""

    def __init__(self, batch):
        self.batch = batch.exclude("index")

    def __len__(self):
        return len(self.batch)

    def fetch(self, index):
        return self.batch[index].clone()


def after(observe, *, step=None, lr=0.05, task=None, source=None, steps=3):
    task, source = task or vit_task(), source or vit_source()
    stage = train(
        task, source, optimizer=sgd(lr), step=step or Step(batch_size=8), steps=steps,
        observe=observe,
    )  # fmt: skip
    return run(stage, initialize(stage, budgeted(task, source, budget=len(source))))


@pytest.mark.parametrize(
    "step",
    [Step(batch_size=8), Step(batch_size=8, accumulate=3), Step(batch_size=8, clip=0.5)],
    ids=str,
)
def test_the_gradient_is_the_ordinary_one(step):
    plain, observed = after(False, step=step), after("grad_norm", step=step)
    for name, value in plain["params"].items():
        torch.testing.assert_close(observed["params", name], value, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(observed["metrics", "train_loss"], plain["metrics", "train_loss"])


MODELS = [
    "vit, registers, layer scale, average", "masked autoencoder", "llama, sdpa", "llama, tied",
    "lora, trained", "dora", "gpt2", "einsum",
]  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_the_gradient_of_other_models_is_the_ordinary_one(name):
    states = []
    for observe in (False, "grad_norm"):
        task, batch = ZOO[name].make()
        step = Step(batch_size=len(batch))
        states.append(after(observe, task=task, source=Held(batch), step=step, steps=1))
    plain, observed = states
    for key, value in plain["params"].items():
        torch.testing.assert_close(observed["params", key], value, rtol=1e-4, atol=1e-6)


# What the others see in training is not what they are scored on: masks, dropout.
@pytest.mark.parametrize("name", [m for m in MODELS if m not in ("masked autoencoder", "gpt2")])
def test_without_dropout_and_augmentation_a_step_sees_the_score(name):
    task, batch = ZOO[name].make()
    source, step = Held(batch), Step(batch_size=len(batch))
    seen = after("grad_norm", task=task, source=source, step=step, lr=0.0, steps=1)
    stage = score(task, source, "grad_norm")
    scored = run(stage, initialize(stage, initial_state(task, source)))["scores", "grad_norm"]
    torch.testing.assert_close(seen["scores", "grad_norm"], scored, rtol=1e-4, atol=1e-6)


def test_it_says_when_each_was_seen_and_records_the_loss_too():
    state = after("grad_norm")
    plain = after("loss")
    torch.testing.assert_close(state["scores", "loss"], plain["scores", "loss"])
    assert torch.equal(state["scores", "step"], plain["scores", "step"])
    assert sorted(state["scores", "step"].unique().tolist()) == [1, 2, 3]


def test_the_norm_is_of_the_gradient_under_the_dropout_that_was_drawn():
    task, source = TinyTask(dropout=0.5), tiny_source()
    stage = tiny_train(task, source, steps=1, observe="grad_norm", lr=0.0)
    state = initialize(stage, budgeted(task, source))
    seen = run(stage, state)
    index = (seen["scores", "step"] == 1).nonzero().squeeze(1)
    # The same forward by hand: dropout is keyed by the step.
    from attent.pipeline.order import keyed_order

    order = keyed_order(state["mask"], fold(0, "order", 0))[:4]
    with global_generators(torch.device("cpu")):
        seed_global(fold(0, "dropout", 0))
        x = nn.functional.dropout(source.fields["x"][order], 0.5)
    w = state["params", "linear.weight"][0]
    r = x @ w + state["params", "linear.bias"] - source.fields["y"][order]
    expected = 2 * r.abs() * (x.square().sum(1) + 1).sqrt()
    assert sorted(order.tolist()) == index.tolist()
    torch.testing.assert_close(seen["scores", "grad_norm"][order], expected)


def test_weights_are_taken_out_of_the_norm_and_a_weight_of_zero_keeps_the_score():
    task, source = vit_task(), vit_source(8)
    stage = train(
        task, source, optimizer=sgd(0.0), step=Step(batch_size=8), steps=1, observe="grad_norm"
    )
    state = initialize(stage, budgeted(task, source, budget=8))
    even = run(stage, state)["scores", "grad_norm"]
    state["weight"] = torch.tensor([0.0, 1.0, 2.0, 3.0, 0.5, 0.1, 1.0, 1.0])
    state["scores", "grad_norm"] = torch.full((8,), 7.0)
    seen = run(stage, state)["scores", "grad_norm"]
    assert seen[0] == 7.0
    torch.testing.assert_close(seen[1:], even[1:], rtol=1e-4, atol=0)


def test_ticks_of_any_length_give_the_same_bits():
    def trained(steps):
        task, source = vit_task(), vit_source()
        stage = train(
            task, source, optimizer=adamw(1e-3), step=Step(batch_size=4), steps=steps,
            observe="grad_norm",
        )  # fmt: skip
        state = initialize(stage, budgeted(task, source, budget=24))
        for _ in range(6 // steps):
            state = run(stage, state)
        return state

    whole = trained(6)
    for steps in (1, 2, 3):
        parts = trained(steps)
        assert torch.equal(parts["scores", "grad_norm"], whole["scores", "grad_norm"])
        for name, value in whole["params"].items():
            assert torch.equal(parts["params", name], value)


@pytest.mark.parametrize("above", [0.0, 1e9])
def test_summed_or_differentiated_the_gradient_is_the_same(above, monkeypatch):
    from attent.pipeline.ghost import tape

    monkeypatch.setattr(tape, "FUSE_ABOVE", above)
    plain, observed = after(False), after("grad_norm")
    for name, value in plain["params"].items():
        torch.testing.assert_close(observed["params", name], value, rtol=1e-5, atol=1e-6)


def test_bfloat16_stays_near_float32():
    near = after("grad_norm", step=Step(batch_size=8, bfloat16=True), lr=0.0)
    exact = after("grad_norm", lr=0.0)
    torch.testing.assert_close(
        near["scores", "grad_norm"], exact["scores", "grad_norm"], rtol=2e-2, atol=0
    )


def test_batch_norm_in_training_is_refused():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.linear = nn.BatchNorm1d(3), nn.Linear(3, 1)

        def forward(self, x):
            return self.linear(self.norm(x)).squeeze(-1)

    task, source = TinyTask(), tiny_source()
    with all_global_generators(0):
        task.model = Net()
    stage = tiny_train(task, source, observe="grad_norm")
    with pytest.raises(ValueError, match="BatchNorm with the statistics of the batch"):
        run(stage, initialize(stage, budgeted(task, source)))
    assert torch.equal(task.model.norm.running_mean, torch.zeros(3))


def test_dropout_in_a_mapped_module_is_refused():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale, self.dropout = nn.Parameter(torch.ones(3)), nn.Dropout(0.5)

        def forward(self, x):
            return torch.einsum("bi,i->b", self.dropout(x), self.scale)

    task, source = TinyTask(), tiny_source()
    task.model = Odd()
    stage = tiny_train(task, source, observe="grad_norm")
    with pytest.raises(GhostError):
        run(stage, initialize(stage, budgeted(task, source)))


def test_options_that_do_not_go_together_are_refused():
    task, source = TinyTask(), tiny_source()
    with pytest.raises(ValueError, match=r"observe is True, False, or of loss, .*; not 'norm'"):
        tiny_train(task, source, observe="norm")
    with pytest.raises(ValueError, match="cannot be observed in a compiled model"):
        tiny_train(task, source, observe="grad_norm", step=Step(batch_size=4, compile=True))


def test_a_bad_loss_leaves_nothing_behind():
    task, source = TinyTask(), tiny_source()
    source.fields["y"][13] = math.inf
    stage = tiny_train(task, source, observe="grad_norm")
    state = initialize(stage, budgeted(task, source))
    with pytest.raises(ValueError, match="training loss of example 13 is inf"):
        run(stage, state, donate=True)
    assert all(p.grad is None for p in task.model.parameters())
    assert not any(module._forward_hooks for module in task.model.modules())


def test_a_forward_that_was_listened_to_is_let_go(monkeypatch):
    tapes = []
    made = Tape.__init__

    def init(self, *args, **kwargs):
        made(self, *args, **kwargs)
        tapes.append(weakref.ref(self))

    monkeypatch.setattr(Tape, "__init__", init)
    after("grad_norm")
    task, source = vit_task(), vit_source()
    for signal in ("grad_norm", "last_layer"):
        stage = score(task, source, signal)
        run(stage, initialize(stage, initial_state(task, source)))
    gc.collect()
    assert len(tapes) > 5
    assert [ref for ref in tapes if ref() is not None] == []
    known = id(task)
    assert known in norms._found
    del task, source, stage
    gc.collect()
    assert known not in norms._found


def test_a_task_need_not_be_hashable():
    @dataclasses.dataclass
    class Plain(TinyTask):
        scale: float = 1.0

        def __post_init__(self):
            TinyTask.__init__(self)

    task, source = Plain(), tiny_source()
    stage = score(task, source, "grad_norm")
    state = run(stage, initialize(stage, initial_state(task, source)))
    other = score(TinyTask(), source, "vmap_grad_norm")
    expected = run(other, initialize(other, initial_state(TinyTask(), source)))
    torch.testing.assert_close(state["scores", "grad_norm"], expected["scores", "vmap_grad_norm"])
