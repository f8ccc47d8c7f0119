"""What a number of processes do together, to be compared with what one does alone.

`together(count, name)` runs one of the scenarios below, or of `tests.pipeline.failing`, in so many
processes (gloo, on the CPU) and gives back what each has found, in the order of their ranks.
"""

from __future__ import annotations

import datetime
import os
import signal
import tempfile
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from tensordict import TensorDict
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from attent.pipeline import (
    AgreedError,
    Observer,
    Step,
    TensorSource,
    adamw,
    attent_complex,
    attent_simple,
    evaluate,
    fit,
    fixed_interval,
    full,
    initial_state,
    run,
    train,
    warmup_cosine,
)
from attent.pipeline.keys import branch, leaves
from attent.pipeline.processes import processes
from tests.pipeline import failing
from tests.pipeline.tallied import Summed, Tallied
from tests.tiny import TinyTask, tiny_source


def together(count: int, *names: str) -> list[dict[str, Any]]:
    """What each process has found in each scenario."""
    if count == 1:
        return [_found(names)]
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(_one, (count, folder, names), count)
        return [torch.load(Path(folder, f"{r}.pt"), weights_only=False) for r in range(count)]


def _found(names: tuple[str, ...]) -> dict[str, Any]:
    scenarios = globals() | vars(failing)
    return {name: scenarios[name]() for name in names}


def _one(rank: int, count: int, folder: str, names: tuple[str, ...]) -> None:
    torch.set_num_threads(1)
    store = f"file://{folder}/store"
    limit = datetime.timedelta(seconds=60)
    dist.init_process_group("gloo", store, timeout=limit, rank=rank, world_size=count)
    torch.save(_found(names), Path(folder, f"{rank}.pt"))
    dist.barrier()
    dist.destroy_process_group()


class Recording(TensorSource):
    """Examples that note which were fetched to be trained on, and under which keys."""

    def __init__(self, source: TensorSource) -> None:
        super().__init__(source.fields)
        self.fetched: list[list[tuple[int, int]]] = []

    def fetch_augmented(self, index: torch.Tensor, keys: torch.Tensor) -> TensorDict:
        self.fetched.append(list(zip(index.tolist(), keys.tolist(), strict=True)))
        return self.fetch(index)


class Masks(Observer):
    """Every selection that was in force, and whether anybody looked."""

    def __init__(self) -> None:
        self.masks: list[list[bool]] = []

    def tick(self, state: TensorDict) -> None:
        mask = state["mask"].tolist()
        if not self.masks or self.masks[-1] != mask:
            self.masks.append(mask)


class Deep(nn.Module):
    """Two layers, so that gradients are sums of more than a product."""

    def __init__(self) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(5)
        self.one, self.two = nn.Linear(3, 8), nn.Linear(8, 1)
        with torch.no_grad():
            for p in self.parameters():
                p.copy_(torch.randn(p.shape, generator=draw) / 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.two(self.one(x).tanh()).squeeze(-1)


def deep_task(dtype: torch.dtype) -> TinyTask:
    task = TinyTask()
    task.model = Deep().to(dtype)
    return task


def examples(count: int, dtype: torch.dtype) -> Recording:
    return Recording(
        TensorSource({name: v.to(dtype) for name, v in tiny_source(count).fields.items()})
    )


def _cycles(dtype: torch.dtype) -> dict[str, Any]:
    """AtteNTComplex over 37 examples in batches of 8: tails of 5, and 180 steps."""
    task, data = deep_task(dtype), examples(37, dtype)
    stage = train(
        task,
        data,
        optimizer=adamw(warmup_cosine(0.02, warmup=0.1)),
        step=Step(batch_size=8, clip=1.0),
        steps=7,
    )
    tick = attent_complex(
        task,
        data,
        train=stage,
        epochs=40,
        interval=fixed_interval(5),
        cycles=6,
        score_batch_size=5,
        score_per_tick=12,
        evaluate=evaluate(task, examples(11, dtype), batch_size=3),
    )
    start = initial_state(task, data, seed=1)
    masks = Masks()
    state = fit(tick, start, observers=[masks])
    return {"masks": masks.masks, "fetched": data.fetched, "state": state}


def cycles_in_float64() -> dict[str, Any]:
    return _cycles(torch.float64)


def cycles_in_float32() -> dict[str, Any]:
    return _cycles(torch.float32)


def _observing(**step: Any) -> TensorDict:
    task, data = deep_task(torch.float64), examples(21, torch.float64)
    stage = train(
        task,
        data,
        optimizer=adamw(0.02),
        step=Step(**{"batch_size": 4} | step),
        steps=3,
        observe="grad_norm",
        ema=0.9,
    )
    tick = attent_simple(data, train=stage, epochs=4, ratio=0.5, signal="grad_norm", reselect=True)
    return fit(tick, initial_state(task, data, seed=2))


def observing() -> TensorDict:
    return _observing()


def observing_in_parts() -> TensorDict:
    return _observing(accumulate=3)


def batches_of_two() -> TensorDict:
    """Fewer examples in a batch than there may be processes, and a last one of three."""
    return _observing(batch_size=2)


class Normed(nn.Module):
    """Batch statistics, which are of a part of the batch in each process: two of each at least."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.linear = nn.BatchNorm1d(3), nn.Linear(3, 1)
        nn.init.ones_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(self.norm(x)).squeeze(-1)


def statistics_of_a_batch() -> TensorDict:
    task, data = TinyTask(), tiny_source(24)
    task.model = Normed()
    stage = train(task, data, optimizer=adamw(0.02), step=Step(batch_size=8), steps=2)
    return fit(full(data, train=stage, epochs=2), initial_state(task, data, seed=3))


def dropout() -> TensorDict:
    task, data = TinyTask(dropout=0.5), tiny_source(20)
    stage = train(task, data, optimizer=adamw(0.02), step=Step(batch_size=8), steps=2)
    return fit(full(data, train=stage, epochs=2), initial_state(task, data, seed=3))


def weights_of_ones_own() -> TensorDict:
    """As each process draws them that seeds nothing."""
    task = deep_task(torch.float64)
    with torch.no_grad():
        for p in task.model.parameters():
            p.add_(processes().rank)
    return _two_passes(task)


def _two_passes(task: TinyTask, **options: Any) -> TensorDict:
    data, step = examples(21, torch.float64), Step(batch_size=4)
    stage = train(task, data, optimizer=adamw(0.02), step=step, steps=4, **options)
    return fit(full(data, train=stage, epochs=2), initial_state(task, data, seed=2))


class Elsewhere(DistributedDataParallel):
    """A wrapper that puts the weights into memory of its own, as accelerate's may."""

    def __init__(self, model: nn.Module) -> None:
        for p in model.parameters():
            p.data = p.data.clone()
        super().__init__(model)


def a_wrapper_of_ones_own() -> TensorDict:
    return _two_passes(deep_task(torch.float64), wrap=Elsewhere)


class Around(nn.Module):
    """As compilers wrap: a module of their own around the one that averages."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.inner = DistributedDataParallel(model)

    def forward(self, *args: Any) -> Any:
        return self.inner(*args)


class Averaging(nn.Module):
    """Not of torch: averages gradients as they come."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.inner, world = model, processes()
        for p in model.parameters():
            if p.requires_grad:
                p.register_post_accumulate_grad_hook(lambda p: world.average_gradients([p]))

    def forward(self, *args: Any) -> Any:
        return self.inner(*args)


def a_wrapper_around_torchs() -> TensorDict:
    return _two_passes(deep_task(torch.float64), wrap=Around)


def a_wrapper_that_is_not_torchs() -> TensorDict:
    return _two_passes(deep_task(torch.float64), wrap=Averaging)


def metrics_of_ones_own() -> dict[str, float]:
    """Dealt out; not dealt out, for one is not of torchmetrics; and for there is one batch only."""
    found = {}
    for task, batch_size in ((Summed(), 2), (Tallied(), 2), (Summed(), 11)):
        stage = evaluate(task, tiny_source(11), batch_size=batch_size)
        state = run(stage, stage.init(initial_state(task, tiny_source(11), seed=0)))
        for (name,), value in leaves(branch(state, "metrics")):
            found[f"{type(task).__name__} {batch_size} {name}"] = float(value)
    return found


def interrupted() -> dict[str, Any]:
    """The last process is asked to stop, in its second tick."""
    task, data = TinyTask(), examples(20, torch.float32)

    class Interrupting(TinyTask):
        def view(self, batch, keys, *, training):
            if len(data.fetched) == 4 and training and processes().rank == processes().count - 1:
                os.kill(os.getpid(), signal.SIGTERM)
            return super().view(batch, keys, training=training)

    task = Interrupting()
    stage = train(task, data, optimizer=adamw(0.02), step=Step(batch_size=8), steps=3)
    state = fit(full(data, train=stage, epochs=20), initial_state(task, data, seed=3))
    return {"step": int(state["clock", "step"])}


def what_main_makes() -> dict[str, Any]:
    world = processes()
    made: list[int] = []
    found = world.on_main(lambda: made.append(1) or {"a": (1, "b")})

    def refuse() -> None:
        raise ValueError("there is no such folder")

    try:
        world.on_main(refuse)
        error = ""
    except ValueError as wrong:
        error = f"{type(wrong).__name__}: {wrong}"

    def fail() -> None:
        raise OSError("the disk is full")

    try:
        world.on_main(fail)
        disk = ""
    except OSError as wrong:  # a process that is alone
        disk = str(wrong)
    except ValueError as wrong:
        disk = f"{type(wrong).__name__}: {wrong}"
    order = world.main_first(lambda: world.rank)
    tensors = [torch.arange(3) + world.rank, torch.rand(2) + world.rank]
    world.broadcast(tensors)
    uneven = torch.arange(world.rank)
    gathered = world.gather(2**40 + uneven, uneven.float() / 3)
    return {
        "made": len(made), "found": found, "error": error, "disk": disk, "rank": order,
        "sent": tensors, "gathered": gathered, "agreed": issubclass(AgreedError, ValueError),
    }  # fmt: skip
