"""The evaluation of stored predictions: on other patients than the thresholds', equal to that of a run."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from mmpds.data.predictions import Predictions
from mmpds.evaluation import add, evaluate_stored, halves, judge
from mmpds.metrics.thresholds import Threshold

FINDINGS = ("Mass", "Nodule")


def stored(items=300, patients=80, seed=0, **columns):
    rng = np.random.default_rng(seed)
    label = (rng.random((items, 2)) < 0.4).astype(float)
    prob = (0.4 * label + 0.6 * rng.random((items, 2))).astype(np.float32)
    table = pd.DataFrame({
        "id": [f"{n}.png" for n in range(items)], "group": [f"p{n}" for n in rng.integers(patients, size=items)],
        "normal": ~label.any(axis=1), "Mass": label[:, 0], "Nodule": label[:, 1],
    } | columns)  # fmt: skip
    return Predictions(table, prob, FINDINGS)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 99), fraction=st.floats(0.2, 0.8), known=st.booleans())
def test_the_parts_share_no_patient_and_leave_no_item_out(seed, fraction, known):
    items = stored(seed=seed)
    if not known:
        del items.table["normal"]
    fit, test = halves(items, fraction, seed)
    assert not set(fit.table["group"]) & set(test.table["group"])
    assert sorted([*fit.table["id"], *test.table["id"]]) == sorted(items.table["id"])
    assert len(fit.table) / 300 == pytest.approx(fraction, abs=0.05)
    rows = items.table.reset_index().set_index("id").loc[test.table["id"], "index"]
    np.testing.assert_array_equal(test.prob, items.prob[rows])


def test_a_files_own_val_and_test_rows_are_taken():
    split = ["val", "test", "train"] * 100
    fit, test = halves(stored(split=split, group=split), 0.5, 0)
    assert (set(fit.table["split"]), set(test.table["split"])) == ({"val"}, {"test"})
    fit, test = halves(stored(split=["test"] * 300), 0.5, 0)
    assert len(fit.table) + len(test.table) == 300


def test_a_files_own_parts_must_not_share_patients():
    with pytest.raises(ValueError, match=r"patients are in val and in test \(patient p"):
        halves(stored(split=["val", "test"] * 150), 0.5, 0)


def test_patients_of_whom_there_is_but_one_are_told():
    with pytest.raises(ValueError, match=r"all 300 items are of one patient \(p0\): .* give items of two or more"):
        halves(stored(group="p0"), 0.5, 0)


def configured(folder, path, **changes):
    cfg = OmegaConf.create({
        "run_dir": str(folder), "bootstrap": 50, "seed": 1,
        "data": {"predictions": str(path), "labels": None, "findings": None, "fit_fraction": 0.5, "split_seed": 0},
        "model": {"calibration": "none", "threshold_by": None, "threshold": {
            "rule": "youden", "fixed": 0.5, "specificity": 0.9, "sensitivity": 0.9, "values": None,
        }},
    })  # fmt: skip
    for key, value in changes.items():
        OmegaConf.update(cfg, key.replace("__", "."), value)
    return cfg


def write(items, path):
    columns = {name: items.table[name] for name in ("id", "group", "sex") if name in items.table}
    columns["normal"] = items.table["normal"].astype(int)
    for c, finding in enumerate(FINDINGS):
        columns |= {f"{finding} label": items.table[finding], f"{finding} probability": items.prob[:, c]}
    pd.DataFrame(columns).to_csv(path, index=False, float_format="%.9g")


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    """The result of a file of a run's own format, and the folder with the predictions.csv it wrote."""
    folder = tmp_path_factory.mktemp("evaluated")
    items = stored()
    write(items, folder / "given.csv.gz")
    cfg = configured(folder, folder / "given.csv.gz", model__threshold__values={"Nodule": 0.3})
    return folder, evaluate_stored(cfg, 0.0), items


def test_thresholds_are_of_one_part_and_figures_of_the_other(evaluated):
    _, found, items = evaluated
    fit, test = halves(items, 0.5, 0)
    threshold = Threshold(FINDINGS, rule="youden")
    threshold.update(torch.tensor(fit.prob), torch.tensor(fit.label))
    value = threshold.compute().numpy()
    assert found["threshold"]["rule"] == "youden"
    assert list(found["threshold"]["values"].values()) == pytest.approx(value.tolist())
    assert found["counts"]["fit/items"] + found["counts"]["test/items"] == 300
    flagged, truth = test.prob[:, 1] >= value[1], test.label[:, 1] == 1
    assert found["metrics"]["test/recall/Nodule"] == pytest.approx(flagged[truth].mean())
    assert found["metrics"].keys() >= {"all/auroc/Mass", "all/auroc/Nodule", "all/auroc/macro"}


def test_the_chosen_rules_row_is_the_judgement(evaluated):
    _, found, _ = evaluated
    rows = {(row["rule"], row["finding"]): row for row in found["operating_points"]}
    assert {rule for rule, _ in rows} == {
        "fixed", "paper", "f1", "youden", "sensitivity@specificity", "specificity@sensitivity", "class_specific",
    }  # fmt: skip
    assert [finding for rule, finding in rows if rule == "class_specific"] == ["Nodule"]
    for finding in (*FINDINGS, "macro"):
        for name in ("precision", "recall", "f1", "specificity"):
            assert rows["youden", finding][name] == pytest.approx(found["metrics"][f"test/{name}/{finding}"])
            interval = rows["youden", finding][f"{name}_interval"]
            assert interval == pytest.approx(found["intervals"][f"test/{name}/{finding}"])


def test_what_was_written_is_judged_the_same(evaluated, tmp_path):
    folder, found, _ = evaluated
    cfg = configured(tmp_path, folder / "predictions.csv", model__threshold__values={"Nodule": 0.3})
    again = evaluate_stored(cfg, 0.0)
    for section in ("metrics", "intervals", "counts"):
        assert again[section].keys() == found[section].keys()
        for name, value in found[section].items():
            assert again[section][name] == pytest.approx(value, abs=1e-6)
    assert again["threshold"] == found["threshold"]
    assert (tmp_path / "predictions.csv").read_text() == (folder / "predictions.csv").read_text()


@pytest.mark.parametrize(("before", "method", "told"), [
    ("isotonic", "temperature", True), ("isotonic", "none", False), ("none", "temperature", False),
])  # fmt: skip
def test_a_calibration_on_top_of_the_runs_own_is_told(evaluated, tmp_path, before, method, told):
    folder, _, _ = evaluated
    shutil.copy(folder / "predictions.csv", tmp_path)
    record = {"calibration": {"method": before}, "artifacts": {"predictions": "predictions.csv"}}
    (tmp_path / "results.json").write_text(json.dumps(record))
    cfg = configured(tmp_path / "again", tmp_path / "predictions.csv", model__calibration=method, bootstrap=0)
    (tmp_path / "again").mkdir()
    warnings = [text for text in evaluate_stored(cfg, 0.0)["warnings"] if "has calibrated (isotonic)" in text]
    assert len(warnings) == told
    shutil.copy(folder / "given.csv.gz", tmp_path)
    other = evaluate_stored(configured(tmp_path / "again", tmp_path / "given.csv.gz", model__calibration=method), 0.0)
    assert not any("has calibrated" in text for text in other["warnings"]), "no file of that run"


def test_a_rule_that_cannot_be_fitted_or_flags_nothing_says_so(evaluated, tmp_path):
    folder, _, _ = evaluated
    table = pd.read_csv(folder / "given.csv.gz")
    table["Mass label"] = 0
    table["Mass probability"] /= 4
    table.to_csv(tmp_path / "p.csv", index=False)
    found = evaluate_stored(configured(tmp_path, tmp_path / "p.csv"), 0.0)
    told = "\n".join(found["warnings"])
    for rule in ("f1", "specificity@sensitivity"):
        assert f"Mass, rule {rule}: no positive among" in told
    assert told.count("Mass: no positive among") >= 1, "that of the chosen rule"
    assert "rule fixed flags nothing of Mass: no precision, and none in its mean" in told


def test_values_of_findings_that_are_not_there_are_named(evaluated, tmp_path):
    folder, _, _ = evaluated
    with pytest.raises(ValueError, match=r"model.threshold.values: no \['Nodul'\] here"):
        evaluate_stored(configured(tmp_path, folder / "given.csv.gz", model__threshold__values={"Nodul": 0.3}), 0.0)


def test_without_known_normal_items_there_are_no_false_positives_on_them():
    items = stored()
    table = items.table.drop(columns="normal")
    threshold = Threshold(FINDINGS, rule="fixed")
    found = judge(
        items.prob, items.label, items.prob >= 0.5, table, threshold, FINDINGS, replicates=0, seed=0
    )  # fmt: skip
    assert not any("No Finding" in name for name in found["metrics"])
    assert found["threshold"] == {"rule": "fixed", "values": {"Mass": 0.5, "Nodule": 0.5}}
    assert found["counts"]["test/items"] == 300


def test_sections_are_joined():
    found = {"metrics": {"a": 1}, "warnings": ["x"]}
    add(found, {"metrics": {"b": 2}, "warnings": ["y"], "fairness": {"gaps": []}})
    assert found == {"metrics": {"a": 1, "b": 2}, "warnings": ["x", "y"], "fairness": {"gaps": []}}


def test_groups_are_judged_at_thresholds_of_their_own(tmp_path):
    items = stored(items=1200, patients=400, sex=["F", "M"] * 600)
    shift = np.where(items.table["sex"] == "F", 0.0, 0.3)[:, np.newaxis]  # the model overrates men
    items = replace(items, prob=(0.7 * items.prob + shift).astype(np.float32))
    path = tmp_path / "in.csv"
    write(items, path)
    cfg = configured(tmp_path, path)
    cfg.model.threshold.rule, cfg.model.threshold_by, cfg.model.calibration = "youden", "sex", "temperature"
    found = evaluate_stored(cfg, 0.0)
    table = pd.read_csv(tmp_path / "predictions.csv").query("split == 'test'")
    for finding in FINDINGS:
        flagged, present = table[f"{finding} decision"], table[f"{finding} label"]
        assert found["metrics"][f"test/recall/{finding}"] == pytest.approx(flagged[present == 1].mean())
        least = table[flagged == 1].groupby("sex")[f"{finding} probability"].min()
        assert least["M"] > least["F"] + 0.1
    assert {"youden", "youden by sex"} <= {row["rule"] for row in found["operating_points"]}
    assert found["calibration"] == {"method": "temperature"}
    cfg.model.threshold_by = "view"
    with pytest.raises(ValueError, match=r"threshold_by=view: not known of these items; known are \['sex'\]"):
        evaluate_stored(cfg, 0.0)
