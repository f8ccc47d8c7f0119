"""Scenes of several modalities (rgb, depth, semseg) as a source of batches.

Shapes: B examples, H x W a scene's own size in pixels, S the view's side, s the stride of semseg.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

import torch
from tensordict import TensorDict
from torch import Tensor
from torchvision.tv_tensors import Image, Mask

from attent.pipeline.source import reading
from attent.tasks.data.joint import JointView, is_integer, one_key_each
from attent.tasks.data.pixels import DEVIATION, MEAN, Standardize

DOMAINS = {
    "rgb": "[3, H, W] uint8",
    "depth": "[1, H, W] float32",
    "semseg": "[H, W] of integers",
}
"""What may be asked for -> what a reader reads."""

_WRAPPED = {"rgb": Image, "depth": Image, "semseg": Mask}


class Reader(Protocol):
    """Raw scenes, one at a time, at their own size.

    A reader may also have ``labels`` (``[N]`` int64, a class for each scene), and ``blocks`` and
    ``window`` where it keeps scenes together (see `attent.pipeline.source.Source`).
    """

    def __len__(self) -> int:
        """The number of scenes, N."""
        ...

    def read(self, index: int) -> dict[str, Tensor]:
        """One scene: domain -> plain tensor as `DOMAINS` says, of the domains it was asked for.

        Called from several threads at once when a stream has workers.
        """
        ...

    def locate(self, index: int) -> str:
        """Where a scene is kept."""
        ...


def check_domains(domains: Sequence[str], known: Iterable[str] = DOMAINS) -> tuple[str, ...]:
    """The domains asked for, in the caller's order.

    Raises:
        ValueError: no domain, one twice, one that is none of those known, or a set, whose order
            would be another in the next process.
    """
    if not isinstance(domains, list | tuple):
        raise ValueError(
            f"domains must be a list or tuple, for its order; got {type(domains).__name__} "
            f"{domains!r}"
        )
    if not set(domains) <= set(known) or not domains or len(set(domains)) < len(domains):
        raise ValueError(
            f"domains are one or more of {', '.join(known)}, each once; got {list(domains)}"
        )
    return tuple(domains)


class Multimodal:
    """Batches of a reader's scenes: a source, with fixed views and random ones.

    Args:
        reader: where scenes come from.
        view: the square cut out of each, S x S.
        domains: which of `DOMAINS`, in the order of the batch's entries.
        semseg_stride: s; label maps are ``[S/s, S/s]``, every s-th pixel of the view.
        num_semseg_classes: ids are 0 to one less.
        mean: of rgb's three channels, for pixels in [0, 1]; ImageNet's by default.
        deviation: of rgb's three channels.

    Raises:
        ValueError: domains that are none or that the reader says (``domains``) it has not, a size
            that the stride does not divide, or labels that are not one int64 for each scene.
    """

    def __init__(
        self,
        reader: Reader,
        view: JointView,
        *,
        domains: Sequence[str],
        semseg_stride: int = 4,
        num_semseg_classes: int = 133,
        mean: Sequence[float] = MEAN,
        deviation: Sequence[float] = DEVIATION,
    ) -> None:
        self.reader, self.view = reader, view
        self.domains = check_domains(domains)
        readable = getattr(reader, "domains", self.domains)
        if not set(self.domains) <= set(readable):
            raise ValueError(
                f"domains are {list(self.domains)}, but {type(reader).__name__} reads "
                f"{list(readable)}"
            )
        if semseg_stride < 1 or view.size % semseg_stride:
            raise ValueError(
                f"the view's size {view.size} must be a multiple of semseg_stride {semseg_stride}"
            )
        if num_semseg_classes < 1:
            raise ValueError(f"num_semseg_classes is at least 1; got {num_semseg_classes}")
        self.semseg_stride, self.num_semseg_classes = semseg_stride, num_semseg_classes
        self.labels = _labels_of(reader)
        self.blocks: Tensor | None = getattr(reader, "blocks", None)
        if hasattr(reader, "window"):
            self.window: int = reader.window  # type: ignore[attr-defined]
        self.standardized = Standardize(mean, deviation)

    def __len__(self) -> int:
        return len(self.reader)

    def locate(self, index: int) -> str:
        """Where the reader keeps a scene."""
        return self.reader.locate(index)

    def fetch(self, index: Tensor) -> TensorDict:
        """Fixed views of the scenes at ``index`` (``[B]`` int64).

        Returns:
            Of batch size ``[B]``, in the order of ``domains``: ``rgb`` float32 ``[3, S, S]``,
            standardised; ``depth`` float32 ``[1, S, S]``, in the reader's unit; ``semseg`` int64
            ``[S/s, S/s]``; then ``label`` int64 if the reader has labels.

        Raises:
            ValueError: the reader's own; a scene that is not as `DOMAINS` says; sizes that differ
                within a scene; an id that is no class.
        """
        return self._batch(index, [None] * len(index))

    def fetch_augmented(self, index: Tensor, keys: Tensor) -> TensorDict:
        """As `fetch`, each scene through the random view of its key.

        Args:
            index: ``[B]`` int64.
            keys: ``[B]`` int64, one for each example.
        """
        return self._batch(index, one_key_each(index, keys))

    def _batch(self, index: Tensor, keys: Sequence[int | None]) -> TensorDict:
        scenes = [self._example(i, key) for i, key in zip(index.tolist(), keys, strict=True)]
        batch = TensorDict({}, batch_size=[len(index)])
        for domain in self.domains:
            batch[domain] = self._finished(domain, [scene[domain] for scene in scenes])
        if self.labels is not None:
            batch["label"] = self.labels[index]
        return batch

    def _finished(self, domain: str, values: list[Tensor]) -> Tensor:
        """One domain of a batch, from views as they were read: ``[3, S, S]``, ``[S, S]``, ..."""
        if domain == "semseg":
            # Where one size divides the other, nearest takes the first pixel of each cell.
            s = self.semseg_stride
            return torch.stack([value[::s, ::s] for value in values]).to(torch.int64)
        # Contiguous, because a convolution's last bits follow the layout in memory, which decoding
        # and resizing leave in different states.
        stacked = torch.stack(values).to(torch.float32, memory_format=torch.contiguous_format)
        return self.standardized(stacked) if domain == "rgb" else stacked

    def _example(self, index: int, key: int | None) -> dict[str, Tensor]:
        scene = self._scene(index)
        square = (self.view.size, self.view.size)
        if key is None and all(value.shape[-2:] == square for value in scene.values()):
            return scene
        wrapped = {domain: _WRAPPED[domain](value) for domain, value in scene.items()}
        viewed = self.view(wrapped, key)
        return {domain: value.as_subclass(Tensor) for domain, value in viewed.items()}

    def _scene(self, index: int) -> dict[str, Tensor]:
        """A scene as it was read, its domains as they should be."""
        reading(index)
        found = self.reader.read(index)
        missing = [domain for domain in self.domains if domain not in found]
        if missing:
            raise ValueError(
                f"{self.locate(index)}: expected {', '.join(self.domains)}; found no "
                f"{' and no '.join(missing)}"
            )
        scene = {domain: found[domain] for domain in self.domains}
        for domain, value in scene.items():
            if not _is_raw(domain, value):
                raise ValueError(
                    f"{self.locate(index)}: {domain} is {list(value.shape)} {value.dtype}; "
                    f"expected {DOMAINS[domain]}"
                )
        if "semseg" in scene:
            self._check_ids(index, scene["semseg"])
        return scene

    def _check_ids(self, index: int, semseg: Tensor) -> None:
        """All ids of the scene, seen in this view or not: a scene is right or wrong as a whole."""
        # torch has no minimum of unsigned integers other than bytes.
        known = semseg if semseg.dtype == torch.uint8 else semseg.to(torch.int64)
        low, high = (int(bound) for bound in known.aminmax())
        if low < 0 or high >= self.num_semseg_classes:
            raise ValueError(
                f"{self.locate(index)}: semseg holds the id {low if low < 0 else high}; expected "
                f"0 to {self.num_semseg_classes - 1} (num_semseg_classes is "
                f"{self.num_semseg_classes})"
            )


def _is_raw(domain: str, value: Tensor) -> bool:
    """Whether a reader's tensor is as `DOMAINS` says, and not empty."""
    if not value.numel():
        return False
    if domain == "semseg":
        return value.ndim == 2 and is_integer(value.dtype)
    channels, dtype = (3, torch.uint8) if domain == "rgb" else (1, torch.float32)
    return value.ndim == 3 and len(value) == channels and value.dtype == dtype


def _labels_of(reader: Reader) -> Tensor | None:
    """The reader's labels, if it has any."""
    labels = getattr(reader, "labels", None)
    if labels is None:
        return None
    if labels.shape != (len(reader),) or labels.dtype != torch.int64:
        raise ValueError(
            f"{type(reader).__name__}.labels are {list(labels.shape)} {labels.dtype}; expected "
            f"[{len(reader)}] int64, one for each scene"
        )
    return labels
