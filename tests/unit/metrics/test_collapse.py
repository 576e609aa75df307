import numpy as np
import pytest

from mmpds.metrics.collapse import collapse
from mmpds.metrics.thresholds import FALLBACK


def told(prob, label, threshold=FALLBACK):
    prob, label = np.asarray(prob)[:, np.newaxis], np.asarray(label, dtype=float)[:, np.newaxis]
    return collapse(prob, prob >= threshold, label, ["Pneumonia"])


def informative(items, seed=0):
    rng = np.random.default_rng(seed)
    prob = rng.random(items)
    return prob, rng.random(items) < prob


def test_a_useful_model_is_left_alone():
    assert told(*informative(1000)) == []


def test_the_studys_model_is_named_with_its_evidence():
    rng = np.random.default_rng(0)
    label = np.arange(1000) < 350
    prob = 0.6347 + rng.normal(0, 3e-5, 1000) + 1.5e-5 * label
    (sentence,) = told(prob, label, threshold=0.6)
    assert sentence.startswith("Pneumonia: all 1,000 scores lie in 0.634")
    assert (
        "every image flagged: precision equals the prevalence 0.35, F1 0.52 is what always saying yes gives" in sentence
    )


def test_a_nearly_constant_score_is_named_despite_outliers():
    prob = np.full(1000, 0.6347)
    prob[:3] = 0.1, 0.9, 0.99
    (sentence,) = told(prob, np.arange(1000) % 2, threshold=0.63)
    assert "997 of 1,000 scores lie in 0.6347-0.6347" in sentence


def test_a_rare_findings_small_scores_are_no_collapse():
    prob, label = informative(1000)
    assert told(prob * 1e-3, label, threshold=5e-4) == []  # standard deviation 3e-4, and it ranks as before


def test_saturated_scores_are_constant():
    (sentence,) = told(np.ones(50), np.arange(50) % 2)
    assert "all 50 scores lie in 1.0000-1.0000" in sentence


def test_missing_every_positive_is_named_and_a_silent_healthy_set_is_not():
    prob, label = informative(200)
    (sentence,) = told(prob * 0.4, label)
    assert sentence == f"Pneumonia: no image flagged: all {int(label.sum())} positives missed"
    assert told(prob * 0.4, np.zeros(200)) == []


def test_chance_is_named_only_when_it_is_clear():
    rng = np.random.default_rng(1)
    prob, label = rng.random(4000), np.arange(4000) % 2
    (sentence,) = told(prob, label)
    assert "is no better than chance (0.5), with 2,000 positives and 2,000 negatives" in sentence
    assert told(prob[:30], label[:30]) == []
    prob, label = informative(1000)
    assert "below chance" in told(1 - prob, label)[0]


def test_one_collapsed_finding_is_not_averaged_away():
    good, label = informative(500)
    prob = np.stack([good, np.full(500, 0.7)], axis=1)
    sentences = collapse(prob, prob >= 0.5, np.stack([label, label], axis=1), ["Effusion", "Pneumonia"])
    assert [sentence.partition(":")[0] for sentence in sentences] == ["Pneumonia"]


def test_unlabelled_findings_are_still_watched():
    (sentence,) = told(np.full(20, 0.7), np.full(20, np.nan))
    assert sentence.endswith("every image flagged")


def test_few_items_tell_nothing():
    assert told(np.full(9, 0.7), np.arange(9) % 2) == []


def test_shapes_must_fit():
    with pytest.raises(ValueError, match="must fit prob"):
        collapse(np.zeros((20, 1)), np.zeros((20, 2)), np.zeros((20, 1)), ["Pneumonia"])
