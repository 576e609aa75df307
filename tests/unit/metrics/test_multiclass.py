"""The most probable of several classes, against scikit-learn."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, balanced_accuracy_score, recall_score

from mmpds.metrics.multiclass import multiclass

CLASSES = ["Head", "Chest", "Abdomen"]


def drawn(seed, count=40):
    rng = np.random.default_rng(seed)
    truth = rng.integers(3, size=count)
    prob = rng.dirichlet(np.ones(3), size=count).astype(np.float32)
    prob[np.arange(count), truth] += 0.3
    return np.clip(prob, 0, 1), np.eye(3, dtype=np.float32)[truth], truth


@given(st.integers(0, 10_000))
def test_as_scikit_learn_has_it(seed):
    prob, label, truth = drawn(seed)
    found = multiclass(prob, label, CLASSES, replicates=0).metrics
    chosen = prob.argmax(1)
    assert found["top1_accuracy"] == pytest.approx(accuracy_score(truth, chosen))
    assert found["top1_balanced_accuracy"] == pytest.approx(balanced_accuracy_score(truth, chosen))
    recall = recall_score(truth, chosen, labels=range(3), average=None)
    for c, name in enumerate(CLASSES):
        if (truth == c).any():
            assert found[f"top1_recall/{name}"] == pytest.approx(recall[c])


def test_items_of_unknown_class_are_left_out():
    prob, label, _ = drawn(1)
    label[:5] = np.nan
    found = multiclass(prob, label, CLASSES, replicates=0)
    assert found.metrics == multiclass(prob[5:], label[5:], CLASSES, replicates=0).metrics
    assert sum(found.counts.values()) == 35


def test_intervals_hold_the_value_and_are_by_patient():
    prob, label, _ = drawn(2, 60)
    found = multiclass(prob, label, CLASSES, replicates=200)
    low, high = found.intervals["top1_accuracy"]
    assert low < found.metrics["top1_accuracy"] < high
    twice = multiclass(
        np.repeat(prob, 2, 0), np.repeat(label, 2, 0), CLASSES, group=np.repeat(np.arange(60), 2), replicates=2000
    )
    assert twice.intervals["top1_accuracy"] == pytest.approx(
        (low, high), abs=0.03
    )  # no new patients, no more certainty


def test_an_item_of_two_classes_leaves_a_warning_and_no_figure():
    prob, label, _ = drawn(3)
    label[0] = 1
    found = multiclass(prob, label, CLASSES)
    assert (found.metrics, found.intervals) == ({}, {})
    assert "1 of 40 items" in found.warnings[0]


def test_one_patient_has_no_intervals():
    prob, label, _ = drawn(3)
    assert multiclass(prob, label, CLASSES, group=np.zeros(40), replicates=20).intervals == {}
