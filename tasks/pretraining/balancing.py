"""One loss of several: how the outputs' losses are weighed against each other.

Shapes: B examples, T outputs.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

Balancing = Literal["none", "uncertainty", "softmax"]


class Balancer(nn.Module):
    """What is learned of the balance: for ``uncertainty``, a logarithm of variance an output.

    Args:
        kind: ``none``, ``uncertainty`` or ``softmax``; see `balanced`.
        num_outputs: T. (The published code takes the number of modalities, and fails with its own
            default of a second loss of rgb.)
    """

    def __init__(self, kind: Balancing, num_outputs: int) -> None:
        super().__init__()
        self.kind = kind
        if kind == "uncertainty":
            self.log_variances = nn.Parameter(torch.zeros(num_outputs))

    def forward(self, batch: int) -> Tensor | None:
        """The logarithms of variance for each example, ``[B, T]``; None if nothing is learned.

        One row an example, like every output of a model, so that losses stay functions of one.
        """
        if self.kind != "uncertainty":
            return None
        return self.log_variances.expand(batch, -1)


def balanced(
    losses: Tensor, valid: Tensor, kind: Balancing, log_variances: Tensor | None = None
) -> Tensor:
    """The loss of each example, ``[B]``, from those of its outputs.

    - ``none``: their sum;
    - ``uncertainty``: ``exp(-s) L + s`` summed, with a learned s for each output (Kendall et al.,
      CVPR 2018);
    - ``softmax``: weighted by the softmax of the example's own losses. The weights are constants to
      the gradient: the published ones are not, so that outputs with small losses are made worse.

    An output with nothing masked has no loss and leaves the sum; the sum of the others is scaled up
    by T / (number of them), so that an example scores neither high nor low for it. An example with
    no loss at all has 0.

    Args:
        losses: ``[B, T]``.
        valid: ``[B, T]`` bool, False where there is no loss.
        kind: see above.
        log_variances: ``[B, T]``, for ``uncertainty``.
    """
    if kind == "uncertainty":
        assert log_variances is not None
        terms = torch.exp(-log_variances) * losses + log_variances
    elif kind == "softmax":
        logits = losses.detach().masked_fill(~valid, -torch.inf)
        # Where no output has a loss every logit is -inf: its row of NaN meets only zeros below.
        terms = torch.softmax(logits, dim=1).nan_to_num() * losses
    else:
        terms = losses
    kept = torch.where(valid, terms, torch.zeros_like(terms)).sum(dim=1)
    if kind == "softmax":
        return kept  # its weights are shares among the valid already
    return kept * losses.shape[1] / valid.sum(dim=1).clamp(min=1)
