"""Does fine-tuning on equally many normal and diseased images mend a model trained on three diseased to one normal?

    python experiments/finetune_rebalanced/run.py --root ../shared/data/chest_xray [--base 1] [--epochs 8]

Three runs for each number of epochs that base is trained, one after the other, all of one split by patient; those that
have finished are not run again:

    base        trained on the data as they are
    control     base, fine-tuned on the data as they are
    rebalanced  base, fine-tuned with data.rebalance=equal_normal, all else as in control

Writes results.json beside this file and renews the READMEs.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd

sys.path.append(str(Path(__file__).resolve().parents[1]))

from measure import finished

from mmpds import results
from mmpds.console import table
from mmpds.metrics.classification import Ranking
from mmpds.sweep import markdown
from mmpds.world import cores

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
FINDING, SENSITIVITY, REPLICATES, SPLIT_SEED = "Pneumonia", 0.95, 1000, 1
DIFFERENCES = (("rebalanced", "base"), ("rebalanced", "control"))


def commands(root, size, base, epochs, factor, folder):
    """Run -> its overrides; fine-tuning starts from the best weights of base."""
    shared = [
        f"data.root={root}", f"data.findings=[{FINDING}]", f"data.size={size}", f"data.split_seed={SPLIT_SEED}",
        "model.threshold.rule=specificity@sensitivity",
        f"model.threshold.sensitivity={SENSITIVITY}",
    ]  # fmt: skip
    # another seed than base's: its draws and augmentations are not repeated
    tuned = [
        "experiment=finetune_rebalanced",
        f"trainer.max_epochs={epochs}",
        f"model.backbone_learning_rate_factor={factor}",
        f"init_from={folder / 'base' / 'checkpoints' / 'best.ckpt'}",
        "seed=2",
    ]
    return {
        "base": ["experiment=chest_xray", f"trainer.max_epochs={base}", *shared],
        "control": [*tuned, "data.rebalance=none", *shared],
        "rebalanced": [*tuned, "data.rebalance=equal_normal", *shared],
    }


def run(overrides, run_dir):
    """The results and the test rows of a run, which is trained unless it has finished."""
    record = finished(run_dir, *overrides)
    rows = pd.read_csv(run_dir / "predictions.csv")
    return record, rows[rows["split"] == "test"].set_index("id").sort_index()


def bootstrap(group):
    """Item weights [N, 1 + REPLICATES]: ones, then how often a draw of patients with replacement takes each item."""
    member, names = pd.factorize(group, sort=True)
    rng = np.random.default_rng(0)
    draws = [np.bincount(rng.integers(len(names), size=len(names)), minlength=len(names)) for _ in range(REPLICATES)]
    return np.column_stack([np.ones(len(names)), *draws])[member]


def judged(rows, weight):
    """Metric -> its value under each column of weights; NaN where undefined."""
    label, prob = rows[f"{FINDING} label"].to_numpy(), rows[f"{FINDING} probability"].to_numpy()
    ranking, positive = Ranking(prob, label), label == 1
    positives, negatives = weight[positive].sum(0), weight[~positive].sum(0)
    found = {"ROC-AUC": ranking.metrics(weight)["auroc"]}
    decisions = {"threshold 0.5": prob >= 0.5, "fitted threshold": rows[f"{FINDING} decision"].to_numpy() == 1}
    with np.errstate(divide="ignore", invalid="ignore"):
        true, false = ranking.curve(weight)
        first = (true / positives >= SENSITIVITY).argmax(0)  # scores descend: the highest that finds enough
        specificity = 1 - np.take_along_axis(false, first[np.newaxis], 0)[0] / negatives
        found[f"specificity at {SENSITIVITY} sensitivity, on the test ROC"] = np.where(positives, specificity, np.nan)
        for name, flagged in decisions.items():
            sensitivity = weight[positive & flagged].sum(0) / positives
            flagged_normal = weight[~positive & flagged].sum(0) / negatives
            found[f"balanced accuracy, {name}"] = (sensitivity + 1 - flagged_normal) / 2
            found[f"sensitivity, {name}"] = sensitivity
            found[f"specificity, {name}"] = 1 - flagged_normal
            found[f"false positives in 100 normal images, {name}"] = 100 * flagged_normal
    return found


def summary(values):
    """Value and 95 % interval of a row of `judged`; the interval is None where too many replicates are undefined."""
    defined = values[1:][~np.isnan(values[1:])]
    enough = len(defined) >= 0.9 * REPLICATES
    interval = [float(limit) for limit in np.quantile(defined, (0.025, 0.975))] if enough else None
    return {"value": float(values[0]), "interval": interval}


def cell(found, digits, sign=""):
    """A figure over its interval, for a table in Markdown."""
    value = f"{found['value']:{sign}.{digits}f}"
    return value + (
        "<br>" + " to ".join(f"{x:{sign}.{digits}f}" for x in found["interval"]) if found["interval"] else ""
    )


def compared(arguments, base_epochs):
    """Train what is missing from one base, and compare on the test split."""
    root = arguments.root.resolve()
    folder = ROOT / "runs" / "finetune_rebalanced_study" / f"{root.name}-{arguments.size}px-{base_epochs}epochs"
    records, rows = {}, {}
    settings = (root, arguments.size, base_epochs, arguments.epochs, arguments.factor, folder)
    for name, overrides in commands(*settings).items():
        records[name], rows[name] = run(overrides, folder / name)
    base = rows["base"]
    if not all(table.index.equals(base.index) and table["group"].equals(base["group"]) for table in rows.values()):
        raise SystemExit(f"{folder}: the runs were not tested on the same images; delete it and start again")

    weight = bootstrap(base["group"])
    values = {name: judged(table, weight) for name, table in rows.items()}
    for one, other in DIFFERENCES:  # of the same replicates
        values[f"{one} − {other}"] = {metric: values[one][metric] - values[other][metric] for metric in values[one]}
    found = {name: {metric: summary(v) for metric, v in metrics.items()} for name, metrics in values.items()}
    cells = [
        [metric, *(cell(found[name][metric], 1 if "100" in metric else 3, "+" * ("−" in name)) for name in found)]
        for metric in found["base"]
    ]
    normal = int((base[f"{FINDING} label"] == 0).sum())
    title = (
        f"DenseNet-121, {arguments.size} px, base of {base_epochs} epoch{'s' * (base_epochs > 1)}, "
        f"{arguments.epochs} of fine-tuning; "
        f"{len(base):,} test images of {base['group'].nunique():,} patients, {normal:,} of them normal"
    )
    heads = ["test", *found]
    table(title, heads, [[text.replace("<br>", "  ") for text in row] for row in cells])
    thresholds = ", ".join(f"{name} {r['metrics'][f'test/threshold/{FINDING}']:.3f}" for name, r in records.items())
    text = (
        f"{title}.\n\n{markdown(heads, cells)}\nBelow each value its 95 % interval: {REPLICATES:,} bootstrap "
        "replicates by patient, a difference within each replicate.\n\n"
        f"Thresholds, fitted on validation for {SENSITIVITY} sensitivity: {thresholds}.\n"
    )
    return {"title": title, "metrics": found, "markdown": text}


def main():
    """Compare from each base, and keep the comparisons in results.json."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", type=Path, required=True, help="the folder that holds NORMAL and PNEUMONIA")
    parser.add_argument("--size", type=int, default=64, help="pixels a side")
    parser.add_argument("--epochs", type=int, default=8, help="of each fine-tuning")
    parser.add_argument("--factor", type=float, default=1.0, help="of the backbone's learning rate in fine-tuning")
    parser.add_argument("--base", type=int, nargs="+", default=[1], help="epochs of base, a study each")
    arguments = parser.parse_args()
    if not arguments.root.is_dir():
        parser.error(f"--root {arguments.root}: no such folder")
    studies = {f"base of {base} epochs": compared(arguments, base) for base in arguments.base}
    record = {
        "command": " ".join(["python", "experiments/finetune_rebalanced/run.py", *sys.argv[1:]]),
        "hardware": results.hardware([], cores()), "versions": results.versions(), "git_commit": results.git_commit(),
        "studies": studies, "markdown": "\n".join(study["markdown"] for study in studies.values()),
    }  # fmt: skip
    results.write_text(HERE / "results.json", json.dumps(record, indent=2) + "\n")
    subprocess.run([sys.executable, HERE.parent / "publish.py"], check=True)


if __name__ == "__main__":
    main()
