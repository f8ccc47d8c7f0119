"""Sources made of a world's: some of its rows, again and again if need be; losses across halves."""

from __future__ import annotations

import torch
from tensordict import TensorDict
from torch import Tensor

from attent.pipeline import Source, initial_state, run, score
from attent.pipeline.keyed import fold, generator

from .setting import Setting, Spent, spent


class Rows:
    """Some rows of a source, in an order, each as often as it is named.

    Args:
        source: theirs.
        rows: ``[N]``.
    """

    def __init__(self, source: Source, rows: Tensor) -> None:
        self.source, self.rows = source, rows

    def __len__(self) -> int:
        return len(self.rows)

    def fetch(self, index: Tensor) -> TensorDict:
        """The rows at some places of the order."""
        return self.source.fetch(self.rows[index])

    def locate(self, index: int) -> str:
        """Which row stands at a place."""
        return f"row {int(self.rows[index])}"


def oversampled(source: Source, labels: Tensor) -> Rows:
    """Every class as often as the commonest: its rows again and again."""
    found = [(labels == label).nonzero().squeeze(1) for label in labels.unique()]
    most = max(len(rows) for rows in found)
    return Rows(source, torch.cat([rows.repeat(-(-most // len(rows)))[:most] for rows in found]))


def halves(setting: Setting, epochs: float) -> tuple[Tensor, Spent]:
    """The loss of each example under a model that was trained on the half that it is not in.

    Args:
        setting: two fresh models of its world's, at its learning rate.
        epochs: passes over a half.

    Returns:
        ``[N]``, and what it has cost.
    """
    world = setting.world
    size = len(world.source)
    order = torch.randperm(size, generator=generator(fold(world.seed, "halves")))
    values, cost = torch.zeros(size), Spent()
    for i, (own, other) in enumerate([order.tensor_split(2), order.tensor_split(2)[::-1]]):
        task, source = world.task_for(), Rows(world.source, other)
        trained = setting.plainly(task, Rows(world.source, own), epochs, f"half {i}")
        stage = score(task, source)
        # The task's model holds what was trained, and is asked of the other half.
        measured = run(stage, stage.init(initial_state(task, source, seed=world.seed)))
        values[other] = measured["scores", "loss"]
        cost += spent(trained, world) + spent(measured, world)
    return values, cost
