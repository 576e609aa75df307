"""Rules judged together are each judged as alone, and as scikit-learn does."""

import numpy as np
import pytest
from sklearn.metrics import precision_recall_fscore_support, recall_score

from mmpds.metrics.intervals import evaluate
from mmpds.metrics.operating_points import operating_points

FINDINGS = ("Mass", "Nodule", "Edema")
NAMES = ("precision", "recall", "f1", "specificity", "false_positive_rate/No Finding")


@pytest.fixture(scope="module")
def items():
    rng = np.random.default_rng(1)
    label = (rng.random((400, 3)) < (0.4, 0.3, 0.2)).astype(float)
    normal = ~label.any(axis=1)
    prob = np.clip(0.3 * label + 0.7 * rng.random((400, 3)), 0, 1)
    label[rng.random((400, 3)) < 0.1] = np.nan
    label[normal] = 0
    return {"prob": prob, "label": label, "group": rng.integers(90, size=400), "normal": normal}


RULES = {"low": [0.3, 0.4, 0.5], "high": [0.8, 0.6, 0.7]}


@pytest.fixture(scope="module")
def rows(items):
    found = operating_points(items["prob"], items["label"], RULES, FINDINGS, group=items["group"],
                             normal=items["normal"], replicates=100, seed=3)  # fmt: skip
    return {(row["rule"], row["finding"]): row for row in found}


def test_every_rule_has_a_row_a_finding_and_one_of_their_mean(rows):
    assert list(rows) == [(rule, finding) for rule in RULES for finding in (*FINDINGS, "macro")]
    assert rows["low", "Nodule"]["threshold"] == 0.4
    assert "threshold" not in rows["low", "macro"]


def test_values_are_those_of_scikit_learn(items, rows):
    for rule, threshold in RULES.items():
        for c, finding in enumerate(FINDINGS):
            known = ~np.isnan(items["label"][:, c])
            truth, said = items["label"][known, c], items["prob"][known, c] >= threshold[c]
            expected = [
                *precision_recall_fscore_support(truth, said, average="binary")[:3],
                recall_score(1 - truth, ~said),
            ]
            found = [rows[rule, finding][name] for name in NAMES[:4]]
            assert found == pytest.approx(expected)


def test_values_and_intervals_are_those_of_each_rule_alone(items, rows):
    for rule, threshold in RULES.items():
        alone = evaluate(items["prob"], items["label"], threshold, FINDINGS, group=items["group"],
                         normal=items["normal"], replicates=100, seed=3)  # fmt: skip
        for finding in (*FINDINGS, "macro"):
            for name in NAMES:
                key = f"{name}/{finding}"
                if name.endswith("No Finding"):
                    key = name if finding == "macro" else key
                assert rows[rule, finding][name] == pytest.approx(alone.metrics[key])
                assert rows[rule, finding][f"{name}_interval"] == pytest.approx(alone.intervals[key])


def test_what_a_rule_says_nothing_of_has_no_row_and_no_mean(items):
    found = operating_points(items["prob"], items["label"], {"given": [0.5, np.nan, 0.5]}, FINDINGS, replicates=0)
    assert [row["finding"] for row in found] == ["Mass", "Edema"]
    assert not any(name.endswith("_interval") or "No Finding" in name for row in found for name in row)


def test_the_precision_of_a_rule_that_flags_nothing_is_absent(items):
    (first, _, third, macro) = operating_points(
        items["prob"], items["label"], {"shy": [1.1, 0.5, 0.5]}, FINDINGS, group=items["group"], replicates=50
    )
    assert "precision" not in first
    assert (first["recall"], first["f1"], first["specificity"]) == (0, 0, 1)
    assert 0 < macro["precision"] < 1
    assert "precision_interval" in third


def test_shapes_that_differ_are_refused(items):
    with pytest.raises(ValueError, match="thresholds"):
        operating_points(items["prob"], items["label"], {"few": [0.5, 0.5]}, FINDINGS)


def test_thresholds_an_item_are_judged_as_those_a_finding_where_they_are_equal(items, rows):
    each = np.tile(RULES["low"], (len(items["prob"]), 1))
    found = operating_points(items["prob"], items["label"], {"low": each}, FINDINGS, group=items["group"],
                             normal=items["normal"], replicates=100, seed=3)  # fmt: skip
    for row in found:
        assert row == {name: value for name, value in rows["low", row["finding"]].items() if name != "threshold"}
