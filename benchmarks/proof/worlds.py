"""The worlds on which selection is judged, by name.

from benchmarks.proof.worlds import world
digits = world("digits", seed=0)
"""

from __future__ import annotations

import difflib

from .world import World
from .worlds_images import NAMES as IMAGES
from .worlds_images import image_world

NAMES = (*IMAGES,)


def world(name: str, seed: int, *, share: float = 1.0) -> World:
    """A world; a function of its arguments.

    Args:
        name: of `NAMES`.
        seed: of splits, noise and initial weights.
        share: of its examples, in (0, 1]; below 1 to try things.

    Raises:
        ValueError: no such world, a share out of range, or what the world is made of is missing.
    """
    if name not in NAMES:
        near = difflib.get_close_matches(name, NAMES, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"no world {name!r} ({', '.join(NAMES)}){hint}")
    if not 0 < share <= 1:
        raise ValueError(f"share is in (0, 1], got {share:g}")
    return image_world(name, seed, share=share)
