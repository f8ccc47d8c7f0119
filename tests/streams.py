"""Endless streams for tests: example p is a function of p."""

from __future__ import annotations

import torch
from torch.utils.data import IterDataPipe

from attent.pipeline import Window, attent_online, attent_threshold, fold, generator
from tests.tiny import TinyTask, tiny_train


def example(position):
    """x drawn under the position's key, y their sum and a little noise; ``p`` is the position."""
    draw = generator(fold(1, "example", position))
    x = torch.randn(3, generator=draw)
    return {"x": x, "y": x.sum() + 0.1 * torch.randn((), generator=draw), "p": position}


def begin(start, end=None):
    """The stream from a position on: endless, or up to ``end``."""
    while end is None or start < end:
        yield example(start)
        start += 1


class Again:
    """The same stream as an iterable, which begins at 0 each time; counts what was read of it."""

    def __init__(self, end=None):
        self.end, self.read = end, 0

    def __iter__(self):
        for item in begin(0, self.end):
            self.read += 1
            yield item


class Pipe(IterDataPipe):
    """The same stream as a datapipe."""

    def __init__(self, end=None):
        self.end = end

    def __iter__(self):
        return begin(0, self.end)


def online(stream, *, size=10, examples=40, steps=2, task=None, restart=False, **options):
    """A graph of `attent_online` with its task and window."""
    task = task or TinyTask(dropout=0.2, noise=0.3)
    held = Window(stream, size, restart=restart)
    train = tiny_train(task, held, steps=steps)
    return attent_online(task, held, train=train, examples=examples, **options), task, held


def threshold(stream, *, size=8, examples=48, steps=1, task=None, **options):
    """A graph of `attent_threshold` with its task and window."""
    task = task or TinyTask(dropout=0.2, noise=0.3)
    held = Window(stream, size)
    train = tiny_train(task, held, steps=steps)
    options = {"score_batch_size": 16, **options}
    return attent_threshold(task, held, train=train, examples=examples, **options), task, held
