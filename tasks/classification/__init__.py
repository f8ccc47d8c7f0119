"""Image classification."""

from attent.tasks.classification.task import Augment, Classification

__all__ = ["Augment", "Classification"]
