"""A real Lightning Trainer beside a loop by hand: same losses, same examples, same weights."""

from __future__ import annotations

import importlib
import itertools
import logging
import multiprocessing
import sys
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.tuner import Tuner
from lightning.pytorch.utilities import CombinedLoader
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
    # Those that go on make no checkpoints: ModelCheckpoint is no part of what is asked here.
    pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`, callbacks used"),
]


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
        self.numbers: list[int] = []

    def losses(self, batch: Any) -> Tensor:
        x, y = batch
        return (self.net(x).squeeze(-1) - y).square()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        index, rows = batch
        self.batches.append(index.tolist())
        self.numbers.append(batch_idx)
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


class KilledAfter(Regression):
    """Dies in a step, when batches were read ahead and its loss was told."""

    def __init__(self, teacher: Teacher, steps: int) -> None:
        super().__init__(teacher)
        self.steps = steps

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        if len(self.batches) > self.steps:
            raise RuntimeError("killed")
        return loss


@pytest.mark.parametrize(
    ("stop", "every"),
    [(1, 1), (7, 1), (8, 1), (9, 1), (11, 1), (20, 1), (37, 1), (3, 3), (8, 3), (11, 3), (17, 3)],
)
def test_it_goes_on_where_it_was_killed(tmp_path, stop, every):
    """Within passes, and at the ends of the first (8 batches) and of others (3).

    Where a pass ends, Lightning steps, though two of three batches were accumulated.
    """
    whole = fitted(tmp_path, teach(), accumulate_grad_batches=every)
    teacher = teach()
    model, callback = KilledAfter(teacher, stop), TeacherCallback(teacher)
    keep = ModelCheckpoint(tmp_path, "kept", every_n_train_steps=1)
    loading = {"num_workers": 1} if stop == 9 else {}
    loader = callback.loader(data(), batch_size=BATCH, **loading)
    with pytest.raises(RuntimeError, match="killed"):
        trainer(tmp_path, callback, keep, accumulate_grad_batches=every).fit(model, loader)
    again = teach()
    model, callback = Regression(again), TeacherCallback(again)
    loader = callback.loader(data(), batch_size=BATCH, **loading)
    runner = trainer(tmp_path, callback, accumulate_grad_batches=every)
    runner.fit(model, loader, ckpt_path=tmp_path / "kept.ckpt")
    assert model.batches == whole.batches[stop:]
    assert model.numbers == whole.numbers[stop:]
    same_weights(model.net, whole.net)
    assert runner.global_step == whole.trainer.global_step
    assert runner.current_epoch == whole.trainer.current_epoch
    assert runner.num_training_batches == float("inf")


@pytest.mark.parametrize("options", [{}, {"accumulate_grad_batches": 3}], ids=["", "accumulated"])
def test_it_goes_on_after_a_pass(tmp_path, options):
    """By the checkpoints that Lightning makes at an epoch's end; that of the last ends at once."""
    teacher = teach()
    whole, callback = Regression(teacher), TeacherCallback(teacher)
    keep = ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1)
    runner = trainer(tmp_path, callback, keep, **options)
    runner.fit(whole, callback.loader(data(), batch_size=BATCH))
    ends = {0: 8, 1: 11, runner.current_epoch - 1: len(whole.batches)}
    for epoch, end in ends.items():
        teacher = teach()
        model, callback = Regression(teacher), TeacherCallback(teacher)
        loader = callback.loader(data(), batch_size=BATCH)
        runner = trainer(tmp_path, callback, **options)
        runner.fit(model, loader, ckpt_path=tmp_path / f"epoch={epoch}.ckpt")
        assert model.batches == whole.batches[end:]
        same_weights(model.net, whole.net)
        assert teacher.finished


def test_evaluating_a_checkpoint_leaves_the_teacher_alone(tmp_path):
    teacher = teach()
    model, callback = Validated(teacher), TeacherCallback(teacher)
    rows = DataLoader(data(), batch_size=N)
    loader = callback.loader(data(), batch_size=BATCH)
    early = ModelCheckpoint(tmp_path, "early", every_n_epochs=1)
    runner = trainer(tmp_path, callback, early, max_steps=9, num_sanity_val_steps=0)
    runner.fit(model, loader, rows)
    assert not teacher.finished  # one's own max_steps is one's own affair
    runner = trainer(tmp_path, callback, num_sanity_val_steps=0)
    runner.fit(model, loader, rows)
    assert teacher.finished
    runner.validate(model, rows, ckpt_path=tmp_path / "early.ckpt", verbose=False)
    assert teacher.finished


def test_a_loader_that_reads_ahead_in_seeded_workers(tmp_path, monkeypatch):
    """Kept from pass to pass, seeded as asked, and gone at the end; it collates its own way."""
    for name in ("PL_SEED_WORKERS", "PL_GLOBAL_SEED"):
        monkeypatch.setenv(name, "1")
    batches, model = by_hand(teach())
    loading = {"num_workers": 2, "persistent_workers": True, "collate_fn": columns}
    teacher = teach()
    found, callback = Regression(teacher), TeacherCallback(teacher)
    loader = callback.loader(data(), batch_size=BATCH, **loading)
    trainer(tmp_path, callback).fit(found, loader)
    assert found.batches == batches
    same_weights(found.net, model)
    assert loader.worker_init_fn.func.__name__ == "pl_worker_init_function"
    assert not multiprocessing.active_children()


def columns(items: list[Any]) -> list[Tensor]:
    return [torch.stack(column) for column in zip(*items, strict=True)]


class Logged(Regression):
    """From a data module, made anew for each epoch; what is logged at each step is kept."""

    def __init__(self, teacher: Teacher) -> None:
        super().__init__(teacher)
        self.logged: list[dict[str, float]] = []

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.logged.append({k: float(v) for k, v in self.trainer.logged_metrics.items()})


class Module(LightningDataModule):
    def __init__(self, callback: TeacherCallback) -> None:
        super().__init__()
        self.callback, self.asked = callback, 0

    def train_dataloader(self) -> Any:
        self.asked += 1
        return self.callback.loader(data(), batch_size=BATCH)


class ByHand(Regression):
    """It makes its steps itself."""

    def __init__(self, teacher: Teacher) -> None:
        super().__init__(teacher)
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:
        optimizer: Any = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(super().training_step(batch, batch_idx))
        optimizer.step()


def test_steps_made_by_the_module(tmp_path):
    batches, model = by_hand(teach())
    teacher = teach()
    found, callback = ByHand(teacher), TeacherCallback(teacher)
    trainer(tmp_path, callback).fit(found, callback.loader(data(), batch_size=BATCH))
    assert found.batches == batches
    same_weights(found.net, model)


class Rated(Regression):
    """With a learning rate that may be looked for."""

    lr = 0.1

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=self.lr, momentum=0.9)


def test_looking_for_a_learning_rate_spends_nothing(tmp_path):
    """Lightning trains for that, puts back what was saved before, and then trains as ever."""
    batches, model = by_hand(teach())
    teacher = teach()
    found, callback = Rated(teacher), TeacherCallback(teacher)
    loader = callback.loader(data(), batch_size=BATCH)
    runner = trainer(tmp_path, callback)
    Tuner(runner).lr_find(found, loader, num_training=12, update_attr=False)
    assert len(found.batches) == 12
    assert teacher.progress == 0
    found.batches.clear()
    runner.fit(found, loader)
    assert found.batches == batches
    same_weights(found.net, model)


@pytest.mark.parametrize("every", [0, 1])
def test_a_data_module_and_what_is_logged(tmp_path, every):
    batches, _ = by_hand(teach())
    teacher = teach()
    model, callback = Logged(teacher), TeacherCallback(teacher)
    module = Module(callback)
    options = {"reload_dataloaders_every_n_epochs": every, "log_every_n_steps": 1}
    runner = trainer(tmp_path, callback, **options)
    runner.fit(model, datamodule=module)
    assert model.batches == batches
    assert module.asked == (runner.current_epoch if every else 1)
    seen = list(itertools.accumulate(map(len, batches)))
    found = [one["teacher/progress"] for one in model.logged]
    assert found == pytest.approx([count / (4 * N + 3) for count in seen])
    assert [one["teacher/ratio"] for one in model.logged[7:9]] == pytest.approx([1.0, 0.3])


class Silent(Regression):
    """It forgets to tell, or tells a part alone."""

    def __init__(self, teacher: Teacher, told: int) -> None:
        super().__init__(teacher)
        self.told = told

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        (index, rows), told = batch, self.told
        losses = self.losses(rows)
        return self.teacher.observe(index[:told], losses[:told]) if told else losses.mean()


@pytest.mark.parametrize("told", [0, 7])
def test_a_step_that_does_not_tell_its_losses(tmp_path, told):
    teacher = teach()
    callback = TeacherCallback(teacher)
    loader = callback.loader(data(), batch_size=BATCH)
    with pytest.raises(ValueError, match=r"has not told the losses of batch 0, .* it returns"):
        trainer(tmp_path, callback).fit(Silent(teacher, told), loader)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_epochs": 5}, r"give Trainer\(max_epochs=-1\), not 5: an epoch is a pass"),
        ({"min_steps": 5}, r"give no Trainer\(min_steps=5\)"),
        ({"min_epochs": 5}, r"give no Trainer\(min_epochs=5\)"),
        ({"limit_train_batches": 1}, "for a shorter run give the teacher a smaller budget"),
        ({"overfit_batches": 0.5}, "neither .* nor overfit_batches"),
        ({"val_check_interval": 0.25}, "val_check_interval=0.25 is a share of an epoch"),
    ],
)
def test_trainers_that_do_not_go_with_it(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        fitted(tmp_path, teach(), **options)


def test_a_dry_run_of_a_batch(tmp_path):
    assert len(fitted(tmp_path, teach(), fast_dev_run=True).batches) == 1


def test_loaders_that_are_not_of_this_teacher(tmp_path):
    teacher, other = teach(), teach()
    plain = DataLoader(teacher.with_index(data()), batch_sampler=teacher.batches(BATCH))
    theirs = TeacherCallback(other).loader(data(), batch_size=BATCH)
    mine = TeacherCallback(teacher).loader(data(), batch_size=BATCH)
    together = CombinedLoader({"mine": mine, "other": DataLoader(data())}, "min_size")
    for loader, name in (
        (plain, "DataLoader"),
        (theirs, "Passes"),
        ([mine, DataLoader(data())], "list"),
        (together, "dict"),
    ):
        runner = trainer(tmp_path, TeacherCallback(teacher), log_every_n_steps=1)
        with pytest.raises(ValueError, match=f"given a {name} .* callback.loader"):
            runner.fit(Regression(teacher), loader)


@pytest.mark.parametrize("name", ["shuffle", "sampler", "batch_sampler", "drop_last"])
def test_options_of_a_loader_that_are_not_to_be_given(name):
    with pytest.raises(ValueError, match=f"loader is given {name}: which examples come"):
        TeacherCallback(teach()).loader(data(), batch_size=BATCH, **{name: True})


def test_checkpoints_of_another_teacher_or_of_none(tmp_path):
    teacher = teach(seed=6)
    model, callback = Regression(teacher), TeacherCallback(teacher)
    keep = ModelCheckpoint(tmp_path, "other", every_n_train_steps=1)
    runner = trainer(tmp_path, callback, keep, max_steps=1)
    runner.fit(model, callback.loader(data(), batch_size=BATCH))
    keep = ModelCheckpoint(tmp_path / "without", every_n_train_steps=1)
    trainer(tmp_path, keep, max_steps=1).fit(Alone(), DataLoader(data()))
    for path, message in (
        (tmp_path / "other.ckpt", "differs in seed"),
        (keep.best_model_path, "without a TeacherCallback"),
    ):
        teacher = teach()
        callback = TeacherCallback(teacher)
        loader = callback.loader(data(), batch_size=BATCH)
        with pytest.raises(ValueError, match=message):
            trainer(tmp_path, callback).fit(Regression(teacher), loader, ckpt_path=path)


class Alone(Regression):
    """The same model, trained on everything."""

    def __init__(self) -> None:
        super().__init__(teach())

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.losses(batch).mean()


def test_without_lightning(monkeypatch):
    monkeypatch.setitem(sys.modules, "lightning.pytorch", None)
    monkeypatch.delitem(sys.modules, "attent.loops.lightning")
    with pytest.raises(ValueError, match=r'pip install "attent\[lightning\]"'):
        importlib.import_module("attent.loops.lightning")
