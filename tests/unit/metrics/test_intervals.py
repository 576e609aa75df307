import numpy as np
import pytest

from mmpds.metrics.intervals import evaluate

FINDINGS = ["Pneumonia", "Hernia"]


def predictions(items=200, seed=0):
    rng = np.random.default_rng(seed)
    prob = rng.random((items, 2)).astype(np.float32)
    label = (rng.random((items, 2)) < prob).astype(float)
    return prob, label


def test_values_counts_and_thresholds_of_a_small_case():
    prob = [[0.9, 0.1], [0.2, 0.3], [0.7, 0.2], [0.4, 0.6]]
    label = [[1, 0], [0, np.nan], [0, 0], [1, 1]]
    judged = evaluate(
        prob,
        label,
        np.float32([0.6, 0.5]),
        FINDINGS,
        group=["a", "a", "b", "c"],
        normal=[False, True, True, False],
    )
    assert judged.counts == {
        "items": 4, "groups": 3, "normal": 2, "labelled/Pneumonia": 4, "positives/Pneumonia": 2,
        "labelled/Hernia": 3, "positives/Hernia": 1,
    }  # fmt: skip
    assert judged.metrics["threshold/Pneumonia"] == 0.6
    assert judged.metrics["auroc/Pneumonia"] == 0.75
    assert judged.metrics["auroc/macro"] == 0.875
    assert judged.metrics["precision/Pneumonia"] == 0.5
    assert judged.metrics["false_positive_rate/No Finding"] == 0.5
    assert "threshold/Pneumonia" not in judged.intervals


def test_intervals_hold_the_value_and_follow_the_seed():
    prob, label = predictions()
    first, again, other = (evaluate(prob, label, [0.5, 0.5], FINDINGS, replicates=200, seed=s) for s in (1, 1, 2))
    assert first.intervals == again.intervals
    assert first.intervals != other.intervals
    assert first.warnings == []
    for name, (low, high) in first.intervals.items():
        assert low < high, name
        if not name.startswith("ece"):  # which noise can only raise
            assert low <= first.metrics[name] <= high, name


@pytest.mark.parametrize("grouped", [True, False])
def test_order_of_the_items_does_not_matter(grouped):
    prob, label = predictions()
    group = np.arange(200) // 3 if grouped else None
    order = np.random.default_rng(5).permutation(200)
    one = evaluate(prob, label, [0.5, 0.5], FINDINGS, group=group, replicates=100)
    two = evaluate(
        prob[order],
        label[order],
        [0.5, 0.5],
        FINDINGS,
        group=None if group is None else group[order],
        replicates=100,
    )
    assert one.metrics == pytest.approx(two.metrics, abs=1e-9)
    for name, interval in one.intervals.items():
        assert interval == pytest.approx(two.intervals[name], abs=1e-6), name


def test_chunks_do_not_change_the_intervals(monkeypatch):
    prob, label = predictions(50)
    whole = evaluate(prob, label, [0.5, 0.5], FINDINGS, replicates=60)
    monkeypatch.setattr("mmpds.metrics.intervals.CHUNK", 7 * 50)
    parts = evaluate(prob, label, [0.5, 0.5], FINDINGS, replicates=60)
    for name, interval in whole.intervals.items():
        assert interval == pytest.approx(parts.intervals[name], abs=1e-6), name


def test_copies_of_a_patients_image_add_no_certainty():
    prob, label = predictions(60)
    group = np.arange(60)
    alone = evaluate(prob, label, [0.5, 0.5], FINDINGS, group=group, replicates=300)
    nine = [np.repeat(a, 9, axis=0) for a in (prob, label, group)]
    together = evaluate(nine[0], nine[1], [0.5, 0.5], FINDINGS, group=nine[2], replicates=300)
    apart = evaluate(nine[0], nine[1], [0.5, 0.5], FINDINGS, replicates=300)
    assert together.intervals["auroc/macro"] == pytest.approx(alone.intervals["auroc/macro"], abs=1e-6)
    low, high = apart.intervals["auroc/macro"]
    assert high - low < 0.5 * np.diff(alone.intervals["auroc/macro"])[0]


def test_recall_interval_covers_like_a_binomial_one():
    label = np.ones((400, 1))
    prob = np.where(np.arange(400) < 300, 0.9, 0.1)[:, np.newaxis]
    low, high = evaluate(prob, label, [0.5], ["x"], replicates=2000).intervals["recall/x"]
    assert (low, high) == pytest.approx((0.75 - 1.96 * 0.02165, 0.75 + 1.96 * 0.02165), abs=0.006)


def test_undefined_metrics_are_omitted_with_a_reason():
    prob = np.array([[0.9, 0.2], [0.1, 0.1], [0.8, 0.3]])
    judged = evaluate(prob, [[1, 0], [0, 0], [0, 0]], [0.5, 0.5], FINDINGS, normal=[False] * 3, replicates=0)
    assert not {"recall/Hernia", "auroc/Hernia", "precision/Hernia", "false_positive_rate/No Finding"} & set(
        judged.metrics
    )
    assert judged.metrics["recall/macro"] == 1
    assert judged.intervals == {}
    undefined, normal = judged.warnings
    assert undefined.startswith("Hernia: auroc, average_precision, f1, precision, recall undefined")
    assert "no positive among 3 labelled items and nothing flagged" in undefined
    assert "no normal item among 3" in normal


def test_an_interval_that_too_many_replicates_leave_undefined_is_withheld():
    prob, label = predictions(30)
    label[:, 1] = 0
    label[3, 1] = 1  # absent from about 36 % of the replicates
    judged = evaluate(prob, label, [0.5, 0.5], FINDINGS, replicates=300)
    assert "recall/Hernia" in judged.metrics
    assert "recall/Pneumonia" in judged.intervals
    names = {f"{metric}/{f}" for metric in ("auroc", "average_precision", "f1", "recall") for f in ("Hernia", "macro")}
    assert names == {name for name in judged.metrics if not name.startswith("threshold/")} - set(judged.intervals)
    (warning,) = judged.warnings
    assert warning.startswith("too few items for an interval of auroc/Hernia, ")
    assert warning.endswith(" and 4 more: over 10% of 300 bootstrap replicates leave them undefined")


def test_one_group_gives_no_interval():
    prob, label = predictions(20)
    judged = evaluate(prob, label, [0.5, 0.5], FINDINGS, group=["p"] * 20)
    assert judged.intervals == {}
    assert "all items are of one group" in judged.warnings[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"group": ["a"]}, r"group: shape \(1,\)"),
        ({"group": ["a", None, "b", None]}, "2 of 4 items have none"),
        ({"replicates": -1}, "replicates: -1"),
        ({"threshold": [np.nan, 0.5]}, "threshold"),
        ({"prob": np.zeros((0, 2)), "label": np.zeros((0, 2))}, "no item"),
        ({"prob": np.full((4, 2), 7.0)}, "8 of 8 values"),
    ],
)
def test_bad_arguments_are_named(change, message):
    arguments = {
        "prob": np.zeros((4, 2)),
        "label": np.zeros((4, 2)),
        "threshold": [0.5, 0.5],
        "findings": FINDINGS,
    }
    with pytest.raises(ValueError, match=message):
        evaluate(**(arguments | change))
