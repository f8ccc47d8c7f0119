"""Which examples are kept together, where that is whole files."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

PART = 4096
"""Examples of a file that are one block at most; a larger file is several."""


def cut(starts: np.ndarray, *, part: int = PART) -> Tensor:
    """Where blocks begin, of files that are cut evenly into as few as ``part`` allows.

    Args:
        starts: ``[S + 1]`` integers, where files begin, the last one where they end; a file may be
            empty.
        part: examples of a block at most.

    Returns:
        ``[B + 1]`` int64, rising from 0 to N.
    """
    bounds = [0]
    for start, stop in zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True):
        parts = -(-(stop - start) // part)
        bounds += [start + (stop - start) * (part + 1) // parts for part in range(parts)]
    return torch.tensor(bounds, dtype=torch.int64)
