"""A selective Trainer in two processes: together they train on what one trains on.

By DistributedDataParallel, by FSDP2 and by DeepSpeed's ZeRO 3.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from accelerate.state import AcceleratorState, DistributedType, PartialState
from transformers import TrainerCallback

from tests.loops.training import SelectiveTrainer, arguments, llama, rows, teacher, trained

COUNT = 2

FSDP = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_TRANSFORMER_CLS_TO_WRAP": "LlamaDecoderLayer",
}
ZERO = {
    "zero_optimization": {"stage": 3},
    "zero_allow_untested_optimizer": True,
    "train_batch_size": "auto",
    "train_micro_batch_size_per_gpu": "auto",
    "gradient_accumulation_steps": "auto",
}
ENGINES: dict[str, tuple[dict[str, str], dict[str, Any]]] = {
    "ddp": ({}, {}),
    "fsdp": (FSDP, {"use_cpu": False}),
    "zero": ({"ACCELERATE_USE_DEEPSPEED": "true"}, {"use_cpu": False, "deepspeed": ZERO}),
}
"""What a launcher would set, and what a user would."""


class Stopping(TrainerCallback):
    """Ends training after step 9, in every process."""

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop |= state.global_step == 9


def whole_weights(model: Any) -> list[torch.Tensor]:
    """Of which a process may hold a part, or none."""
    found = [p.detach() for p in model.parameters()]
    if hasattr(next(model.parameters()), "ds_id"):
        import deepspeed

        with deepspeed.zero.GatheredParameters(list(model.parameters())):
            return [p.clone() for p in found]
    return [p.full_tensor() if hasattr(p, "full_tensor") else p.clone() for p in found]


def made(folder: Path, taught: Any, options: dict[str, Any], **more: Any) -> Any:
    """A trainer, with arguments of its own: DeepSpeed's serve once."""
    args = arguments(folder, **options)
    return SelectiveTrainer(llama(), args, train_dataset=rows(), teacher=taught, **more)


def scenario(folder: Path, each: int, **engine: Any) -> dict[str, Any]:
    """A whole run, and one that is saved after step 7, stopped after 9 and gone on with.

    Args:
        folder: of checkpoints.
        each: rows of a micro-batch; two of them make a step in every process.
        engine: the trainer's arguments that ask for one.
    """
    options: dict[str, Any] = engine | {
        "per_device_train_batch_size": each,
        "gradient_accumulation_steps": 2,
        "save_strategy": "steps",
        "save_steps": 7,
    }
    whole = teacher()
    trainer = trained(folder / "whole", whole, **options)
    found = {"whole": whole.steps, "steps": trainer.state.global_step}
    found["engine"] = trainer.accelerator.distributed_type.value
    found["weights"] = whole_weights(trainer.model)
    found["scores"] = whole.state["scores", "loss"]
    first, second = teacher(), teacher()
    made(folder / "parts", first, options, callbacks=[Stopping()]).train()
    resumed = made(folder / "parts", second, options)
    # The step after which it stopped is saved too, as the trainer's end of training.
    resumed.train(resume_from_checkpoint=str(folder / "parts" / "checkpoint-7"))
    found |= {"first": first.steps, "second": second.steps}
    found["resumed"] = whole_weights(resumed.model)
    return found


def _as_if_on_gpus(wanted: bool) -> Any:
    """Accelerate sets up FSDP and DeepSpeed for those alone; on CPUs they work all the same."""
    if not wanted:
        return contextlib.nullcontext()
    import deepspeed

    # Its reduction in shared memory is for inference, and would be compiled here and now.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    kind = ("gloo", DistributedType.MULTI_GPU)
    return mock.patch.object(PartialState, "_prepare_backend", return_value=kind)


def _one(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(COUNT)}
    os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": "0"}  # not used: there is a store
    store, limit = f"file://{folder}/store", datetime.timedelta(seconds=60)
    dist.init_process_group("gloo", store, timeout=limit, rank=rank, world_size=COUNT)
    os.environ |= {"ACCELERATE_TORCH_DEVICE": "cpu", "DS_ACCELERATOR": "cpu"}
    found = {}
    for name, (launcher, engine) in ENGINES.items():
        AcceleratorState._reset_state(reset_partial_state=True)
        with mock.patch.dict(os.environ, launcher), _as_if_on_gpus(bool(launcher)):
            found[name] = scenario(Path(folder, name), 1, **engine)
    torch.save(found, Path(folder, f"{rank}.pt"))
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
        end = time.monotonic() + 300
        while not started.join(timeout=5):
            if time.monotonic() > end:
                for process in started.processes:
                    process.kill()
                pytest.fail("the processes wait for each other")
        return [torch.load(Path(folder, f"{rank}.pt"), weights_only=False) for rank in range(COUNT)]


@pytest.fixture(params=ENGINES)
def together(several, request):
    """What each process has found by one of the engines."""
    found = [one[request.param] for one in several]
    known = {"ddp": "MULTI_CPU", "fsdp": "FSDP", "zero": "DEEPSPEED"}
    assert [one["engine"] for one in found] == [known[request.param]] * COUNT
    return found


@pytest.mark.slow
def test_they_train_on_what_one_trains_on(alone, together):
    expected, parts = alone["whole"], [one["whole"] for one in together]
    assert {len(step) for step in expected} == {2, 3, 4, 5}
    assert [a + b for a, b in zip(*parts, strict=True)] == expected
    assert together[0]["steps"] == together[1]["steps"] == alone["steps"] == len(expected)
    for one in together:
        torch.testing.assert_close(one["scores"], alone["scores"], rtol=1e-4, atol=1e-5)
        for mine, theirs in zip(one["weights"], alone["weights"], strict=True):
            torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-5)


@pytest.mark.slow
def test_a_stopped_run_goes_on_in_all(together):
    for one in together:
        assert one["first"][:7] + one["second"] == one["whole"]
        for mine, theirs in zip(one["resumed"], one["weights"], strict=True):
            assert torch.equal(mine, theirs)
