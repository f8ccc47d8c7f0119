"""What a number of processes do that meet a bad example: scenarios for `tests.pipeline.several`."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from tensordict import TensorDict
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from attent.pipeline import (
    Stage,
    Step,
    TensorSource,
    Window,
    adamw,
    attent_complex,
    attent_online,
    fit,
    fixed_interval,
    full,
    initial_state,
    initialize,
    train,
)
from attent.pipeline.keys import clone
from attent.pipeline.processes import processes
from tests.tiny import TinyTask, tiny_source

SEED = 4
"""Of a first pass that comes to example 13 after some steps."""

FIRST, SECOND = 18, 1
"""Of passes that come to it in their first step, and in their second."""


class Broken(TensorSource):
    """An example that cannot be read."""

    def fetch(self, index: torch.Tensor) -> TensorDict:
        if 13 in index.tolist():
            raise OSError("the disk is gone")
        return super().fetch(index)

    def locate(self, index: int) -> str:
        return f"row {index}"


def _failing(data: TensorSource, seed: int = SEED, **step: Any) -> dict[str, Any]:
    task, how = TinyTask(), Step(batch_size=8, **step)
    stage = train(task, data, optimizer=adamw(0.02), step=how, observe=True, steps=2)
    tick = full(data, train=stage, epochs=2)
    return _met(tick, initial_state(task, data, seed=seed))


def _met(tick: Stage, state: TensorDict) -> dict[str, Any]:
    """The error that a run ends with."""
    state = initialize(tick, state)
    try:
        fit(tick, state, donate=True)
    except ValueError as error:
        return {"error": str(error), "kind": type(error).__name__, "state": clone(state)}
    raise AssertionError("nothing failed")


def an_example_cannot_be_read() -> dict[str, Any]:
    return _failing(Broken(tiny_source(40).fields))


def the_second_step_fails() -> dict[str, Any]:
    """After the first a wrapper may have something to tell the others in its next forward."""
    return _failing(Broken(tiny_source(40).fields), seed=SECOND)


def _infinite() -> TensorSource:
    fields = dict(tiny_source(40).fields)
    fields["y"] = fields["y"].clone()
    fields["y"][13] = torch.inf
    return TensorSource(fields)


def a_loss_is_not_finite() -> dict[str, Any]:
    return _failing(_infinite())


def a_loss_of_a_part_is_not_finite() -> dict[str, Any]:
    """One process stops at its first part, the others have begun the backward of theirs."""
    return _failing(_infinite(), accumulate=2)


class NanWhenScored(TinyTask):
    """A loss that is not a number in eval mode alone."""

    def losses(self, output, batch):
        losses = super().losses(output, batch)
        if not self.model.training:
            losses = torch.where(batch["index"] == 13, torch.nan, losses)
        return losses


def a_score_is_not_finite() -> dict[str, Any]:
    task, data = NanWhenScored(), tiny_source(20)
    stage = train(task, data, optimizer=adamw(0.02), step=Step(batch_size=8))
    tick = attent_complex(
        task, data, train=stage, epochs=3, cycles=1, interval=fixed_interval(1), score_batch_size=4
    )
    return _met(tick, initial_state(task, data, seed=3))


def a_stream_fails() -> dict[str, Any]:
    """In the last process alone, which cannot read its third window."""
    rows = tiny_source(60).fields

    def stream(start: int) -> Iterator[dict[str, torch.Tensor]]:
        for i in range(start, 60):
            if i == 40 and processes().rank == processes().count - 1:
                raise OSError("the disk is gone")
            yield {name: value[i] for name, value in rows.items()}

    task, window = TinyTask(), Window(stream, 16)
    stage = train(task, window, optimizer=adamw(0.02), step=Step(batch_size=4), steps=3)
    tick = attent_online(task, window, train=stage, examples=50, ratio=0.5, score_batch_size=4)
    return _met(tick, initial_state(task, window, seed=1))


class Branched(nn.Module):
    """Batch statistics, and a layer of which nothing is asked."""

    def __init__(self) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(5)
        self.norm = nn.BatchNorm1d(3, dtype=torch.float64)
        self.used, self.unused = (nn.Linear(3, 1, dtype=torch.float64) for _ in range(2))
        with torch.no_grad():
            for p in self.parameters():
                p.copy_(torch.rand(p.shape, generator=draw))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.used(self.norm(x)).squeeze(-1)


class Mended(TensorSource):
    """Example 13 has an infinite loss, or cannot be read, until it is mended."""

    wrong = ""

    def fetch(self, index: torch.Tensor) -> TensorDict:
        found = super().fetch(index)
        if self.wrong == "read" and 13 in index.tolist():
            raise OSError("the disk is gone")
        if self.wrong == "loss":
            found["y"] = found["y"].masked_fill(index == 13, torch.inf)
        return found


def _mended(wrong: str, seed: int, **options: Any) -> TensorDict:
    """A run to its end, by a program that meets a bad example on the way."""
    data = Mended({name: v.double() for name, v in tiny_source(40).fields.items()})
    task, step = TinyTask(), Step(batch_size=8, accumulate=options.pop("accumulate", 1))
    task.model = (
        Branched()
        if "wrap" in options
        else nn.Sequential(nn.Linear(3, 1, dtype=torch.float64), nn.Flatten(0))
    )
    with torch.no_grad():
        for p in task.model.parameters():
            p.fill_(0.1)
    stage = train(task, data, optimizer=adamw(0.02), step=step, steps=2, **options)
    tick = full(data, train=stage, epochs=2)
    state = initialize(tick, initial_state(task, data, seed=seed))
    data.wrong = wrong
    if wrong:
        try:
            fit(tick, state, donate=True)
        except ValueError:
            data.wrong = ""
    return fit(tick, state, donate=True)


def it_is_mended() -> dict[str, tuple[TensorDict, ...]]:
    """Every kind of step: the state of a run that was stopped and went on, and of one that was not.

    In their first step wrappers are still finding out in which order gradients come.
    """
    kinds = {
        "whole": {},
        "parts": {"accumulate": 2},
        "norms": {"observe": "grad_norm"},
        "unused": {"wrap": partial(DistributedDataParallel, find_unused_parameters=True)},
    }
    return {
        f"{kind} {wrong} {seed}": tuple(_mended(w, seed, **options) for w in (wrong, ""))
        for kind, options in kinds.items()
        for wrong in ("read", "loss")
        for seed in (FIRST, SECOND, SEED)
    }
