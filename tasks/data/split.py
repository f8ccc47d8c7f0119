"""Holding examples out."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from sklearn.model_selection import train_test_split
from torch import Tensor

from attent.pipeline.source import TensorSource


class Rows(TensorSource):
    """Some rows of data in memory, which can say where each of them is kept.

    Args:
        fields: name -> tensor of ``[N, ...]``, of all rows.
        rows: ``[n]``, those that are the source's examples.
        kept: in what, a path or a name.
    """

    def __init__(self, fields: Mapping[str, Tensor], rows: np.ndarray, kept: str) -> None:
        index = torch.from_numpy(rows)
        super().__init__({name: value[index] for name, value in fields.items()})
        self.rows, self.kept = index, kept

    def locate(self, index: int) -> str:
        """What an example is kept in, and its row there, from 0."""
        return f"{self.kept} row {int(self.rows[index])}"


def stratified(labels: np.ndarray, held_out: float, *, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows for training and rows held out, every class in the same shares.

    Args:
        labels: ``[N]`` integers.
        held_out: share held out, in (0, 1).
        seed: of the split.

    Raises:
        ValueError: a part would be smaller than the number of classes.
    """
    try:
        rows = np.arange(len(labels))
        split = train_test_split(rows, test_size=held_out, random_state=seed, stratify=labels)
    except ValueError as error:
        raise ValueError(
            f"held_out {held_out:g} of {len(labels)} examples of {len(np.unique(labels))} classes "
            f"cannot be split with every class on both sides: {error}"
        ) from error
    return np.asarray(split[0]), np.asarray(split[1])
