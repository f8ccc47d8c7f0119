"""In which order examples are read: functions of the selection and a key."""

from __future__ import annotations

import torch
from torch import Tensor

from attent.pipeline.keyed import fold, generator
from attent.pipeline.source import Source, lengths_of


def keyed_order(mask: Tensor, key: int) -> Tensor:
    """The selected indices in an order that is a function of the key.

    Args:
        mask: ``[N]`` bool.
        key: from `attent.pipeline.keyed.fold`.

    Returns:
        ``[k]`` int64, k = the number of True.
    """
    selected = mask.nonzero().squeeze(1)
    return selected[torch.randperm(len(selected), generator=generator(key))]


POOL = 64
"""Batches whose examples are sorted by length together: more of them leave less padding, fewer mix
the company of an example more."""


def bucketed_order(mask: Tensor, key: int, lengths: Tensor, batch_size: int) -> Tensor:
    """The selected indices so that batches hold examples of similar length.

    The keyed order is cut into pools of `POOL` batches; each is sorted by length, examples of one
    length as they were drawn, and cut into batches; batches are shuffled, and examples within them.
    Each selected example is there once, every batch but the last is full, and which one is smaller
    is drawn too: no length is favoured, early or late or in small batches.

    Args:
        mask: ``[N]`` bool.
        key: from `attent.pipeline.keyed.fold`.
        lengths: ``[N]`` integers.
        batch_size: B, of all batches but the last; at least 1.

    Returns:
        ``[k]`` int64, k = the number of True.
    """
    drawn = keyed_order(mask, key)
    draw = generator(fold(key, "batches"))
    whole, rest = divmod(len(drawn), batch_size)
    if whole == 0:
        return drawn
    # The smaller batch is `rest` places anywhere; the others are cut from what is left.
    at = int(torch.randint(len(drawn) - rest + 1, (), generator=draw))
    places = torch.arange(len(drawn))
    batch = (places - (places >= at + rest) * rest).clamp(max=whole * batch_size - 1) // batch_size
    pools = batch * max(1, round(whole / POOL)) // whole
    # By pool, in it by length; a stable sort leaves examples of one length as they were drawn.
    places = lengths[drawn].argsort(stable=True)
    places = places[pools[places].argsort(stable=True)]
    small, full = places[at : at + rest], torch.cat([places[:at], places[at + rest :]])
    batches = full.reshape(whole, batch_size).sort(dim=1).values
    batches = batches[torch.randperm(whole, generator=draw)]
    return drawn[torch.cat([batches.flatten(), small.sort().values])]


def longest_first(source: Source) -> Tensor | range:
    """All examples in the order in which passes that draw nothing read them.

    The longest first where a source says ``lengths``, so that batches are of similar length;
    otherwise as they come.
    """
    lengths = lengths_of(source)
    if lengths is None:
        return range(len(source))
    return lengths.argsort(descending=True, stable=True)
