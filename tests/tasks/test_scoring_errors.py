"""Likely wrong labels by confident learning: numbers made by hand, and wrong ones put in."""

from __future__ import annotations

import numpy as np
import pytest

from attent.tasks import label_errors as module
from attent.tasks.label_errors import class_sums, label_errors, thresholds_of

# Five examples of three classes; nobody is labelled 2.
P = np.array(
    [
        [0.8, 0.1, 0.1],  # 0: counts as 0
        [0.6, 0.3, 0.1],  # 0: counts as 0, as 0.6 >= t0
        [0.1, 0.7, 0.2],  # 0: counts as 1, as 0.7 >= t1
        [0.5, 0.5, 0.0],  # 1: counts as 0, as 0.5 >= t0 and 0.5 < t1
        [0.1, 0.6, 0.3],  # 1: counts as 1
    ],
    np.float32,
)
LABELS = np.array([0, 0, 0, 1, 1])
# t0 = (0.8 + 0.6 + 0.1) / 3 = 0.5; t1 = (0.5 + 0.6) / 2 = 0.55; of 2 there is no threshold.


def test_thresholds_counts_and_margins_by_hand():
    found = label_errors(P, LABELS)
    np.testing.assert_allclose(found.thresholds, [0.5, 0.55, np.inf], rtol=1e-6)
    assert found.suggested.tolist() == [-1, -1, 1, 0, -1]
    assert found.joint.tolist() == [[2, 1, 0], [1, 1, 0], [0, 0, 0]]
    np.testing.assert_allclose(found.margin, [0.7, 0.3, -0.6, 0.0, 0.3], atol=1e-6)


def test_one_that_is_confidently_of_its_own_class_and_more_so_is_not_in_doubt():
    # t = (0.5, 0.5): the first is above both thresholds and likelier of its own class.
    given = np.array([[0.6, 0.5], [0.4, 0.6], [0.5, 0.4]], np.float32)
    found = label_errors(given, np.array([0, 1, 1]))
    np.testing.assert_allclose(found.thresholds, [0.6, 0.5], rtol=1e-6)
    assert found.suggested.tolist() == [-1, -1, -1]
    assert found.joint.tolist() == [[1, 0], [0, 1]]  # the third is of neither


def test_a_class_whose_examples_are_alike_reaches_its_own_threshold():
    given = np.tile(np.array([[0.1, 0.9]], np.float32), (1000, 1))
    found = label_errors(given, np.ones(1000, int))
    assert found.joint[1, 1] == 1000


def test_those_that_are_not_known_have_no_part_in_it():
    strange = np.array([[0.0, 0.0, 1.0]] * 2, np.float32)
    known = np.array([True] * 5 + [False] * 2)
    found = label_errors(np.concatenate([P, strange]), np.r_[LABELS, 2, 0], known)
    alone = label_errors(P, LABELS)
    np.testing.assert_array_equal(found.thresholds, alone.thresholds)
    np.testing.assert_array_equal(found.joint, alone.joint)
    assert found.suggested.tolist() == [*alone.suggested.tolist(), -1, -1]
    assert np.isnan(found.margin[5:]).all()


def test_blocks_make_no_difference(monkeypatch):
    draw = np.random.default_rng(0)
    given = draw.dirichlet(np.ones(4), 103).astype(np.float32)
    labels = draw.integers(0, 4, 103)
    whole = label_errors(given, labels)
    monkeypatch.setattr(module, "NUMBERS", 43)  # ten rows, and a rest
    parts = label_errors(given, labels)
    for name in ("joint", "suggested", "margin"):
        np.testing.assert_array_equal(getattr(whole, name), getattr(parts, name))
    np.testing.assert_allclose(whole.thresholds, parts.thresholds, rtol=1e-6)


def test_probabilities_that_are_the_noise_itself_give_the_joint_exactly():
    """Theorem 1 of the paper: with p(label | true class) for probabilities every count is right.

    Eight of true class 0 are labelled 0 and two 1; three of true class 1 are labelled 0, seven 1.
    t0 = (8 * 0.8 + 3 * 0.3) / 11 = 0.66, which 0.8 reaches and 0.3 does not;
    t1 = (2 * 0.2 + 7 * 0.7) / 9 = 0.54, which 0.7 reaches and 0.2 does not.
    """
    true = np.repeat([0, 1], 10)
    labels = np.array([0] * 8 + [1] * 2 + [0] * 3 + [1] * 7)
    found = label_errors(np.array([[0.8, 0.2], [0.3, 0.7]], np.float32)[true], labels)
    np.testing.assert_allclose(found.thresholds, [7.3 / 11, 5.3 / 9], rtol=1e-6)
    assert found.joint.tolist() == [[8, 3], [2, 7]]
    wrong = (labels != true).nonzero()[0]
    assert (found.suggested >= 0).nonzero()[0].tolist() == wrong.tolist()
    assert found.suggested[wrong].tolist() == true[wrong].tolist()
    # 0.3 - 0.7 and 0.2 - 0.8: the surer come first.
    np.testing.assert_allclose(found.margin[wrong], [-0.6, -0.6, -0.4, -0.4, -0.4], atol=1e-6)


def by_definition(given: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The confident joint and what each example counts as (-1: nothing), one at a time."""
    classes = given.shape[1]
    means = [
        np.float32(given[labels == j, j].mean(dtype=np.float64)) if j in labels else np.inf
        for j in range(classes)
    ]
    joint, counted = np.zeros((classes, classes), int), np.full(len(labels), -1)
    for n, label in enumerate(labels):
        confident = [j for j in range(classes) if given[n, j] >= means[j]]
        if confident:
            counted[n] = max(confident, key=lambda j: given[n, j])
            joint[label, counted[n]] += 1
    return joint, counted


@pytest.mark.parametrize(("seed", "classes", "spread"), [(0, 2, 1.0), (1, 5, 0.3), (2, 9, 3.0)])
def test_any_probabilities_count_as_defined_in_any_order(seed, classes, spread):
    draw = np.random.default_rng(seed)
    given = draw.dirichlet(np.full(classes, spread), 400).astype(np.float32)
    labels = draw.integers(0, classes - (classes > 5), 400)  # of nine the last is nobody's label
    found = label_errors(given, labels)
    joint, counted = by_definition(given, labels)
    assert np.array_equal(found.joint, joint)
    assert np.array_equal(found.suggested, np.where(counted == labels, -1, counted))
    candidates = found.suggested >= 0
    assert 0 < candidates.sum() == joint.sum() - joint.trace()
    others = np.where(np.eye(classes, dtype=bool)[labels], -1, given)
    np.testing.assert_array_equal(found.margin, given[np.arange(400), labels] - others.max(1))
    order = draw.permutation(400)
    shuffled = label_errors(given[order], labels[order])
    assert np.array_equal(shuffled.joint, joint)
    assert np.array_equal(shuffled.suggested, found.suggested[order])


def test_parts_of_a_data_set_by_the_thresholds_of_the_whole():
    draw = np.random.default_rng(3)
    given = draw.dirichlet(np.ones(4), 90).astype(np.float32)
    labels, known = draw.integers(0, 4, 90), draw.random(90) < 0.8
    whole = label_errors(given, labels, known)
    parts = [slice(0, 50), slice(50, 50), slice(50, 90)]
    sums = [class_sums(given[part], labels[part], known[part]) for part in parts]
    thresholds = thresholds_of(sum(s for s, _ in sums), sum(n for _, n in sums))  # type: ignore[arg-type]
    np.testing.assert_allclose(thresholds, whole.thresholds, rtol=1e-6)
    found = [label_errors(given[p], labels[p], known[p], whole.thresholds) for p in parts]
    assert np.array_equal(sum(one.joint for one in found), whole.joint)
    assert np.array_equal(np.concatenate([one.suggested for one in found]), whole.suggested)
    alone = label_errors(given[parts[0]], labels[parts[0]], known[parts[0]])
    assert not np.array_equal(alone.thresholds, whole.thresholds)


def test_wrong_labels_that_are_put_in_are_found_and_few_others():
    """Probabilities of 0.4 to 1 of the true class, whatever the label: 60 labels of 1,000 flipped.

    Thresholds are about 0.94 * 0.7 + 0.06 * 0.03 = 0.66. The true class is above that with
    probability (1 - 0.66) / 0.6 = 0.57, another never, having 0.6 / 9 at most. So of the 60 about
    34 are found (within three deviations of 3.8), and none that is labelled rightly.
    """
    draw = np.random.default_rng(1)
    true = np.arange(1000) % 10
    labels, flipped = true.copy(), draw.permutation(1000)[:60]
    labels[flipped] = (true[flipped] + draw.integers(1, 10, 60)) % 10
    sure = draw.uniform(0.4, 1.0, 1000)
    given = np.repeat((1 - sure)[:, None] / 9, 10, 1)
    given[np.arange(1000), true] = sure
    found = label_errors(given.astype(np.float32), labels)
    candidates = (found.suggested >= 0).nonzero()[0]
    assert set(candidates) <= set(flipped)
    assert 23 <= len(candidates) <= 45
    assert (found.suggested[candidates] == true[candidates]).all()
    # By the margin alone all of the flipped come before all others.
    assert set(found.margin.argsort()[:60]) == set(flipped)


@pytest.mark.parametrize(
    ("given", "labels", "known", "message"),
    [
        (P[:, :1], LABELS, None, r"\[N, K\] with K at least 2, got \[5, 1\]"),
        (P, LABELS[:4], None, r"labels are one for each of 5 examples, got \[4\]"),
        (P, LABELS, np.ones(4, bool), r"known are one for each of 5 examples, got \[4\]"),
        (P, LABELS + 2, None, "labels are 0 to 2, got 2 to 3"),
        (P, LABELS - 1, None, "labels are 0 to 2, got -1 to 0"),
    ],
)
def test_what_does_not_fit_is_refused(given, labels, known, message):
    with pytest.raises(ValueError, match=message):
        label_errors(given, labels, known)
