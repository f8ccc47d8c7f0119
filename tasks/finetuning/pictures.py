"""What a fine-tuned model makes of held-out scenes, and of a photograph."""

from __future__ import annotations

from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor
from torchvision.tv_tensors import Image, Mask

from attent.pipeline import Task
from attent.pipeline.score import Frozen
from attent.pipeline.source import fetch_batch
from attent.tasks.build import Run
from attent.tasks.config import ConfigError
from attent.tasks.data.dense import Dense

SCENES = 6
"""Shown."""


def of_held_out(run: Run) -> tuple[TensorDict, Tensor]:
    """A few held-out scenes as the model sees them, and what it predicts of them."""
    task: Any = run.task
    model = Frozen(task, run.state)
    index = torch.arange(min(SCENES, len(run.held_out)))
    batch = model.prepare(fetch_batch(run.held_out, index))
    with torch.no_grad():
        predicted = task.predict(task.forward(model, batch))
    return batch.cpu(), predicted.cpu()


def of_photograph(run: Run, image: Tensor) -> tuple[Tensor, Tensor]:
    """A photograph as it is shown to the model, and what that predicts of it.

    Args:
        run: of segmentation or depth, its held-out source a `Dense`.
        image: ``[3, H, W]`` uint8.

    Returns:
        The photograph in the fixed view, ``[3, h, w]`` uint8, and the prediction ``[..., h, w]``,
        without what padding was added to the view.

    Raises:
        ConfigError: the model encodes more than rgb.
    """
    source, task = run.held_out, run.task
    assert isinstance(source, Dense)
    if source.inputs != ("rgb",):
        raise ConfigError(
            f"a photograph is rgb alone; the run {task.name} encodes {', '.join(source.inputs)}"
        )
    inside = torch.ones(image.shape[-2:], dtype=torch.bool)
    viewed = source.view({"rgb": Image(image), "inside": Mask(inside)}, None)
    shown, kept = (viewed[name].as_subclass(Tensor) for name in ("rgb", "inside"))
    predicted = _predicted(task, run.state, {"rgb": source.standardized(shown)})
    rows, columns = int(kept.any(dim=1).sum()), int(kept.any(dim=0).sum())
    return shown[:, :rows, :columns], predicted[..., :rows, :columns]


def _predicted(task: Task, state: TensorDict, fields: dict[str, Tensor]) -> Tensor:
    able: Any = task
    model = Frozen(task, state)
    batch = TensorDict({name: value[None] for name, value in fields.items()}, batch_size=[1])
    batch["index"] = torch.zeros(1, dtype=torch.int64)
    with torch.no_grad():
        return able.predict(task.forward(model, model.prepare(batch)))[0].cpu()
