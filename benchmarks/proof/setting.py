"""What an arm is given, and what it gives back: a graph, and what was spent before it runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tensordict import TensorDict
from torch import Tensor

from attent.pipeline import (
    Source,
    Stage,
    Step,
    Task,
    adamw,
    fit,
    full,
    initial_state,
    train,
    warmup_cosine,
)
from attent.pipeline.keyed import fold
from attent.pipeline.observed import Observe
from attent.pipeline.published import known_scores

from .world import World


@dataclass(frozen=True, kw_only=True)
class Spent:
    """Examples (or tokens) forwarded, and those of them that were back-propagated."""

    forwarded: int = 0
    backwarded: int = 0

    def __add__(self, other: Spent) -> Spent:
        return Spent(
            forwarded=self.forwarded + other.forwarded,
            backwarded=self.backwarded + other.backwarded,
        )

    def cost(self, backward: float) -> float:
        """In forwards, where a backward costs so many."""
        return self.forwarded + backward * self.backwarded


@dataclass(frozen=True, kw_only=True)
class Setting:
    """A world, a budget and a learning rate: what an arm is to make the best of.

    Attributes:
        world: the data, the model, how a step is made.
        budget: share of what plain training costs over all the world's epochs, everything that is
            spent on the way included.
        lr: peak learning rate.
        steps: optimiser steps in a tick.
    """

    world: World
    budget: float
    lr: float
    steps: int = 50

    @property
    def step_cost(self) -> float:
        """Of training on an example, in forwards."""
        return 1 + self.world.backward_cost

    @property
    def units(self) -> float:
        """The whole budget in forwards of all examples: so many passes of nothing but forwards."""
        return self.budget * self.world.epochs * self.step_cost

    def epochs(
        self, *, before: Spent | None = None, scorings: float = 0.0, dearer: float = 0.0
    ) -> float:
        """Epochs' worth of examples that can be trained on.

        Args:
            before: what was spent already.
            scorings: forwards of all examples that are spent otherwise.
            dearer: what a training step costs more than its forward and backward, in forwards.
        """
        if before is not None:
            scorings += before.cost(self.world.backward_cost) / len(self.world.source)
        return (self.units - scorings) / (self.step_cost + dearer)

    @property
    def accounting(self) -> Any:
        """The unit of budgets, as recipes call it."""
        return "tokens" if self.world.tokens else "examples"

    def train(
        self,
        task: Task | None = None,
        source: Source | None = None,
        *,
        observe: Observe = False,
    ) -> Stage:
        """The world's own way of making steps, the learning rate coming down with the budget."""
        world = self.world
        recipe = world.recipe
        return train(
            task or world.task,
            source or world.source,
            optimizer=adamw(
                warmup_cosine(self.lr, warmup=recipe.get("warmup", 0.0)),
                weight_decay=recipe.get("weight_decay", 0.0),
            ),
            step=Step(batch_size=world.batch_size, clip=recipe.get("clip")),
            steps=self.steps,
            observe=observe,
        )

    def plainly(self, task: Task, source: Source, epochs: float, purpose: str) -> TensorDict:
        """The state of a model that was trained on everything for a while.

        Args:
            task: with a fresh model.
            source: what it is trained on.
            epochs: passes over that.
            purpose: keys its draws.
        """
        tick = full(
            source, train=self.train(task, source), epochs=epochs, accounting=self.accounting
        )
        return fit(tick, initial_state(task, source, seed=fold(self.world.seed, purpose)))


@dataclass(frozen=True, kw_only=True)
class Built:
    """An arm, ready to run.

    Attributes:
        tick: its graph.
        task: what it trains.
        source: on what.
        before: what was spent to build it (models that score).
        scores: name -> ``[N]``, known before the run.
        dearer: what an example that is trained on costs beside its forward and backward, in
            forwards.
    """

    tick: Stage
    task: Task
    source: Source
    before: Spent = field(default_factory=Spent)
    scores: Mapping[str, Tensor] = field(default_factory=dict)
    dearer: float = 0.0

    def state(self, seed: int) -> TensorDict:
        """Where it begins."""
        state = initial_state(self.task, self.source, seed=seed)
        for name, values in self.scores.items():
            state = known_scores(state, name, values)
        return state


def spent(state: TensorDict, world: World) -> Spent:
    """What a run has spent, in the world's unit."""
    unit = "_tokens" if world.tokens else ""
    return Spent(
        forwarded=int(state["ledger", "forwarded" + unit]),
        backwarded=int(state["ledger", "backwarded" + unit]),
    )


Arm = Callable[[Setting], Built]
