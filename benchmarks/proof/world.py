"""A world: a task with its data, on which ways of selecting are judged.

Three disjoint splits: the first is trained on, rates and variants are chosen on the second, and
claims are made on the third. Everything is a function of (name, seed): which examples are in which
split, which are rare or wrongly labelled, and the model's initial weights.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor

from attent.pipeline import Source, Task
from attent.pipeline.keyed import generator


@dataclass(frozen=True, kw_only=True)
class World:
    """What an arm is given to train on, and what it is judged by.

    Attributes:
        name: as `world` knows it.
        seed: of splits, noise and initial weights; the run's own seed is this one too.
        source: the N training examples.
        val: what rates and variants are chosen on.
        test: what claims are made on.
        make_task: options -> the task with a fresh model; always the same initial weights.
        epochs: of plain training at budget 1.
        batch_size: examples in a step.
        metric: the primary one, a name in ``task.metrics()``, or one that `probe` measures.
        higher_is_better: of that metric.
        labels: ``[N]`` int64, the classes that training sees; None where there are none.
        num_classes: K; 0 where there are no classes.
        probe: state -> further metrics of a trained state (``val_...`` and ``test_...``); None
            where the task's own are enough.
        recipe: how a step is made, the same for every arm: ``clip``, ``weight_decay``, ``warmup``.
        backward_cost: of an example's backward, in forwards: 2, but where most weights are frozen.
        tokens: costs and budgets count tokens, not examples, which are of different lengths.
        extra: tensors of ``[N]`` that no arm may look at, for diagnosis: ``noisy`` (bool: the label
            is wrong), ``original`` (int64: which original an example is a copy of).
    """

    name: str
    seed: int
    source: Source
    val: Source
    test: Source
    make_task: Callable[..., Task]
    epochs: int
    batch_size: int
    metric: str = "accuracy"
    higher_is_better: bool = True
    labels: Tensor | None = None
    num_classes: int = 0
    probe: Callable[[TensorDict], dict[str, float]] | None = None
    recipe: Mapping[str, float] = field(default_factory=dict)
    backward_cost: float = 2.0
    tokens: bool = False
    extra: Mapping[str, Tensor] = field(default_factory=dict)

    @cached_property
    def task(self) -> Task:
        """The task as it is, made once; after a run its model holds the trained weights."""
        return self.make_task()

    def task_for(self, **options: Any) -> Task:
        """A task of its own with options, such as ``prior`` of `Classification`."""
        return self.make_task(**options)

    @property
    def prior(self) -> Tensor:
        """Logarithms of the classes' shares in training, ``[K]`` float32.

        Raises:
            ValueError: a world without classes.
        """
        if self.labels is None:
            raise ValueError(f"world {self.name!r} has no classes, so no prior")
        counts = torch.bincount(self.labels, minlength=self.num_classes)
        return (counts / counts.sum()).log()


def shuffled(values: Tensor, key: int) -> Tensor:
    """A tensor's rows in an order drawn under a key."""
    return values[torch.randperm(len(values), generator=generator(key))]
