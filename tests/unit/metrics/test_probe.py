"""Few-shot classifiers and linear probes, on embeddings whose worth is known."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from mmpds.metrics.probe import probe

FINDINGS = ["A", "B"]


def split(count, seed, signal=1.5):
    """Embeddings of which the first coordinate tells A, and none tells B."""
    rng = np.random.default_rng(seed)
    label = (rng.random((count, 2)) < 0.4).astype(np.float32)
    embedding = rng.normal(size=(count, 8))
    embedding[:, 0] += signal * label[:, 0]
    return embedding, label


def test_the_linear_probe_is_scikit_learn_s_logistic_regression():
    (train, train_label), (test, label) = split(300, 0), split(200, 1)
    found = probe(train, train_label, test, label, FINDINGS, shots=(), replicates=0)
    mean, spread = train.mean(0), train.std(0)
    model = LogisticRegression(max_iter=1000).fit((train - mean) / spread, train_label[:, 0])
    expected = roc_auc_score(label[:, 0], model.decision_function((test - mean) / spread))
    assert found.metrics["linear_probe/auroc/A"] == pytest.approx(expected, abs=1e-3)
    assert found.metrics["linear_probe/auroc/macro"] == pytest.approx(
        np.mean([found.metrics[f"linear_probe/auroc/{finding}"] for finding in FINDINGS])
    )


def test_more_examples_are_worth_more_and_what_no_coordinate_tells_stays_at_chance():
    (train, train_label), (test, label) = split(600, 0), split(600, 1)
    found = probe(train, train_label, test, label, FINDINGS, shots=(1, 64), replicates=50).metrics
    assert found["few_shot_1/auroc/A"] < found["few_shot_64/auroc/A"] <= found["linear_probe/auroc/A"] + 0.02
    assert found["linear_probe/auroc/A"] > 0.8
    assert abs(found["linear_probe/auroc/B"] - 0.5) < 0.1


def test_unlabelled_items_teach_nothing():
    (train, train_label), (test, label) = split(300, 0), split(200, 1)
    some = train_label.copy()
    some[::2, 0] = np.nan
    kept = probe(train, some, test, label, FINDINGS, shots=(), replicates=0).metrics
    assert kept["linear_probe/auroc/A"] > 0.75


def test_shots_beyond_the_examples_are_left_out_with_a_word():
    (train, train_label), (test, label) = split(30, 0), split(40, 1)
    found = probe(train, train_label, test, label, FINDINGS, shots=(4, 64), replicates=0)
    assert "few_shot_4/auroc/A" in found.metrics
    assert not any(name.startswith("few_shot_64") for name in found.metrics)
    assert "64 shots" in found.warnings[0]


def test_one_class_alone_cannot_be_probed():
    (train, train_label), (test, label) = split(30, 0), split(40, 1)
    train_label[:, 1] = 0
    found = probe(train, train_label, test, label, FINDINGS)
    assert found.metrics == {}
    assert "no positive" in found.warnings[0]


def test_intervals_hold_the_value_and_are_by_patient():
    (train, train_label), (test, label) = split(300, 0), split(120, 1)
    alone = probe(train, train_label, test, label, FINDINGS, shots=(4,), replicates=200)
    patients = np.repeat(np.arange(12), 10)
    together = probe(train, train_label, test, label, FINDINGS, shots=(4,), group=patients, replicates=200)
    for found in (alone, together):
        for name, (low, high) in found.intervals.items():
            assert low <= found.metrics[name] <= high, name
    assert alone.intervals != together.intervals
