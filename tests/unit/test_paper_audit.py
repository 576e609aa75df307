"""The audit of the study: its verdicts follow from the claims, and what it measures shows what it says."""

import copy
import json
import subprocess
import sys
from unittest.mock import patch

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import f1_score

from tests.conftest import ROOT

FOLDER = ROOT / "experiments" / "paper_audit"
MODULES = ("run", "rows", "arithmetic", "scores", "network", "ranks")


@pytest.fixture(scope="module")
def audit():
    """The runner; its modules have names that other folders use too."""
    with patch.object(sys, "path", [str(FOLDER), *sys.path]):
        import run
    yield run
    for name in MODULES:
        sys.modules.pop(name, None)


@pytest.fixture
def said(audit):
    return audit.claims()


def verdicts(sections):
    return {row.claim: row.verdict for rows in sections.values() for row in rows}


@pytest.fixture(scope="module")
def found(audit):
    """A network of a second's work."""
    return audit.network.measured(
        images=64, judged=40, size=32, epochs=2, growth_rate=8, block_config=(2, 2, 2, 2), num_init_features=16
    )


@pytest.mark.parametrize(
    ("printed", "value", "same"),
    [("0.9", 0.9009, True), ("132", 131.75, True), ("2.6", 2.54, False), ("0.52", 0.51852, True), ("47", 46.4, False),
     ("0.5", 0.45, True), ("1.0", 1, True), ("0.6347", 0.63475, False)],
)  # fmt: skip
def test_a_printed_figure_is_compared_to_its_last_digit(audit, printed, value, same):
    assert sys.modules["rows"].agrees(printed, value) is same


def test_verdicts_of_the_tables_of_seconds(audit, said):
    found = verdicts(audit.arithmetic.rows_of(said))
    wanted = {
        "MPI, 6 nodes × 4 ranks": "confirmed",
        "GPU, 1 × L40S": "confirmed",
        "Efficiency of MPI with GPUs": "corrected",
        "Sequential, images a second": "corrected",
        "GPU, images a second": "confirmed",
        "The rates beside each other": "not comparable",
        "Relative energy": "not recomputable",
        "Batch sizes compared": "not comparable",
        "Seconds an image on the GPU": "corrected",
        "Python, 4 ranks": "not comparable",
        "C++, CUDA": "corrected",
        "Fortran, 8 OpenMP threads": "corrected",
        "Julia, 8 threads": "corrected",
        "R, 12 ranks": "not comparable",
    }
    assert {claim: found[claim] for claim in wanted} == wanted


def test_other_claims_get_other_verdicts(audit, said):
    other = copy.deepcopy(said)
    generation = other["generation"]
    generation["modes"][1]["speedup"] = "1.1"
    generation["hybrid_efficiency"] = ["60", "62"]
    for mode, rate in zip(generation["modes"][:3], ("0.00091", "0.00082", "0.0024"), strict=True):
        mode["images_per_s"] = rate
    generation["batches"] = {"4": "47", "2": "27"}
    generation["seconds_per_image"] = "11.75"
    entries = {(e["language"], e["where"]): e for e in other["vector_addition"]["entries"]}
    entries["C++", "CUDA"]["gflops"] = "0.988"
    entries["Julia", "8 threads"]["speedup"] = "33.7"
    found = verdicts(audit.arithmetic.rows_of(other))
    assert found["OpenMP, 12 threads"] == "corrected"
    for claim in ("Efficiency of MPI with GPUs", "Sequential, images a second", "The rates beside each other",
                  "Batch sizes compared", "Seconds an image on the GPU", "C++, CUDA", "Julia, 8 threads"):  # fmt: skip
        assert found[claim] == "confirmed", claim


def test_start_up_and_seconds_an_image_of_two_rows(audit):
    start_up, each, most, least = audit.arithmetic.line({"10": "35", "5": "20"})
    assert (start_up, each) == (5, 3)
    assert (most, least) == pytest.approx((16 / 5, 19.5 - 16))


def test_yes_to_every_image(audit, said):
    detection = said["detection"]
    found = audit.scores.always_positive(detection)["metrics"]
    label = np.arange(1000) < 350
    assert found["f1"] == pytest.approx(f1_score(label, np.ones(1000)))
    assert (found["precision"], found["recall"], found["auroc"]) == pytest.approx((0.35, 1, 0.5))
    rows = audit.scores.values(detection, {"metrics": found, "told": ["the diagnosis"]})
    assert [row.verdict for row in rows] == ["confirmed"] * 3
    assert "the diagnosis" in rows[-1].why
    rows = audit.scores.values(detection | {"f1": "0.62"}, {"metrics": found, "told": []})
    assert rows[-1].verdict == "corrected"
    assert not rows[-1].why


def test_the_rule_flags_all_of_equal_scores_alone(audit, said, tmp_path):
    rule, missing = audit.scores.rule_rows(said["detection"], tmp_path / "preds.csv")
    assert rule.verdict == "corrected"
    assert "100 % of equal ones" in rule.measured
    assert missing.verdict == "not recomputable"
    assert "--root" in missing.measured
    rng = np.random.default_rng(0)
    table = {"Image Index": [f"{n}.png" for n in range(200)], "prob_A": rng.uniform(size=200), "prob_B": 0.7}
    pd.DataFrame(table).drop(columns="prob_B").to_csv(tmp_path / "preds.csv")
    assert audit.scores.rule_rows(said["detection"], tmp_path / "preds.csv")[1].verdict == "confirmed"
    pd.DataFrame(table).to_csv(tmp_path / "preds.csv")
    assert audit.scores.rule_rows(said["detection"], tmp_path / "preds.csv")[1].verdict == "corrected"


def test_findings_beside_pneumonia(audit, said, tmp_path):
    labels = ["Pneumonia|Infiltration", "Infiltration", "No Finding", "Effusion"]
    path = tmp_path / "labels.csv"
    pd.DataFrame({"Image Index": range(4), "Finding Labels": labels}).to_csv(path, index=False)
    row = audit.scores.together(said["detection"], path)
    assert "all 4 images of ChestX-ray14: Infiltration 50 %, Effusion 25 %" in row.measured
    assert "1 images labelled Pneumonia: Infiltration 100 %, Effusion 0 %" in row.why


def test_the_constant_twice_through_a_sigmoid(audit, said):
    value, sigmoid = audit.scores.constant_rows(said)
    assert value.verdict == "not recomputable"
    assert "the digits agree" in value.why
    assert sigmoid.verdict == "confirmed"
    other = said | {"torchxrayvision": {"constants": {"Pneumonia": "0.56", "Infiltration": "0.5281"}}}
    assert "the digits differ" in audit.scores.constant_rows(other)[0].why


def test_a_wrong_range_makes_constants_and_is_named(audit, found):
    assert [(way["fed"], way["sigmoids"]) for way in found] == [
        ("[-1024, 1024]", 1), ("[-1024, 1024]", 2), ("[0, 1]", 1), ("[0, 1]", 2),
    ]  # fmt: skip
    right, _, wrong, both = found
    assert max(wrong["deviation"].values()) < 0.01 * min(right["deviation"].values())
    assert audit.network.named(right) == []
    assert audit.network.named(wrong) == ["unexpected_input_range", "constant_scores"]
    assert audit.network.named(both) == ["unexpected_input_range", "double_sigmoid", "constant_scores"]
    assert all(0.5 <= mean <= 0.7311 for mean in both["mean"].values())
    assert [row.verdict for row in audit.network.rows_of(found)] == ["confirmed", "confirmed"]
    # were the right range fed throughout, neither claim would hold
    fine = [way | {"deviation": right["deviation"], "told": right["told"]} for way in found]
    quoting = [*fine[:3], both]
    assert audit.network.rows_of(quoting)[0].verdict == "corrected"


def test_ranks_without_work_correct_the_claim(audit, said):
    idle = {"ranks": 24, "images_of_rank": {str(rank): 1 for rank in range(6)}, "warnings": ["18 ranks idle"]}
    (row,) = audit.ranks.rows_of(said, idle)
    assert row.verdict == "corrected"
    assert "6 made 1 each, 18 none" in row.measured
    assert "“18 ranks idle”" in row.why
    busy = {"ranks": 2, "images_of_rank": {"0": 3, "1": 3}, "warnings": []}
    assert audit.ranks.rows_of(said, busy)[0].verdict == "confirmed"


def test_the_kept_page_is_that_of_the_claims(audit, said, tmp_path):
    record = json.loads((FOLDER / "results.json").read_text())
    kept = [tuple(row.values())[:4] for rows in record["rows"].values() for row in rows]
    computed = [*audit.arithmetic.rows_of(said).values(), audit.scores.rows_of(said, tmp_path)[:6],
                audit.scores.constant_rows(said), audit.ranks.rows_of(said, record["ranks"]),
                audit.network.rows_of(record["network"]), audit.language_rows(said)]  # fmt: skip
    for row in (row for rows in computed for row in rows):
        assert (row.claim, row.says, row.measured, row.verdict) in kept
    assert {row[3] for row in kept} <= set(audit.VERDICTS)

    def figures(node):
        nodes = node.values() if isinstance(node, dict) else node
        return [node] if isinstance(node, str) else [text for one in nodes for text in figures(one)]

    printed = [text for text in figures(said) if text.replace(".", "").isdigit()]
    assert len(printed) > 60
    page = record["markdown"].replace(",", "")
    assert [text for text in printed if text not in page] == []


def test_a_folder_that_is_not_there(tmp_path):
    command = [sys.executable, FOLDER / "run.py", "--root", tmp_path / "none"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "no such folder" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
