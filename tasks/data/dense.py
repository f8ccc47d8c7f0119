"""Scenes with a map to predict (labels, depth, ...) as a source of batches.

Shapes: B examples, C channels of the target, H x W a scene's own size in pixels, S the view's side,
s the stride of semseg.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from tensordict import TensorDict
from torch import Tensor
from torchvision.tv_tensors import Image, Mask

from attent.tasks.data.dense_view import IGNORED, View
from attent.tasks.data.joint import is_integer, one_key_each
from attent.tasks.data.multimodal import Reader, check_domains
from attent.tasks.data.pixels import DEVIATION, MEAN, Standardize

CHANNELS = {
    "depth": 1,
    "depth_zbuffer": 1,
    "edge_texture": 1,
    "edge_occlusion": 1,
    "keypoints2d": 1,
    "keypoints3d": 1,
    "normal": 3,
    "principal_curvature": 2,
    "reshading": 1,
}
"""Targets that are measurements -> their channels."""

TARGETS = ("semseg", *CHANNELS)
"""What may be predicted."""

PSEUDO = "pseudo_"
"""Begins the names of domains that a network has predicted, from rgb and not from the scene."""

MASK = "mask_valid"
"""The domain, ``[H, W]`` bool, that says which measurements there are."""

_DEPTHS = ("depth", "depth_zbuffer")


class Dense:
    """Batches of a reader's scenes and what is to be predicted of each pixel.

    The reader's domains are those of `Multimodal`, the targets of `CHANNELS` (``[C, H, W]``
    float32), predicted ones (``pseudo_depth``, ``pseudo_semseg``) and ``mask_valid``. A
    measurement counts where it is finite, where ``mask_valid`` is true if a scene has one, and
    where depth is at most ``max_depth``; predicted depth wherever it is finite. It is 0 where it
    is not finite.

    Args:
        reader: where scenes come from.
        view: the square of each, S x S.
        inputs: which of rgb, depth and semseg, in the order of the batch's entries.
        target: one of `TARGETS`.
        num_classes: K, of target semseg, at most 255; None for other targets.
        reduce_zero_label: 0 is no class, and the classes are counted from 1.
        class_names: of the K classes, in their order; none if they are not known.
        pseudo: inputs (depth, semseg) for which the reader's ``pseudo_`` domains are taken.
        num_semseg_classes: of input semseg, at most 255.
        semseg_stride: s; the input's label maps are ``[S/s, S/s]``, every s-th pixel of the view.
        max_depth: the largest depth that counts, in the reader's unit; None for any.
        mean: of rgb's three channels, for pixels in [0, 1]; ImageNet's by default.
        deviation: of rgb's three channels.

    Attributes:
        num_outputs: K, or the target's channels.
        class_names: as above.

    Raises:
        ValueError: an option that is none or does not fit the others; a domain that the reader
            says (``domains``) it has not; an input that is the target.
    """

    def __init__(
        self,
        reader: Reader,
        view: View,
        *,
        inputs: Sequence[str],
        target: str,
        num_classes: int | None = None,
        reduce_zero_label: bool = False,
        class_names: Sequence[str] = (),
        pseudo: Sequence[str] = (),
        num_semseg_classes: int = 133,
        semseg_stride: int = 4,
        max_depth: float | None = None,
        mean: Sequence[float] = MEAN,
        deviation: Sequence[float] = DEVIATION,
    ) -> None:
        self.reader, self.view, self.target = reader, view, target
        self.inputs = check_domains(inputs)
        self._domain = {
            name: PSEUDO + name if name in pseudo else name for name in self.inputs
        }  # input -> the reader's
        self._check_domains(pseudo)
        self.num_outputs = self._check_classes(num_classes, reduce_zero_label, num_semseg_classes)
        if "semseg" in inputs and (semseg_stride < 1 or view.size % semseg_stride):
            raise ValueError(
                f"the view's size {view.size} must be a multiple of semseg_stride {semseg_stride}"
            )
        if max_depth is not None and (
            max_depth <= 0 or not {target, *self._domain.values()} & set(_DEPTHS)
        ):
            raise ValueError(
                f"max_depth is above 0, and of a depth among inputs and target; got {max_depth} "
                f"for inputs {list(inputs)} and target {target}"
            )
        if class_names and (target != "semseg" or len(class_names) != self.num_outputs):
            raise ValueError(
                f"class_names are of the {num_classes} classes of target semseg; got "
                f"{len(class_names)} for target {target}"
            )
        self.reduce_zero_label, self.class_names = reduce_zero_label, tuple(class_names)
        self.num_semseg_classes, self.semseg_stride = num_semseg_classes, semseg_stride
        self.max_depth = max_depth
        self.standardized = Standardize(mean, deviation)

    def __len__(self) -> int:
        return len(self.reader)

    def locate(self, index: int) -> str:
        """Where the reader keeps a scene."""
        return self.reader.locate(index)

    def fetch(self, index: Tensor) -> TensorDict:
        """Fixed views of the scenes at ``index`` (``[B]`` int64).

        Returns:
            Of batch size ``[B]``, the inputs in their order, then the target. Inputs: ``rgb``
            float32 ``[3, S, S]``, standardised; ``depth`` float32 ``[1, S, S]``, in the reader's
            unit, and ``depth_valid`` bool ``[1, S, S]``; ``semseg`` int64 ``[S/s, S/s]``, where
            ``num_semseg_classes`` stands for no class (255 in the scene, or padding). ``target``:
            of semseg int64 ``[S, S]``, where 255 is ignored; else float32 ``[C, S, S]``, and
            ``valid`` bool ``[1, S, S]``.

        Raises:
            ValueError: the reader's own; a scene that is not as its domains are; sizes that differ
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

        def stacked(name: str) -> Tensor:
            return torch.stack([scene[name].as_subclass(Tensor) for scene in scenes])

        batch = TensorDict({}, batch_size=[len(index)])
        for name, domain in self._domain.items():
            value = stacked(domain)
            if name == "rgb":
                batch[name] = self.standardized(value)
            elif name == "depth":
                batch[name] = value
                batch["depth_valid"] = stacked(f"{domain}_valid").unsqueeze(1)
            else:
                s = self.semseg_stride
                ids = value[:, ::s, ::s].to(torch.int64)
                batch[name] = ids.masked_fill_(ids == IGNORED, self.num_semseg_classes)
        if self.target == "semseg":
            return batch.set("target", stacked("semseg").to(torch.int64))
        batch["target"] = stacked(self.target)
        return batch.set("valid", stacked(f"{self.target}_valid").unsqueeze(1))

    def _example(self, index: int, key: int | None) -> dict[str, Tensor]:
        found = self.reader.read(index)
        wanted = (*self._domain.values(), self.target)
        missing = [domain for domain in wanted if domain not in found]
        if missing:
            raise ValueError(
                f"{self.locate(index)}: expected {', '.join(wanted)}; found no "
                f"{' and no '.join(missing)}"
            )
        sample: dict[str, Tensor] = {}
        for domain in wanted:
            value = found[domain]
            self._check_raw(index, domain, value)
            if domain == "rgb":
                sample[domain] = Image(value)
            elif domain.endswith("semseg"):
                sample[domain] = Mask(self._ids(index, domain, value))
            else:
                value, valid = self._measured(domain, value)
                if MASK in found and not domain.startswith(PSEUDO):
                    self._check_raw(index, MASK, found[MASK])
                    valid = self._masked(index, valid, found[MASK])
                sample[domain], sample[f"{domain}_valid"] = Mask(value), Mask(valid)
        return self.view(sample, key)

    def _measured(self, domain: str, value: Tensor) -> tuple[Tensor, Tensor]:
        """A measurement ``[C, H, W]``, 0 where there is none, and where there is one ``[H, W]``."""
        finite = value.isfinite()
        valid = finite.all(dim=0)
        if not bool(valid.all()):
            value = value.where(finite, 0)
        if self.max_depth is not None and domain in _DEPTHS:
            valid = valid & (value[0] <= self.max_depth)
        return value, valid

    def _masked(self, index: int, valid: Tensor, mask: Tensor) -> Tensor:
        if mask.shape != valid.shape:
            raise ValueError(
                f"{self.locate(index)}: {MASK} is {list(mask.shape)} on a scene of "
                f"{list(valid.shape)}"
            )
        return valid & mask

    def _ids(self, index: int, domain: str, ids: Tensor) -> Tensor:
        """Ids as uint8, all seen to be classes or `IGNORED`, of this view or not."""
        is_target = domain == self.target
        reduced = is_target and self.reduce_zero_label
        count = self.num_outputs if is_target else self.num_semseg_classes
        last = count if reduced else count - 1
        ids = ids.to(torch.int64)
        wrong = ((ids < 0) | (ids > last)) & (ids != IGNORED)
        if bool(wrong.any()):
            option = "num_classes" if is_target else "num_semseg_classes"
            raise ValueError(
                f"{self.locate(index)}: {domain} holds the id {int(ids[wrong][0])}; expected 0 to "
                f"{last} or {IGNORED} for no class ({option} is {count}"
                + (", reduce_zero_label)" if reduced else ")")
            )
        if reduced:
            ids = torch.where((ids == 0) | (ids == IGNORED), IGNORED, ids - 1)
        return ids.to(torch.uint8)

    def _check_raw(self, index: int, domain: str, value: Tensor) -> None:
        """Raise for a tensor that is not what its domain should be."""
        if domain.endswith("semseg"):
            expected, good = "[H, W] of integers", value.ndim == 2 and is_integer(value.dtype)
        elif domain == MASK:
            expected, good = "[H, W] bool", value.ndim == 2 and value.dtype == torch.bool
        else:
            channels = 3 if domain == "rgb" else CHANNELS[domain.removeprefix(PSEUDO)]
            dtype = torch.uint8 if domain == "rgb" else torch.float32
            expected = f"[{channels}, H, W] {str(dtype).removeprefix('torch.')}"
            good = value.ndim == 3 and len(value) == channels and value.dtype == dtype
        if not good or not value.numel():
            raise ValueError(
                f"{self.locate(index)}: {domain} is {list(value.shape)} {value.dtype}; expected "
                f"{expected}"
            )

    def _check_domains(self, pseudo: Sequence[str]) -> None:
        """Raise for inputs and a target that do not fit each other or the reader."""
        if self.target not in TARGETS:
            raise ValueError(f"target is one of {', '.join(TARGETS)}; got {self.target!r}")
        predicted = [name for name in self.inputs if name != "rgb"]
        if isinstance(pseudo, str) or not set(pseudo) <= set(predicted):
            raise ValueError(
                f"pseudo is a list of inputs other than rgb; got {pseudo!r} for the inputs "
                f"{list(self.inputs)}"
            )
        answer = _DEPTHS if self.target in _DEPTHS else (self.target,)
        given = [domain for domain in self._domain.values() if domain in answer]
        if given:
            raise ValueError(
                f"the input {given[0]} is what is to be predicted (target {self.target}); leave it "
                f"out, or put it in pseudo if the reader has {PSEUDO}{given[0]}"
            )
        wanted = (*self._domain.values(), self.target)
        readable = getattr(self.reader, "domains", wanted)
        if not set(wanted) <= set(readable):
            raise ValueError(
                f"inputs and target need {', '.join(wanted)}, but {type(self.reader).__name__} "
                f"reads {', '.join(readable)}"
            )

    def _check_classes(self, num_classes: int | None, reduce: bool, num_semseg: int) -> int:
        """How many numbers a pixel's prediction has."""
        if not 1 <= num_semseg <= IGNORED:
            raise ValueError(f"num_semseg_classes is 1 to {IGNORED}; got {num_semseg}")
        if self.target != "semseg":
            if num_classes is not None or reduce:
                raise ValueError(
                    f"num_classes and reduce_zero_label are of target semseg, not {self.target}"
                )
            return CHANNELS[self.target]
        most = IGNORED - 1 if reduce else IGNORED
        if num_classes is None or not 1 <= num_classes <= most:
            raise ValueError(f"num_classes of target semseg is 1 to {most}; got {num_classes}")
        return num_classes
