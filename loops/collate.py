"""Batches of items that come with their index."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch


class Collate:
    """Batches of ``(index, item)``: the indices ``[b]`` int64, and the items as they would be.

    Args:
        collate: makes a batch of a list of items.
    """

    def __init__(self, collate: Callable[[list[Any]], Any]) -> None:
        self.collate = collate

    def __call__(self, pairs: Sequence[tuple[int, Any]]) -> Any:
        """The indices and the batch of some items."""
        return torch.tensor([index for index, _ in pairs]), self.collate([it for _, it in pairs])
