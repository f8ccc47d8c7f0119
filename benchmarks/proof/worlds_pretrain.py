"""A world of masked pre-training: a small MultiMAE on scenes, judged by its frozen encoder.

The training examples are scenes without their classes: colours, depth, segments. When it is
trained, the encoder is frozen, and a linear classifier is fitted to the mean of the tokens that it
makes of 500 other scenes, nothing masked; how strongly it is regularised is chosen on val. Its
accuracy is the metric, `World.probe`; the task's own losses of val and test are measured beside it.

Of colours alone the mean of the tokens says too little (25 % against 24 % before any training), of
all modalities it says enough to tell encoders apart (66 % against 39 %; seed 1000).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from tensordict import TensorDict
from torch import Tensor

from attent.models.multimae import Decoders, MultiMAE, build_multimae
from attent.pipeline import TensorSource
from attent.pipeline.keyed import all_global_generators, fold
from attent.tasks.data.pixels import DEVIATION, MEAN, Standardize
from attent.tasks.data.scenes import SCENE_CLASSES, SEMANTIC_CLASSES
from attent.tasks.pretraining import MaskedPretraining
from attent.tasks.pretraining.losses import standardized_depth

from . import pools
from .splits import by_class, parts_of
from .world import World

NAME = "pretrain"

TRAIN, VAL, TEST, LABELLED = 400, 50, 150, 50
"""Scenes of each class; the last are those that the probe is fitted to."""

STRIDE = 4
"""Pixels to one of a map of classes."""

VISIBLE = 12
"""Tokens that the model sees of all 48: 16 patches of each of three modalities."""

STRENGTHS = (1e-3, 1e-2, 1e-1, 1.0)
"""Regularisation that the probe chooses from: scikit-learn's C, the larger the weaker."""


def pretrain_world(seed: int, *, size: int | None = None) -> World:
    """Pre-training on scenes.

    Args:
        seed: of everything drawn.
        size: see `worlds.world`.
    """
    found = pools.scenes("image", "depth", "semseg", "label")
    full = TRAIN * len(SCENE_CLASSES)
    share = 1.0 if size is None else min(1.0, size / full)
    counts = [max(2, round(share * count)) for count in (VAL, TEST, LABELLED, TRAIN)]
    rows = by_class(found["label"], len(SCENE_CLASSES), fold(seed, "proof", NAME))
    val, test, labelled, train = (torch.cat(part) for part in parts_of(rows, *counts)[:4])
    sources = {
        name: _source(found, part)
        for name, part in (("train", train), ("val", val), ("test", test), ("labelled", labelled))
    }
    labels = {
        name: found["label"][part]
        for name, part in (("val", val), ("test", test), ("labelled", labelled))
    }
    make = _tasks(fold(seed, "proof", "model"))

    def probe(state: TensorDict) -> dict[str, float]:
        task = make()
        weights = task.weights(state.clone())  # a copy: the state is not to be bound to this model
        task.multimae.load_state_dict(weights)
        model = task.multimae.eval()
        features = {name: features_of(model, sources[name]) for name in labels}
        return probed(features, labels)

    return World(
        name=NAME,
        seed=seed,
        source=sources["train"],
        val=sources["val"],
        test=sources["test"],
        make_task=make,
        epochs=8,
        batch_size=32,
        metric="accuracy",
        probe=probe,
        recipe={"clip": 1.0, "weight_decay": 0.05, "warmup": 0.1},
    )


def _source(found: pools.Fields, rows: Tensor) -> TensorSource:
    semseg = found["semseg"][rows, ::STRIDE, ::STRIDE]
    fields = {
        "rgb": Standardize(MEAN, DEVIATION)(found["image"][rows]),
        "depth": found["depth"][rows],
        "semseg": semseg.to(torch.int64),
    }
    return TensorSource(fields)


def _tasks(key: int) -> Callable[..., MaskedPretraining]:
    """Options -> the task, its model made anew, with the same weights each time."""

    def make(**options: object) -> MaskedPretraining:
        with all_global_generators(key):
            model = build_multimae(
                "pretrain_multimae_micro",
                image_size=pools.SIDE,
                patch_size=8,
                num_semseg_classes=len(SEMANTIC_CLASSES),
                decoders=Decoders(dim=32, depth=1, num_heads=2, extra_norm_pix=False),
                model_args={"dim": 64, "depth": 4, "num_heads": 4},
            )
        return MaskedPretraining(model, num_encoded_tokens=VISIBLE, **options)  # type: ignore

    return make


@torch.no_grad()
def features_of(model: MultiMAE, source: TensorSource) -> Tensor:
    """The mean of the tokens that the encoder makes of each scene, ``[N, D]``."""
    found = []
    for index in torch.arange(len(source)).split(500):
        batch = source.fetch(index)
        batch["depth"] = standardized_depth(batch["depth"])  # as the task's view has it
        tokens = model.with_global(model.embed({name: batch[name] for name in source.fields}))
        found.append(model.encoder(tokens).mean(dim=1))
    return torch.cat(found)


def probed(features: dict[str, Tensor], labels: dict[str, Tensor]) -> dict[str, float]:
    """How well a linear classifier names what is held out: ``val_accuracy``, ``test_accuracy``.

    Args:
        features: of ``labelled``, which it is fitted to, ``val``, by which its regularisation is
            chosen (the stronger of two as good), and ``test``: ``[N, D]`` each.
        labels: of the same, ``[N]`` int64.
    """
    best: dict[str, float] = {}
    for strength in STRENGTHS:
        classifier = make_pipeline(
            StandardScaler(), LogisticRegression(C=strength, max_iter=2000)
        ).fit(features["labelled"].numpy(), labels["labelled"].numpy())
        found = {
            f"{name}_accuracy": float(
                classifier.score(features[name].numpy(), labels[name].numpy())
            )
            for name in ("val", "test")
        }
        if not best or found["val_accuracy"] > best["val_accuracy"]:
            best = found
    return best
