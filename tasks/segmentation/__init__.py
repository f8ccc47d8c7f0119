"""Semantic segmentation."""

from attent.tasks.segmentation.task import Segmentation

__all__ = ["Segmentation"]
