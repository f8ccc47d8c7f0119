"""A tick's updates by DeepSpeed, and what each process keeps of them.

    ACCELERATE_USE_DEEPSPEED=true torchrun --nproc-per-node 2 -m tests.tasks.zeroed FOLDER

Written by every process: FOLDER/RANK.json. `tests/tasks/test_zero.py` looks at it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn

from attent.pipeline import adamw
from attent.pipeline.optimizer import Bound, BoundOptimizer, Updates, moments
from attent.pipeline.processes import AgreedError, processes
from attent.tasks import zero
from attent.tasks.classification.config import ClassifyConfig
from attent.tasks.launch import session

SHAPES = {"weight": (5, 7), "bias": (5,), "head": (3, 5), "scale": ()}
"""Fifty-six numbers, in two groups of fifty and of six, one of them of no dimension."""

SPEC = adamw(0.1, weight_decay=0.1)


def bound() -> Bound:
    """Parameters under weight decay and without, and their moments after four steps."""
    made = {name: torch.arange(1.0, torch.Size(s).numel() + 1) for name, s in SHAPES.items()}
    params = {name: nn.Parameter(made[name].view(s) / 10) for name, s in SHAPES.items()}
    held = moments(SPEC, params)
    for name in SHAPES:
        for moment, value in (("exp_avg", 0.3), ("exp_avg_sq", 0.2), ("step", 4.0)):
            held[name, moment].fill_(value)
    return Bound(
        optimizer=SPEC,
        params=params,
        held=held,
        decay=lambda name, value: value.ndim > 1,
        clip=1.0,
    )


def steps(updates: Updates, made: Bound, rank: int, count: int) -> None:
    """Three steps and, where there are several processes, a failure that they have agreed on."""
    with contextlib.suppress(AgreedError), updates:
        for step in range(3):
            for i, p in enumerate(made.params.values()):
                # Of two processes the mean is what one has: 1 + 0.5 of each.
                share = 1.0 if count == 1 else (0.5, 1.5)[rank]
                p.grad = share * torch.cos(p.detach() * (i + step + 1))
            updates.step(0.5)
        if count > 1:  # they fail together, at a gradient that only one of them has
            made.params["head"].grad = torch.full(SHAPES["head"], math.inf if rank else 0.0)
            updates.step(0.5)
            raise AssertionError("an infinite gradient was taken")


def told(made: Bound) -> dict[str, Any]:
    """Weights and moments as lists."""
    found = {name: p.detach().flatten().tolist() for name, p in made.params.items()}
    for name in SHAPES:
        for moment in ("exp_avg", "exp_avg_sq", "step"):
            found[f"{name}/{moment}"] = made.held[name, moment].flatten().tolist()
    return found


def refused(updates: Any) -> str:
    """What is said of moments that were not all updated as often."""
    made = bound()
    made.held["bias", "step"].fill_(2)
    try:
        updates(made).__enter__()
    except ValueError as error:
        return str(error)
    return ""


def main(folder: Path) -> None:
    """Write what this process has found, under each stage."""
    with session(ClassifyConfig(device="cpu")):
        asked, world = zero.settings(), processes()
        assert asked is not None
        found = {}
        for stage in (1, 2):
            updates = zero.updates_of(SPEC, dataclasses.replace(asked, zero={"stage": stage}))
            made = bound()
            tick: Any = updates(made)
            steps(tick, made, world.rank, world.count)
            held = [v for state in tick.engine.torch.state.values() for v in state.values()]
            kept = sum(v.numel() for v in held if v.ndim)
            found[stage] = {"kept": kept, "state": told(made), "refused": refused(updates)}
        (folder / f"{world.rank}.json").write_text(json.dumps(found))


def alone() -> dict[str, Any]:
    """The same by torch's optimiser in one process."""
    made = bound()
    steps(BoundOptimizer(made), made, 0, 1)
    return told(made)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
