"""Holding examples out."""

from __future__ import annotations

import numpy as np
from sklearn.model_selection import train_test_split


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
