"""Scenes of simple solids, rendered by ray casting: pictures, depth, segments, boxes, classes."""

from __future__ import annotations

from attent.tasks.data.scenes.drawing import draw
from attent.tasks.data.scenes.layout import (
    PATTERNS,
    SCENE_CLASSES,
    SEMANTIC_CLASSES,
    SHAPES,
    SLOTS,
    Layout,
)
from attent.tasks.data.scenes.renderer import render
from attent.tasks.data.scenes.source import Scenes

__all__ = [
    "PATTERNS",
    "SCENE_CLASSES",
    "SEMANTIC_CLASSES",
    "SHAPES",
    "SLOTS",
    "Layout",
    "Scenes",
    "draw",
    "render",
]
