"""The loss of each row of a batch, by the models of transformers that have a known one.

Shapes: B rows, T tokens, V words or classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from transformers.models.auto import modeling_auto as auto

IGNORED = -100
"""The label of what is not learned from, as in transformers."""

LOGITS = 2**22
"""Held in float32 at once: 16 MiB."""

_KINDS = {
    "causal": ("CAUSAL_LM",),
    "tokens": ("MASKED_LM", "TOKEN_CLASSIFICATION"),
    "classes": (
        "SEQUENCE_CLASSIFICATION",
        "IMAGE_CLASSIFICATION",
        "AUDIO_CLASSIFICATION",
        "VIDEO_CLASSIFICATION",
    ),
}


def kind_of(model: Any) -> str | None:
    """What a model's loss is: of the next tokens, of tokens in place, of classes; None if unknown.

    Args:
        model: of transformers, with adapters or without; not wrapped otherwise.
    """
    if hasattr(model, "get_base_model"):
        model = model.get_base_model()
    name = type(model).__name__
    if getattr(getattr(model, "config", None), "output_router_logits", False):
        return None  # a loss of the router is added, which is the batch's and no row's
    for kind, families in _KINDS.items():
        for family in families:
            if name in getattr(auto, f"MODEL_FOR_{family}_MAPPING_NAMES").values():
                return kind
    return None


def row_losses(
    kind: str, model: Any, inputs: Mapping[str, Any], problem: str | None = None
) -> Tensor:
    """The loss of each row, ``[B]`` float32, with its graph.

    ``causal``: the mean cross-entropy of the next token over a row's labels, in nats; ``tokens``:
    the same of the tokens in place; 0 for a row without a label. ``classes``: the cross-entropy;
    for labels of several classes at once, the mean over classes of the binary one; for numbers,
    the mean squared error.

    Args:
        kind: from `kind_of`.
        model: as the loop wraps it.
        inputs: of the model, with ``labels``.
        problem: the ``problem_type`` of a model of classes; None: by the labels, as transformers.

    Raises:
        ValueError: no labels, or labels of another shape than the logits'.
    """
    if inputs.get("labels") is None:
        raise ValueError(f"the batch has no labels, only {', '.join(sorted(inputs))}")
    # Without labels a model works out no loss of its own, which takes all logits in float32.
    output = model(**{name: value for name, value in inputs.items() if name != "labels"})
    logits = output["logits"] if isinstance(output, Mapping) else output[0]
    labels = inputs["labels"].to(logits.device)
    if kind == "classes":
        return _class_losses(logits.float(), labels, problem)
    if logits.shape[:2] != labels.shape:
        raise ValueError(
            f"labels of {list(labels.shape)} do not go with logits of {list(logits.shape)}: rows "
            "and tokens must be the same; of a model that puts tokens of its own before a row, as "
            "prompt tuning does, give per_example_loss=(model, inputs) -> [rows]"
        )
    return _token_means(logits, _targets(kind, labels))


def fused_losses(output: Any) -> Tensor:
    """The same means, ``[B]``, by the fused head that TRL gives a causal model.

    Args:
        output: of the model, with the ``log_probs`` and the ``label_mask`` of next tokens.
    """
    return -output.log_probs.sum(dim=1) / output.label_mask.sum(dim=1).clamp(min=1)


def _targets(kind: str, labels: Tensor) -> Tensor:
    """What is to be said at each place: of causal models the next label."""
    return F.pad(labels[:, 1:], (0, 1), value=IGNORED) if kind == "causal" else labels


@torch.no_grad()
def check_row_losses(
    kind: str, model: Any, inputs: Mapping[str, Any], problem: str | None = None
) -> None:
    """Hold the loss of one row of a batch against what the model itself says of that row alone.

    Not every family shifts its labels or weighs its classes as others do. It is the first row with
    a label that counts; where there is none, nothing is held. No random number is drawn.

    Args:
        kind: from `kind_of`.
        model: as the loop wraps it; it is in the mode it was in afterwards.
        inputs: of the model, with ``labels``.
        problem: as of `row_losses`.

    Raises:
        ValueError: they differ.
    """
    labels, mode = inputs["labels"], model.training
    counts = (_targets(kind, labels) != IGNORED).reshape(len(labels), -1).any(dim=1)
    at = int(counts.int().argmax())
    row = {
        name: value[at : at + 1]
        if isinstance(value, Tensor) and value.shape[:1] == (len(labels),)
        else value
        for name, value in inputs.items()
    }
    model.eval()
    output = model(**row)
    own = output.get("loss") if isinstance(output, Mapping) else output[0]
    mine = row_losses(kind, model, row, problem)
    model.train(mode)
    # A row without labels has the loss NaN there and 0 here. It is seen so late because processes
    # that part a model among them must all have run it.
    if own is None or not bool(torch.isfinite(own).all()):
        return
    # The same logits, of which some models form the loss in their own precision.
    near = 1e-4 if own.dtype == torch.float32 else 2e-2
    if not torch.allclose(mine, own.float().reshape(1), rtol=near, atol=near):
        raise ValueError(
            f"the model's own loss of a row is {own.item():.4f} and not {mine.item():.4f}, which "
            f"is what models of its kind ({kind}) say of it: give "
            "per_example_loss=(model, inputs) -> [rows]"
        )


def _token_means(logits: Tensor, labels: Tensor) -> Tensor:
    """Means over each row's labels, ``[B]``, of logits ``[B, T, V]``; in float32 a chunk at a time.

    Logits of a chunk are made float32 again in the backward, so that they are held once, in the
    model's own precision.
    """

    def losses(logits: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(logits.float(), labels, ignore_index=IGNORED, reduction="none")

    chunk = max(1, LOGITS // logits.shape[-1])
    rows, targets = logits.flatten(0, 1), labels.flatten()
    parts = [
        checkpoint(losses, r, t, use_reentrant=False) if rows.requires_grad else losses(r, t)
        for r, t in zip(rows.split(chunk), targets.split(chunk), strict=True)
    ]
    summed = torch.cat(parts).view(labels.shape).sum(dim=1)
    return summed / (labels != IGNORED).sum(dim=1).clamp(min=1)


def _class_losses(logits: Tensor, labels: Tensor, problem: str | None) -> Tensor:
    if problem is None:
        several = "multi_label" if labels.is_floating_point() else "single_label"
        problem = "regression" if logits.shape[1] == 1 else f"{several}_classification"
    if problem == "single_label_classification":
        return F.cross_entropy(logits, labels.view(-1), reduction="none")
    targets = labels.view(len(labels), -1).float()
    if targets.shape != logits.shape:
        raise ValueError(
            f"labels of {list(labels.shape)} do not go with logits of {list(logits.shape)}, of "
            f"problem_type {problem!r}"
        )
    if problem == "regression":
        return F.mse_loss(logits, targets, reduction="none").mean(dim=1)
    return F.binary_cross_entropy_with_logits(logits, targets, reduction="none").mean(dim=1)
