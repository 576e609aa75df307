"""What did CLIP learn from phantom radiographs and their captions alone, beside a detector that was given the labels?

    python experiments/clip_phantom/run.py

Trains CLIP and DenseNet-121 on the same images, tests both on the same held-out patients, then on the same images
corrupted. Runs that have finished are not run again. Writes results.json and robustness.png (which needs Chromium)
beside this file and renews the READMEs.
"""

import sys
from pathlib import Path

import pandas as pd

sys.path.append(str(Path(__file__).resolve().parents[1]))

from measure import finished, publish, training_time
from picture import draw

from mmpds import results
from mmpds.console import figure, table
from mmpds.data.corruptions import CORRUPTIONS
from mmpds.report import robustness
from mmpds.sweep import markdown
from mmpds.world import cores

HERE = Path(__file__).resolve().parent
RUNS = HERE.parents[1] / "runs" / "clip_phantom_study"
CLIP = ["experiment=clip_phantom", "trainer=cpu_seq"]
# the same images and the same split, with labels in the place of captions
DENSENET = ["experiment=demo", "trainer=cpu_seq", "data.source.images=20000", "data.fractions=[0.9,0.04,0.06]",
            "trainer.max_epochs=4"]  # fmt: skip
CORRUPT = ["stages=[test]", "callbacks=robustness"]
NAMES = {"clip": "CLIP, zero-shot", "densenet": "DenseNet-121"}
KINDS = {"zero-shot": "", "1 example": "few_shot_1/", "4": "few_shot_4/", "16": "few_shot_16/", "64": "few_shot_64/",
         "linear probe, all labels": "linear_probe/"}  # fmt: skip


def cell(record, name, digits=3):
    """A test figure with its interval."""
    name = f"test/{name}"
    return figure(record, name, "<br>", digits)


def tested(run_dir):
    """The ids of a run's test images."""
    return sorted(pd.read_csv(run_dir / "predictions.csv").query("split == 'test'")["id"])


def falls(record, rows):
    """Of each corruption the level that costs most mean AUROC, and what it costs, with its interval."""
    means = [row for row in rows if row["finding"] == "macro" and not row["undisturbed"]]
    worst = {row["corruption"]: row for row in sorted(means, key=lambda row: row["auroc_drop"])}
    found = {}
    for name, row in worst.items():
        at = row["level"].replace("_", " ") + (f" ({row['unit']})" if row["unit"] else "")
        found[name] = f"{cell(record, f'robustness/{name}/' + row['level'] + '/auroc_drop/macro')}<br>at {at}"
    return found


def main():
    """Train, test, corrupt; keep figures and pictures."""
    trained = finished(RUNS / "clip", *CLIP, "stages=[fit]")
    clip = finished(RUNS / "test-clip", *CLIP, "stages=[test]", f"checkpoint={RUNS}/clip/checkpoints/best.ckpt")
    densenet = finished(RUNS / "densenet", *DENSENET)
    if tested(RUNS / "test-clip") != tested(RUNS / "densenet"):
        raise SystemExit("the two were not tested on the same images")
    findings = [name.rsplit("/", 1)[1] for name in clip["metrics"] if name.startswith("test/auroc/")]
    heads = ["ROC-AUC", *KINDS, "DenseNet-121, trained on all labels"]
    aurocs = [
        [
            finding,
            *(cell(clip, f"{kind}auroc/{finding}") for kind in KINDS.values()),
            cell(densenet, f"auroc/{finding}"),
        ]
        for finding in findings
    ]
    found = ["", "recall@1", "recall@5", "recall@10", "chance of recall@10"]
    retrieved = [
        [shown, *(cell(clip, f"{way}/recall@{k}") for k in (1, 5, 10)), cell(clip, f"{way}/recall_chance@10")]
        for shown, way in (("image to text", "image_to_text"), ("text to image", "text_to_image"))
    ]
    hardware = results.hardware([], cores())
    title = (
        f"{clip['counts']['test/items']:,} images of held-out patients; CLIP was trained from scratch for "
        f"{training_time(trained)}"
    )
    shown = [(title, heads, aurocs), ("Retrieval among them", found, retrieved)]
    for heading, columns, rows in shown:
        table(heading, columns, [[text.replace("<br>", "  ") for text in row] for row in rows])
    corrupted = {
        name: finished(RUNS / f"robustness-{name}", *own, *CORRUPT, f"checkpoint={RUNS / name}/checkpoints/best.ckpt")
        for name, own in (("clip", CLIP), ("densenet", DENSENET))
    }
    rows = {shown: robustness.read(RUNS / f"robustness-{name}") for name, shown in NAMES.items()}
    fallen = [falls(record, each) for record, each in zip(corrupted.values(), rows.values(), strict=True)]
    lost = [[robustness.title(name), *(each[name] for each in fallen)] for name in CORRUPTIONS]
    count = corrupted["clip"]["counts"]["test/robustness/images"]
    text = (
        f"{title}.\n\n{markdown(heads, aurocs)}\nBelow each value its 95 % interval.\n\n{markdown(found, retrieved)}\n"
        f"The mean AUROC lost on {count:,} of these images at the level of each corruption that costs most:\n\n"
        f"{markdown(['corruption', *rows], lost)}"
    )
    record = {
        "command": "python experiments/clip_phantom/run.py", "title": title, "hardware": hardware,
        "versions": results.versions(), "git_commit": results.git_commit(),
        "trained": {key: trained[key] for key in ("timing", "energy", "hardware", "world_size", "threads_per_rank")},
        "metrics": {"clip": clip["metrics"], "densenet": densenet["metrics"]},
        "intervals": {"clip": clip["intervals"], "densenet": densenet["intervals"]},
        "counts": clip["counts"], "warnings": clip["warnings"], "markdown": text,
        "robustness": {
            name: {key: {n: v for n, v in each[key].items() if "robustness" in n} for key in ("metrics", "intervals")}
            for name, each in corrupted.items()
        },
    }  # fmt: skip
    publish(HERE, record)
    draw(RUNS / "robustness-clip/report.html", robustness.curves(rows)["AUROC"], HERE / "robustness.png")


if __name__ == "__main__":
    main()
