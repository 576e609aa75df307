import json
import re
import subprocess
import sys
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
from sklearn.calibration import calibration_curve
from sklearn.metrics import confusion_matrix, precision_recall_curve, roc_curve

from mmpds import report
from mmpds.report import figures, tables
from mmpds.report.__main__ import main
from mmpds.report.stored import StoredRun
from tests.unit.report.sample import NIH, sample_run

PAIR = ("Pneumonia", "Infiltration")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return sample_run(tmp_path_factory.mktemp("runs") / "full", findings=PAIR)


@pytest.fixture
def fresh(tmp_path):
    return sample_run(tmp_path / "run", findings=PAIR, replicates=0)


def edit(folder, **sections):
    path = folder / "results.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | sections))


def page(folder):
    (path,) = report.write(folder)
    text = path.read_text()
    return text.replace(re.search(r'id="plotly">(.*?)</script>', text, re.S)[1], "")


class Headings(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.found, self.tags, self.inside = [], [], False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.inside = tag == "h2"

    def handle_data(self, data):
        if self.inside:
            self.found.append(data)
            self.inside = False


def test_sections_come_in_the_order_of_their_weight(folder):
    assert Headings(page(folder)).found == [
        "What the diagnosis found", "Headline figures", "ROC and precision–recall", "Scores",
        "Confusion at a threshold", "Calibration", "Findings that occur together", "Operating points",
        "Fairness between groups of patients", "Where the model looked", "Time, energy and provenance",
    ]  # fmt: skip


def test_every_table_has_a_caption_and_every_plot_and_picture_a_text(folder):
    tags = Headings(page(folder)).tags
    names = [tag for tag, _ in tags]
    assert names.count("table") == names.count("caption") > 5
    assert all(attrs.get("scope") in ("col", "row") for tag, attrs in tags if tag == "th")
    plots = [attrs for tag, attrs in tags if "plot" in attrs.get("class", "").split()]
    assert len(plots) > 10
    assert all(attrs["role"] == "img" and attrs["aria-label"] for attrs in plots)
    pictures = [attrs for tag, attrs in tags if tag == "img"]
    assert len(pictures) == 8
    assert all(attrs["alt"] for attrs in pictures)


def test_curves_pass_through_points_of_scikit_learns(folder):
    run = StoredRun.read(folder)
    judged = run.judged["Infiltration"]
    drawn = figures.curves(run)
    precision, recall, _ = precision_recall_curve(judged.positive, judged.prob)
    fpr, tpr, _ = roc_curve(judged.positive, judged.prob, drop_intermediate=False)
    for key, x, y in (("roc", fpr, tpr), ("pr", recall, precision)):
        line, dot = [trace for trace in drawn[key]["data"] if trace.get("meta") == 1]
        known = set(zip(x.round(4), y.round(4), strict=True))
        assert set(zip(line["x"], line["y"], strict=True)) <= known
        assert (round(dot["x"][0], 4), round(dot["y"][0], 4)) in known
        assert len(line["x"]) > 50


def test_reliability_is_scikit_learns_with_intervals_around_it(folder):
    run = StoredRun.read(folder)
    judged = run.judged["Pneumonia"]
    rate, mean = calibration_curve(judged.positive, judged.prob, n_bins=figures.RELIABILITY_BINS)
    drawn = figures.reliability(run, "Pneumonia")["data"][1]
    np.testing.assert_allclose(drawn["x"], mean, atol=1e-4)
    np.testing.assert_allclose(drawn["y"], rate, atol=1e-4)
    assert min(drawn["error_y"]["array"] + drawn["error_y"]["arrayminus"]) >= 0
    gaps = np.abs(np.subtract(drawn["y"], drawn["x"]))
    expected = run.section("metrics")["test/ece/Pneumonia"]
    assert np.average(gaps, weights=drawn["customdata"]) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("groups", [2, 20])
def test_many_groups_too_small_to_be_judged_are_folded_away(fresh, groups):
    row = {"attribute": "age_band", "finding": "Pneumonia", "judged": False, "why": "2 positives, fewer than 20"}
    edit(fresh, fairness={"groups": [row | {"group": f"g{n}"} for n in range(groups)]})
    text = page(fresh)
    assert f"Groups too small to be judged: {groups}" in text
    assert "age band g0: 2 positives, fewer than 20 (Pneumonia)" in text
    assert ("<details open><summary>Groups too small" in text) == (groups == 2)


def test_slider_counts_are_scikit_learns_at_each_stop(folder):
    run = StoredRun.read(folder)
    for row in figures.confusion(run):
        judged = run.judged[row["name"]]
        assert row["stops"] == sorted(row["stops"])
        assert row["stops"][row["start"]] == pytest.approx(0.35)
        for at in {0, row["start"], *range(0, len(row["stops"]), 40)}:
            flagged = judged.prob >= np.float32(row["stops"][at])
            (tn, fp), (fn, tp) = confusion_matrix(judged.positive, flagged, labels=[False, True])
            assert (row["tp"][at], row["fp"][at]) == (tp, fp)
            assert (row["positives"] - tp, row["negatives"] - fp) == (fn, tn)


def test_thresholds_by_group_leave_the_slider_a_common_one_and_say_so(fresh):
    assert "Thresholds of this run differ" not in page(fresh)
    threshold = json.loads((fresh / "results.json").read_text())["threshold"]
    table = pd.read_csv(fresh / "predictions.csv")
    table["Infiltration decision"] = 1
    table.to_csv(fresh / "predictions.csv", index=False)
    edit(fresh, threshold=threshold | {"by": "age_band"})
    text = page(fresh)
    assert (
        "Thresholds of this run differ by age band."
        in text[text.index('id="threshold"') : text.index('id="calibration"')]
    )
    run = StoredRun.read(fresh)
    (row,) = [row for row in figures.confusion(run) if row["name"] == "Infiltration"]
    judged = run.judged["Infiltration"]
    assert row["tp"][row["start"]] == np.count_nonzero(judged.positive & (judged.prob >= np.float32(0.35)))


def test_cooccurrence_counts_images(folder):
    test = pd.read_csv(folder / "predictions.csv").query("split == 'test'")
    (own, both), (again, _) = tables.cooccurrence(StoredRun.read(folder), "label")
    positive = test["Pneumonia label"] == 1
    together = int((positive & (test["Infiltration label"] == 1)).sum())
    assert own == (int(positive.sum()), None)
    assert both == (together, together / positive.sum())
    assert again[0] == together


def test_only_test_rows_are_judged(folder):
    run = StoredRun.read(folder)
    assert len(run.table) == 620
    assert len(run.judged["Infiltration"].prob) == 600
    assert len(run.judged["Pneumonia"].prob) == 570, "unlabelled images take no part"


def test_patients_are_not_in_the_page(folder):
    text = page(folder)
    assert "patient-" not in text
    assert set(re.findall(r"image-\d+", text)) == {f"image-{n}" for n in range(8)}


def test_an_estimate_of_energy_is_called_one(fresh):
    assert "not measured" in page(fresh)
    edit(fresh, energy={"joules": 12.0, "joules_per_item": None, "method": "nvml"})
    assert "12 J: measured by the GPU boards" in page(fresh)
    edit(fresh, energy={"joules": None, "joules_per_item": None, "method": "unavailable"})
    assert "not available on this machine" in page(fresh)


def test_what_is_wrong_is_said_first(fresh):
    assert "give the loss logits" in page(fresh)
    edit(fresh, diagnosis=[], warnings=["Nodule: no image flagged"])
    text = page(fresh)
    assert text.index("Nodule: no image flagged") < text.index("Headline figures")
    edit(fresh, diagnosis=[], warnings=[])
    assert "Nothing suspicious found." in page(fresh)
    edit(fresh, diagnosis=None, warnings=[])
    assert "Nothing suspicious" not in page(fresh), "nobody looked"


def test_a_failed_run_states_its_error(tmp_path):
    content = {"status": "failed", "error": "CUDA out of memory <4 GiB>", "experiment": "demo", "run_id": "one"}
    (tmp_path / "results.json").write_text(json.dumps(content))
    text = page(tmp_path)
    assert "CUDA out of memory &lt;4 GiB&gt;" in text
    assert "Nothing suspicious" not in text
    assert Headings(text).found == ["What the diagnosis found", "Time, energy and provenance"]


def test_a_predicting_run_shows_scores_and_judges_nothing(fresh):
    table = pd.read_csv(fresh / "predictions.csv")
    table["split"] = "predict"
    table[[f"{finding} label" for finding in PAIR]] = np.nan
    table.drop(columns="normal").to_csv(fresh / "predictions.csv", index=False)
    edit(fresh, metrics={}, intervals={}, counts={}, fairness=None, operating_points=None)
    text = page(fresh)
    assert "620 images without a known answer" in text
    assert "No test split was judged" in text
    assert "ROC" not in "".join(Headings(text).found)
    report.write(fresh, "csv")
    export = pd.read_csv(fresh / "pneumonia_infiltration_results.csv", keep_default_na=False)
    assert set(export["ground truth"]) == {""}


@pytest.mark.parametrize("positive", [0, 1])
def test_findings_of_one_class_have_a_page(fresh, positive):
    table = pd.read_csv(fresh / "predictions.csv")
    table["Pneumonia label"] = positive
    table.to_csv(fresh / "predictions.csv", index=False)
    assert "Pneumonia" in page(fresh)


def test_names_and_ids_cannot_run(tmp_path):
    evil = "<script>alert(1)</script>"
    folder = sample_run(tmp_path / "run", findings=(evil, "=1+1"), replicates=0)
    gallery = pd.read_csv(folder / "gradcam" / "gallery.csv")
    gallery["id"] = evil
    gallery.to_csv(folder / "gradcam" / "gallery.csv", index=False)
    edit(folder, error=evil, warnings=[evil], command=evil, git_commit=evil, run_id=evil)
    text = page(folder)
    assert evil not in text
    assert text.count("<script") == 3
    report.write(folder, "md")
    assert "<script" not in (folder / "report.md").read_text()
    report.write(folder, "csv")
    assert "'=1+1 probability" in (folder / "pneumonia_infiltration_results.csv").read_text().splitlines()[0]


def test_gallery_reads_only_its_own_folder(fresh):
    gallery = pd.read_csv(fresh / "gradcam" / "gallery.csv")
    gallery.loc[0, "file"] = "../predictions.csv"
    gallery.to_csv(fresh / "gradcam" / "gallery.csv", index=False)
    text = page(fresh)
    assert text.count("<img") == 7
    assert "Left out: 1," in text


def test_gaps_found_come_before_those_of_chance(fresh):
    text = page(fresh)
    assert text.index("sex: F worse than M") < text.index("view: AP worse than PA")
    fairness = json.loads((fresh / "results.json").read_text())["fairness"]
    edit(fresh, fairness=fairness | {"gaps": fairness["gaps"][1:]})
    assert "No difference between groups was found" in page(fresh)


def test_markdown_has_every_table(folder):
    report.write(folder, "md")
    text = (folder / "report.md").read_text()
    assert "Double sigmoid" in text
    for caption in ("Each finding at its operating point", "Rules for choosing", "Differences found", "Heat maps"):
        assert caption in text


def test_metrics_csv_holds_every_metric(folder):
    report.write(folder, "csv")
    table = pd.read_csv(folder / "metrics.csv", keep_default_na=False, na_values=[""])
    result = json.loads((folder / "results.json").read_text())
    assert len(table) == len(result["metrics"])
    row = table.query("split == 'test' and metric == 'auroc' and finding == 'Pneumonia'").iloc[0]
    assert row["value"] == pytest.approx(result["metrics"]["test/auroc/Pneumonia"], abs=1e-6)
    assert [row["low"], row["high"]] == pytest.approx(result["intervals"]["test/auroc/Pneumonia"], abs=1e-6)


def test_the_studys_export(folder):
    report.write(folder, "csv")
    export = pd.read_csv(folder / "pneumonia_infiltration_results.csv", keep_default_na=False)
    table = pd.read_csv(folder / "predictions.csv").query("split == 'test'")
    assert list(export) == ["id", "Pneumonia probability", "Infiltration probability", "dominant label", "ground truth"]
    assert list(export["id"]) == list(table["id"])
    ahead = table["Pneumonia probability"] >= table["Infiltration probability"]
    assert list(export["dominant label"]) == [PAIR[0] if first else PAIR[1] for first in ahead]
    for at, row in enumerate(table.itertuples(index=False)):
        present = [finding for finding, label in zip(PAIR, (row[4], row[7]), strict=True) if label == 1]
        absent = "" if np.isnan(row[4]) else "No Finding" if row.normal else "none of these"
        assert export["ground truth"][at] == ("|".join(present) or absent)


def test_other_findings_are_exported_the_same(tmp_path):
    folder = sample_run(tmp_path / "run", findings=NIH, replicates=0, extras=False)
    report.write(folder, "csv")
    assert len(pd.read_csv(folder / "pneumonia_infiltration_results.csv").columns) == 3 + len(NIH)


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("results.json", None, "give the directory of a run"),
        ("results.json", "{", "results.json is damaged"),
        ("results.json", "[1]", "results.json is damaged"),
        ("results.json", "[]", "results.json is damaged"),
        ("results.json", '{"metrics": [1]}', "metrics must be objects"),
        ("predictions.csv", "id,x\n1,2\n", "no column split"),
        ("predictions.csv", "x\n", "no column split; no column id; no column of a finding's probability; delete"),
        ("predictions.csv", "split,A label,A probability,A decision\ntest,1,0.5,1\n", "no column id"),
        ("predictions.csv", "split,id\ntest,1\n", "damaged: no column of a finding's probability; delete"),
        ("predictions.csv", "split,id,A label,A probability\ntest,1,0,oops\n", "A decision"),
        ("predictions.csv", "split,id,A label,A probability,A decision\ntest,1,0,1.5,1\n", "outside 0 to 1"),
        ("gradcam/gallery.csv", "file\nx.png\n", "no column id"),
    ],
)
def test_bad_input_is_one_line_and_exit_status_2(fresh, capsys, file, content, said):
    if content is None:
        (fresh / file).unlink()
    else:
        (fresh / file).write_text(content)
    assert main([str(fresh)]) == 2
    told = capsys.readouterr().err
    assert said in told
    assert told.count("\n") == 1


def test_the_command_loads_no_torch(fresh):
    code = "import sys; from mmpds.report.__main__ import main; main(sys.argv[1:]); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code, str(fresh)], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [str(fresh / "report.html"), "False"]
    assert (fresh / "report.html").stat().st_size < 8e6


def test_what_embeddings_are_worth_stands_in_the_page_and_in_the_tables(fresh):
    result = json.loads((fresh / "results.json").read_text())
    learnt = {
        f"test/{kind}/auroc/{finding}": value
        for kind, value in (("few_shot_16", 0.7654), ("few_shot_4", 0.6543), ("linear_probe", 0.8766))
        for finding in ("Pneumonia", "macro")
    }
    asked = {"test/text_to_image/recall@5": 0.4321, "test/text_to_image/recall_chance@5": 0.0123}
    edit(fresh, metrics=result["metrics"] | learnt | asked | {"test/top1_accuracy": 0.9876})
    text = page(fresh)
    section = text[text.index('id="embeddings"') : text.index('id="curves"')]
    assert section.index("4 + 4 images") < section.index("16 + 16 images") < section.index("All images")
    assert all(value in section for value in ("0.765", "0.654", "0.877", "0.432", "0.012", "0.988"))
    report.write(fresh, "md")
    assert "16 + 16 images" in (fresh / "report.md").read_text()
    report.write(fresh, "csv")
    table = pd.read_csv(fresh / "metrics.csv", keep_default_na=False)
    (row,) = table.query("metric == 'few_shot_4/auroc' and finding == 'Pneumonia'").itertuples()
    assert float(row.value) == 0.6543


def test_a_run_without_embeddings_has_no_such_section(folder):
    assert 'id="embeddings"' not in page(folder)


def test_a_test_of_captions_is_told_as_one(tmp_path):
    metrics = {"test/rouge_l": 0.5, "test/bleu/1": 0.6, "test/omission/all": 0.25, "test/hallucination/all": 0.1}
    result = {"status": "finished", "metrics": metrics, "counts": {"test/items": 40}, "warnings": [], "diagnosis": None}
    (tmp_path / "results.json").write_text(json.dumps(result))
    text = page(tmp_path)
    told = (
        "On 40 test images its captions have a ROUGE-L of 0.500; 25.0 % of the findings that are there are not named; "
    )
    assert f"{told}10.0 % of those named are absent." in text
    assert "no test split was judged" not in text.lower()
    assert "Beside the accuracy" not in text
