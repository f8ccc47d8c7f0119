"""A real Lightning Trainer beside a loop by hand: same losses, same examples, same weights."""

from __future__ import annotations

import itertools
import logging
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from attent.loops.lightning import TeacherCallback
from attent.pipeline import Teacher, constant, hard, infobatch, random, soft
from tests.tiny import tiny_source

N = 61  # in batches of 8: passes with tails, and where 3 of 10 are taken, of 18 = 8 + 10
BATCH = 8

pytestmark = [
    # Lightning 2.6 asks torch 2.15 for leaves in a way that it would rather not have.
    pytest.mark.filterwarnings(r"ignore:`isinstance\(treespec, LeafSpec\)` is deprecated"),
    # Its advice, by the machine that it finds.
    pytest.mark.filterwarnings("ignore:The 'val_dataloader' does not have many workers"),
]


@pytest.fixture(autouse=True)
def quiet():
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)


def data() -> TensorDataset:
    rows = tiny_source(N).fields
    return TensorDataset(rows["x"], rows["y"])


def teach(**options: Any) -> Teacher:
    return Teacher(N, **({"ratio": constant(0.3), "budget": 4 * N + 3, "seed": 5} | options))


def net() -> nn.Module:
    draw = torch.Generator().manual_seed(1)
    model = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1))
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=draw) / 2)
    return model


class Regression(LightningModule):
    """What a user has; it notes the examples of its steps."""

    def __init__(self, teacher: Teacher) -> None:
        super().__init__()
        self.teacher, self.net = teacher, net()
        self.batches: list[list[int]] = []

    def losses(self, batch: Any) -> Tensor:
        x, y = batch
        return (self.net(x).squeeze(-1) - y).square()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        index, rows = batch
        self.batches.append(index.tolist())
        return self.teacher.observe(index, self.losses(rows))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


class Validated(Regression):
    """It notes after how many batches it was validated."""

    def __init__(self, teacher: Teacher) -> None:
        super().__init__(teacher)
        self.validated: list[int] = []

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.validated.append(len(self.batches))


def trainer(tmp_path: Any, *callbacks: Callback, **options: Any) -> Trainer:
    plain = {
        "max_epochs": -1, "accelerator": "cpu", "devices": 1, "logger": False,
        "enable_progress_bar": False, "enable_model_summary": False, "default_root_dir": tmp_path,
        "enable_checkpointing": any(isinstance(one, ModelCheckpoint) for one in callbacks),
    }  # fmt: skip
    return Trainer(callbacks=list(callbacks), **(plain | options))


def fitted(tmp_path: Any, teacher: Teacher, *, loading: Any = None, **options: Any) -> Regression:
    model, callback = Regression(teacher), TeacherCallback(teacher)
    loader = callback.loader(data(), batch_size=BATCH, **(loading or {}))
    trainer(tmp_path, callback, **options).fit(model, loader)
    return model


def by_hand(teacher: Teacher, *, every: int = 1) -> tuple[list[list[int]], nn.Module]:
    """The same loop without Lightning; it steps after ``every`` batches and at a pass's end."""
    model, rows, batches = net(), data(), []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    loader = DataLoader(teacher.with_index(rows), batch_sampler=teacher.batches(BATCH))
    while not teacher.finished:
        steps = len(list(teacher.begin(BATCH).batches()))  # type: ignore[union-attr]
        for at, (index, (x, y)) in enumerate(loader, start=1):
            loss = teacher.observe(index, (model(x).squeeze(-1) - y).square()) / every
            loss.backward()
            if at % every == 0 or at == steps:
                optimizer.step()
                optimizer.zero_grad()
            batches.append(index.tolist())
    return batches, model


def same_weights(one: nn.Module, other: nn.Module) -> None:
    for (name, mine), theirs in zip(one.named_parameters(), other.parameters(), strict=True):
        assert torch.equal(mine, theirs), name


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"rule": soft(0.5), "signal": "relative_loss"},
        {"rule": infobatch()},  # keeps as many as it will: no plan says how long its passes are
        {"rule": random(), "first": 0},
        {"rule": hard(), "signal": "loss_drop", "ratio": None},
    ],
    ids=["hard", "soft", "infobatch", "random", "drop"],
)
def test_it_trains_on_what_a_loop_by_hand_does(tmp_path, options):
    """One other choice, and every loss after it differs; it ends exactly at the budget."""
    theirs, mine = teach(**options), teach(**options)
    batches, model = by_hand(theirs)
    found = fitted(tmp_path, mine)
    assert found.batches == batches
    same_weights(found.net, model)
    assert sum(map(len, batches)) == 4 * N + 3
    assert mine.finished
    assert len({tuple(sorted(b)) for b in batches}) > 10
    saved, other = mine.state_dict()["state"], theirs.state_dict()["state"]
    for name, value in other.items():
        assert torch.equal(saved[name].nan_to_num(), value.nan_to_num()), name


def test_gradients_are_accumulated_to_the_end_of_a_pass(tmp_path):
    """Steps of 3 batches, and of what is left of a pass, though Lightning knows no length."""
    batches, model = by_hand(teach(), every=3)
    found = fitted(tmp_path, teach(), accumulate_grad_batches=3)
    assert found.batches == batches
    same_weights(found.net, model)


def test_the_end_of_a_pass_is_one_of_an_epoch(tmp_path):
    """Validated after each pass: of 61 examples, then of 0.3 * 61 = 18, and at the end of all."""
    teacher = teach()
    model, callback = Validated(teacher), TeacherCallback(teacher)
    runner = trainer(tmp_path, callback, num_sanity_val_steps=0)
    loader = callback.loader(data(), batch_size=BATCH)
    runner.fit(model, loader, DataLoader(data(), batch_size=N))
    sizes = [len(batch) for batch in model.batches]
    ends = [0, *model.validated]
    passes = [sizes[start:end] for start, end in itertools.pairwise(ends)]
    assert passes[:3] == [[8] * 7 + [5], [8, 8, 2], [8, 8, 2]]
    assert ends[-1] == len(sizes)
    assert runner.current_epoch == len(passes) == teacher.passes + 1
