"""Turn results into the tables of the READMEs: every figure a reader sees comes from a results.json kept here.

    python experiments/publish.py STUDY RUN_DIR    keep a run's results in experiments/STUDY, renew all READMEs
    python experiments/publish.py                  renew all READMEs from what is kept
    python experiments/publish.py --check          say which README is out of date; exit status 1 if any is

A README holds blocks `<!-- begin STUDY VIEW -->` … `<!-- end -->`, or `<!-- begin STUDY VIEW gpu -->` of its gpu.json;
the views are the functions of this file.
"""

import contextlib
import io
import json
import re
import sys
from pathlib import Path

from mmpds.console import POINTS, SHOWN, figure, place, print_results, ranged, spent
from mmpds.sweep import markdown

HERE = Path(__file__).resolve().parent
BLOCK = re.compile(r"(<!-- begin (\w+) (\w+)(?: (\w+))? -->\n).*?(<!-- end -->)", re.DOTALL)


def console(record):
    """The command and what it printed."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        print_results(record, Path("runs") / record["experiment"] / record["run_id"])
    lines = [line.rstrip() for line in printed.getvalue().splitlines()]
    return "```text\n$ " + record["command"] + "\n" + "\n".join(lines) + "\n```\n"


def table(record):
    """The test metrics of each finding with their intervals, and what they cost, as Markdown."""
    names = [name.rsplit("/", 1)[1] for name in record["metrics"] if name.startswith("test/auroc/")]
    shown = {**SHOWN, "ece": "ECE", "threshold": "threshold"}
    rows = [[name, *(figure(record, f"test/{metric}/{name}", "<br>", 4) for metric in shown)] for name in names]
    counts, hardware = record["counts"], record["hardware"]
    gpu = f", {len(hardware['gpu'])} × {hardware['gpu'][0]}" if hardware["gpu"] else ""
    facts = [
        f"{counts['test/items']:,} test images of {counts['test/groups']:,} patients; below each value its 95 % "
        "interval (bootstrap by patient).",
        f"Normal images flagged: {figure(record, 'test/false_positive_rate/No Finding', ', ', 4)}.",
        f"{place(record)} of {hardware['cores']} cores, {hardware['cpu']}{gpu}, {record['precision']}: "
        + ", ".join(spent(record)) + ".",
        *(f"Note: {warning}" for warning in record["warnings"]),
    ]  # fmt: skip
    return markdown(["finding", *shown.values()], rows) + "\n" + "\n\n".join(facts) + "\n"


def command(record):
    """The command that made the results."""
    return f"```sh\n{record['command']}\n```\n"


def localization(record):
    """Heat maps against boxes, each metric beside what blind maps score, as Markdown."""
    metrics = {"pointing_game": "pointing game", "box_iou": "box IoU", "box_energy": "box energy"}
    names = [name.rsplit("/", 1)[1] for name in record["metrics"] if name.startswith("test/pointing_game/")]
    rows = []
    for name in names:
        cells = []
        for metric in metrics:
            values = (record["metrics"].get(f"test/{metric}_{kind}/{name}") for kind in ("chance", "prior"))
            cells += [
                figure(record, f"test/{metric}/{name}", "<br>", 3),
                " / ".join(ranged(value, None) for value in values),
            ]
        boxed = record["counts"].get(f"test/boxed/{name}", "")
        rows.append([name, str(boxed), *cells])
    columns = [column for shown in metrics.values() for column in (shown, "chance / prior")]
    return markdown(["finding", "images", *columns], rows) + "\nBelow each value its 95 % interval, by patient.\n"


def rates(record):
    """A benchmark's rates and ratios."""
    return record["markdown"]


def rules(record):
    """Threshold rules side by side: means over the findings with their intervals, as Markdown."""
    points = [row for row in record["operating_points"] if row["finding"] == "macro"]
    rows = [[row["rule"], *(_point(row, name) for name in POINTS)] for row in points]
    counts = record["counts"]
    facts = [
        f"Fitted on {counts['fit/items']:,} images of {counts['fit/groups']:,} patients, judged on "
        f"{counts['test/items']:,} images of {counts['test/groups']:,} others, {counts['test/normal']:,} of them "
        "normal (flagged for any finding); below each value its 95 % interval (bootstrap by patient).",
        *(f"Note: {warning}." for warning in record["warnings"]),
    ]
    return markdown(["rule", *POINTS.values()], rows) + "\n" + "\n\n".join(facts) + "\n"


def given(record):
    """Every rule for the findings that thresholds were given for, with the false alarms for each true one."""
    points = record["operating_points"]
    findings = [row["finding"] for row in points if row["rule"] == "class_specific"]
    rows = []
    for row in [row for finding in findings for row in points if row["finding"] == finding]:
        alarms = "–" if not row.get("precision") else f"{1 / row['precision'] - 1:.1f}"
        values = [_point(row, name) for name in ("precision", "recall", "specificity", "f1")]
        rows.append([row["finding"], row["rule"], f"{row['threshold']:.4f}", *values, alarms])
    heads = ["finding", "rule", "threshold", "precision", "recall", "specificity", "F1", "false alarms a true one"]
    return markdown(heads, rows)


def study(record):
    """What the rule of the study that this project began with does here, in sentences."""
    points = {(row["rule"], row["finding"]): row for row in record["operating_points"]}
    findings = [finding for rule, finding in points if rule == "paper" and finding != "macro"]
    floor = [finding for finding in findings if points["paper", finding]["threshold"] == PAPER_FLOOR]
    silent = [finding for finding in findings if "precision" not in points["paper", finding]]
    mean, normal = points["paper", "macro"], "false_positive_rate/No Finding"
    text = f"- It sets {len(floor)} of {len(findings)} thresholds to its floor of {PAPER_FLOOR}"
    if len(floor) < len(findings):
        text += f" (not that of {', '.join(finding for finding in findings if finding not in floor)})"
    lines = [
        f"{text}: the mean and spread of the scores decide nothing there.",
        f"- It finds {mean['recall']:.1%} of the positives (mean over the findings) and flags {mean[normal]:.1%} of "
        f"the normal images; it flags nothing at all of {', '.join(silent) or 'no finding'}.",
    ]
    lines += [
        f"- At the threshold of {row['threshold']:g} given for {finding} it finds {row['recall']:.1%} of the positives."
        for (rule, finding), row in points.items()
        if rule == "class_specific"
    ]
    return "\n".join(lines) + "\n"


PAPER_FLOOR = 0.6


def _point(row, name):
    return ranged(row.get(name), row.get(f"{name}_interval"), "<br>")


VIEWS = {"console": console, "table": table, "command": command, "rates": rates, "rules": rules, "given": given,
         "study": study, "localization": localization}  # fmt: skip


def renewed(text):
    """`text` with every block made anew; a block whose results are not there yet stays."""

    def block(match):
        path = HERE / match[2] / f"{match[4] or 'results'}.json"
        if not path.exists():
            return match[0]
        return match[1] + VIEWS[match[3]](json.loads(path.read_text())) + match[5]

    return BLOCK.sub(block, text)


def main(arguments):
    """Keep results if told to, then renew or check the READMEs."""
    if len(arguments) == 2:
        study, run_dir = HERE / arguments[0], Path(arguments[1])
        study.mkdir(exist_ok=True)
        record = json.loads((run_dir / "results.json").read_text())
        record.pop("fairness", None)  # hundreds of rows that no block shows
        (study / "results.json").write_text(json.dumps(record, indent=2) + "\n")
    stale = []
    for path in [HERE.parent / "README.md", *sorted(HERE.glob("*/README.md"))]:
        text = path.read_text()
        if (new := renewed(text)) != text:
            stale.append(str(path.relative_to(HERE.parent)))
            if arguments != ["--check"]:
                path.write_text(new)
    if arguments == ["--check"] and stale:
        print("out of date: " + ", ".join(stale))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
