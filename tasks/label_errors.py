"""Labels that are likely wrong, from a classifier's probabilities: confident learning.

Northcutt, Jiang and Chuang, "Confident Learning: Estimating Uncertainty in Dataset Labels", JAIR 70
(2021): thresholds and confident joint of section 3.1, candidates off its diagonal (section 3.2),
ranked by margin.

Shapes: N examples, K classes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

NUMBERS = 2**23
"""Probabilities looked at together: they may lie on the disk."""


@dataclass(frozen=True, kw_only=True)
class LabelErrors:
    """What the probabilities say of the labels.

    Attributes:
        thresholds: ``[K]`` float32, the mean probability of a class over the examples labelled so;
            infinite for a class that no example has.
        joint: ``[K, K]`` int64, the confident joint: examples labelled i that count as j.
        suggested: ``[N]`` int64, the class that an example counts as where that is another than
            its label; -1 where its label is not in doubt.
        margin: ``[N]`` float32 in [-1, 1], the probability of its label less the largest of any
            other class: candidates are ranked by it, the lowest first.
    """

    thresholds: np.ndarray
    joint: np.ndarray
    suggested: np.ndarray
    margin: np.ndarray


def class_sums(
    probabilities: np.ndarray, labels: np.ndarray, known: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """What `thresholds_of` divides; of parts of a data set they may be added up.

    Args:
        probabilities: as `label_errors` takes them.
        labels: as it takes them.
        known: as it takes them.

    Returns:
        ``[K]`` float64, the sum of a class's probability over the examples labelled so, and ``[K]``
        int64, the number of those.

    Raises:
        ValueError: as of `label_errors`.
    """
    _check(probabilities, labels, known)
    count, classes = probabilities.shape
    known = np.ones(count, bool) if known is None else known
    sums, sizes = np.zeros(classes), np.bincount(labels[known], minlength=classes)
    for _, given, label in _blocks(probabilities, labels, known):
        np.add.at(sums, label, given[np.arange(len(label)), label].astype(np.float64))
    return sums, sizes


def thresholds_of(sums: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """The mean probability of each class over the examples labelled so, ``[K]`` float32.

    Args:
        sums: ``[K]``, of `class_sums`.
        sizes: ``[K]``, likewise; the threshold of a class of none is infinite.
    """
    # Rounded as probabilities are: those of a class that are all alike then reach their mean.
    thresholds = np.full(len(sums), np.inf, np.float32)
    thresholds[sizes > 0] = sums[sizes > 0] / sizes[sizes > 0]
    return thresholds


def label_errors(
    probabilities: np.ndarray,
    labels: np.ndarray,
    known: np.ndarray | None = None,
    thresholds: np.ndarray | None = None,
) -> LabelErrors:
    """Count each example as the class that it is confidently of, and compare with its label.

    An example can count as class j where its probability of j is at least that class's threshold;
    of several such classes, its own label among them, as the likeliest; of none, not at all.

    The model should not have been trained on these labels: one that has learned a wrong label by
    heart finds nothing wrong with it.

    Args:
        probabilities: ``[N, K]``, rows of sum 1, K at least 2; an array or a memory map.
        labels: ``[N]`` integers in 0..K-1.
        known: ``[N]`` bool, the examples to look at; None for all. Others have no part in a
            threshold, margin NaN and no suggestion.
        thresholds: ``[K]`` float32, where these examples are part of a data set that they are of;
            None for those of these examples.

    Raises:
        ValueError: arrays of other shapes, or a label of no class.
    """
    if thresholds is None:
        thresholds = thresholds_of(*class_sums(probabilities, labels, known))
    else:
        _check(probabilities, labels, known)
    count, classes = probabilities.shape
    known = np.ones(count, bool) if known is None else known
    joint = np.zeros((classes, classes), np.int64)
    suggested, margin = np.full(count, -1), np.full(count, np.nan, np.float32)
    for rows, given, label in _blocks(probabilities, labels, known):
        at = np.arange(len(label))
        own, others = given[at, label], given.copy()
        others[at, label] = -np.inf
        margin[rows] = own - others.max(1)
        confident = np.where(given >= thresholds, given, -np.inf)
        best, counts = confident.argmax(1), np.isfinite(confident).any(1)
        np.add.at(joint, (label[counts], best[counts]), 1)
        suggested[rows] = np.where(counts & (best != label), best, -1)
    return LabelErrors(thresholds=thresholds, joint=joint, suggested=suggested, margin=margin)


def _blocks(
    probabilities: np.ndarray, labels: np.ndarray, known: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Row numbers, probabilities and labels of the known examples, a block at a time."""
    size = max(1, NUMBERS // probabilities.shape[1])
    for start in range(0, len(labels), size):
        rows = start + known[start : start + size].nonzero()[0]
        yield rows, np.asarray(probabilities[rows], np.float32), labels[rows]


def _check(probabilities: np.ndarray, labels: np.ndarray, known: np.ndarray | None) -> None:
    if probabilities.ndim != 2 or probabilities.shape[1] < 2:
        raise ValueError(
            f"probabilities are [N, K] with K at least 2, got {[*probabilities.shape]}"
        )
    for name, values in (("labels", labels), ("known", known)):
        if values is not None and values.shape != probabilities.shape[:1]:
            raise ValueError(
                f"{name} are one for each of {len(probabilities)} examples, got {[*values.shape]}"
            )
    looked_at = labels if known is None else labels[known]
    if looked_at.size and not 0 <= looked_at.min() <= looked_at.max() < probabilities.shape[1]:
        raise ValueError(
            f"labels are 0 to {probabilities.shape[1] - 1}, got {looked_at.min()} to "
            f"{looked_at.max()}"
        )
