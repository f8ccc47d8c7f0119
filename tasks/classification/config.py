"""The options of ``attent classify``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from attent.tasks.config import RunConfig, SelectionConfig, TrainingConfig, check_shared, need
from attent.tasks.data.randaugment import STRONGEST


@dataclass(frozen=True, kw_only=True)
class ClassifyConfig(SelectionConfig, TrainingConfig, RunConfig):
    """Train an image classifier.

    Args:
        data: digits (carried by scikit-learn), scenes (rendered as they are asked for), a folder of
            {train,val}/CLASS/IMAGE (or {train,val}/rgb/CLASS/IMAGE), a folder of shards named
            {train,val}-* (or in train/ and val/): .tar of KEY.jpg and KEY.cls, or .parquet or
            .arrow with a column of images and one of labels; or an .npz file of images [N, H, W] or
            [N, H, W, C] and labels [N].
        held_out: share held out of digits and .npz data, in (0, 1).
        num_classes: null counts them.
        num_train: training scenes, of data scenes.
        num_val: held-out scenes, of data scenes.
        imbalance: of data scenes, how many times as frequent the commonest class is as the rarest.
        label_noise: of data scenes, share of the training labels that are wrong, in [0, 1).
        data_cache: a folder in which rendered scenes are kept; null renders them anew in each run.
        image_size: side in pixels of scenes and of what images of a folder are resized to; null for
            the model's.
        model: vit_digits, multivit_SIZE (the encoder of MultiMAE), or any model of timm.
        model_args: further arguments of the model.
        patch_size: of multivit_SIZE, in pixels.
        num_global_tokens: of multivit_SIZE, tokens that belong to no patch.
        pool: of multivit_SIZE, what the classifier sees: the mean of all tokens, or the last.
        pretrained: load timm's weights.
        pretrained_weights: of multivit_SIZE, start from these: the folder of a finished run of
            attent pretrain, a file of MultiMAE weights (released ones too), or timm:NAME; null for
            fresh ones.
        drop_path: stochastic depth, in [0, 1).
        label_smoothing: share of the target spread over all classes, in [0, 1).
        logit_adjustment: the cure of unequal class sizes that needs no selection: so many times the
            logarithm of a class's share is added to its logit in the loss, at least 0; 1 as
            published (Menon et al., ICLR 2021), 0 for none.
        shift: augmentation: largest translation in pixels.
        flip: augmentation: probability of a horizontal flip.
        crop_scale: augmentation of scenes and folders: smallest share of an image's area that is
            cropped, in (0, 1]; 1 trains on images as they are evaluated.
        rand_augment: augmentation of scenes and folders: magnitude of RandAugment, 0 to 10.
        mixup: augmentation: alpha of mixup; 0 for none.
        cutmix: augmentation: alpha of CutMix; 0 for none.
        crop_pct: share of an image's shorter side that scoring and evaluation see, in (0, 1].
    """

    data: str = "digits"
    held_out: float = 0.2
    num_classes: int | None = None
    num_train: int = 4000
    num_val: int = 500
    imbalance: float = 1.0
    label_noise: float = 0.0
    data_cache: str | None = None
    image_size: int | None = None
    model: str = "vit_digits"
    model_args: dict[str, Any] | None = None
    patch_size: int = 16
    num_global_tokens: int = 1
    pool: Literal["mean", "last"] = "mean"
    pretrained: bool = False
    pretrained_weights: str | None = None
    drop_path: float = 0.0
    label_smoothing: float = 0.0
    logit_adjustment: float = 0.0
    shift: int = 0
    flip: float = 0.0
    crop_scale: float = 1.0
    rand_augment: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    crop_pct: float = 1.0

    def __post_init__(self) -> None:
        check_shared(self)
        for name in ("label_smoothing", "drop_path"):
            need(self, name, lambda v: 0 <= v < 1, "in [0, 1)")
        for name in ("shift", "num_global_tokens"):
            need(self, name, lambda v: v >= 0, "at least 0")
        need(self, "held_out", lambda v: 0 < v < 1, "in (0, 1)")
        need(self, "flip", lambda v: 0 <= v <= 1, "in [0, 1]")
        for name in ("num_train", "num_val", "patch_size"):
            need(self, name, lambda v: v >= 1, "at least 1")
        for name in ("crop_scale", "crop_pct"):
            need(self, name, lambda v: 0 < v <= 1, "in (0, 1]")
        for name in ("mixup", "cutmix", "logit_adjustment"):
            need(self, name, lambda v: 0 <= v < float("inf"), "at least 0")
        need(self, "rand_augment", lambda v: 0 <= v <= STRONGEST, f"0 to {STRONGEST}")
        need(self, "imbalance", lambda v: 1 <= v < float("inf"), "at least 1")
        need(self, "label_noise", lambda v: 0 <= v < 1, "in [0, 1)")
        need(self, "image_size", lambda v: v is None or v >= 1, "at least 1, or null")
        need(self, "num_classes", lambda v: v is None or v >= 2, "at least 2, or null")

    def idle(self) -> dict[str, str]:
        """The options that do nothing here, and why."""
        found: dict[str, str] = {}
        if self.data != "scenes":
            names = ("num_train", "num_val", "imbalance", "label_noise", "data_cache")
            found |= dict.fromkeys(names, "only data scenes are rendered")
        if self.data == "digits" or self.data.endswith(".npz"):
            kind = "digits" if self.data == "digits" else ".npz"
            found |= {"image_size": f"{kind} data keep their size"}
            names = ("crop_scale", "rand_augment", "crop_pct")
            found |= dict.fromkeys(names, f"{kind} data are not cropped")
        else:
            whose = "scenes have their" if self.data == "scenes" else "a folder has its"
            found |= {"held_out": f"{whose} own val split"}
        if not self.model.startswith("multivit_"):
            names = ("patch_size", "num_global_tokens", "pool", "pretrained_weights")
            found |= dict.fromkeys(names, f"model is {self.model}")
        else:
            found |= {"pretrained": "multivit_SIZE takes pretrained_weights"}
        return found
