"""Robustness in the report: curves that are the table's, told apart, and missing where nothing is known."""

import json

import numpy as np
import pytest

from mmpds import report
from mmpds.callbacks.predictions import write_table
from mmpds.callbacks.robustness import METRICS, judge
from mmpds.data.corruptions import CORRUPTIONS, conditions
from mmpds.report import robustness
from mmpds.report.__main__ import main
from tests.unit.report.sample import sample_run

FINDINGS = ("Pneumonia", "Infiltration")
EVIL = "<script>alert(1)</script>"


def judged(path, size=64, harm=0.03, rare=0.3, chosen=None, findings=FINDINGS):
    """A robustness.csv of made-up predictions, each condition a little worse than the last; returns the figures."""
    rng = np.random.default_rng(0)
    asked = conditions(chosen, size)
    label = (rng.random((200, 2)) < [rare, 0.3]).astype(float)
    label[0] = 1
    blur = 0.6 * rng.random(label.shape)
    prob = [(0.4 * label * max(0, 1 - harm * k) + blur).clip(0, 1) for k in range(len(asked))]
    group = np.array([f"p{i // 2}" for i in range(200)])
    found, table = judge(np.array(prob), label, np.full(2, 0.5), findings, asked, group, replicates=50)
    path.mkdir(exist_ok=True)
    write_table(path / robustness.FILE, table)
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = sample_run(tmp_path_factory.mktemp("runs") / "run", findings=FINDINGS, items=100, replicates=0)
    found = judged(path)
    result = json.loads((path / "results.json").read_text())
    result["metrics"] |= {f"test/{name}": value for name, value in found.metrics.items()}
    result["counts"] |= {f"test/{name}": value for name, value in found.counts.items()}
    (path / "results.json").write_text(json.dumps(result))
    return path


def page(folder):
    (path,) = report.write(folder)
    return path.read_text()


def traces(figure):
    """The figure's bands, and its line."""
    *bands, line = figure["data"]
    return bands, line


def test_the_page_has_a_curve_a_corruption_and_metric_and_all_figures(folder):
    text = page(folder)
    section = text[text.index('<section id="robustness">') : text.index('<section id="cost">')]
    assert text.index('id="gradcam"') < text.index('id="robustness"')
    assert section.count('role="img"') == len(CORRUPTIONS) * len(METRICS)
    for name in CORRUPTIONS:
        assert section.count(f"<figcaption>{robustness.title(name)}</figcaption>") == len(METRICS)
    assert "200 images of the" in section
    rows = robustness.read(folder)
    assert robustness.sentence(rows) in section
    for row in rows:
        assert row["finding"] != "macro" or f"{row['auroc']:.3f}" in section
    assert len(robustness.table(rows).rows) == len(conditions(None, 64))


def test_a_run_without_it_has_no_such_section(tmp_path):
    assert 'id="robustness"' not in page(sample_run(tmp_path / "run", findings=FINDINGS, items=100, replicates=0))
    assert robustness.read(tmp_path) == []
    assert robustness.curves({"a run": []}) == {}
    assert robustness.table([]) is None
    assert robustness.sentence([]) == ""


def test_curves_and_bands_are_the_metrics_and_their_intervals(folder, tmp_path):
    found = judged(tmp_path)
    drawn = robustness.curves({"DenseNet-121": robustness.read(folder)})
    assert list(drawn) == ["AUROC", "Balanced accuracy", "Accuracy"]
    assert list(drawn["AUROC"]) == [robustness.title(name) for name in CORRUPTIONS]
    for label, metric in zip(drawn, METRICS, strict=True):
        (band,), line = traces(drawn[label]["Rotation"])
        names = [f"robustness/{each.name}/{metric}/macro" for each in conditions({"rotation": None}, 64)]
        assert line["y"] == pytest.approx([found.metrics[name] for name in names])
        low, high = np.array([found.intervals[name] for name in names]).T
        assert band["y"] == pytest.approx([*high, *low[::-1]])
        assert line["x"] == ["0", "5", "10", "15", "30", "45", "90"]
        assert band["x"] == line["x"] + line["x"][::-1]
    assert line["marker"]["symbol"] == ["circle-open"] + ["circle"] * 6
    assert not drawn["AUROC"]["Rotation"]["layout"]["showlegend"]
    ranges = {tuple(figure["layout"]["yaxis"]["range"]) for figure in drawn["AUROC"].values()}
    assert len(ranges) == 1  # one scale
    lowest = min(min(trace["y"]) for figure in drawn["AUROC"].values() for trace in figure["data"])
    assert ranges.pop()[0] < lowest


def test_names_have_no_line_between_them(folder):
    drawn = robustness.curves({"a run": robustness.read(folder)})["AUROC"]
    (dots,) = drawn["Flip"]["data"]
    assert (dots["mode"], dots["x"]) == ("markers", ["none", "left right", "up down"])
    (row,) = [r for r in robustness.read(folder) if (r["level"], r["finding"]) == ("up_down", "macro")]
    assert dots["y"][2] - dots["error_y"]["arrayminus"][2] == pytest.approx(row["auroc_low"])
    assert dots["y"][2] + dots["error_y"]["array"][2] == pytest.approx(row["auroc_high"])
    assert traces(drawn["JPEG compression"])[1]["x"][-2:] == ["90", "none"]


def test_runs_are_drawn_over_each_other(tmp_path):
    judged(tmp_path / "one", size=64, chosen={"resolution": [32, 64, 128]})
    judged(tmp_path / "two", size=224, chosen={"resolution": [32, 128], "noise": [0.1]})
    runs = {"DenseNet-121": robustness.read(tmp_path / "one"), EVIL: robustness.read(tmp_path / "two")}
    drawn = robustness.curves(runs)["AUROC"]
    resolution = drawn["Resolution"]
    assert resolution["layout"]["xaxis"]["categoryarray"] == ["32", "64", "128", "224"]
    lines = [trace for trace in resolution["data"] if "name" in trace]
    assert [line["x"] for line in lines] == [["32", "64", "128"], ["32", "128", "224"]]
    assert [line["marker"]["symbol"].index("circle-open") for line in lines] == [1, 2]
    assert lines[0]["line"]["color"] != lines[1]["line"]["color"]
    assert resolution["layout"]["showlegend"]
    assert [trace["name"] for trace in drawn["Gaussian noise"]["data"] if trace.get("name") and trace["x"]] == [
        "&lt;script&gt;alert(1)&lt;/script&gt;"
    ]
    assert all(EVIL not in str(figure["data"]) for figure in drawn.values())


def test_a_findings_own_curve(folder):
    rows = robustness.read(folder)
    drawn = robustness.curves({"a run": rows}, finding="Infiltration")["Accuracy"]["Rotation"]
    wanted = [r["accuracy"] for r in rows if (r["corruption"], r["finding"]) == ("rotation", "Infiltration")]
    assert traces(drawn)[1]["y"] == wanted
    assert robustness.curves({"a run": rows}, finding="Hernia") == {}


def test_a_band_ends_where_there_is_no_interval(folder):
    rows = [
        {**row, "auroc_low": float("nan"), "auroc_high": float("nan")} if row["level"] == "15" else row
        for row in robustness.read(folder)
    ]
    bands, line = traces(robustness.curves({"a run": rows})["AUROC"]["Rotation"])
    assert [band["x"][: len(band["x"]) // 2] for band in bands] == [["0", "5", "10"], ["30", "45", "90"]]
    assert len(line["x"]) == 7
    assert line["customdata"][3] == ""


def test_few_images_leave_figures_without_intervals(tmp_path):
    judged(tmp_path, rare=0, chosen={"noise": [0.1]})  # one positive alone
    rows = robustness.read(tmp_path)
    bands, line = traces(robustness.curves({"a run": rows})["AUROC"]["Gaussian noise"])
    assert (bands, line["customdata"]) == ([], ["", ""])
    assert "interval" not in robustness.sentence(rows)


def test_the_sentence_names_the_worst(tmp_path):
    found = judged(tmp_path, harm=0.3, chosen={"noise": [0.1, 0.2]})
    fall = found.metrics["robustness/noise/0.2/auroc_drop/macro"]
    low, high = found.intervals["robustness/noise/0.2/auroc_drop/macro"]
    wanted = f"Gaussian noise 0.2 (standard deviation / range): by {fall:.3f} (95 % interval {low:.3f} to {high:.3f})."
    assert robustness.sentence(robustness.read(tmp_path)) == f"The mean AUROC falls most under {wanted}"
    judged(tmp_path, harm=-0.3, chosen={"noise": [0.1, 0.2]})
    assert robustness.sentence(robustness.read(tmp_path)) == "No corruption lowers the mean AUROC."


@pytest.mark.parametrize(
    ("text", "what"),
    [("corruption,level\nnoise,0\n", "no column unit"), (b"\xff\xfe", "damaged"), ("", "damaged")],
)
def test_a_damaged_file_is_one_sentence(tmp_path, capsys, text, what):
    run = sample_run(tmp_path / "run", findings=FINDINGS, items=100, replicates=0)
    (run / robustness.FILE).write_bytes(text if isinstance(text, bytes) else text.encode())
    assert main([str(run)]) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert robustness.FILE in told
    assert what in told


def test_numbers_that_are_none_are_a_damaged_file(tmp_path):
    judged(tmp_path, chosen={"noise": [0.1]})
    path = tmp_path / robustness.FILE
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], lines[1].replace(",1,Pneumonia", ",maybe,Pneumonia"), *lines[2:]]))
    with pytest.raises(ValueError, match=r"robustness\.csv is damaged"):
        robustness.read(tmp_path)
