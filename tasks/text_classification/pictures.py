"""Texts for the report: rows as people read them, the hardest and the easiest."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from attent.pipeline.score import Frozen
from attent.pipeline.source import fetch_batch
from attent.tasks.build import Run
from attent.tasks.command import Passage
from attent.tasks.data.texts import Texts
from attent.tasks.text_classification.config import TextClassifyConfig

LOOKED_AT = 1000
"""Held-out texts among which the hardest and the easiest are looked for, from all over them."""


def as_text(source: Any, index: int) -> str:
    """A row: where it is kept, its class, its text."""
    assert isinstance(source, Texts)
    label = source.classes[int(source.labels[index])]
    return f"{source.locate(index)}: {label}\n\n{source.text(index)}"


def hardest_and_easiest(run: Run, config: TextClassifyConfig) -> list[Passage]:
    """The held-out texts of the largest and of the smallest losses, and what the model says.

    Args:
        run: its state holds the weights.
        config: its options.
    """
    source = run.held_out
    assert isinstance(source, Texts)
    index = looked_at(len(source))
    shares = torch.cat([_shares(run, part) for part in index.split(config.score_batch_size)])
    right = shares.gather(1, source.labels[index][:, None]).squeeze(1)
    order = right.argsort(stable=True)
    count = min(config.num_shown, len(order) // 2)
    if not count:
        return []
    chosen = {
        "Hardest held-out texts": order[:count],
        "Easiest held-out texts": order.flip(0)[:count],
    }
    return [
        Passage(
            title=title,
            parts=tuple((_said(source, shares[i]), as_text(source, i)) for i in some.tolist()),
        )
        for title, some in chosen.items()
    ]


def looked_at(count: int) -> Tensor:
    """Indices of `LOOKED_AT` of so many texts at an even stride; of all where there are fewer."""
    some = min(count, LOOKED_AT)
    return torch.arange(some) * count // some


def _shares(run: Run, index: Tensor) -> Tensor:
    """Probabilities of the classes, ``[B, K]`` on the CPU."""
    model = Frozen(run.task, run.state)
    batch = model.prepare(fetch_batch(run.held_out, index))
    with torch.no_grad():
        return run.task.forward(model, batch).float().softmax(dim=1).cpu()  # type: ignore[union-attr]


def _said(source: Texts, shares: Tensor) -> str:
    """The likeliest class of a text."""
    best = int(shares.argmax())
    return f"the model: {source.classes[best]} ({float(shares[best]):.1%})"
