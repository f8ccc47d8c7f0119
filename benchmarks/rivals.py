"""How others keep books beside training, each in a few lines from what was published.

- InfoBatch (Qin et al., ICLR 2024): each loss is written to its place and the mean is weighted;
  before a pass all at or above the mean score stay, of the others a share of ``1 - r`` by chance,
  with weight ``1 / (1 - r)``. It checks nothing, cannot be resumed, and knows neither parts of
  batches nor other processes.
- DataCull, as its package (1.0.2) describes it: each loss is a line of JSON in a file of the epoch,
  which is read back after it. Then RCAP (Hassan et al., UAI 2025): classes get shares by the root
  of their prior times their loss, and within them examples are drawn without replacement, by the
  softmax of losses clipped at the logarithm of the number of classes. Here the file is opened once
  a batch; the package opens it for every line.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

CLASSES = 10
"""Example i is of class ``i % CLASSES``."""

KEEP = 0.5
"""Of all examples, or of those below the mean."""


class Numbered(Dataset[tuple[int, Any]]):
    """Items with their index, as those have them who write it by hand."""

    def __init__(self, data: Dataset[Any]) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> tuple[int, Any]:
        return index, self.data[index]


class ByHand:
    """What the others have in common: a loader that begins a pass by their selection."""

    def select(self) -> Iterator[list[int]]:
        """Begin a pass: its batches."""
        raise NotImplementedError

    def __iter__(self) -> Iterator[list[int]]:
        return self.select()

    def read(self, data: Dataset[Any], **options: Any) -> Iterator[Any]:
        """Pass after pass of one loader."""
        loader = DataLoader(Numbered(data), batch_sampler=self, **options)  # type: ignore[arg-type]
        while True:
            yield from loader


class InfoBatch(ByHand):
    """The published rule, and nothing more."""

    def __init__(self, num_examples: int, batch_size: int) -> None:
        self.scores = torch.full((num_examples,), 3.0)  # as published; none is below their mean
        self.weights = torch.ones(num_examples)
        self.batch_size = batch_size

    def select(self) -> Iterator[list[int]]:
        """What is at or above the mean, and a share of the rest."""
        below = self.scores < self.scores.mean()
        drawn = below.nonzero().squeeze(1)
        drawn = drawn[torch.randperm(len(drawn))[: int(KEEP * len(drawn))]]
        self.weights.fill_(1)
        self.weights[drawn] = 1 / KEEP
        kept = torch.cat([(~below).nonzero().squeeze(1), drawn])
        kept = kept[torch.randperm(len(kept))]
        return (batch.tolist() for batch in kept.split(self.batch_size))

    def tell(self, index: Tensor, losses: Tensor) -> Tensor:
        """Each score is the last loss."""
        self.scores[index] = losses.detach()
        return (losses * self.weights[index]).mean()


class DataCull(ByHand):
    """Lines of JSON, and RCAP by them."""

    def __init__(self, num_examples: int, batch_size: int, folder: Path) -> None:
        self.clip, self.batch_size = math.log(CLASSES), batch_size
        self.losses = np.full(num_examples, self.clip)
        self.classes = [np.arange(c, num_examples, CLASSES) for c in range(CLASSES)]
        self.file = folder / "epoch.jsonl"
        self.draw = np.random.default_rng(0)

    def select(self) -> Iterator[list[int]]:
        """By what was logged."""
        if not self.file.exists():  # the first epoch is whole
            kept = self.draw.permutation(len(self.losses))
        else:
            self._read()
            kept = self._rcap()
            self.draw.shuffle(kept)
        starts = range(0, len(kept), self.batch_size)
        return (kept[at : at + self.batch_size].tolist() for at in starts)

    def tell(self, index: Tensor, losses: Tensor) -> Tensor:
        """A line each."""
        rows = zip(index.tolist(), losses.tolist(), strict=True)
        with self.file.open("a") as file:
            file.writelines(f"{json.dumps({str(i): loss})}\n" for i, loss in rows)
        return losses.mean()

    def _read(self) -> None:
        """What was logged; of the others the loss stays what it was."""
        with self.file.open() as file:
            for line in file:
                ((index, loss),) = json.loads(line).items()
                self.losses[int(index)] = loss
        self.file.unlink()
        np.clip(self.losses, 0, self.clip, out=self.losses)

    def _rcap(self) -> np.ndarray:
        odds = [np.exp(self.losses[of] - self.losses[of].max()) for of in self.classes]
        roots = [
            math.sqrt(float(self.losses[of].sum()) * len(of) / len(self.losses))
            for of in self.classes
        ]
        chosen = []
        for of, odd, root in zip(self.classes, odds, roots, strict=True):
            size = min(len(of), math.ceil(KEEP * len(self.losses) * root / sum(roots)))
            chosen.append(self.draw.choice(of, size, replace=False, p=odd / odd.sum()))
        return np.concatenate(chosen)
