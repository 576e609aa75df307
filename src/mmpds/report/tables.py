"""The tables of a report, and their Markdown and CSV."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from mmpds.report import summary
from mmpds.report.stored import StoredRun, column
from mmpds.results import inert
from mmpds.sweep import markdown

MISSING = "–"
HEADLINE = {
    "auroc": "AUROC",
    "average_precision": "AP",
    "precision": "Precision",
    "recall": "Recall",
    "specificity": "Specificity",
    "f1": "F1",
    "ece": "ECE",
    "brier": "Brier",
}
NAMES = HEADLINE | {
    "tpr": "True-positive rate",
    "fpr": "False-positive rate",
    "calibration_gap": "Calibration gap",
    "threshold": "Threshold",
    "false_positive_rate/No Finding": "Normal images flagged",
    "pointing_game": "Pointing game",
    "box_iou": "IoU with the box",
    "box_energy": "Energy in the box",
}
GROUP_METRICS = ("auroc", "tpr", "fpr", "calibration_gap")
LOCALIZATION = ("pointing_game", "box_iou", "box_energy")


class Cell(NamedTuple):
    """A value, and its 95 % interval where it has one."""

    text: str
    interval: str = ""


@dataclass(frozen=True)
class Table:
    """A caption, the heads of the columns, and rows whose first cell names the row."""

    caption: str
    heads: Sequence[str]
    rows: Sequence[Sequence[Cell]]


def number(value: Any, interval: Any = None, digits: int = 3) -> Cell:
    """A figure of 3 digits after the point with its interval; a dash where it is undefined."""
    if value is None or not np.isfinite(value):
        return Cell(MISSING)
    between = "–".join(f"{limit:.{digits}f}" for limit in interval) if interval else ""
    return Cell(f"{value:.{digits}f}", between)


def metric(run: StoredRun, name: str) -> Cell:
    """A metric of the test split with its interval."""
    return number(run.section("metrics").get(f"test/{name}"), run.section("intervals").get(f"test/{name}"))


def headline(run: StoredRun) -> Table | None:
    """Every finding's metrics at its operating point, and their mean."""
    counts = run.section("counts")
    metrics = [name for name in HEADLINE if f"test/{name}/macro" in run.section("metrics")]
    if not metrics:
        return None
    rows = []
    for finding in run.findings:
        labelled, positives = (int(counts.get(f"test/{name}/{finding}", 0)) for name in ("labelled", "positives"))
        rare = f"{100 * positives / max(1, labelled):.1f} %"
        share = Cell(rare, f"{positives:,} of {labelled:,}") if labelled else Cell(MISSING)
        rows.append([Cell(finding), share, *(metric(run, f"{name}/{finding}") for name in metrics)])
    rows.append([Cell("Mean (macro)"), Cell(""), *(metric(run, f"{name}/macro") for name in metrics)])
    caption = "Each finding at its operating point, on the test split"
    caption += "; beneath a value its 95 % interval, from a bootstrap by patient" if run.section("intervals") else ""
    return Table(caption, ["Finding", "Prevalence", *(HEADLINE[name] for name in metrics)], rows)


def operating_points(run: StoredRun) -> list[Table]:
    """The rules for choosing a threshold beside each other: the means over findings first, then each finding."""
    points = run.result.get("operating_points") or []
    keys = [key for key in dict.fromkeys(key for point in points for key in point) if not key.endswith("_interval")]
    metrics = [key for key in keys if key not in ("rule", "finding")]
    tables = []
    for finding in sorted({point["finding"] for point in points}, key=lambda name: (name != "macro", name)):
        here = [point for point in points if point["finding"] == finding]
        known = [key for key in metrics if any(point.get(key) is not None for point in here)]
        rows = [
            [Cell(point["rule"]), *(number(point.get(key), point.get(f"{key}_interval")) for key in known)]
            for point in here
        ]
        caption = "Rules for choosing the threshold: " + ("mean over findings" if finding == "macro" else finding)
        tables.append(Table(caption, ["Rule", *(title(key) for key in known)], rows))
    return tables


def gaps(run: StoredRun, found: bool) -> Table | None:
    """The differences between groups of patients that were found, or those that chance may explain, widest first."""
    rows = [
        [
            Cell(f"{_words(row['attribute'])}: {row['worst_group']} worse than {row['best_group']}"),
            Cell(row["finding"]), Cell(title(row["metric"])), number(row["gap"], row.get("interval")),
        ]
        for row in sorted(run.section("fairness").get("gaps") or [], key=lambda row: -abs(row["gap"] or 0))
        if row["found"] == found
    ]  # fmt: skip
    caption = "Differences found: their intervals keep clear of 0" if found else "Differences that chance may explain"
    return Table(caption, ["Groups", "Finding", "Metric", "Gap"], rows) if rows else None


def groups(run: StoredRun) -> Table | None:
    """Every group of patients that is large enough to be judged."""
    rows = [
        [
            Cell(f"{_words(row['attribute'])}: {row['group']}"), Cell(row["finding"]),
            *(Cell(f"{row[count]:,}") for count in ("items", "patients", "positives")),
            *(number(row.get(name), row.get(f"{name}_interval")) for name in GROUP_METRICS),
        ]
        for row in run.section("fairness").get("groups") or [] if row["judged"]
    ]  # fmt: skip
    heads = ["Group", "Finding", "Images", "Patients", "Positives", *(title(name) for name in GROUP_METRICS)]
    return Table("Each group of patients; beneath a value its 95 % interval", heads, rows) if rows else None


def too_small(run: StoredRun) -> list[str]:
    """A sentence for each group that could not be judged, with the findings that this concerns."""
    found: dict[str, list[str]] = {}
    for row in run.section("fairness").get("groups") or []:
        if not row["judged"]:
            found.setdefault(f"{row['attribute']} {row['group']}: {row['why'] or 'not judged'}", []).append(
                row["finding"]
            )
    return [f"{why} ({', '.join(findings)})" for why, findings in found.items()]


def localization(run: StoredRun) -> Table | None:
    """Where the model looked, each measure beside what chance would give."""
    names = [name for name in LOCALIZATION if any(key.startswith(f"test/{name}/") for key in run.section("metrics"))]
    rows = [
        [Cell(finding), *(metric(run, f"{key}/{finding}") for name in names for key in (name, f"{name}_chance"))]
        for finding in run.findings
        if any(f"test/{name}/{finding}" in run.section("metrics") for name in names)
    ]
    heads = ["Finding", *(text for name in names for text in (title(name), "by chance"))]
    return Table("Heat maps against the boxes that mark the findings", heads, rows) if rows else None


def cooccurrence(run: StoredRun, what: str) -> list[list[tuple[int, float | None]]]:
    """How many test images have each pair of findings, by `label` or `decision`.

    Returns:
        A row a finding of `run.judged`: for each finding the number of images with both, and the share that these
        are of the images with the row's finding; None on the diagonal, and where there are none.
    """
    marked = np.stack([column(run.tested, finding, what).to_numpy(float) == 1 for finding in run.judged], axis=1)
    both = marked.T.astype(int) @ marked.astype(int)
    return [
        [(int(n), None if i == j or not row[i] else float(n / row[i])) for j, n in enumerate(row)]
        for i, row in enumerate(both)
    ]


def predictions(run: StoredRun) -> Table | None:
    """What was predicted for images without a known answer."""
    if not len(run.predicted):
        return None
    rows = []
    for finding in run.findings:
        prob, decision = column(run.predicted, finding, "probability"), column(run.predicted, finding, "decision")
        quantiles = [Cell(f"{prob.quantile(level):.3f}") for level in (0.05, 0.5, 0.95)]
        rows.append([Cell(finding), Cell(f"{100 * decision.mean():.1f} %", f"{int(decision.sum()):,}"), *quantiles])
    caption = f"{len(run.predicted):,} images without a known answer"
    return Table(caption, ["Finding", "Flagged", "5 % of scores below", "Median score", "95 % below"], rows)


def title(name: str) -> str:
    """A metric's name for people."""
    return NAMES.get(name) or _words(name).capitalize()


def markdown_report(run: StoredRun) -> str:
    """The report as Markdown: what was found, every table, and the cost."""
    lines = [f"# {_plain(summary.name(run))}", "", _plain(summary.sentence(run)), "", "## Diagnosis", ""]
    for suspicion in summary.diagnosis(run):
        lines.append("- **" + _plain(suspicion["title"]) + "**: " + _plain(suspicion["evidence"]))
        lines += [f"  Cure: {_plain(suspicion['cure'])}"] if suspicion["cure"] else []
    lines += [f"- {_plain(text)}" for text in run.result.get("warnings") or []]
    lines += ["", _plain(summary.verdict(run))]
    found = [headline(run), *operating_points(run), gaps(run, True), groups(run), localization(run), predictions(run)]
    for table in found:
        if table:
            rows = [[_plain(f"{c.text} ({c.interval})" if c.interval else c.text) for c in row] for row in table.rows]
            lines += ["", f"## {_plain(table.caption)}", "", markdown([_plain(head) for head in table.heads], rows)]
    lines += ["", "## Cost and provenance", ""]
    lines += [f"- {term}: {_plain(text)}" for term, text in summary.provenance(run).items()]
    return "\n".join(lines) + "\n"


def metrics_csv(run: StoredRun) -> str:
    """Every metric of every split with its interval: split, metric, finding, value, low, high."""
    intervals = run.section("intervals")
    rows = []
    for name, value in run.section("metrics").items():
        split, metric, finding = (*name.split("/", 2), "", "")[:3]
        rows.append((split, metric, inert(finding), value, *(intervals.get(name) or (None, None))))
    return _csv(pd.DataFrame(rows, columns=["split", "metric", "finding", "value", "low", "high"]))


def images_csv(run: StoredRun) -> str:
    """A row a test image (without a test: a predicted one): id, probabilities, dominant label, ground truth.

    The dominant label is the finding of the highest probability. The ground truth joins the findings present with
    `|`; `No Finding` is an image known to be normal, `none of these` any other without one of the findings, and an
    empty cell one whose labels are not known.
    """
    table = run.tested if len(run.tested) else run.predicted
    if not len(table):
        return ""
    names = np.array([inert(finding) for finding in run.findings], dtype=object)
    prob = np.stack([column(table, finding, "probability").to_numpy(float) for finding in run.findings], axis=1)
    label = np.stack([column(table, finding, "label").to_numpy(float) for finding in run.findings], axis=1)
    normal = table["normal"].to_numpy(float) == 1 if "normal" in table else np.zeros(len(table), bool)
    empty = np.where(np.isnan(label).any(axis=1), "", np.where(normal, "No Finding", "none of these"))
    truth = ["|".join(names[row == 1]) or absent for row, absent in zip(label, empty, strict=True)]
    columns: Mapping[str, Any] = {
        "id": table["id"].map(inert).to_numpy(),
        **{f"{name} probability": prob[:, c] for c, name in enumerate(names)},
        "dominant label": names[prob.argmax(axis=1)],
        "ground truth": truth,
    }
    return _csv(pd.DataFrame(columns))


def _words(name: str) -> str:
    return name.replace("_", " ")


def _csv(table: pd.DataFrame) -> str:
    # with bare newlines pandas would not quote a carriage return
    return str(table.to_csv(index=False, float_format="%.7g", lineterminator="\r\n"))


def _plain(text: str) -> str:
    """Text that Markdown shows as it is."""
    text = html.escape(" ".join(str(text).split()), quote=False)
    return "".join(f"\\{sign}" if sign in "\\`*_[]|#" else sign for sign in text)
