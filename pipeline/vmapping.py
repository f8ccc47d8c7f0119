"""What models need so that vmap can map them, done and undone around it."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import Any

from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

_FLAGS = ("gradient_checkpointing", "grad_checkpointing")


@contextlib.contextmanager
def ready_for_vmap(model: nn.Module) -> Iterator[None]:
    """Make a model mappable for a block.

    - vmap has no rule for the CPU's fused attention and would loop over it: the math one is used;
    - transformers asks of a mask whether it is all ones, and of position ids whether they are of
      one sequence, to save work; a mapped tensor cannot answer, and it does not ask while it is
      traced: it is told that it is, and uses its eager attention;
    - gradient checkpointing cannot be mapped, and saves nothing here: it is off.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        stack.enter_context(not_checkpointing(model))
        for config in _configs(model):
            stack.enter_context(_set(config, "_attn_implementation_internal", "eager"))
        masking = sys.modules.get("transformers.masking_utils")
        if masking is not None and hasattr(masking, "is_tracing"):
            stack.enter_context(_set(masking, "is_tracing", lambda *args: True))
        yield


@contextlib.contextmanager
def not_checkpointing(model: nn.Module) -> Iterator[None]:
    """Nothing is computed twice in a block: parameters that are given for it would be gone then."""
    with contextlib.ExitStack() as stack:
        for module in model.modules():
            for flag in _FLAGS:
                if getattr(module, flag, False) is True:
                    stack.enter_context(_set(module, flag, False))
        yield


def _configs(model: nn.Module) -> list[Any]:
    """The configurations of transformers' modules that say how attention is computed."""
    found: dict[int, Any] = {}
    for module in model.modules():
        config = getattr(module, "config", None)
        if hasattr(config, "_attn_implementation_internal"):
            found[id(config)] = config
    return list(found.values())


@contextlib.contextmanager
def _set(thing: Any, name: str, value: Any) -> Iterator[None]:
    before = getattr(thing, name)
    setattr(thing, name, value)
    try:
        yield
    finally:
        setattr(thing, name, before)
