"""What a classifier makes of a photograph."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from tensordict import TensorDict
from torch import Tensor
from torchvision.transforms.v2 import functional as V

from attent.pipeline.score import Frozen
from attent.tasks.build import Run
from attent.tasks.classification.task import Classification
from attent.tasks.command import Prediction
from attent.tasks.config import ConfigError
from attent.tasks.data.images import Images
from attent.tasks.data.scenes import SCENE_CLASSES
from attent.tasks.finetuning.pictures import shown

SHOWN = 5
"""Classes."""


def predicted(run: Run, config: Any, image: Tensor) -> Prediction:
    """The likeliest classes of a photograph.

    Args:
        run: its state holds the weights.
        config: its options.
        image: ``[3, H, W]`` uint8.

    Returns:
        A figure, and ``probabilities`` ``[K]`` float32.

    Raises:
        ConfigError: the run was not trained on photographs.
    """
    source, task = run.held_out, run.task
    assert isinstance(task, Classification)
    if not isinstance(source, Images):
        raise ConfigError(f"a run on data {config.data} sees arrays, not photographs")
    names = SCENE_CLASSES if config.data == "scenes" else source.classes or ()
    seen = source.viewed(image)
    model = Frozen(task, run.state)
    fields = {"image": source.standardized(seen)[None], "index": torch.zeros(1, dtype=torch.int64)}
    with torch.no_grad():
        logits = task.forward(model, model.prepare(TensorDict(fields, batch_size=[1])))[0]
    shares = logits.float().softmax(dim=0).cpu()
    best = shares.topk(min(SHOWN, len(shares)))
    labels = [names[i] if i < len(names) else f"class {i}" for i in best.indices.tolist()]
    figure = Figure(figsize=(8, 3), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.imshow(shown(_cut(image, source)).permute(1, 2, 0).numpy())
    left.set_axis_off()
    right.barh(labels[::-1], best.values.flip(0).numpy(), color="#3b6fb6")
    bars = len(labels)
    right.set(xlim=(0, 1), xlabel="probability", ylim=(bars - SHOWN - 0.5, bars - 0.5))
    right.spines[["top", "right"]].set_visible(False)
    words = ", ".join(
        f"{n} {p:.1%}" for n, p in zip(labels[:3], best.values.tolist(), strict=False)
    )
    arrays: dict[str, np.ndarray] = {"probabilities": shares.numpy()}
    return Prediction(figure=figure, words=words, arrays=arrays)


def _cut(image: Tensor, source: Images) -> Tensor:
    """What is seen of a photograph ``[3, H, W]``, the square in its middle, in its own pixels."""
    if image.shape[-2:] == (source.size, source.size):
        return image
    side = max(1, round(min(image.shape[-2:]) * source.kept))
    return V.center_crop(image, [side, side])
