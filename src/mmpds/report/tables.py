"""The tables of a report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from mmpds.report.stored import StoredRun, column

MISSING = "–"
MACRO = "Mean (macro)"
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


def number(value: Any, interval: Any = None, form: str = ".3f") -> Cell:
    """A figure with its interval; a dash where it is undefined."""
    if value is None or not np.isfinite(value):
        return Cell(MISSING)
    between = " to " if interval and interval[0] < 0 else "–"
    return Cell(f"{value:{form}}", between.join(f"{limit:{form}}" for limit in interval or ()))


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
    rows.append([Cell(MACRO), Cell(""), *(metric(run, f"{name}/macro") for name in metrics)])
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
            group = f"{_words(row['attribute'])} {row['group']}: {row['why'] or 'not judged'}"
            found.setdefault(group, []).append(row["finding"])
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


def _words(name: str) -> str:
    return name.replace("_", " ")
