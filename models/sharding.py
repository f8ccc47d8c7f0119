"""Frozen weights shared out over several processes, by torch's fully_shard (FSDP).

Of a language model with adapters nearly all is frozen. Each process keeps its part of every block's
frozen weights, and has the whole of a block while it computes it; adapters, embeddings and heads
are whole in each. What is trained, and its checkpoint, is as without.
"""

from __future__ import annotations

import torch
from torch import nn


def shard_frozen(model: nn.Module) -> int:
    """Share out the frozen weights of a model's blocks, in place.

    `torch.distributed` must be set up. From then on the model can be called in all processes
    together only, as often in each.

    Args:
        model: of transformers, or one of peft around it, on this process's device.

    Returns:
        How many blocks were shared out.

    Raises:
        ValueError: no blocks are known of it, or nothing in them is frozen.
    """
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    names = blocks_of(model)
    if not names:
        raise ValueError(
            f"{type(model).__name__} does not say what its blocks are (_no_split_modules): it "
            "cannot be shared out"
        )
    trained = {p for p in model.parameters() if p.requires_grad}
    device = next(model.parameters()).device
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    blocks = [module for module in model.modules() if type(module).__name__ in names]
    shared = 0
    for block in blocks:
        if any(not p.requires_grad for p in block.parameters()):
            fully_shard(block, mesh=mesh, ignored_params=trained & set(block.parameters()))
            shared += 1
    if not shared:
        raise ValueError("nothing of the model's blocks is frozen: there is nothing to share out")
    return shared


def blocks_of(model: nn.Module) -> set[str]:
    """Names of the classes that a model of transformers says are not to be split."""
    named = (getattr(module, "_no_split_modules", None) or () for module in model.modules())
    return {name for found in named for name in found}


def kept_bytes(model: nn.Module) -> int:
    """Of the weights that this process keeps: its part of those that are shared out."""
    from torch.distributed.tensor import DTensor

    def local(p: torch.Tensor) -> torch.Tensor:
        return p.to_local() if isinstance(p, DTensor) else p

    return sum(local(p).numel() * p.element_size() for p in model.parameters())
