"""Torch's defaults for new tensors, put aside while a `Teacher` works."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def plain_defaults() -> Iterator[None]:
    """New tensors are on the CPU, and floats of 32 bits, for a block or a decorated function.

    ``torch.set_default_device`` and ``torch.set_default_dtype`` are the program's own: they are as
    they were afterwards, and what is selected does not depend on them.
    """
    dtype = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        with torch.device("cpu"):
            yield
    finally:
        torch.set_default_dtype(dtype)
