"""The same questions about the same images: CLIP, which ranks candidate answers, beside BLIP, which writes them.

    python experiments/clip_vs_blip/run.py [--vqa-rad PATH] [--rounds 3]
    python experiments/clip_vs_blip/run.py --gpu    times both on one GPU alone; keeps gpu.json

Asks CLIP of experiments/clip_phantom and BLIP of experiments/blip_phantom about phantoms of patients that neither
has seen; with PATH, the folder of VQA-RAD's public release, also models trained on its images about held-out ones. Then
it times both under every trainer of CPUs that this machine can run, in turns. Trains what has not been trained. Writes
results.json and failures.png beside this file and renews the READMEs.
"""

import argparse
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

import pandas as pd

sys.path.append(str(Path(__file__).resolve().parents[1]))

from measure import finished, machine, named, publish

from mmpds import results
from mmpds.console import figure, ranged, table
from mmpds.data.contact_sheet import draw_sheet
from mmpds.data.phantom import Phantom
from mmpds.metrics.intervals import ratios
from mmpds.metrics.text import normalized
from mmpds.sweep import markdown
from mmpds.world import cores, gpus

HERE = Path(__file__).resolve().parent
STUDIES = HERE.parents[1] / "runs"
RUNS = STUDIES / "clip_vs_blip_study"
MODELS = ("CLIP", "BLIP")
BEST = "checkpoints/best.ckpt"
IMAGES, SEED = 1200, 7
# phantoms of another seed than those of both trainings; those of its "training" are where candidate answers come from
PHANTOM = ("data=phantom", "data.size=64", "data.balance=true", f"data.source.images={IMAGES}",
           f"data.source.seed={SEED}", "data.fractions=[0.5,0.1,0.4]")  # fmt: skip
SPLIT = ("data.split=own", "data.fractions=[0.6,0.1,0.3]", "data.split_seed=1")  # that of experiment=clip_vqa_rad
BATCH = 16  # images of a step of a rank
TRAINERS = {
    "one core": ("trainer=cpu_seq", f"data.batch_size={BATCH}"),
    "all cores": ("trainer=cpu", f"data.batch_size={BATCH}"),
    "MPI": ("trainer=mpi_cpu", f"ranks={cores()}", f"data.batch_size={cores() * BATCH}"),
    "GPU": ("trainer=gpu", f"data.batch_size={BATCH}"),
    "MPI + GPU": ("trainer=mpi_gpu", f"data.batch_size={max(1, gpus()) * BATCH}"),
    "one image at a time": ("trainer=cpu_seq", "data.batch_size=1"),
    "GPU, one image at a time": ("trainer=gpu", "data.batch_size=1"),
}
ON_GPU = ("GPU", "MPI + GPU", "GPU, one image at a time")
TIMED = ("stages=[test]", "report=false", "bootstrap=0", "callbacks.texts.controls=false")
ACCURACIES = {
    "closed": "accuracy, closed", "closed/type/ABN": "of these: is it normal",
    "closed/type/PRES": "of these: is it there", "open": "accuracy, open", "all": "accuracy, all",
}  # fmt: skip
"""Slices of the questions, and what the table calls them."""
SHOWN, TILE = 3, 160


def trained():
    """The checkpoint of either model on phantoms."""
    clip, blip = STUDIES / "clip_phantom_study/clip", STUDIES / "blip_phantom_study/vqa"
    if any(results.status(folder) != "finished" for folder in (clip, blip)):
        subprocess.run([sys.executable, HERE.parent / "blip_phantom/run.py"], check=True)
    return asking("phantom", clip, blip)


def trained_on_vqa_rad(root):
    """The checkpoint of either model on VQA-RAD's images, split by image."""
    clip, blip = STUDIES / "clip_vqa_rad_study", RUNS / "blip_vqa_rad"
    finished(clip, "experiment=clip_vqa_rad", "trainer=cpu_seq", f"data.root={root}")
    finished(blip, "experiment=blip_vqa_rad", f"data.root={root}", *SPLIT, "report=false")
    return asking("organ", clip, blip)


def asking(sentences, clip, blip):
    """Overrides that make either model answer."""
    chosen = {"CLIP": ("model=clip_vqa", f"zero_shot@model.zero_shot={sentences}"), "BLIP": ("model=blip_vqa",)}
    return {name: (*chosen[name], f"checkpoint={folder / BEST}") for name, folder in (("CLIP", clip), ("BLIP", blip))}


def asked(name, models, data):
    """The results of either model's test, and the table of both answers to each question."""
    records, answers = {}, {}
    for model, overrides in models.items():
        folder = RUNS / f"{name}-{model.lower()}"
        records[model] = finished(folder, *overrides, *data, "stages=[test]", "trainer=cpu_seq", "report=false")
        written = pd.read_csv(folder / "texts.csv", keep_default_na=False)
        answers[model] = written[written["split"] == "test"].set_index("qid")
    joined = answers["CLIP"].rename(columns={"prediction": "CLIP"}).join(answers["BLIP"]["prediction"].rename("BLIP"))
    if joined["BLIP"].isna().any() or len(joined) != len(answers["BLIP"]):
        raise SystemExit("the two were not asked the same questions")
    return records, joined


def failures(answers):
    """Per kind of failure two masks over the questions: where it could happen, and for each model where it does."""
    truth, usual = (answers[name].map(normalized) for name in ("answer", "majority"))
    presence = answers["question_type"].eq("PRES") & truth.isin(["yes", "no"])
    kinds = {
        "over-generalisation": (answers["answer_type"].eq("OPEN") & (truth != usual), usual),
        "false yes": (presence & (truth == "no"), pd.Series("yes", index=truth.index)),
        "false no": (presence & (truth == "yes"), pd.Series("no", index=truth.index)),
    }
    return {
        kind: (of, {model: of & (answers[model].map(normalized) == wrong) for model in MODELS})
        for kind, (of, wrong) in kinds.items()
    }


def quality(records, answers, name):
    """Rows of accuracy and of failures, with their intervals; and the figures themselves."""
    rows, figures, count = [], {}, records["CLIP"]["counts"]
    for kind, called in ACCURACIES.items():
        if f"test/questions/{kind}" not in count:
            continue
        cells = [
            figure(r, f"test/{metric}/{kind}", "<br>")
            for model, metric in (("CLIP", "accuracy"), ("BLIP", "accuracy"), ("CLIP", "accuracy_majority"),
                                  ("CLIP", "accuracy_blank"), ("BLIP", "accuracy_blank"))
            for r in (records[model],)
        ]  # fmt: skip
        rows.append([called, f"{count[f'test/questions/{kind}']:,}", *cells])
    kinds = failures(answers)
    parts = {
        (kind, model): (fails[model].to_numpy(float), of.to_numpy(float))
        for kind, (of, fails) in kinds.items()
        for model in MODELS
    }
    values, intervals = ratios(parts, answers["group"], 1000, 0)
    for kind, (of, _) in kinds.items():
        cells = [ranged(values.get((kind, model)), intervals.get((kind, model)), "<br>") for model in MODELS]
        rows.append([kind, f"{int(of.sum()):,}", *cells, "", "", ""])
        figures |= {f"{name}/{kind}/{model}": values.get((kind, model)) for model in MODELS}
    return rows, figures


def examples(answers):
    """Failures of each model and kind on their phantoms: the first of each wording, none chosen."""
    tiles, captions = [], []
    phantom = Phantom(images=IMAGES, seed=SEED)
    place = {name: row for row, name in enumerate(phantom.table["id"])}
    for kind, (_, fails) in failures(answers).items():
        for model in MODELS:
            found = answers[fails[model]].drop_duplicates("question").drop_duplicates("id").head(SHOWN)
            for row in found.itertuples():
                tiles.append(phantom.image(place[row.id], TILE))
                captions.append(
                    f"{model}: {kind}\n{row.question}\nTruth: {row.answer}. CLIP: {row.CLIP}. BLIP: {row.BLIP}."
                )
    return draw_sheet(tiles, captions, 2 * SHOWN, "Failures of each kind")


def timed(models, rounds, places):
    """Either model's test under each trainer and one image at a time, in turns: the results."""
    lacking = {"MPI + GPU": gpus() < 2, "all cores": cores() < 2, "MPI": cores() < 2}
    jobs = {
        (model, place): (*own, *PHANTOM, *TIMED, *TRAINERS[place])
        for place in places
        if not lacking.get(place)
        for model, own in models.items()
    }
    found = {job: [] for job in jobs}
    for turn in range(rounds):
        for job, overrides in jobs.items():
            folder = RUNS / "timed" / f"{job[0]}-{job[1].replace(' ', '-')}-{turn}"
            shutil.rmtree(folder, ignore_errors=True)
            found[job].append(finished(folder, *overrides))
    return found


def costs(found):
    """Rows: what a trainer costs either model; questions a second, of which an image has several."""
    rows = []
    for (model, place), records in found.items():
        a_image = records[0]["counts"]["test/questions"] / records[0]["counts"]["test/items"]

        def middle(read, digits, records=records):
            values = sorted(read(record) for record in records if record["timing"]["test_items_per_s"])
            if not values:  # all steps were warm-up
                return "–"
            return f"{statistics.median(values):.{digits}f}<br>{values[0]:.{digits}f}–{values[-1]:.{digits}f}"

        latency = ["–", "–"]
        if "one image at a time" in place:
            latency = [middle(lambda r, p=p: r["timing"]["step_ms"][p], 1) for p in ("p50", "p95")]
        energy = records[0]["energy"]
        rows.append([
            model, place, middle(lambda r, a=a_image: a * r["timing"]["test_items_per_s"], 0), *latency,
            middle(lambda r, a=a_image: r["energy"]["joules_per_item"] / a, 3) if energy["joules"] else "–",
            energy["method"],
            middle(lambda r: r["memory"]["peak_rss_bytes"] / 2**30, 2),
        ])  # fmt: skip
    heads = ["model", "on", "questions/s", "ms an image, p50", "p95", "joules a question", "which are", "GiB a rank"]
    return heads, rows


def main():
    """Train, ask, compare, time; keep."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--vqa-rad", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--gpu", action="store_true")
    given = parser.parse_args()
    if given.gpu and not gpus():
        parser.error("--gpu: no GPU here")
    models, turns = trained(), f"below each cost the least and the greatest of {given.rounds} turns"
    if given.gpu:
        runs = timed(models, given.rounds, ON_GPU)
        keep(runs, [(f"What either costs, {named(machine(gpu=True))}", *costs(runs))], turns, gpu=True)
        return
    sets = {"phantom": asked("phantom", models, PHANTOM)}
    if given.vqa_rad:
        root = given.vqa_rad.resolve()
        data = ("data=vqa_rad", f"data.root={root}", "data.size=64", *SPLIT)
        sets["VQA-RAD"] = asked("vqa-rad", trained_on_vqa_rad(root), data)
    heads = ["", "questions", *MODELS, "majority answer", "CLIP, image blank", "BLIP, image blank"]
    shown, figures = [], {}
    for name, (records, answers) in sets.items():
        rows, found = quality(records, answers, name)
        figures |= found
        items = records["CLIP"]["counts"]["test/items"]
        shown.append((f"{name}: {len(answers):,} questions about {items:,} held-out images", heads, rows))
    examples(sets["phantom"][1]).save(HERE / "failures.png", optimize=True)
    runs = timed(models, given.rounds, [place for place in TRAINERS if place not in ON_GPU])
    title = f"What either costs, {named(machine())}"
    shown.append((title, *costs(runs)))
    keep(runs, shown, f"below each share its 95 % interval, by patient or image; {turns}", failures=figures, metrics={
        f"{name}/{model}": r["metrics"] for name, (found, _) in sets.items() for model, r in found.items()
    })  # fmt: skip


def keep(runs, shown, note, gpu=False, **more):
    """Print the tables, keep them and what they were made of, renew the READMEs."""
    for heading, columns, rows in shown:
        table(heading, columns, [[text.replace("<br>", "  ") for text in row] for row in rows])
    record = {
        "command": "python experiments/clip_vs_blip/run.py " + ("--gpu" if gpu else "--vqa-rad PATH"),
        "title": shown[-1][0], "hardware": machine(gpu),
        "versions": results.versions(), "git_commit": results.git_commit(), **more,
        "timing": {"/".join(job): [r["timing"] for r in records] for job, records in runs.items()},
        "energy": {"/".join(job): [r["energy"] for r in records] for job, records in runs.items()},
        "markdown": "\n".join(f"{heading}:\n\n{markdown(heads, rows)}" for heading, heads, rows in shown)
        + f"\n{note[0].upper() + note[1:]}.\n",
    }  # fmt: skip
    publish(HERE, record, gpu)


if __name__ == "__main__":
    main()
