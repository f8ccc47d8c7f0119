"""Lightning's DDP in two processes: they train on what one process does, and go on where saved."""

from __future__ import annotations

import datetime
import logging
import os
import tempfile
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.multiprocessing.spawn import spawn
from torch.utils.data import DataLoader, TensorDataset

from attent.loops.lightning import TeacherCallback
from attent.pipeline import Teacher, constant, infobatch
from attent.pipeline.processes import Processes, processes
from tests.tiny import tiny_source

N = 29  # in batches of 4: a pass ends with one of 5
STOP = 10  # batches; 7 of the first pass and 3 of the next

pytestmark = pytest.mark.filterwarnings(
    # Lightning 2.6 asks torch 2.15 for leaves in a way that it would rather not have.
    r"ignore:`isinstance\(treespec, LeafSpec\)` is deprecated",
    # Its advice, by the machine that it finds and by what a run that goes on was given.
    "ignore:The 'val_dataloader' does not have many workers",
    "ignore:Be aware that when using `ckpt_path`, callbacks used",
)


class Regression(LightningModule):
    """In double precision: what is selected must not hang on the order of sums."""

    def __init__(self, teacher: Teacher) -> None:
        super().__init__()
        self.teacher = teacher
        draw = torch.Generator().manual_seed(1)
        self.net = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1)).double()
        with torch.no_grad():
            for p in self.net.parameters():
                p.copy_(torch.randn(p.shape, generator=draw, dtype=torch.float64) / 2)
        self.batches: list[list[int]] = []
        self.masks: list[list[float]] = []
        self.validated = 0

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        index, (x, y) = batch
        self.batches.append(index.tolist())
        state = self.teacher.state
        self.masks.append((state["mask"] * state["weight"]).tolist())
        return self.teacher.observe(index, (self.net(x).squeeze(-1) - y).square())

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.validated += len(batch[0])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.05)


class Stop(Callback):
    """After so many batches, before which a checkpoint was made."""

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        trainer.should_stop = trainer.should_stop or len(pl_module.batches) == STOP


def run(folder: str, *callbacks: Callback, **fit: Any) -> dict[str, Any]:
    rows = tiny_source(N).fields
    data = TensorDataset(rows["x"].double(), rows["y"].double())
    teacher = Teacher(N, rule=infobatch(), ratio=constant(0.4), budget=4 * N + 2, seed=3)
    model, callback = Regression(teacher), TeacherCallback(teacher)
    count = processes().count
    trainer = Trainer(
        max_epochs=-1, accelerator="cpu", devices=count, strategy="ddp" if count > 1 else "auto",
        logger=False,
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=folder,
        enable_checkpointing=any(isinstance(one, ModelCheckpoint) for one in callbacks),
        callbacks=[callback, *callbacks], num_sanity_val_steps=0,
    )  # fmt: skip
    loader = callback.loader(data, batch_size=4)
    trainer.fit(model, loader, DataLoader(data, batch_size=N), **fit)
    return {
        "batches": model.batches, "masks": model.masks, "validated": model.validated,
        "epochs": trainer.current_epoch, "seen": int(teacher.state["clock", "seen"]),
        "weights": [p.detach().clone() for p in model.net.parameters()],
        "saved": teacher.state_dict()["state"],
    }  # fmt: skip


def all_runs(folder: str) -> dict[str, Any]:
    """From beginning to end; up to a checkpoint in the middle of a pass; on from there."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    keep = ModelCheckpoint(folder, "kept", every_n_train_steps=STOP)
    whole, first = run(folder), run(folder, keep, Stop())
    return {"whole": whole, "first": first, "second": run(folder, ckpt_path=f"{folder}/kept.ckpt")}


def _one(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    os.environ |= {"LOCAL_RANK": str(rank), "NODE_RANK": "0"}
    store, limit = f"file://{folder}/store", datetime.timedelta(seconds=60)
    dist.init_process_group("gloo", store, timeout=limit, rank=rank, world_size=2)
    torch.save(all_runs(folder), Path(folder, f"{rank}.pt"))
    dist.barrier()
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def runs():
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as other:
        spawn(_one, (folder,), 2)
        several = [torch.load(Path(folder, f"{r}.pt"), weights_only=False) for r in range(2)]
        return all_runs(other), several


def test_they_train_on_what_one_process_does(runs):
    alone, several = runs
    one = alone["whole"]
    assert one["seen"] == 4 * N + 2
    assert len({tuple(mask) for mask in one["masks"]}) > 3
    for found in several:
        assert found["whole"]["masks"] == one["masks"]
        for mine, theirs in zip(one["weights"], found["whole"]["weights"], strict=True):
            torch.testing.assert_close(theirs, mine, rtol=1e-12, atol=1e-12)
    parts = zip(*(found["whole"]["batches"] for found in several), strict=True)
    assert [list(chain.from_iterable(part)) for part in parts] == one["batches"]


def test_validation_is_shared_out_as_lightning_does(runs):
    """Nothing has to be told to leave loaders alone: 29 are 15 and 15, of which one is repeated."""
    alone, several = runs
    assert alone["whole"]["validated"] == N * alone["whole"]["epochs"]
    for found in several:
        assert found["whole"]["validated"] == 15 * alone["whole"]["epochs"]


def test_they_go_on_where_they_were_saved(runs):
    alone, several = runs
    for found in (alone, *several):
        assert found["first"]["batches"] == found["whole"]["batches"][:STOP]
        assert found["second"]["batches"] == found["whole"]["batches"][STOP:]
        for mine, theirs in zip(found["whole"]["weights"], found["second"]["weights"], strict=True):
            assert torch.equal(mine, theirs)
        for name, value in found["whole"]["saved"].items():
            assert torch.equal(found["second"]["saved"][name], value), name


def test_a_strategy_that_does_not_know_of_all_processes(tmp_path, monkeypatch):
    monkeypatch.setattr("attent.loops.lightning.processes", lambda: Processes(0, 2))
    with pytest.raises(ValueError, match=r"parts batches in 1, but torch.distributed knows 2"):
        run(str(tmp_path))
