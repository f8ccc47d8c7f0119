"""A source whose workers come to grief where a test wants it, until it is mended."""

from __future__ import annotations

import os
import random
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from tensordict import TensorDict

from attent.pipeline.source import TensorSource, reading


def _unreadable() -> None:
    raise OSError("cannot be decoded")


released = threading.Event()
"""Set, it ends the hanging of this process's threads."""

FAULTS: dict[str, Callable[[], object]] = {
    "is killed": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "exits": lambda: os._exit(3),
    "leaves": lambda: sys.exit(4),
    "hangs": lambda: released.wait(600),
    "raises": _unreadable,
}


class Rows(TensorSource):
    """Examples x = 10 i of some shards; ``faults`` says what befalls the reader of an example.

    Args:
        num_examples: N.
        faults: index -> a name in `FAULTS`.
        mended: when this file is there, all is well.
        fields: of the examples; None for x alone.
    """

    def __init__(
        self,
        num_examples: int,
        faults: dict[int, str] | None = None,
        mended: Path | None = None,
        fields: dict[str, torch.Tensor] | None = None,
    ) -> None:
        super().__init__({"x": 10 * torch.arange(num_examples)} if fields is None else fields)
        self.faults = faults or {}
        self.mended = mended

    def fetch(self, index: torch.Tensor) -> TensorDict:
        for i in index.tolist():
            reading(i)
            if i in self.faults and not (self.mended and self.mended.exists()):
                FAULTS[self.faults[i]]()
        return super().fetch(index)

    def locate(self, index: int) -> str:
        return f"shard-{index // 10}.tar, row {index % 10}"


class Augmenting(Rows):
    """Each example with its key and, which a source should not do, numbers that others draw too."""

    def fetch_augmented(self, index: torch.Tensor, keys: torch.Tensor) -> TensorDict:
        batch = self.fetch(index).set("key", keys)
        batch["foreign"] = torch.tensor(
            [[torch.rand(()), np.random.rand(), random.random()] for _ in index],  # noqa: NPY002
            dtype=torch.float64,
        )
        return batch
