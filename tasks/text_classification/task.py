"""Text classification: one of K classes for each text, or pair of texts.

Shapes: B texts in a batch, T tokens of the longest, K classes.
"""

from __future__ import annotations

from typing import Any

from tensordict import TensorDict
from torch import Tensor, nn

from attent.models.text_classifier import accepted
from attent.tasks.classification import Classification
from attent.tasks.data.texts import INPUTS


class TextClassification(Classification):
    """The task of naming a text's class.

    Args:
        model: a classifier of transformers, maybe with adapters of peft.
        num_classes: K.
        label_smoothing: share of the target spread over all classes, in [0, 1).

    A batch holds what `Texts` gives; tokens that its ``attention_mask`` leaves out have no part in
    anything. Loss and metrics are those of images.
    """

    name = "text classification"

    def __init__(self, model: nn.Module, num_classes: int, *, label_smoothing: float = 0.0) -> None:
        super().__init__(model, num_classes, label_smoothing=label_smoothing)
        self.inputs = accepted(model, INPUTS)

    @property
    def transformer(self) -> nn.Module:
        """The model of transformers, with its adapters if it has any."""
        return self.model

    def forward(self, model: Any, batch: TensorDict) -> Tensor:
        """Logits, ``[B, K]``."""
        return model(**{name: batch[name] for name in self.inputs if name in batch}).logits
