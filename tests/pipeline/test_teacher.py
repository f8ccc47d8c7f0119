"""Teacher against the pipeline: the same losses choose the same examples, in the same order."""

from __future__ import annotations

import itertools

import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from attent.pipeline import (
    Observer,
    Step,
    Teacher,
    TensorSource,
    aged,
    attent_paced,
    constant,
    fit,
    full,
    full_plan,
    hard,
    infobatch,
    initial_state,
    patient,
    random,
    rank,
    sgd,
    soft,
    train,
)
from attent.pipeline.keys import differences

N = 203  # in batches of 16: passes with tails, and one of 16 + 1
EPOCHS = 5


def digits() -> tuple[torch.Tensor, torch.Tensor]:
    found = load_digits()
    x = torch.as_tensor(found.data[:N], dtype=torch.float32) / 16
    return x, torch.as_tensor(found.target[:N], dtype=torch.int64)


def small_model() -> nn.Module:
    draw = torch.Generator().manual_seed(1)
    model = nn.Sequential(nn.Linear(64, 16), nn.Tanh(), nn.Linear(16, 10))
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=draw) / 8)
    return model


class Digits:
    """The task of the pipeline's run; it notes the batches that it is given."""

    name = "digits"

    def __init__(self) -> None:
        self.model = small_model()
        self.batches: list[list[int]] = []

    def view(self, batch, keys, *, training):
        self.batches.append(batch["index"].tolist())
        return batch

    def forward(self, model, batch):
        return model(batch["x"])

    def losses(self, output, batch):
        return nn.functional.cross_entropy(output, batch["y"], reduction="none")

    def metrics(self):
        return {}

    def update(self, metrics, output, batch):
        raise NotImplementedError


class Masks(Observer):
    """The selection and the weights of each pass, seen within it: ticks are of one step."""

    def __init__(self) -> None:
        self.found: dict[int, list[float]] = {}

    def tick(self, state) -> None:
        if int(state["clock", "offset"]):
            weighed = torch.where(state["mask"], state["weight"], 0)
            self.found[int(state["clock", "passes"])] = weighed.tolist()


def piped(recipe, observe, **options):
    """A run of the pipeline: its batches, its weighted masks, its last state."""
    task, (x, y) = Digits(), digits()
    source = TensorSource({"x": x, "y": y})
    stage = train(
        task, source, optimizer=sgd(0.5, momentum=0.9), step=Step(batch_size=16), steps=1,
        observe=observe,
    )  # fmt: skip
    masks = Masks()
    tick = recipe(source, train=stage, epochs=EPOCHS, **options)
    state = fit(tick, initial_state(task, source, seed=4), observers=[masks])
    return task.batches, masks.found, state


def taught(teacher: Teacher, *, batch_size: int = 16, **loading):
    """The same in a loop by hand; batches, weighted masks, the model."""
    data = TensorDataset(*digits())
    loader = DataLoader(
        teacher.with_index(data), batch_sampler=teacher.batches(batch_size), **loading
    )
    model, batches, masks = small_model(), [], {}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9)
    for index, (x, y) in teacher.loop(loader):
        batches.append(index.tolist())
        state = teacher._state
        weighed = torch.where(state["mask"], state["weight"], 0)
        masks[int(state["clock", "passes"])] = weighed.tolist()
        losses = nn.functional.cross_entropy(model(x), y, reduction="none")
        optimizer.zero_grad()
        teacher.observe(index, losses).backward()
        optimizer.step()
    return batches, masks, model


@pytest.mark.parametrize(
    ("rule", "signal"),
    [
        (hard(), "loss"),
        (hard(), "relative_loss"),
        (soft(0.5), "relative_loss"),
        (infobatch(), "loss"),
        (hard(), "loss_drop"),
    ],
    ids=lambda value: value if isinstance(value, str) else value.name,
)
def test_it_chooses_what_the_pipeline_chooses(rule, signal):
    """A model trained by hand beside it: one wrong choice, and all losses after it differ."""
    batches, masks, state = piped(attent_paced, signal, rule=rule, signal=signal)
    teacher = Teacher(N, rule=rule, signal=signal, budget=EPOCHS * N, seed=4)
    found, found_masks, _ = taught(teacher)
    assert found == batches
    assert found_masks == masks
    assert len({tuple(mask) for mask in masks.values()}) > 3  # it did select, again and again
    mine = teacher.state
    assert [differences(state[group], mine[group]) for group in ("clock", "plan", "scores")] == [
        [], [], [],
    ]  # fmt: skip
    assert float(mine["metrics", "train_loss"]) == float(state["metrics", "train_loss"])


def test_a_rule_that_needs_no_scores_and_plain_training():
    batches, _, _ = piped(attent_paced, False, rule=random(), first=0, ratio=constant(0.3))
    teacher = Teacher(
        N, rule=random(), first=0, ratio=constant(0.3), budget=EPOCHS * N, seed=4
    )  # fmt: skip
    assert taught(teacher)[0] == batches
    batches, _, _ = piped(full, False)
    assert taught(Teacher(N, plan=full_plan(N, EPOCHS), seed=4))[0] == batches


@pytest.mark.parametrize(
    ("signal", "observed", "stage"),
    [
        ("aged", "loss", aged(N, bonus=2.0)),
        ("patient", "relative_loss", patient(N, patience=1)),  # it keeps entries of its own
    ],
)
def test_scores_made_of_others(signal, observed, stage):
    options = {"signal": signal, "rank": stage}
    batches, _, state = piped(attent_paced, observed, **options)
    teacher = Teacher(N, budget=EPOCHS * N, seed=4, **options)
    assert taught(teacher)[0] == batches
    assert torch.equal(teacher.scores, state["scores", signal])
    assert taught(Teacher(N, budget=EPOCHS * N, seed=4))[0] != batches


def test_scores_that_are_made_of_nothing_observed():
    """The last of them are selected: scores of one's own, of what was seen at all."""
    own = rank("own", lambda state: torch.arange(N).float(), reads=(), num_examples=N)
    teacher = short(signal="own", rank=own)
    walk(teacher, stop=14)
    assert teacher.state["mask"].nonzero().flatten().tolist() == list(range(N - 60, N))


@pytest.mark.parametrize(
    "loading",
    [
        {"num_workers": 2},
        {"num_workers": 2, "persistent_workers": True, "prefetch_factor": 4},
    ],
    ids=["workers", "kept"],
)
def test_reading_ahead_changes_nothing(loading):
    """A sampler that moved on as it is read would select before the losses are there."""
    options = {"ratio": constant(0.3), "budget": 3 * N, "seed": 4}
    batches, masks, _ = taught(Teacher(N, **options))
    found, found_masks, _ = taught(Teacher(N, **options), **loading)
    assert found == batches
    assert found_masks == masks


def short(**options) -> Teacher:
    return Teacher(N, **{"ratio": constant(0.3), "budget": 4 * N, "seed": 4} | options)


def losses_of(index: torch.Tensor, step: int) -> torch.Tensor:
    """Of an example at a step: as if training had moved them, each another way."""
    return (index.double() * 0.7 + step * 0.3).sin().float() + 1.5


def walk(teacher: Teacher, *, stop: int | None = None, reader=DataLoader, loader=None, **loading):
    """Batches of a loop that observes made up losses; up to so many."""
    if loader is None:
        data = torch.arange(N) * 10
        loader = reader(teacher.with_index(data), batch_sampler=teacher.batches(16), **loading)
    found = []
    for index, item in itertools.islice(teacher.loop(loader), stop):
        assert torch.equal(item, index * 10)
        step = int(teacher._state["clock", "step"])
        teacher.observe(index, losses_of(index, step))
        found.append(index.tolist())
    return found


@pytest.mark.parametrize("stop", [1, 12, 13, 15, 30])
@pytest.mark.parametrize("signal", ["loss", "relative_loss"])
def test_it_goes_on_where_it_was_saved(tmp_path, stop, signal):
    """At the end of a pass (the first has 13 batches), within the first and within later ones."""
    whole = walk(short(signal=signal))
    first = short(signal=signal)
    found = walk(first, stop=stop)
    torch.save(first.state_dict(), tmp_path / "teacher.pt")
    second = short(signal=signal)
    second.load_state_dict(torch.load(tmp_path / "teacher.pt", weights_only=True))
    assert len(found) == stop < len(whole)
    assert found + walk(second) == whole
    assert second.finished


def test_it_goes_on_in_batches_of_another_size():
    """The same examples in the same order, from the first pass's 33rd on, however they are cut."""
    teacher = short()
    taken = list(itertools.chain.from_iterable(teacher.begin(16).batches()))
    walk(teacher, stop=2)
    other = short()
    other.load_state_dict(teacher.state_dict())
    left = list(other.begin(9).batches())
    assert [len(batch) for batch in left] == [9] * 19  # 203 - 32 = 171
    assert list(itertools.chain.from_iterable(left)) == taken[32:]


@pytest.mark.parametrize("loading", [{}, {"num_workers": 2, "persistent_workers": True}])
def test_what_was_read_and_not_observed_is_given_again(loading):
    """A loop that is left, after a batch that nobody observed; the same loader begins anew."""
    whole, teacher = walk(short()), short()
    data = torch.arange(N) * 10
    loader = DataLoader(teacher.with_index(data), batch_sampler=teacher.batches(16), **loading)
    found = walk(teacher, stop=16, loader=loader)
    for index, _ in teacher.loop(loader):
        assert index.tolist() == whole[16]
        break
    assert found + walk(teacher, loader=loader) == whole


@pytest.mark.filterwarnings("ignore:'set_vital' is deprecated")  # torchdata 0.11 calls it
def test_a_loader_that_keeps_a_state():
    """Nothing of a pass is passed over twice: by the loader's state and by the teacher's."""
    from torchdata.stateful_dataloader import StatefulDataLoader

    whole = walk(short())
    for workers in (0, 2):
        assert walk(short(), reader=StatefulDataLoader, num_workers=workers) == whole
        teachers, loaders = [short(), short()], []
        for teacher in teachers:
            data = torch.arange(N) * 10
            loaders.append(
                StatefulDataLoader(
                    teacher.with_index(data),
                    batch_sampler=teacher.batches(16),
                    num_workers=workers,
                )
            )
        found = walk(teachers[0], stop=17, loader=loaders[0])
        teachers[1].load_state_dict(teachers[0].state_dict())
        loaders[1].load_state_dict(loaders[0].state_dict())
        assert found + walk(teachers[1], loader=loaders[1]) == whole


@pytest.mark.parametrize("budget", [4 * N, 4 * N + 1, 3.0 * N + 100])
def test_the_budget_is_spent_exactly(budget):
    teacher = short(budget=budget)
    found = walk(teacher)
    assert sum(map(len, found)) == budget == int(teacher.state["clock", "seen"])
    assert teacher.finished
    assert teacher.progress == 1
    assert walk(teacher) == []
    assert teacher.plan.budget == budget
    state = teacher.state
    assert int(state["ledger", "backwarded"]) == budget
    assert int(state["clock", "step"]) == len(found)


def test_how_many_batches_are_left():
    teacher = short()
    sampler = teacher.batches(16)
    loader = DataLoader(teacher.with_index(range(N)), batch_sampler=sampler)
    loop, seen = teacher.loop(loader), 0
    planned = len(loop)
    assert len(loader) == len(sampler) == 13  # 203 = 12 * 16 + 11
    for index, _ in loop:
        assert len(loop) == planned - seen
        teacher.observe(index, torch.ones(len(index)))
        seen += 1
        if seen == 13:  # the next pass is of 60: 16 + 16 + 16 + 12
            assert len(sampler) == 4
            assert teacher.passes == 0  # asking has begun nothing
    assert seen == planned
    assert len(loop) == len(sampler) == 0
    assert (loop.batch_size, loop.dataset.dataset, loop.num_workers) == (16, range(N), 0)
    assert loop.batch_sampler is sampler


def test_one_example_is_never_a_batch_of_its_own():
    """33 in batches of 16: 16 and 17, as in the pipeline."""
    teacher = Teacher(33, plan=full_plan(33, 1))
    loader = DataLoader(teacher.with_index(range(33)), batch_sampler=teacher.batches(16))
    sizes = []
    for index, _ in teacher.loop(loader):
        teacher.observe(index, torch.ones(len(index)))
        sizes.append(len(index))
    assert sizes == [16, 17]


def test_the_weighted_mean_by_hand():
    """Losses 0 to 9, mean 4.5: 5 to 9 stay; of 0 to 4, two (0.5 * 5 = 2.5) with weight 2."""
    teacher = Teacher(10, rule=infobatch(0.5), ratio=constant(0.5), budget=40, last=0.0)
    present = teacher.begin(5)
    for own in present.batches():
        losses = torch.tensor(own, dtype=torch.float32)
        found = float(teacher.observe(own, losses))
        assert found == pytest.approx(sum(own) / 5)  # all weigh 1 as yet
    (own,) = teacher.begin(8).batches()
    small = [i for i in own if i < 5]
    assert len(small) == 2
    assert sorted(own)[2:] == [5, 6, 7, 8, 9]
    assert teacher.weights(own).tolist() == [2.0 if i < 5 else 1.0 for i in own]
    losses = torch.tensor(own, dtype=torch.float64, requires_grad=True)
    mean = teacher.observe(own, losses)
    assert float(mean.detach()) == (2 * sum(small) + 35) / (2 * 2 + 5)
    mean.backward()
    assert losses.grad.tolist() == [(2 if i < 5 else 1) / 9 for i in own]


def test_losses_may_come_in_parts_and_of_several_batches_at_once():
    """What is recorded and the clock are as if each batch were told alone."""
    one, other = short(), short()
    batches = [one.begin(16).batches(), other.begin(16).batches()]
    first, second = (torch.tensor(b) for b in itertools.islice(batches[0], 2))
    for index in (first, second):
        one.observe(index, index / 100)
    other.observe(first[::2], first[::2] / 100)
    assert int(other.state["clock", "step"]) == 0
    both = torch.cat([second, first[1::2]])
    other.observe(both, both / 100)
    assert int(other.state["clock", "step"]) == 2
    assert differences(one.state["clock"], other.state["clock"]) == []
    assert differences(one.state["scores"], other.state["scores"]) == []
    torch.testing.assert_close(one.state["metrics"], other.state["metrics"])


def test_a_batch_that_came_before_another_is_waited_for():
    """Told out of order: the clock stands where all before it was told."""
    teacher = short()
    first, second = itertools.islice(teacher.begin(16).batches(), 2)
    teacher.observe(second, torch.ones(16))
    assert int(teacher.state["clock", "seen"]) == 0
    teacher.observe(first, torch.ones(16))
    assert int(teacher.state["clock", "seen"]) == 32


def test_a_state_is_loaded_into_a_loop_that_has_begun():
    """With kept workers that have read ahead; then in smaller batches, with other workers.

    The second pass, of 60, was left after 48: what comes is the 12 that are left of it.
    """
    teacher, data = short(), torch.arange(N) * 10
    saver = short()
    taken = walk(saver, stop=16)
    saved = saver.state_dict()
    whole = [*itertools.chain.from_iterable(walk(short()))]
    loader = DataLoader(
        teacher.with_index(data), batch_sampler=teacher.batches(16), num_workers=2,
        persistent_workers=True, prefetch_factor=4,
    )  # fmt: skip
    walk(teacher, stop=3, loader=loader)
    teacher.load_state_dict(saved)
    left = walk(teacher, stop=1, loader=loader)
    assert left == walk(loaded(saved))[:1]
    teacher.load_state_dict(saved)
    other = DataLoader(teacher.with_index(data), batch_sampler=teacher.batches(5), num_workers=1)
    found = [*itertools.chain.from_iterable(taken)]
    found += itertools.chain.from_iterable(walk(teacher, stop=3, loader=other))
    assert found[:263] == whole[:263]  # 203 + 60: later passes are chosen by other losses
    assert sum(map(len, walk(teacher, loader=loader))) + 263 == 4 * N


def loaded(saved) -> Teacher:
    teacher = short()
    teacher.load_state_dict(saved)
    return teacher
