"""Classifiers of text by transformers: from a path, with a head of one's own classes.

Shapes: B texts, T tokens, K classes.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from attent.models.language import quietly, told


def build_classifier(path: str, classes: Sequence[str]) -> tuple[Any, list[str]]:
    """A model of transformers for the classification of texts.

    Args:
        path: a folder or hub id for the Auto classes: an encoder, or a classifier already; weights
            of a head of another size are left out.
        classes: names of the K classes, in order; they go into the model's config.

    Returns:
        The model, ``input_ids`` and ``attention_mask`` ``[B, T]`` -> logits ``[B, K]``; and the
        names of the weights that the path has not, which are fresh.

    Raises:
        ValueError: no such model, or one whose encoder's weights are not there.
    """
    from transformers import AutoModelForSequenceClassification

    options: dict[str, Any] = {
        "num_labels": len(classes),
        "id2label": dict(enumerate(classes)),
        "label2id": {name: i for i, name in enumerate(classes)},
        "problem_type": "single_label_classification",
        "ignore_mismatched_sizes": True,
        "dtype": torch.float32,
    }
    with told(path), _without_report():
        model, info = AutoModelForSequenceClassification.from_pretrained(
            path, **options, output_loading_info=True
        )
    fresh = sorted(info["missing_keys"] | {name for name, *_ in info["mismatched_keys"]})
    lost = [name for name in fresh if _within(model, name) not in (None, "pooler")]
    if lost:
        raise ValueError(
            f"{path} has no weights of {', '.join(lost[:3])}{' and more' * (len(lost) > 3)}, which "
            f"{type(model).__name__} needs"
        )
    return model, fresh


def head_of(model: Any, fresh: Sequence[str]) -> list[str]:
    """The modules that are trained beside adapters: all but the encoder, and its pooler if fresh.

    Args:
        model: from `build_classifier`.
        fresh: the names of its fresh weights.
    """
    children = model.named_children()
    found = [
        name
        for name, child in children
        if child is not model.base_model and list(child.parameters())
    ]
    if any(_within(model, name) == "pooler" for name in fresh):
        found.append(f"{model.base_model_prefix}.pooler")
    return found


def _within(model: Any, name: str) -> str | None:
    """The part of the encoder that a weight belongs to; None where it is the head's."""
    prefix = f"{model.base_model_prefix}."
    return name.removeprefix(prefix).split(".")[0] if name.startswith(prefix) else None


def known_classes(path: str) -> list[str]:
    """The names of the classes that a model is of, in order, as its config has them.

    Raises:
        ValueError: no such model.
    """
    from transformers import AutoConfig

    with told(path):
        names: Any = AutoConfig.from_pretrained(path).id2label or {}
    return [names[i] for i in sorted(names)]


def load_text_tokenizer(path: str) -> Any:
    """The tokenizer of a model, which pads.

    Raises:
        ValueError: there is none, or it has no token for padding.
    """
    from transformers import AutoTokenizer

    with told(path):
        tokenizer = AutoTokenizer.from_pretrained(path)
    # Of a folder without one transformers makes a tokenizer that knows no word.
    if len(tokenizer) <= len(set(tokenizer.all_special_ids)):
        raise ValueError(f"{path} holds no tokenizer; save the model's own beside it")
    if tokenizer.pad_token_id is None:
        raise ValueError(f"the tokenizer of {path} has no token for padding (pad_token)")
    return tokenizer


def pad_alike(model: Any, tokenizer: Any) -> None:
    """Let a model know its tokenizer's padding, where it has to.

    Args:
        model: from `build_classifier`. A causal one classifies by the last token that is not
            padding; many such are given out with none in their config, or another.
        tokenizer: its own. For a causal model it pads on the right, whatever it did: positions
            count from the left.
    """
    if accepted(model, ["past_key_values"]):
        model.config.get_text_config().pad_token_id = tokenizer.pad_token_id
        tokenizer.padding_side = "right"


def accepted(model: nn.Module, names: Sequence[str]) -> list[str]:
    """Which of these the model's forward takes by name."""
    base: Any = getattr(model, "get_base_model", lambda: model)()
    return [name for name in names if name in inspect.signature(base.forward).parameters]


@contextmanager
def _without_report() -> Iterator[None]:
    """Without transformers' table of fresh weights, which are told by their names."""
    from transformers.utils import logging

    former = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        with quietly():
            yield
    finally:
        logging.set_verbosity(former)
