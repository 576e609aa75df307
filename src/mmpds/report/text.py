"""A report as Markdown, and its tables for a spreadsheet."""

from __future__ import annotations

import html
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from mmpds.report import embedded, generation, robustness, summary, tables, writing
from mmpds.report.stored import StoredRun, column
from mmpds.results import inert
from mmpds.sweep import markdown

KINDS = ("generated", "real", "pixels", "features")
"""What metrics of a generator are of, in the place where others have a finding."""


def markdown_report(run: StoredRun) -> str:
    """The report as Markdown: what was found, every table but that of what chance may explain, and the cost."""
    heading = "Warnings" if run.generator else "Diagnosis"
    lines = [f"# {_plain(summary.name(run))}", "", _plain(summary.sentence(run)), "", f"## {heading}", ""]
    for suspicion in summary.diagnosis(run):
        lines.append("- **" + _plain(suspicion["title"]) + "**: " + _plain(suspicion["evidence"]))
        lines += [f"  Cure: {_plain(suspicion['cure'])}"] if suspicion["cure"] else []
    lines += [f"- {_plain(text)}" for text in run.result.get("warnings") or []]
    lines += ["", _plain(summary.verdict(run))]
    if run.generator:
        lines += ["", f"**{generation.SYNTHETIC}**"]
    if run.sheet.is_file():
        lines += ["", f"![Contact sheet of synthetic images]({run.sheet.name})"]
    found = [
        tables.headline(run), *embedded.compared(run), *tables.operating_points(run), tables.gaps(run, True),
        tables.groups(run), tables.localization(run),
        robustness.table(robustness.read(run.path)), tables.predictions(run), generation.quality(run.result),
        generation.classes(run.result), generation.fidelity(run.result), generation.gallery(run.manifest),
        *writing.written(run.result),
    ]  # fmt: skip
    for table in found:
        if table:
            rows = [[_plain(f"{c.text} ({c.interval})" if c.interval else c.text) for c in row] for row in table.rows]
            lines += ["", f"## {_plain(table.caption)}", "", markdown([_plain(head) for head in table.heads], rows)]
    lines += ["", "## Cost and provenance", ""]
    lines += [f"- {term}: {_plain(text)}" for term, text in summary.provenance(run).items()]
    return "\n".join(lines) + "\n"


def metrics_csv(run: StoredRun) -> str:
    """Every metric of every split with its interval: split, metric, finding, value, low, high; "" without any."""
    if not run.section("metrics"):
        return ""
    intervals = run.section("intervals")
    rows = []
    for name, value in run.section("metrics").items():
        split, metric, finding = (*name.split("/", 2), "", "")[:3]
        if finding in KINDS:
            metric, finding = f"{metric}/{finding}", ""
        elif (last := finding.rpartition("/"))[2] in (*run.findings, "macro"):
            metric, finding = f"{metric}/{last[0]}".strip("/"), last[2]
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


def _csv(table: pd.DataFrame) -> str:
    # with bare newlines pandas would not quote a carriage return
    return str(table.to_csv(index=False, float_format="%.7g", lineterminator="\r\n"))


def _plain(text: str) -> str:
    """Text that Markdown shows as it is."""
    text = html.escape(" ".join(str(text).split()), quote=False)
    return "".join(f"\\{sign}" if sign in "\\`*_[]|#" else sign for sign in text)
