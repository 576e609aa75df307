"""A published model's predictions through the command: the published AUROCs, and operating points on other patients."""

import pandas as pd
import pytest

from mmpds.results import read
from tests.distributed.test_stages import run

RULES = ("fixed", "paper", "f1", "youden", "sensitivity@specificity", "specificity@sensitivity")


@pytest.fixture(scope="module")
def place(tmp_path_factory, real_data):
    folder = tmp_path_factory.mktemp("stored")
    return folder, run(
        folder, "experiment=evaluate_predictions", "run_dir=run",
        f"data.predictions={real_data / 'nih_densenet121_predictions' / 'preds.csv.gz'}",
        f"data.labels={real_data / 'nih_chest_xray14' / 'Data_Entry_2017_v2020.csv.gz'}",
    )  # fmt: skip


def test_the_published_aurocs_of_all_items(place, real_data):
    folder, _ = place
    published = pd.read_csv(real_data / "nih_densenet121_predictions" / "aucs.csv", index_col="label")["auc"]
    metrics = read(folder / "run")["metrics"]
    assert {name: metrics[f"all/auroc/{name}"] for name in published.index} == pytest.approx(
        published.to_dict(), abs=1e-6
    )


def test_every_rule_is_judged_on_the_other_half_of_the_patients(place):
    folder, said = place
    result, rows = read(folder / "run"), pd.read_csv(folder / "run" / "predictions.csv", dtype={"group": str})
    counts = result["counts"]
    assert counts["fit/items"] + counts["test/items"] == len(rows) == 22_433
    assert counts["fit/items"] == pytest.approx(22_433 / 2, rel=0.01)
    parts = {split: set(part["group"]) for split, part in rows.groupby("split")}
    assert not parts["val"] & parts["test"]
    macro = {row["rule"]: row for row in result["operating_points"] if row["finding"] == "macro"}
    assert tuple(sorted(macro)) == tuple(sorted(RULES))
    for rule, row in macro.items():
        assert rule in said
        for name in ("recall", "f1", "specificity", "false_positive_rate/No Finding"):
            low, high = row[f"{name}_interval"]
            assert 0 <= low <= row[name] <= high <= 1
    # what a rule promises on the fitted half holds on the other to within its patients' noise
    assert macro["specificity@sensitivity"]["recall"] == pytest.approx(0.9, abs=0.03)
    assert macro["sensitivity@specificity"]["specificity"] == pytest.approx(0.9, abs=0.03)
    # scores of a model that tells images apart are not all above their own mean: the study flagged every image
    assert macro["paper"]["false_positive_rate/No Finding"] < 0.1
    assert macro["paper"]["recall"] < macro["f1"]["recall"] < macro["specificity@sensitivity"]["recall"]
