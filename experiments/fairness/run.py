"""Does the audit find a bias that was planted, and none where none was; what do the mitigations cost?

    python experiments/fairness/run.py [--quick]

Trains DenseNet-121 on phantoms without bias, with one, and with one and balanced sampling; fits common thresholds and
thresholds by sex on half of the test patients, and audits the other half. Then audits the predictions of a published
DenseNet-121 on 22,433 images of NIH ChestX-ray14 (MMPDS_DATA, else ../shared/data). Writes results.json beside this
file and renews the READMEs. `--quick` only tries all of it in small.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd

from mmpds import results
from mmpds.data.attributes import attributes
from mmpds.data.phantom import Phantom
from mmpds.data.splits import split_by_group
from mmpds.metrics.fairness import audit
from mmpds.metrics.group_thresholds import group_thresholds
from mmpds.sweep import markdown
from mmpds.world import cores

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
DATA = Path(os.environ.get("MMPDS_DATA", ROOT.parent / "shared" / "data"))
BIASED = "Pneumonia"
FAINT = f"data.source.faint={{sex:F,findings:[{BIASED}],strength:0.3}}"
RUNS = {"no bias": [], "bias": [FAINT], "bias, sampling balanced by sex": [FAINT, "data.rebalance_by=[sex]"]}
MITIGATED = "bias, thresholds by sex"
RULE = {"rule": "specificity@sensitivity", "sensitivity": 0.8}
NAMES = {"auroc": "AUROC", "tpr": "TPR", "fpr": "FPR", "calibration_gap": "calibration gap"}
SINGLE = ("sex", "age_band", "view")


def predicted(overrides, images, epochs):
    """Train and test from the command line; its predictions.csv, with what the phantom knows of each patient."""
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable, "train.py", "experiment=demo", f"data.source.images={images}",
            "data.fractions=[0.3,0.1,0.6]", f"trainer.max_epochs={epochs}", "bootstrap=0",
            f"run_dir={folder}/run", *overrides,
        ]  # fmt: skip
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{' '.join(command)}\n{done.stdout}{done.stderr}")
        table = pd.read_csv(f"{folder}/run/predictions.csv").query("split == 'test'")
    known = Phantom(images).table.set_index("id").loc[table["id"]].reset_index()
    findings = [name.removesuffix(" probability") for name in table if name.endswith(" probability")]
    prob, label = (table[[f"{name} {kind}" for name in findings]].to_numpy() for kind in ("probability", "label"))
    return findings, prob, label.astype(float), known


def halves(table, findings):
    """Rows to fit thresholds on and rows to judge, no patient in both."""
    ids = table["id"].tolist()  # every image is its own
    names = split_by_group(table, findings, (0.5, 0.0, 0.5), 0, ids)
    return np.flatnonzero(names == "train"), np.flatnonzero(names == "test")


def judged(findings, prob, label, table, fit, test, by):
    """Two audits of the rows `test`: of each attribute, and of all items as one group."""
    known = attributes(table)
    fitted = group_thresholds(prob[fit], label[fit], known["sex"].iloc[fit], findings, **RULE)
    sex = known["sex"].iloc[test] if by else np.full(len(test), None)  # to nobody in particular: the common ones
    arguments = (prob[test], label[test], fitted.decide(prob[test], sex), findings)
    group = table["group"].to_numpy()[test]
    began = time.perf_counter()
    audited = audit(*arguments, known.iloc[test], group)
    seconds = time.perf_counter() - began
    whole = audit(*arguments, pd.DataFrame({"all": ["all"] * len(test)}), group)["groups"]
    return audited | {"overall": whole, "seconds": seconds, "items": len(test), "patients": len(set(group))}


def nih():
    """The audit of a published model's predictions."""
    table = pd.read_csv(DATA / "nih_densenet121_predictions" / "preds.csv.gz").merge(
        pd.read_csv(DATA / "nih_chest_xray14" / "Data_Entry_2017_v2020.csv.gz", index_col=False), on="Image Index"
    )
    table = table.rename(
        columns={"Image Index": "id", "Patient ID": "group", "Patient Gender": "sex", "Patient Age": "age",
                 "View Position": "view"}
    )  # fmt: skip
    findings = [name.removeprefix("prob_") for name in table if name.startswith("prob_")]
    named = table["Finding Labels"].str.split("|")
    table = table.assign(**{f: named.map(lambda names, f=f: float(f in names)) for f in findings}, normal=False)
    prob = table[[f"prob_{f}" for f in findings]].to_numpy()
    return judged(findings, prob, table[findings].to_numpy(), table, *halves(table, findings), by=False)


def between(value, interval):
    """A value with its interval."""
    return f"{value:.3f}<br>{interval[0]:.3f} to {interval[1]:.3f}" if interval else f"{value:.3f}"


def row_of(rows, **wanted):
    """The one row of a section that has these entries."""
    return next((row for row in rows if all(row[name] == value for name, value in wanted.items())), None)


def phantom_tables(audits):
    """What happened to the finding that the bias is in, in both sexes and overall; and all gaps that were found."""
    heads = [
        "run",
        *(f"{NAMES[m]}, {g}" for m in ("tpr", "fpr", "auroc") for g in ("F", "M")),
        "gap in TPR",
        "is it found",
    ]
    rows, costs = [], []
    for name, audited in audits.items():
        cells = [row_of(audited["groups"], attribute="sex", finding=BIASED, group=group) for group in ("F", "M")]
        gap = row_of(audited["gaps"], attribute="sex", finding=BIASED, metric="tpr")
        each = [figure(cell, metric) for metric in ("tpr", "fpr", "auroc") for cell in cells]
        told = [between(gap["gap"], gap["interval"]), "yes" if gap["found"] else "no"] if gap else ["–", "–"]
        rows.append([name, *each, *told])
        whole = row_of(audited["overall"], finding=BIASED)
        macro = [[row[metric] for row in audited["overall"] if row["judged"]] for metric in ("tpr", "fpr", "auroc")]
        costs.append(
            [name, *(figure(whole, metric) for metric in ("tpr", "fpr", "auroc")),
             *(f"{np.mean(values):.3f}" if values else "–" for values in macro)]
        )  # fmt: skip
    found = [
        [name, row["attribute"], row["finding"], NAMES[row["metric"]], row["worst_group"], row["best_group"],
         between(row["gap"], row["interval"])]
        for name, audited in audits.items() for row in audited["gaps"] if row["found"]
    ]  # fmt: skip
    cost_heads = ["run", *(f"{BIASED}, {NAMES[m]}" for m in ("tpr", "fpr", "auroc")), "macro TPR", "macro FPR"]
    gap_heads = ["run", "attribute", "finding", "metric", "worst", "best", "gap"]
    return (heads, rows), ([*cost_heads, "macro AUROC"], costs), (gap_heads, found)


def figure(row, metric):
    """A group's value with its interval, or that it is too small."""
    return between(row[metric], row[f"{metric}_interval"]) if row and row["judged"] else "too few"


def nih_tables(audited):
    """The gaps found in single attributes, and how many were found in each."""

    def side(gap, which):
        same = {name: gap[name] for name in ("attribute", "finding")}
        return f"{gap[which]}: {row_of(audited['groups'], **same, group=gap[which])[gap['metric']]:.3f}"

    rows = [
        [gap["attribute"], gap["finding"], NAMES[gap["metric"]], side(gap, "worst_group"), side(gap, "best_group"),
         between(gap["gap"], gap["interval"])]
        for gap in audited["gaps"] if gap["found"] and gap["attribute"] in SINGLE
    ]  # fmt: skip
    names = list(dict.fromkeys(row["attribute"] for row in audited["groups"]))
    counts = [
        [name, *(f"{sum(r['found'] for r in gaps)} of {len(gaps)}" for metric in NAMES
                 for gaps in [[r for r in audited["gaps"] if (r["attribute"], r["metric"]) == (name, metric)]])]
        for name in names
    ]  # fmt: skip
    return (["attribute", "gaps found: AUROC", "TPR", "FPR", "calibration gap"], counts), (
        ["attribute", "finding", "metric", "worst", "best", "gap"], rows,
    )  # fmt: skip


def report(audits, real):
    """The README's text."""
    by_sex, cost, gaps = phantom_tables(audits)
    one = next(iter(audits.values()))
    parts = [
        f"Phantoms, {one['items']:,} images of {one['patients']:,} patients judged. {BIASED}, thresholds for a "
        f"sensitivity of {RULE['sensitivity']}; 95 % intervals by patient, those of gaps after correction.",
        markdown(*by_sex),
        "The same, overall:",
        markdown(*cost),
        "All gaps found, of any attribute, finding and metric:",
        markdown(*gaps),
        *(f"{name}: {note}." for name, audited in audits.items() for note in audited["notes"]),
    ]
    if real:
        counts, rows = nih_tables(real)
        parts += [
            f"NIH ChestX-ray14, {real['items']:,} images of {real['patients']:,} patients judged, "
            f"audited in {real['seconds']:.1f} s on {cores()} core{'s' * (cores() > 1)}:",
            markdown(*counts),
            "Those of single attributes:",
            markdown(*rows),
            *(f"{note}." for note in real["notes"]),
        ]
    return "\n\n".join(part.strip("\n") for part in parts) + "\n"


def main():
    """Train, audit, keep."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few images, one epoch, nothing kept")
    images, epochs = (800, 1) if parser.parse_args().quick else (6000, 6)
    audits = {}
    for name, overrides in RUNS.items():
        began = time.perf_counter()
        findings, prob, label, table = predicted(overrides, images, epochs)
        rows = halves(table, findings)
        audits[name] = judged(findings, prob, label, table, *rows, by=False)
        if name == "bias":
            audits[MITIGATED] = judged(findings, prob, label, table, *rows, by=True)
        print(f"  {name}: {time.perf_counter() - began:.0f} s", flush=True)
    real = nih() if (DATA / "nih_densenet121_predictions").is_dir() else None
    text = report(audits, real)
    print(text)
    if epochs > 1:
        record = {"hardware": results.hardware([], cores()), "versions": results.versions(), "markdown": text}
        kept = audits | ({"NIH ChestX-ray14": real} if real else {})
        record["audits"] = {
            name: {**a, "groups": [r for r in a["groups"] if r["attribute"] in SINGLE]} for name, a in kept.items()
        }
        results.write_text(HERE / "results.json", json.dumps(record, indent=1) + "\n")
        subprocess.run([sys.executable, HERE.parent / "publish.py"], check=True)


if __name__ == "__main__":
    main()
