"""The worlds on which selection is judged, by name.

from benchmarks.proof.worlds import world
digits = world("digits", seed=0)
"""

from __future__ import annotations

import difflib

from .splits import long_tail
from .world import World
from .worlds_grown import ENDING, KNOWN, grown_world
from .worlds_grown import GROWN as KINDS_GROWN
from .worlds_grown import NAMES as GROWN
from .worlds_images import DIGITS, NUM_CLASSES, RATIO, image_world
from .worlds_images import NAMES as IMAGES
from .worlds_language import NAME as LANGUAGE
from .worlds_language import TEST as LANGUAGE_TEST
from .worlds_language import TRAIN as LANGUAGE_TRAIN
from .worlds_language import language_world
from .worlds_pretrain import NAME as PRETRAIN
from .worlds_pretrain import pretrain_world

NAMES = (*IMAGES, *GROWN, PRETRAIN, LANGUAGE)


def world(name: str, seed: int, *, size: int | None = None) -> World:
    """A world; a function of its arguments.

    Args:
        name: of `NAMES`.
        seed: of splits, noise and initial weights.
        size: training examples, about, to try things with fewer than there are; what is held out
            becomes fewer in proportion. None for all.

    Raises:
        ValueError: no such world, a size below 1, or what the world is made of is missing.
    """
    if name not in NAMES:
        near = difflib.get_close_matches(name, NAMES, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"no world {name!r} ({', '.join(NAMES)}){hint}")
    if size is not None and size < 1:
        raise ValueError(f"size is at least 1 example, got {size}")
    if name == PRETRAIN:
        return pretrain_world(seed, size=size)
    if name == LANGUAGE:
        return language_world(seed, size=size)
    if name in GROWN:
        return grown_world(name, seed, size=size)
    return image_world(name, seed, size=size)


def base_name(name: str) -> str:
    """The world of a name in the protocol: what follows a "-" is what is asked of it besides."""
    return name.partition("-")[0]


def test_to_train(name: str) -> float | None:
    """Test examples to different training examples, where every seed splits all there is anew.

    So it is with the digits: there are 5,000, and two seeds share most of what they train on; and
    with the functions: 2,800, of which a seed takes 2,100. None of the other worlds, whose pools
    are three times what a seed takes, and more.

    Args:
        name: of `NAMES`.
    """
    if name == LANGUAGE:
        return LANGUAGE_TEST / LANGUAGE_TRAIN
    kind, _, form = name.partition("_")
    if kind != "digits":
        return None
    trained = [DIGITS.train] * NUM_CLASSES
    if form == "tail":
        trained = [min(n, DIGITS.train) for n in long_tail(DIGITS.largest, RATIO, NUM_CLASSES, 0)]
    elif f"_{form}" == ENDING:
        grown = KINDS_GROWN[kind]
        trained = [grown.known] * KNOWN + [grown.new] * (NUM_CLASSES - KNOWN)
    return NUM_CLASSES * DIGITS.test / sum(trained)
