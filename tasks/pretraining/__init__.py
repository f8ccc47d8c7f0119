"""Masked pre-training of multi-modal autoencoders."""

from attent.tasks.pretraining.task import MaskedPretraining

__all__ = ["MaskedPretraining"]
