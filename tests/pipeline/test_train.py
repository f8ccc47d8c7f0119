"""The train stage against a plain PyTorch loop, and everything it must not depend on."""

import math

import pytest
import torch
from tensordict import TensorDict
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from attent.pipeline import (
    ExampleError,
    Loading,
    Step,
    TensorSource,
    adamw,
    fit,
    fold,
    full,
    initial_state,
    initialize,
    run,
    score,
    sgd,
    soft,
    train,
    uniform,
    warmup_cosine,
)
from attent.pipeline.keyed import all_global_generators, generator
from attent.pipeline.keys import differences, leaves
from attent.pipeline.optimizer import decays, moments
from attent.pipeline.order import keyed_order
from attent.pipeline.recipes import attent_complex
from attent.pipeline.schedules import fixed_interval
from attent.pipeline.task import trainable
from attent.tasks.classification import Classification
from tests.tiny import TinyTask, run_fit, tiny_source, tiny_train


def budgeted(task, source, budget=20, seed=0):
    state = initial_state(task, source, seed=seed)
    state["plan", "budget"] = torch.tensor(budget)
    return state


def vit_task(seed=0):
    with all_global_generators(seed):
        model = VisionTransformer(
            img_size=8, patch_size=4, in_chans=1, embed_dim=16, depth=2, num_heads=2, num_classes=3
        )
    return Classification(model, 3)


def vit_source(num_examples=24):
    draw = generator(11)
    return TensorSource(
        {
            "image": torch.randn(num_examples, 1, 8, 8, generator=draw),
            "label": torch.randint(3, (num_examples,), generator=draw),
        }
    )


def plain_loop(task, source, optimizer, order, batch_size, rate, budget):
    """What anybody would write."""
    task.model.train()
    seen = 0
    for index in order.split(batch_size):
        seen += len(index)
        for group in optimizer.param_groups:
            group["lr"] = rate(seen / budget)
        batch = source.fetch(index)
        losses = task.losses(task.forward(task.model, batch), batch)
        optimizer.zero_grad()
        losses.mean().backward()
        optimizer.step()


def groups(model, weight_decay):
    named, decay = [(n, p) for n, p in model.named_parameters() if p.requires_grad], decays(model)
    return [
        {"params": [p for n, p in named if decay(n, p)], "weight_decay": weight_decay},
        {"params": [p for n, p in named if not decay(n, p)], "weight_decay": 0.0},
    ]


@pytest.mark.parametrize("name", ["adamw", "sgd", "sgd momentum"])
def test_weights_are_those_of_a_plain_loop_bit_for_bit(name):
    task, source = vit_task(), vit_source()
    rate = warmup_cosine(0.01, warmup=0.25)
    ours, theirs = {
        "adamw": (
            adamw(rate, weight_decay=0.1),
            lambda m: torch.optim.AdamW(groups(m, 0.1), betas=(0.9, 0.999)),
        ),
        "sgd": (
            sgd(rate, momentum=0.0),
            lambda m: torch.optim.SGD(groups(m, 0.0)),
        ),
        "sgd momentum": (
            sgd(rate, momentum=0.9, weight_decay=0.1, nesterov=True),
            lambda m: torch.optim.SGD(groups(m, 0.1), momentum=0.9, nesterov=True),
        ),
    }[name]
    stage = train(task, source, optimizer=ours, step=Step(batch_size=5))
    state = run(stage, initialize(stage, budgeted(task, source, 24, seed=4)))

    reference = vit_task()
    order = keyed_order(torch.ones(24, dtype=torch.bool), fold(4, "order", 0))
    plain_loop(reference, source, theirs(reference.model), order, 5, rate, 24)
    expected = TensorDict({n: p.detach() for n, p in reference.model.named_parameters()})
    assert differences(state["params"], expected) == []
    assert int(state["clock", "step"]) == 5  # 5 + 5 + 5 + 5 + 4 = 24 examples
    assert int(state["clock", "seen"]) == 24


@pytest.mark.parametrize("workers", [0, 2])
def test_steps_a_tick_change_nothing(workers):
    """1, 7 and 50 steps a tick: the same bits in every entry."""

    def final(steps):
        def make(task, source):
            trainer = tiny_train(
                task, source, steps=steps, observe=True, loading=Loading(workers=workers)
            )
            return attent_complex(
                task, source, train=trainer, epochs=8, cycles=2, interval=fixed_interval(2),
                rule=soft(),
            )  # fmt: skip

        return run_fit(make, dropout=0.3, noise=0.2, seed=2)

    reference = final(1)
    assert int(reference["clock", "seen"]) == 160
    for steps in (7, 50):
        assert differences(reference, final(steps)) == []


def test_another_seed_gives_another_run():
    def make(task, source):
        return full(source, train=tiny_train(task, source), epochs=2)

    assert ("params", "linear.weight") in differences(run_fit(make, seed=0), run_fit(make, seed=1))


def test_only_selected_examples_are_trained_on_each_once():
    task, source = TinyTask(), tiny_source()
    stage = tiny_train(task, source, observe=True)
    state = initialize(stage, budgeted(task, source, 100))
    mask = torch.zeros(20, dtype=torch.bool)
    mask[[2, 3, 5, 7, 11, 13]] = True
    state["mask"], state["plan", "size"] = mask, torch.tensor(6)
    after = run(stage, state)
    assert int(after["clock", "offset"]) == 6  # stops at the end of the pass
    assert torch.equal(after["scores", "step"] >= 0, mask)
    assert int(after["ledger", "forwarded"]) == int(after["ledger", "backwarded"]) == 6


def test_order_differs_from_pass_to_pass():
    task, source = TinyTask(), tiny_source()
    stage = tiny_train(task, source, steps=1, observe=True)
    state = initialize(stage, budgeted(task, source, 100))
    first = run(stage, state)["scores", "step"] > 0
    state["clock", "passes"] = torch.tensor(1)
    second = run(stage, state)["scores", "step"] > 0
    assert int(first.sum()) == int(second.sum()) == 4
    assert not torch.equal(first, second)


def test_the_last_pass_is_cut_to_the_budget_and_pauses_are_kept():
    task, source = TinyTask(), tiny_source()
    stage = tiny_train(task, source)
    state = initialize(stage, budgeted(task, source, 10))
    assert int(run(stage, state)["clock", "seen"]) == 10  # 4 + 4 + 2
    state["plan", "pause"] = torch.tensor(5)
    # The step that reaches the pause is made whole: 4 + 4 >= 5.
    assert int(run(stage, state)["clock", "seen"]) == 8


def test_weights_enter_as_a_weighted_mean():
    """One SGD step from w = (.1, .2, .3): grad = sum(w_i g_i) / sum(w_i), by hand."""
    task = TinyTask()
    source = TensorSource({"x": torch.eye(3)[:2], "y": torch.tensor([1.0, 0.0])})
    stage = tiny_train(task, source, optimizer=sgd(1.0, momentum=0.0), step=Step(batch_size=2))
    state = initialize(stage, budgeted(task, source, 2))
    state["weight"] = torch.tensor([3.0, 1.0])
    after = run(stage, state)["params"]
    # Residuals f - y: .1 - 1 = -.9 and .2 - 0 = .2; gradients 2 r x: (-1.8, 0, 0) and (0, .4, 0).
    # Weighted mean: (3 * -1.8, 1 * .4, 0) / 4 = (-1.35, .1, 0); bias (3 * -1.8 + .4) / 4 = -1.25.
    expected = torch.tensor([[0.1 + 1.35, 0.2 - 0.1, 0.3]])
    torch.testing.assert_close(after["linear.weight"], expected)
    torch.testing.assert_close(after["linear.bias"], torch.tensor([1.25]))


@pytest.mark.parametrize("parts", [2, 3, 4])
def test_accumulation_gives_the_step_of_the_whole_batch(parts):
    def after(accumulate):
        task, source = TinyTask(), tiny_source()
        stage = tiny_train(
            task, source, step=Step(batch_size=4, accumulate=accumulate), optimizer=sgd(0.1)
        )
        state = initialize(stage, budgeted(task, source))
        state["weight"] = torch.linspace(0.5, 2, 20)
        return run(stage, state)

    whole, cut = after(1), after(parts)
    assert int(cut["clock", "step"]) == int(whole["clock", "step"]) == 5
    torch.testing.assert_close(cut["params", "linear.weight"], whole["params", "linear.weight"])


def test_clipping_bounds_the_step():
    task, source = TinyTask(), tiny_source()
    stage = tiny_train(
        task, source, optimizer=sgd(1.0, momentum=0.0), step=Step(batch_size=20, clip=0.01)
    )
    state = initialize(stage, budgeted(task, source))
    after = run(stage, state)
    moved = torch.cat(
        [(after["params", k] - state["params", k]).flatten() for k in state["params"].keys()]
    )
    # The gradient is far larger than the clip, so the step has exactly the clip's length.
    torch.testing.assert_close(moved.norm(), torch.tensor(0.01), rtol=1e-4, atol=0)


def test_decay_is_for_matrices_only():
    task = vit_task()
    decay = decays(task.model)
    decayed = {name for name, p in trainable(task.model).items() if decay(name, p)}
    assert "blocks.0.attn.qkv.weight" in decayed
    assert "patch_embed.proj.weight" in decayed
    assert not any(name.endswith("bias") or "norm" in name for name in decayed)
    # Not a vector, but timm's models name it as one that is not decayed.
    assert task.model.pos_embed.ndim > 1
    assert "pos_embed" not in decayed


def test_learning_rates_are_scaled_by_parameter():
    def moved(scales):
        task, source = TinyTask(), tiny_source()
        stage = tiny_train(
            task, source, optimizer=sgd(0.1, momentum=0.0, scales=scales), steps=1,
            step=Step(batch_size=20),
        )  # fmt: skip
        state = initialize(stage, budgeted(task, source))
        after = run(stage, state)
        return {k: after["params", k] - state["params", k] for k in state["params"].keys()}, after

    plain, _ = moved(None)
    scaled, after = moved(lambda model: {"linear.weight": 0.25})
    torch.testing.assert_close(scaled["linear.weight"], 0.25 * plain["linear.weight"])
    assert torch.equal(scaled["linear.bias"], plain["linear.bias"])
    assert float(after["metrics", "lr"]) == 0.1  # before scales


@pytest.mark.parametrize(
    ("scales", "said"),
    [
        ({"linear.wieght": 0.5}, "scales name 'linear.wieght', which is no parameter"),
        ({"linear.bias": -1.0}, "the scale of linear.bias must be at least 0, got -1"),
    ],
)
def test_scales_that_fit_no_model(scales, said):
    with pytest.raises(ValueError, match=said):
        tiny_train(TinyTask(), tiny_source(), optimizer=sgd(0.1, scales=lambda model: scales))


@pytest.mark.parametrize("steps", [1, 2, 50])
def test_the_moving_average_is_that_of_every_step_wherever_ticks_end(steps):
    task, source = TinyTask(), tiny_source()
    stage = tiny_train(task, source, steps=steps, ema=0.75)
    state = initialize(stage, budgeted(task, source))
    one = tiny_train(TinyTask(), source, steps=1)
    slow = initialize(one, budgeted(TinyTask(), source))
    average = {k: v.clone() for k, v in slow["params"].items()}
    for _ in range(5):  # a pass of 20 examples in batches of 4
        slow = run(one, slow)
        for name, value in average.items():
            average[name] = 0.75 * value + 0.25 * slow["params", name]
    while int(state["clock", "offset"]) < 20:
        state = run(stage, state)
    for name, value in average.items():
        torch.testing.assert_close(state["ema", name], value, rtol=1e-6, atol=1e-7)
        assert torch.equal(state["params", name], slow["params", name])
    assert not torch.equal(state["ema", "linear.weight"], state["params", "linear.weight"])


@pytest.mark.parametrize("ema", [-0.1, 1.0])
def test_a_moving_average_out_of_range(ema):
    with pytest.raises(ValueError, match=r"ema is in \[0, 1\)"):
        tiny_train(TinyTask(), tiny_source(), ema=ema)


def test_frozen_parameters_and_buffers():
    task, source = TinyTask(), tiny_source()
    stage = tiny_train(task, source)
    state = initialize(stage, budgeted(task, source))
    assert set(state["params"].keys()) == {"linear.weight", "linear.bias"}
    after = run(stage, state)
    assert torch.equal(task.model.frozen, torch.ones(1))
    # The module counts its training forwards in a buffer: the count is in the state.
    assert int(after["buffers", "calls"]) == 5
    assert int(state["buffers", "calls"]) == 0


class Jittered:
    """A source that changes its examples itself: x moved by a number of the example's key."""

    def __init__(self) -> None:
        self.plain = tiny_source()
        self.fetch, self.asked = self.plain.fetch, []

    def __len__(self) -> int:
        return len(self.plain)

    def fetch_augmented(self, index, keys):
        self.asked += zip(index.tolist(), keys.tolist(), strict=True)
        batch = self.plain.fetch(index)
        batch["x"] = batch["x"] + uniform(keys)[:, None].float()
        return batch


def test_a_source_that_augments_does_so_in_training_alone():
    task, source = TinyTask(), Jittered()
    stage = tiny_train(task, source)
    state = initialize(stage, budgeted(task, source))
    after = run(stage, state)
    first = dict(source.asked)
    assert len(source.asked) == len(set(source.asked)) == 20  # a key for each example
    state["clock", "passes"] = torch.tensor(1)
    other = run(stage, state)
    assert not {source.asked[i] for i in range(20, 40)} & set(first.items())  # others in each pass
    assert not torch.equal(after["params", "linear.weight"], other["params", "linear.weight"])
    measured = run(score(task, source), initialize(score(task, source), state))
    assert len(source.asked) == 40
    plain = run(score(task, tiny_source()), initialize(score(task, tiny_source()), state))
    assert torch.equal(measured["scores", "loss"], plain["scores", "loss"])


def test_observed_losses_are_those_of_the_training_forward():
    task, source = TinyTask(), tiny_source()
    stage = tiny_train(task, source, steps=1, observe=True)
    state = initialize(stage, budgeted(task, source))
    after = run(stage, state)
    seen = after["scores", "step"] == 1
    w, b = state["params", "linear.weight"][0], state["params", "linear.bias"]
    x, y = source.fields["x"], source.fields["y"]
    expected = (x @ w + b - y).square()
    assert int(seen.sum()) == 4
    torch.testing.assert_close(after["scores", "loss"][seen], expected[seen])
    assert after["scores", "loss"][~seen].eq(0).all()


def test_a_loss_that_is_not_finite_names_its_example_and_spoils_nothing():
    task, source = TinyTask(), tiny_source()
    source.fields["y"][13] = math.inf
    stage = tiny_train(task, source)
    state = initialize(stage, budgeted(task, source))
    with pytest.raises(ExampleError, match="training loss of example 13 is inf"):
        run(stage, state, donate=True)
    # Donated: the state holds the last good step, and its clock says which.
    assert all(torch.isfinite(v).all() for k, v in leaves(state) if k[0] in ("params", "optim"))
    steps = int(state["clock", "step"])
    assert int(state["clock", "seen"]) == 4 * steps
    assert all(p.grad is None for p in task.model.parameters())
    # Mended, it goes on from there to what it would have been.
    source.fields["y"][13] = 0.0
    resumed = run(stage, state, donate=True)
    fresh_task = TinyTask()
    fresh = tiny_train(fresh_task, source)
    whole = run(fresh, initialize(fresh, budgeted(fresh_task, source)))
    assert differences(resumed, whole) == []


def test_losses_whose_sum_overflows_are_still_finite_losses():
    task, source = TinyTask(), tiny_source()
    source.fields["y"].fill_(1e19)  # losses of 1e38: four of them are above float32's 3.4e38
    stage = tiny_train(task, source)
    after = run(stage, initialize(stage, budgeted(task, source)))
    assert float(after["metrics", "train_loss"]) == pytest.approx(1e38, rel=1e-3)


def test_an_example_that_cannot_be_read_names_itself():
    class Broken(TensorSource):
        def fetch(self, index):
            if 6 in index.tolist():
                raise OSError("cannot identify image file")
            return super().fetch(index)

        def locate(self, index):
            return f"shelf/{index}.png"

    for loading in (Loading(), Loading(workers=2)):
        task = TinyTask()
        source = Broken(tiny_source().fields)
        stage = tiny_train(task, source, loading=loading)
        state = initialize(stage, budgeted(task, source))
        with pytest.raises(ExampleError, match=r"example 6 \(shelf/6.png\) cannot be fetched"):
            run(stage, state)


def test_bfloat16_stays_near_float32():
    def after(bfloat16):
        task, source = vit_task(), vit_source()
        stage = train(
            task, source, optimizer=adamw(1e-3), step=Step(batch_size=8, bfloat16=bfloat16)
        )
        return run(stage, initialize(stage, budgeted(task, source, 24)))

    exact, rounded = after(False), after(True)
    assert differences(exact["params"], rounded["params"]) != []
    assert all(value.dtype == torch.float32 for _, value in leaves(rounded["params"]))
    loss, near = exact["metrics", "train_loss"], rounded["metrics", "train_loss"]
    assert abs(float(loss - near)) < 0.02 * float(loss)


@pytest.mark.slow
def test_compiled_model_gives_nearly_the_same_weights():
    def after(compiled):
        task, source = vit_task(), vit_source(16)
        stage = train(
            task, source, optimizer=sgd(0.01), step=Step(batch_size=8, compile=compiled), steps=1
        )
        state = initialize(stage, budgeted(task, source, 16))
        # Two ticks: what was compiled in the first must not have frozen its weights.
        return run(stage, run(stage, state))

    eager, compiled = after(False), after(True)
    torch.testing.assert_close(
        dict(compiled["params"].items()), dict(eager["params"].items()), rtol=1e-4, atol=1e-6
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size and accumulate are at least 1"),
        ({"accumulate": 0}, "batch_size and accumulate are at least 1"),
        ({"batch_size": 2, "accumulate": 3}, "a batch of 2 cannot be cut into 3 parts"),
        ({"clip": 0.0}, "clip must be above 0"),
    ],
)
def test_wrong_steps(options, message):
    with pytest.raises(ValueError, match=message):
        Step(**options)


def test_wrong_uses(task, source):
    with pytest.raises(ValueError, match="batch_size 21 is above the 20 training examples"):
        tiny_train(task, source, step=Step(batch_size=21))
    with pytest.raises(ValueError, match="steps must be at least 1"):
        tiny_train(task, source, steps=0)
    stage = tiny_train(task, source)
    with pytest.raises(ValueError, match="the plan has no budget: put a reschedule stage"):
        run(stage, initialize(stage, initial_state(task, source)))
    state = initialize(stage, budgeted(task, source))
    state["mask"] = torch.arange(20) < 3
    with pytest.raises(ValueError, match="the mask selects 3 examples, but plan/size asks for 20"):
        run(stage, state)
    with pytest.raises(ValueError, match="dampening must be 0"):
        sgd(0.1, dampening=0.5)
    with pytest.raises(ValueError, match="lr must be at least 0"):
        adamw(-1.0)


def test_moments_are_what_the_optimiser_keeps():
    params = {"w": torch.ones(2, 3), "b": torch.ones(3)}
    assert [p for p, _ in leaves(moments(adamw(0.1), params))] == [
        (name, moment) for name in "wb" for moment in ("step", "exp_avg", "exp_avg_sq")
    ]
    assert [p for p, _ in leaves(moments(sgd(0.1), params))] == [
        ("w", "momentum_buffer"),
        ("b", "momentum_buffer"),
    ]
    assert list(leaves(moments(sgd(0.1, momentum=0.0), params))) == []

    class Counting(torch.optim.SGD):
        def step(self, closure=None):
            for group in self.param_groups:
                for p in group["params"]:
                    self.state[p]["count"] = 1

    from attent.pipeline import Optimizer

    counting = Optimizer(
        name="counting", make=lambda g: Counting(g, lr=0.1), lr=lambda p: 0.1,
        weight_decay=lambda p: 0.0,
    )  # fmt: skip
    with pytest.raises(ValueError, match="optimiser 'counting' keeps 'count' as int"):
        moments(counting, params)


def test_an_optimiser_that_replaces_its_moments_is_followed():
    class Replacing(torch.optim.SGD):
        def step(self, closure=None):
            for group in self.param_groups:
                for p in group["params"]:
                    held = self.state[p].get("sum", torch.zeros_like(p))
                    self.state[p]["sum"] = held + 1
                    if p.grad is not None:
                        p.data.sub_(0.01 * p.grad)

    from attent.pipeline import Optimizer

    replacing = Optimizer(
        name="replacing", make=lambda g: Replacing(g, lr=0.1), lr=lambda p: 0.1,
        weight_decay=lambda p: 0.0,
    )  # fmt: skip
    task, source = TinyTask(), tiny_source()
    stage = tiny_train(task, source, optimizer=replacing)
    after = run(stage, initialize(stage, budgeted(task, source)))
    assert after["optim", "linear.bias", "sum"].tolist() == [5.0]  # 20 examples, batches of 4


def test_tied_parameters_are_held_once():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(3, 3, bias=False)
            self.b = nn.Linear(3, 3, bias=False)
            self.b.weight = self.a.weight

        def forward(self, x):
            return self.b(self.a(x)).sum(-1)

    task = TinyTask()
    task.model = Tied()
    source = tiny_source()
    stage = tiny_train(task, source)
    state = initialize(stage, budgeted(task, source))
    assert list(state["params"].keys()) == ["a.weight"]
    after = run(stage, state)
    assert task.model.a.weight is task.model.b.weight
    assert torch.equal(task.model.b.weight, after["params", "a.weight"])


class Normed(nn.Module):
    """Batch statistics, then a line."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(3)
        self.out = nn.Linear(3, 1)

    def forward(self, x):
        return self.out(self.norm(x)).squeeze(-1)


def test_batch_norm_statistics_are_in_the_state():
    task = TinyTask()
    task.model = Normed()
    source = tiny_source()
    tick = full(source, train=tiny_train(task, source), epochs=1)
    start = initial_state(task, source)
    after = fit(tick, start)
    assert int(after["buffers", "norm.num_batches_tracked"]) == 5
    assert start["buffers", "norm.running_mean"].eq(0).all()
    assert after["buffers", "norm.running_mean"].ne(0).all()


def test_batch_norm_never_meets_a_single_example():
    """65 examples in batches of 32, and 7 in 3 parts: no batch and no part of one."""

    for num_examples, step in ((65, Step(batch_size=32)), (7, Step(batch_size=7, accumulate=3))):
        task = TinyTask()
        task.model = Normed()
        source = tiny_source(num_examples)
        tick = full(source, train=tiny_train(task, source, step=step), epochs=1)
        after = fit(tick, initial_state(task, source))
        assert int(after["clock", "seen"]) == num_examples


def test_a_task_with_nothing_to_train(task, source):
    task.model.requires_grad_(False)
    with pytest.raises(ValueError, match="task 'tiny' has no trainable parameter"):
        tiny_train(task, source)


def test_the_observed_loss_as_a_multiple_of_the_running_loss():
    task, source = TinyTask(), tiny_source()
    stage = tiny_train(task, source, steps=2, observe=("loss", "relative_loss"))
    after = run(stage, initialize(stage, budgeted(task, source)))
    losses, steps = after["scores", "loss"], after["scores", "step"]
    # The running loss is that of the first batch, then 0.98 of it and 0.02 of the second's.
    first, second = (losses[steps == step].double().mean() for step in (1, 2))
    levels = {1: first, 2: 0.98 * first + 0.02 * second}
    for step, level in levels.items():
        found = after["scores", "relative_loss"][steps == step]
        torch.testing.assert_close(found, losses[steps == step] / level.float())
    assert after["scores", "relative_loss"][steps < 1].eq(0).all()


def test_how_far_a_loss_fell_since_it_was_seen_last():
    task, source = TinyTask(), tiny_source()
    stage = tiny_train(task, source, steps=5, observe="loss_drop")
    once = run(stage, initialize(stage, budgeted(task, source, budget=40)))
    assert int((once["scores", "step"] >= 1).sum()) == 20  # a whole pass
    assert once["scores", "loss_drop"].eq(0).all()
    once["clock", "offset"] = torch.tensor(0)
    once["clock", "passes"] = torch.tensor(1)
    twice = run(stage, once)
    dropped = once["scores", "loss"] - twice["scores", "loss"]
    assert torch.equal(twice["scores", "loss_drop"], dropped)
    assert dropped.abs().sum() > 0


def test_what_cannot_be_observed_is_refused():
    for observe in ("output_grad_norm", ("loss", "output_grad_norm")):
        with pytest.raises(ValueError, match=r"relative_loss.*not 'output_grad_norm'"):
            tiny_train(TinyTask(), tiny_source(), observe=observe)
