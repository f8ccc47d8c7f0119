"""Rows of shards as a source of batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from tensordict import TensorDict
from torch import Tensor

from attent.pipeline.source import reading


class Rows(Protocol):
    """Rows that are read one at a time, such as `LineShards` and `TableShards`."""

    blocks: Tensor

    def __len__(self) -> int:
        """The number of rows, N."""
        ...

    def read(self, index: int) -> dict[str, Any]:
        """The values of a row."""
        ...

    def locate(self, index: int) -> str:
        """Where a row is kept."""
        ...


class ShardSource:
    """Batches of rows, made by a function of what each row holds: a source.

    Args:
        rows: where they are.
        collate: the values of some rows -> a TensorDict of as many; None to stack numbers, arrays
            and lists of one length under their names.

    Attributes:
        blocks: the rows'.
        window: the rows', where they have one.
    """

    def __init__(
        self, rows: Rows, collate: Callable[[Sequence[dict[str, Any]]], TensorDict] | None = None
    ) -> None:
        self.rows, self.collate = rows, collate or stacked
        self.blocks = rows.blocks
        if hasattr(rows, "window"):
            self.window = rows.window  # type: ignore[attr-defined]

    def __len__(self) -> int:
        return len(self.rows)

    def locate(self, index: int) -> str:
        """Where a row is kept."""
        return self.rows.locate(index)

    def fetch(self, index: Tensor) -> TensorDict:
        """The rows at ``index`` (``[B]`` int64), collated.

        Raises:
            ValueError: the rows' own, or values that cannot be put together.
        """
        return self.collate([self._read(i) for i in index.tolist()])

    def _read(self, index: int) -> dict[str, Any]:
        reading(index)
        return self.rows.read(index)


def stacked(rows: Sequence[dict[str, Any]]) -> TensorDict:
    """Rows of numbers, arrays and lists of one length as a TensorDict of ``[B]``.

    Raises:
        ValueError: a value that is no number, or rows whose values differ in length or name.
    """
    try:
        fields = {name: torch.as_tensor([row[name] for row in rows]) for name in rows[0]}
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"rows of {', '.join(rows[0])} cannot be stacked: {error}; give a collate"
        ) from error
    return TensorDict(fields, batch_size=[len(rows)])
