"""What tests of rules share."""

from __future__ import annotations

import torch
from torch import Tensor

from attent.pipeline import Rule


def assert_takes_29(rule: Rule, scores: Tensor) -> Tensor:
    """Of a hundred at a ratio of 0.29, without weights, again the same, the scores left alone.

    Returns:
        The mask, drawn under the key 11.
    """
    before = scores.clone()
    mask, weight = rule.choose(scores, 0.29, 11)
    assert (mask.dtype, mask.shape) == (torch.bool, (100,))
    assert int(mask.sum()) == 29
    assert weight is None
    assert torch.equal(scores, before)
    assert torch.equal(mask, rule.choose(scores, 0.29, 11)[0])
    return mask


def masks(rule: Rule, scores: Tensor, ratio: float, keys: int) -> Tensor:
    """Drawn under so many keys, ``[keys, N]``."""
    return torch.stack([rule.choose(scores, ratio, key)[0] for key in range(keys)])
