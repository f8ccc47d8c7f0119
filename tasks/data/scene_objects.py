"""Rendered scenes as pictures with objects."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from tensordict import TensorDict
from torch import Tensor

from attent.tasks.data.joint import one_key_each
from attent.tasks.data.objects import ObjectView, Scene, batch_of
from attent.tasks.data.scenes import SHAPES, Scenes


class SceneObjects:
    """The solids of rendered scenes: boxes, shapes, masks of what is seen of them.

    Args:
        scenes: where they are from.
        view: of each; its ``size`` is the scenes' own or another.

    Attributes:
        classes: of the labels from 1 on.
    """

    classes = SHAPES

    def __init__(self, scenes: Scenes, view: ObjectView) -> None:
        self.scenes, self.view = scenes, view

    def __len__(self) -> int:
        return len(self.scenes)

    def locate(self, index: int) -> str:
        """Which scene that is."""
        return self.scenes.locate(index)

    def fetch(self, index: Tensor) -> TensorDict:
        """Fixed views of the scenes at ``index`` (``[B]`` int64); see `batch_of`.

        Raises:
            IndexError: an index that is not in [0, N).
        """
        return self._batch(index, [None] * len(index))

    def fetch_augmented(self, index: Tensor, keys: Tensor) -> TensorDict:
        """As `fetch`, each scene under its key (``[B]`` int64)."""
        return self._batch(index, one_key_each(index, keys))

    def _batch(self, index: Tensor, keys: Sequence[int | None]) -> TensorDict:
        found = self.scenes.fetch(index)
        slots = torch.arange(1, found["box_labels"].shape[1] + 1, dtype=torch.uint8)
        masks = (found["instances"][:, None] == slots[:, None, None]).to(torch.uint8)
        viewed = []
        for i, key in enumerate(keys):
            labels = found["box_labels"][i]
            scene = Scene(
                found["rgb"][i],
                found["boxes"][i],
                labels,
                masks[i],
                torch.zeros_like(labels).bool(),
            )
            viewed.append(self.view(scene.kept(labels > 0), key))
        return batch_of(viewed, self.view.size)
