"""Depth and other maps of numbers."""

from attent.tasks.depth.task import DenseRegression

__all__ = ["DenseRegression"]
