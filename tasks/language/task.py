"""Instruction tuning: the next token of a response, given all before it.

Shapes: B rows, T tokens of the longest in a batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor, nn
from torchmetrics import MeanMetric

from attent.models.language import IGNORED, LanguageModel
from attent.pipeline.ghost.tape import listening_for


class Perplexity(MeanMetric):
    """The exponential of the mean loss of a token."""

    def compute(self) -> Tensor:
        """At least 1; NaN before anything was seen."""
        return torch.exp(super().compute())


class InstructionTuning:
    """The task of saying what a response says, token by token.

    A batch holds ``input_ids`` ``[B, T]`` int64, padded on the right; ``labels`` ``[B, T]`` int64,
    the same ids where they are learned from and -100 elsewhere; and, to be packed, ``length``
    ``[B]``.

    Args:
        model: gives the loss of each token.
        packing: put the rows of a batch end to end in fewer (`attent.models.packing`): the same
            losses, without padding, for batches of any lengths. Gradients by example are not to be
            had then, only those by the output.

    The loss of a row is the sum of the losses of its supervised tokens in nats, divided by their
    number; 0 where there is none. Neither padding nor the batch's other rows nor its length have a
    part in it.

    Metrics, over the tokens of the whole split: ``loss``, the mean in nats, and ``perplexity``, its
    exponential.
    """

    name = "instruction tuning"

    def __init__(self, model: LanguageModel, *, packing: bool = False) -> None:
        self.model: nn.Module = model
        self.packing = packing

    @property
    def transformer(self) -> Any:
        """The model of transformers, with its adapters if it has any."""
        return self.model.causal

    def view(self, batch: TensorDict, keys: Tensor, *, training: bool) -> TensorDict:
        """As it is."""
        return batch

    def forward(self, model: Any, batch: TensorDict) -> Tensor:
        """The loss of each token but the first, ``[B, T - 1]`` float32, 0 where none is learned."""
        return model(batch["input_ids"], batch["labels"], "loss", listening_for, self._sizes(batch))

    def losses(self, output: Tensor, batch: TensorDict) -> Tensor:
        """Mean loss over each row's supervised tokens in nats, ``[B]``."""
        return output.sum(dim=1) / self.targets(batch).clamp(min=1)

    def targets(self, batch: TensorDict) -> Tensor:
        """Tokens that the loss of each row is the mean over, ``[B]``."""
        return (batch["labels"][:, 1:] != IGNORED).sum(dim=1)

    def output_grad_norms(self, model: Any, batch: TensorDict) -> Tensor:
        """The norm of the gradient of each row's loss by its logits, ``[B]``.

        ``sqrt(sum_t || softmax(z_t) - onehot(y_t) ||^2) / n`` over its n supervised tokens: in
        closed form, so that no gradient of all logits is held.
        """
        ids, labels, sizes = batch["input_ids"], batch["labels"], self._sizes(batch)
        squares = model(ids, labels, "error", lengths=sizes).sum(dim=1)
        return squares.sqrt() / self.targets(batch).clamp(min=1)

    def _sizes(self, batch: TensorDict) -> Tensor | None:
        """By which rows are packed, ``[B]``; None where they are not."""
        return batch["length"] if self.packing and len(batch) > 1 else None

    def metrics(self) -> dict[str, Any]:
        """Fresh ``perplexity`` and ``loss``."""
        return {"perplexity": Perplexity(), "loss": MeanMetric()}

    def update(self, metrics: Mapping[str, Any], output: Tensor, batch: TensorDict) -> None:
        """Take a batch into the metrics."""
        counts = self.targets(batch).cpu()
        means = self.losses(output, batch).cpu()
        for metric in metrics.values():
            metric.update(means, weight=counts)
