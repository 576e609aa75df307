"""A real DenseNet-121's predictions give the AUROCs that were published with them."""

import time

import numpy as np
import pandas as pd
import pytest

from mmpds.metrics.intervals import evaluate


@pytest.fixture(scope="module")
def predictions(real_data):
    table = pd.read_csv(real_data / "nih_densenet121_predictions" / "preds.csv.gz")
    labels = pd.read_csv(real_data / "nih_chest_xray14" / "Data_Entry_2017_v2020.csv.gz")
    return table.merge(labels, on="Image Index", validate="1:1")


def test_fourteen_published_aurocs_with_intervals_by_patient(predictions, real_data):
    published = pd.read_csv(real_data / "nih_densenet121_predictions" / "aucs.csv", index_col="label")["auc"]
    findings = list(published.index)
    named = predictions["Finding Labels"].str.split("|")
    started = time.perf_counter()
    judged = evaluate(
        predictions[[f"prob_{finding}" for finding in findings]].to_numpy(),
        np.stack([named.map(lambda names, f=f: f in names) for f in findings], axis=1),
        np.full(14, 0.5),
        findings,
        group=predictions["Patient ID"].to_numpy(),
        normal=(predictions["Finding Labels"] == "No Finding").to_numpy(),
    )
    seconds = time.perf_counter() - started
    assert {f: judged.metrics[f"auroc/{f}"] for f in findings} == pytest.approx(published.to_dict(), abs=1e-6)
    assert judged.metrics["auroc/Pneumonia"] == pytest.approx(0.761687, abs=1e-6)
    assert (judged.counts["items"], judged.counts["positives/Pneumonia"]) == (22_433, 260)
    for finding in findings:
        low, high = judged.intervals[f"auroc/{finding}"]
        assert low < published[finding] < high
    assert seconds < 60, "1,000 replicates of 22,433 x 14 take seconds, not minutes"
