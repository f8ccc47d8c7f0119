"""A selective Trainer in two processes: together they train on what one trains on."""

from __future__ import annotations

import datetime
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from transformers import TrainerCallback

from tests.loops.training import SelectiveTrainer, arguments, llama, rows, teacher, trained

COUNT = 2


class Stopping(TrainerCallback):
    """Ends training after step 9, in every process."""

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop |= state.global_step == 9


def scenario(folder: Path, each: int) -> dict[str, Any]:
    """A whole run, and one that is saved after step 7, stopped after 9 and gone on with.

    Args:
        folder: of checkpoints.
        each: rows of a micro-batch; two of them make a step in every process.
    """
    options: dict[str, Any] = {
        "per_device_train_batch_size": each,
        "gradient_accumulation_steps": 2,
        "save_strategy": "steps",
        "save_steps": 7,
    }
    whole = teacher()
    trainer = trained(folder / "whole", whole, **options)
    found = {"whole": whole.steps, "steps": trainer.state.global_step}
    found["weights"] = [p.detach().clone() for p in trainer.model.parameters()]
    found["scores"] = whole.state["scores", "loss"]
    first, args = teacher(), arguments(folder / "parts", **options)
    SelectiveTrainer(
        llama(), args, train_dataset=rows(), teacher=first, callbacks=[Stopping()]
    ).train()
    second = teacher()
    resumed = SelectiveTrainer(llama(), args, train_dataset=rows(), teacher=second)
    # The step after which it stopped is saved too, as the trainer's end of training.
    resumed.train(resume_from_checkpoint=str(folder / "parts" / "checkpoint-7"))
    found |= {"first": first.steps, "second": second.steps}
    found["resumed"] = [p.detach().clone() for p in resumed.model.parameters()]
    return found


def _one(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(COUNT)}
    os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": "0"}  # not used: there is a store
    store, limit = f"file://{folder}/store", datetime.timedelta(seconds=60)
    dist.init_process_group("gloo", store, timeout=limit, rank=rank, world_size=COUNT)
    torch.save(scenario(Path(folder), 1), Path(folder, f"{rank}.pt"))
    dist.barrier()
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def alone():
    with tempfile.TemporaryDirectory() as folder:
        return scenario(Path(folder), 2)


@pytest.fixture(scope="module")
def several():
    """Steps of 5 are shared out as 3 and 2; of a step of 2 each has one, and still two parts."""
    with tempfile.TemporaryDirectory() as folder:
        started = mp.start_processes(_one, (folder,), COUNT, join=False, start_method="spawn")
        end = time.monotonic() + 150
        while not started.join(timeout=5):
            if time.monotonic() > end:
                for process in started.processes:
                    process.kill()
                pytest.fail("the processes wait for each other")
        return [torch.load(Path(folder, f"{rank}.pt"), weights_only=False) for rank in range(COUNT)]


@pytest.mark.slow
def test_they_train_on_what_one_trains_on(alone, several):
    expected, parts = alone["whole"], [one["whole"] for one in several]
    assert {len(step) for step in expected} == {2, 3, 4, 5}
    assert [a + b for a, b in zip(*parts, strict=True)] == expected
    assert several[0]["steps"] == several[1]["steps"] == alone["steps"] == len(expected)
    for one in several:
        torch.testing.assert_close(one["scores"], alone["scores"], rtol=1e-4, atol=1e-5)
        for mine, theirs in zip(one["weights"], alone["weights"], strict=True):
            torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-5)


@pytest.mark.slow
def test_a_stopped_run_goes_on_in_all(alone, several):
    for one in several:
        assert one["first"][:7] + one["second"] == one["whole"]
        for mine, theirs in zip(one["resumed"], one["weights"], strict=True):
            assert torch.equal(mine, theirs)
