"""Mask R-CNN (He et al., ICCV 2017) on a plain vision transformer, of torchvision's parts.

The levels of the feature pyramid all come from the transformer's last map, as in ViTDet (Li et al.,
Exploring Plain Vision Transformer Backbones for Object Detection, ECCV 2022, section 3).

Shapes: B pictures of S x S pixels, patches of P x P, D channels of the encoder, C of the pyramid, A
anchors, R regions drawn for a loss of which Q may hold an object, K classes, m x m pixels of a
predicted mask, n objects of a picture.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from timm.layers.norm import LayerNorm2d
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._pytree import register_dataclass
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.roi_heads import (
    RoIHeads,
    paste_masks_in_image,
    project_masks_on_boxes,
)
from torchvision.models.detection.rpn import (
    RegionProposalNetwork,
    RPNHead,
    concat_box_prediction_layers,
)
from torchvision.ops import MultiScaleRoIAlign

from attent.models.multimae import MultiViT

LEVELS = ("0", "1", "2", "3")
"""Of the pyramid, the finest first: strides P / 4, P / 2, P and 2 P."""

POOLED = "pool"
"""A level of stride 4 P for anchors alone, where five sizes of them are asked for."""

Objects = dict[str, Tensor]
"""Of one picture: ``boxes`` ``[n, 4]`` float32 (left, top, right, bottom in pixels), ``labels``
``[n]`` int64 from 1 to K, ``masks`` ``[n, S, S]``; of a detection also ``scores`` ``[n]``."""

Seeded = Callable[[int], contextlib.AbstractContextManager[Any]]
"""A picture's place in the batch -> where the random draws for its loss are made."""


@dataclass(frozen=True)
class Encoded:
    """What is known of a batch before any region is looked at.

    Attributes:
        maps: level -> ``[B, C, h, w]``.
        objectness: ``[B, A]``, logits.
        anchor_deltas: ``[B, A, 4]``.
        anchors: ``[A, 4]``, the same for every picture.
        size: (height, width) of the pictures.
    """

    maps: dict[str, Tensor]
    objectness: Tensor
    anchor_deltas: Tensor
    anchors: Tensor
    size: tuple[int, int]


@dataclass(frozen=True)
class Predictions:
    """What a loss is a function of, a row a picture; regions beyond those drawn are zero.

    Attributes:
        objectness: ``[B, A]``, logits.
        anchor_deltas: ``[B, A, 4]``.
        class_logits: ``[B, R, K + 1]``, background first.
        box_deltas: ``[B, R, K + 1, 4]``.
        mask_logits: ``[B, Q, m, m]``, of the region's own class.
    """

    objectness: Tensor
    anchor_deltas: Tensor
    class_logits: Tensor
    box_deltas: Tensor
    mask_logits: Tensor


register_dataclass(Predictions)


@dataclass(frozen=True)
class Assigned:
    """What predictions are held against; constants, drawn and matched for each picture.

    Attributes:
        anchor_labels: ``[B, A]``, 1 for an object, 0 for background, -1 for an anchor not drawn.
        anchor_targets: ``[B, A, 4]``.
        labels: ``[B, R]`` int64, 0 for background, -1 for no region.
        box_targets: ``[B, R, 4]``.
        mask_targets: ``[B, Q, m, m]``, in [0, 1].
        has_mask: ``[B, Q]`` bool.
    """

    anchor_labels: Tensor
    anchor_targets: Tensor
    labels: Tensor
    box_targets: Tensor
    mask_targets: Tensor
    has_mask: Tensor


class FeaturePyramid(nn.Module):
    """Four maps of one, at 4, 2, 1 and 1/2 times its resolution, of the same channels each.

    Args:
        dim: D, of the map.
        channels: C, of every level.
    """

    def __init__(self, dim: int, channels: int = 256) -> None:
        super().__init__()
        half, quarter = max(1, dim // 2), max(1, dim // 4)
        resize: list[tuple[nn.Module, int]] = [
            (
                nn.Sequential(
                    nn.ConvTranspose2d(dim, half, 2, 2),
                    LayerNorm2d(half),
                    nn.GELU(),
                    nn.ConvTranspose2d(half, quarter, 2, 2),
                ),
                quarter,
            ),
            (nn.ConvTranspose2d(dim, half, 2, 2), half),
            (nn.Identity(), dim),
            (nn.MaxPool2d(2), dim),
        ]
        self.levels = nn.ModuleDict(
            {
                name: nn.Sequential(
                    resized,
                    nn.Conv2d(width, channels, 1, bias=False),
                    LayerNorm2d(channels),
                    nn.Conv2d(channels, channels, 3, padding=1, bias=False),
                    LayerNorm2d(channels),
                )
                for name, (resized, width) in zip(LEVELS, resize, strict=True)
            }
        )

    def forward(self, tokens: Tensor) -> dict[str, Tensor]:
        """``[B, D, h, w]`` -> level -> ``[B, C, 4 h, 4 w]`` to ``[B, C, h / 2, w / 2]``.

        Raises:
            ValueError: h or w is odd: the coarsest level would not lie on the picture.
        """
        height, width = tokens.shape[-2:]
        if height % 2 or width % 2:
            raise ValueError(
                f"a feature pyramid needs an even number of patches a side, got {height} x {width}"
            )
        return {name: level(tokens) for name, level in self.levels.items()}


class MaskRCNN(nn.Module):
    """Boxes, classes and masks of the objects in pictures.

    Args:
        encoder: sees rgb; its patches are P pixels a side.
        num_classes: K, without the background.
        channels: C, of the pyramid and of the mask head.
        box_dim: hidden channels of the box head.
        anchor_sizes: sides of the anchors in pixels, one for each level, the finest first: four, or
            five for one more level of stride 4 P.
        anchor_ratios: heights of the anchors in widths.
        num_proposals: regions proposed at most, before (of each level) and after suppression, in
            training as elsewhere: a loss is the same whatever mode it is asked for in.
        anchors_drawn: anchors in a picture's loss.
        regions_drawn: R; a quarter of them at most with an object.
        min_score: detections below are dropped.
        max_detections: of a picture.

    Raises:
        ValueError: an encoder without rgb or with heads; another number of anchor sizes.
    """

    def __init__(
        self,
        encoder: MultiViT,
        num_classes: int,
        *,
        channels: int = 256,
        box_dim: int = 1024,
        anchor_sizes: Sequence[int] = (32, 64, 128, 256, 512),
        anchor_ratios: Sequence[float] = (0.5, 1.0, 2.0),
        num_proposals: int = 1000,
        anchors_drawn: int = 256,
        regions_drawn: int = 512,
        min_score: float = 0.05,
        max_detections: int = 100,
    ) -> None:
        super().__init__()
        if "rgb" not in encoder.input_adapters or len(encoder.output_adapters):
            raise ValueError("objects are found in tokens of rgb: an encoder of rgb, without heads")
        if len(anchor_sizes) not in (4, 5):
            raise ValueError(f"anchor_sizes are four or five, one a level; got {len(anchor_sizes)}")
        self.encoder = encoder
        self.pyramid = FeaturePyramid(encoder.dim, channels)
        self.pools = len(anchor_sizes) == 5
        top = {"training": num_proposals, "testing": num_proposals}
        self.rpn = RegionProposalNetwork(
            AnchorGenerator(
                tuple((int(size),) for size in anchor_sizes),
                (tuple(anchor_ratios),) * len(anchor_sizes),
            ),
            RPNHead(channels, len(anchor_ratios)),
            0.7, 0.3, anchors_drawn, 0.5, top, top, 0.7,
        )  # fmt: skip
        self.roi_heads = RoIHeads(
            MultiScaleRoIAlign(LEVELS, output_size=7, sampling_ratio=2),  # type: ignore[arg-type]
            TwoMLPHead(channels * 7 * 7, box_dim),
            FastRCNNPredictor(box_dim, num_classes + 1),
            0.5, 0.5, regions_drawn, 0.25, None, min_score, 0.5, max_detections,
            mask_roi_pool=MultiScaleRoIAlign(LEVELS, output_size=14, sampling_ratio=2),  # type: ignore[arg-type]
            mask_head=MaskRCNNHeads(channels, (channels,) * 4, 1),
            mask_predictor=MaskRCNNPredictor(channels, channels, num_classes + 1),
        )  # fmt: skip
        self.num_classes = num_classes

    def no_weight_decay(self) -> set[str]:
        """Those of the encoder."""
        return {f"encoder.{name}" for name in self.encoder.no_weight_decay()}

    def forward(
        self,
        pictures: Tensor | None = None,
        objects: Sequence[Objects] | None = None,
        *,
        encoded: Encoded | None = None,
        seeded: Seeded | None = None,
    ) -> tuple[Predictions, Assigned, Encoded] | list[Objects]:
        """What a loss is made of, where objects are given; detections, where they are not.

        Args:
            pictures: ``[B, 3, S, S]``, normalised.
            objects: of each picture; there may be none in it.
            encoded: of an earlier call, in place of ``pictures``.
            seeded: where anchors and regions are drawn from torch's global generator, a picture
                at a time; None draws as the generator stands.

        Returns:
            Predictions, what they are held against and what led to them; or each picture's
            detections, the highest scores first, their ``masks`` bool.

        Raises:
            ValueError: detections are asked for in training mode.
        """
        if encoded is None:
            if pictures is None:
                raise ValueError("give pictures, or what was encoded of them")
            encoded = self._encode(pictures)
        proposals = self._propose(encoded)
        if objects is None:
            return self._detect(encoded, proposals)
        return *self._predict(
            encoded, proposals, objects, seeded or contextlib.nullcontext
        ), encoded

    def _encode(self, pictures: Tensor) -> Encoded:
        layout = self.encoder.layout({"rgb": pictures})
        tokens = self.encoder({"rgb": pictures})
        assert isinstance(tokens, Tensor)
        patches = tokens[:, layout.span("rgb")].transpose(1, 2).unflatten(2, layout.grids["rgb"])
        maps = self.pyramid(patches)
        if self.pools:
            maps[POOLED] = F.max_pool2d(maps[LEVELS[-1]], 1, 2)
        objectness, deltas = self.rpn.head(list(maps.values()))
        images = ImageList(pictures, [layout.image] * len(pictures))
        anchors = self.rpn.anchor_generator(images, list(maps.values()))[0]
        flat_objectness, flat_deltas = concat_box_prediction_layers(objectness, deltas)
        batch = len(pictures)
        return Encoded(
            maps,
            flat_objectness.reshape(batch, -1).float(),
            flat_deltas.reshape(batch, -1, 4).float(),
            anchors,
            layout.image,
        )

    def _propose(self, encoded: Encoded) -> list[Tensor]:
        """Regions that may hold an object, for each picture ``[r, 4]``; constants."""
        batch = len(encoded.objectness)
        ratios = self.rpn.anchor_generator.num_anchors_per_location()
        counts = [
            level[0, 0].numel() * own
            for level, own in zip(encoded.maps.values(), ratios, strict=True)
        ]
        with torch.no_grad():
            deltas = encoded.anchor_deltas.detach().reshape(-1, 4)
            boxes = self.rpn.box_coder.decode(deltas, [encoded.anchors] * batch)
            return self.rpn.filter_proposals(
                boxes.view(batch, -1, 4), encoded.objectness, [encoded.size] * batch, counts
            )[0]

    def _predict(
        self,
        encoded: Encoded,
        proposals: Sequence[Tensor],
        objects: Sequence[Objects],
        seeded: Seeded,
    ) -> tuple[Predictions, Assigned]:
        drawn = []
        with torch.no_grad():
            for i, (own, proposed) in enumerate(zip(objects, proposals, strict=True)):
                with seeded(i):
                    drawn.append(self._draw(own, proposed, encoded.anchors))
        heads: Any = self.roi_heads
        sizes = [encoded.size] * len(drawn)
        regions = [one.regions for one in drawn]
        pooled = heads.box_head(heads.box_roi_pool(encoded.maps, regions, sizes))
        class_logits, box_deltas = heads.box_predictor(pooled)
        held = [one.regions[one.labels > 0] for one in drawn]
        classes = torch.cat([one.labels[one.labels > 0] for one in drawn])
        masks = heads.mask_head(heads.mask_roi_pool(encoded.maps, held, sizes))
        mask_logits = heads.mask_predictor(masks)
        own = torch.arange(len(classes), device=classes.device)
        mask_logits = mask_logits[own, classes]
        sampler = heads.fg_bg_sampler
        most = sampler.batch_size_per_image
        most_held = int(most * sampler.positive_fraction)
        counts, counts_held = [len(each) for each in regions], [len(each) for each in held]
        predictions = Predictions(
            encoded.objectness,
            encoded.anchor_deltas,
            _rows(class_logits.float().split(counts), most),
            _rows(box_deltas.float().unflatten(1, (-1, 4)).split(counts), most),
            _rows(mask_logits.float().split(counts_held), most_held),
        )
        return predictions, Assigned(
            torch.stack([one.anchor_labels for one in drawn]),
            torch.stack([one.anchor_targets for one in drawn]),
            _rows([one.labels for one in drawn], most, fill=-1),
            _rows([one.box_targets for one in drawn], most),
            _rows([one.mask_targets for one in drawn], most_held),
            _rows([torch.ones_like(each[:, 0], dtype=torch.bool) for each in held], most_held),
        )

    def _draw(self, own: Objects, proposed: Tensor, anchors: Tensor) -> _Drawn:
        """The anchors and regions of one picture's loss, in torchvision's order of draws."""
        labels, matched = self.rpn.assign_targets_to_anchors([anchors], [own])
        (positive,), (negative,) = self.rpn.fg_bg_sampler(labels)
        anchor_labels = torch.full_like(labels[0], -1)
        anchor_labels[negative.bool()] = 0
        anchor_labels[positive.bool()] = 1
        (anchor_targets,) = self.rpn.box_coder.encode(matched, [anchors])
        (regions,), (of,), (classes,), (box_targets,) = self.roi_heads.select_training_samples(
            [proposed], [own]
        )
        held = classes > 0
        side = 2 * self.roi_heads.mask_roi_pool.output_size[0]  # type: ignore[union-attr]
        if bool(held.any()):
            masks = project_masks_on_boxes(own["masks"], regions[held], of[held], side)
        else:
            masks = regions.new_zeros(0, side, side)
        return _Drawn(anchor_labels, anchor_targets, regions, classes, box_targets, masks)

    def _detect(self, encoded: Encoded, proposals: list[Tensor]) -> list[Objects]:
        if self.roi_heads.training:
            raise ValueError("detections are made in eval mode: call eval() first")
        found, _ = self.roi_heads(encoded.maps, proposals, [encoded.size] * len(proposals))
        for one in found:
            pasted = paste_masks_in_image(one["masks"].float(), one["boxes"], encoded.size)
            one["masks"] = pasted[:, 0] > 0.5
        return found


@dataclass(frozen=True)
class _Drawn:
    """Of one picture: see `Assigned`; ``regions`` ``[r, 4]`` and what follows are not padded."""

    anchor_labels: Tensor
    anchor_targets: Tensor
    regions: Tensor
    labels: Tensor
    box_targets: Tensor
    mask_targets: Tensor


def _rows(values: Sequence[Tensor], length: int, fill: int = 0) -> Tensor:
    """``[n_i, ...]`` for each picture -> ``[B, length, ...]``, filled up at the end."""
    return torch.stack(
        [
            F.pad(value, (0, 0) * (value.ndim - 1) + (0, length - len(value)), value=fill)
            for value in values
        ]
    )
