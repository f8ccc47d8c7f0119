"""Detection and instance segmentation."""

from attent.tasks.detection.task import Detection

__all__ = ["Detection"]
