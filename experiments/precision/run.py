"""What do bfloat16 and int8 cost in accuracy?

    python experiments/precision/run.py

Tests the CLIP of experiments/clip_phantom and the two BLIPs of experiments/blip_phantom on patients that they have not
seen, in each precision. Tests that have finished are not run again. Writes results.json beside this file and renews the
READMEs.
"""

import argparse
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))

import numpy as np
import pandas as pd
from measure import finished, named, publish

from mmpds import results
from mmpds.console import ranged, table
from mmpds.metrics.intervals import ratios
from mmpds.sweep import markdown

HERE = Path(__file__).resolve().parent
STUDIES = HERE.parents[1] / "runs"
BEST = "checkpoints/best.ckpt"
# in this table: (trainer.precision, how results.json's begins)
PRECISIONS = {"float32": ("32-true", "32-true"), "bfloat16": ("auto", "bf16"), "int8": ("int8", "int8, bf16")}
EXACT = "float32"
# experiment: (where it was trained, what is said, figures)
TRAINED = {
    "clip_phantom": ("clip_phantom_study/clip", "decisions", {
        "zero-shot ROC-AUC, macro": "auroc/macro", "zero-shot F1, macro": "f1/macro",
        "recall@10, image to text": "image_to_text/recall@10", "recall@10, text to image": "text_to_image/recall@10",
    }),
    "blip_vqa_phantom": ("blip_phantom_study/vqa", "answers", {
        "closed accuracy": "accuracy/closed", "open accuracy": "accuracy/open",
    }),
    "blip_caption_phantom": ("blip_phantom_study/caption", "captions", {
        "findings hallucinated, of those named": "hallucination/all",
        "findings omitted, of those present": "omission/all",
    }),
}  # fmt: skip


def main():
    """Test, compare, keep."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.parse_args()
    runs, rows, changed = {}, [], {}
    for experiment, (trained, what, figures) in TRAINED.items():
        if not (checkpoint := STUDIES / trained / BEST).is_file():
            parser.error(f"{checkpoint}: no such file; experiments/{trained.split('_study')[0]}/run.py makes one")
        model, said = experiment.removesuffix("_phantom"), {}
        for name, (precision, known) in PRECISIONS.items():
            folder = STUDIES / "precision_study" / f"{experiment}-{name}"
            run = finished(
                folder, f"experiment={experiment}", "stages=[test]", f"checkpoint={checkpoint}",
                f"trainer.precision={precision}", "report=false",
            )  # fmt: skip
            if not run["precision"].startswith(known):
                parser.error(f"this CPU has no {name}: trainer.precision={precision} computes in {run['precision']}")
            runs[f"{model}, {name}"], said[name] = run, answers(folder)
        tested = [runs[f"{model}, {name}"] for name in PRECISIONS]
        for figure, key in figures.items():
            cells = [ranged(r["metrics"][f"test/{key}"], r["intervals"].get(f"test/{key}"), "<br>") for r in tested]
            rows.append([model, figure, *cells])
        shares = {name: differing(said[name], said[EXACT]) for name in PRECISIONS if name != EXACT}
        changed |= {f"{model}, {name}": share for name, (share, _) in shares.items()}
        rows.append([model, f"{what} that differ", "–", *(ranged(*found, "<br>", 4) for found in shares.values())])
    hardware = next(iter(runs.values()))["hardware"]
    heads, title = ["model", "figure", *PRECISIONS], f"Held-out phantom patients; {named(hardware)}"
    table(title, heads, [[text.replace("<br>", "  ") for text in row] for row in rows])
    record = {
        "command": "python experiments/precision/run.py", "title": title, "hardware": hardware, "changed": changed,
        "versions": results.versions(), "git_commit": results.git_commit(),
        **{key: {name: run[key] for name, run in runs.items()} for key in ("precision", "metrics", "intervals")},
        "markdown": f"{title}.\n\n{markdown(heads, rows)}\nBelow each value its 95 % interval, by patient.\n",
    }  # fmt: skip
    publish(HERE, record)


def answers(folder):
    """What a test decided or wrote: a row an item, and the patient of each."""
    if (path := folder / "predictions.csv").exists():
        kept = pd.read_csv(path)
        columns = [name for name in kept if name.endswith(" decision")]
    else:
        kept, columns = pd.read_csv(folder / "texts.csv", keep_default_na=False), ["prediction"]
    kept = kept[kept["split"] == "test"]
    return kept[columns].to_numpy(), kept["group"].to_numpy()


def differing(ours, exact):
    """The share of what differs, and its 95 % interval, by patient."""
    different, group = (ours[0] != exact[0]).sum(axis=1), exact[1]
    all_of = np.full(len(group), ours[0].shape[1])
    values, intervals = ratios({"share": (different, all_of)}, group, 1000, 0)
    return values["share"], intervals.get("share")


if __name__ == "__main__":
    main()
