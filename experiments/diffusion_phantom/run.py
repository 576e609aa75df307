"""Is a generator that learnt phantom radiographs from their captions any good, and what do faster samplers cost?

    python experiments/diffusion_phantom/run.py

Trains a detector that judges (on other phantoms), then the generator, tests the generator and an untrained one on the
captions of held-out patients, then faster ways of sampling, whose speed is measured in turns in one process. Runs that
have finished are not run again. Writes results.json and contact_sheet.png beside this file and renews the READMEs.
"""

import shutil
import statistics
import sys
import time
import warnings
from pathlib import Path

import torch

sys.path.append(str(Path(__file__).resolve().parents[1]))

from measure import finished, publish, training_time

from mmpds import results
from mmpds.console import figure, ranged, table
from mmpds.metrics.image_similarity import image_difference
from mmpds.sweep import markdown
from mmpds.world import cores, reuse_memory

HERE = Path(__file__).resolve().parent
RUNS = HERE.parents[1] / "runs" / "diffusion_phantom_study"
JUDGE = ["experiment=demo", "trainer=cpu_seq", "data.source.images=12000", "data.source.seed=1", "trainer.max_epochs=8"]
# test images; the same for all
TEST = ["experiment=diffusion_phantom", "stages=[test]", "data.batch_size=32", "+trainer.limit_test_batches=8"]
# name: changes of conf/model/diffusion.yaml's sampling
OPTIONS = {
    "Euler ancestral, 25 steps": {},
    "DPM-Solver++, 20 steps": {"scheduler": "dpm++", "steps": 20},
    "DPM-Solver++, 10 steps": {"scheduler": "dpm++", "steps": 10},
    "feature cache, every 2nd": {"cache_interval": 2},
    "feature cache, every 3rd": {"cache_interval": 3},
    "LCM scheduler, 4 steps (not distilled)": {"scheduler": "lcm", "steps": 4},
}
DEFAULT = next(iter(OPTIONS))
BATCH, ROUNDS = 32, 3


def run(name, *overrides):
    """The results of a run of this study."""
    return finished(RUNS / name, *overrides, "report=false")


def tested(name, checkpoint, judge, **sampling):
    """The results of a test of a checkpoint."""
    folder = name.lower().replace(" ", "-").replace(",", "").replace("(", "").replace(")", "")
    changes = [f"model.sampling.{key}={value}" for key, value in sampling.items()]
    return run(
        f"test-{folder}", *TEST, f"checkpoint={checkpoint}", f"callbacks.quality.classifier={judge}", *changes
    )  # fmt: skip


def speeds(checkpoint):
    """Images a second of each option in bfloat16, in turns, and each one's difference from float32's images."""
    from mmpds.data.phantom import Phantom
    from mmpds.models.diffusion import SAMPLING, Diffusion
    from mmpds.stages import has_bfloat16

    warnings.filterwarnings("ignore")
    torch.set_num_threads(cores())
    reuse_memory()
    half = torch.bfloat16 if has_bfloat16("cpu") else torch.float32
    model = Diffusion.load_from_checkpoint(checkpoint, weights_only=True).eval().to(memory_format=torch.channels_last)
    prompts = Phantom(images=BATCH, seed=2).table["caption"].tolist()
    chosen, seeds = model.sampling, list(range(BATCH))
    exact = model.generate(prompts, seeds)
    model.to(half)
    images, rates = {}, {name: [] for name in OPTIONS}
    for turn in range(ROUNDS + 1):
        for name, changes in OPTIONS.items():
            model.sampling = SAMPLING | chosen | changes
            began = time.perf_counter()
            images[name] = model.generate(prompts, seeds)
            if turn:  # the first is warm-up
                rates[name].append(BATCH / (time.perf_counter() - began))
    return rates, {name: image_difference(exact, made, seed=0) for name, made in images.items()}


def likeness(name, found):
    """PSNR and SSIM of an option whose images ought to be the first one's: another way of sampling draws others."""
    if {"scheduler", "steps"} & set(OPTIONS[name]):
        return ["–", "–"]
    return [f"{found.metrics['psnr']:.1f} dB", f"{found.metrics['ssim']:.3f}"]


def fidelity_table(record):
    """Each finding: found where asked, where not asked, both on real images; distances within the finding."""
    metrics, intervals, counts = record["metrics"], record["intervals"], record["counts"]
    names = [n.rsplit("/", 1)[1] for n in metrics if n.startswith("test/fidelity/")]

    def cell(name, digits=2):
        name = f"test/{name}"
        return ranged(metrics.get(name), intervals.get(name), "<br>", digits)

    rows = [
        [
            name, str(counts.get(f"test/asked/{name}", "")), cell(f"fidelity/{name}"), cell(f"fidelity_chance/{name}"),
            cell(f"fidelity_real/{name}"), cell(f"fidelity_auroc/{name}"), cell(f"class_kid/{name}"),
            cell(f"class_kid_real/{name}"), cell(f"class_kid_shuffled/{name}"),
        ]
        for name in names
    ]  # fmt: skip
    return ["finding", "asked for", "found", "found where not asked (chance)",
            "found on phantoms of these captions", "ROC-AUC",
            "KID in the finding", "of real images", "of real images, labels shuffled"], rows  # fmt: skip


def main():
    """Train, test, measure; keep figures and pictures."""
    run("judge", *JUDGE)
    judge = RUNS / "judge/checkpoints/best.ckpt"
    trained = run("generator", "experiment=diffusion_phantom", "trainer=cpu", "stages=[fit]")
    checkpoint = RUNS / "generator/checkpoints/best.ckpt"
    run("untrained", "experiment=diffusion_phantom", "stages=[fit]", "trainer.max_epochs=1",
        "+trainer.limit_train_batches=1", "+trainer.limit_val_batches=1", "model.learning_rate=1e-12")  # fmt: skip
    untrained = tested("untrained", RUNS / "untrained/checkpoints/last.ckpt", judge)
    records = {name: tested(name, checkpoint, judge, **changes) for name, changes in OPTIONS.items()}
    run("images", "experiment=generate", f"checkpoint={checkpoint}", f"data.prompts={HERE / 'prompts.txt'}",
        "data.images_per_prompt=2")  # fmt: skip
    shutil.copy(RUNS / "images/contact_sheet.png", HERE / "contact_sheet.png")
    rates, differences = speeds(checkpoint)

    best, hardware = records[DEFAULT], results.hardware([], cores())
    title = (
        f"{best['counts']['test/items']:,} captions of held-out patients; the generator was trained for "
        f"{training_time(trained)}; "
        f"the judge is a DenseNet-121 trained on other phantoms ({best['extractor']})"
    )

    def named(record, name, digits=3):
        return figure(record, f"test/{name}", "<br>", digits)

    heads = ["against held-out images", "generator", "untrained", "training phantoms", "the same, labels shuffled"]
    distances = [
        [shown, named(best, name), named(untrained, name), named(best, f"{name}_real"), "–"]
        for shown, name in (("FID", "fid"), ("KID", "kid"))
    ]
    distances += [
        [shown, named(best, f"{name}/macro"), named(untrained, f"{name}/macro"), named(best, f"{name}_real/macro"),
         named(best, f"{name}_shuffled/macro")]
        for shown, name in (("FID in a finding, mean", "class_fid"), ("KID in a finding, mean", "class_kid"))
    ]  # fmt: skip
    distances += [
        [shown, named(best, name), named(untrained, name), real, "–"]
        for shown, name, real in (
            ("prompt fidelity, mean", "fidelity/macro", named(best, "fidelity_real/macro")),
            ("MS-SSIM of pairs (1: no diversity)", "ms_ssim/generated", named(best, "ms_ssim/real")),
            ("near duplicates of training images", "near_duplicates/features", "0.010"),
        )
    ]
    option_heads = ["sampling", "images/s", "speed-up", "PSNR", "SSIM", "prompt fidelity", "KID"]
    default = rates[DEFAULT]
    options = [
        [
            name, f"{statistics.median(each):.2f}",
            f"{statistics.median([a / b for a, b in zip(each, default, strict=True)]):.2f}",
            *likeness(name, differences[name]),
            named(records[name], "fidelity/macro"), named(records[name], "kid"),
        ]
        for name, each in rates.items()
    ]  # fmt: skip
    shown = [(title, *fidelity_table(best)), ("", heads, distances), ("Options of sampling", option_heads, options)]
    for heading, columns, rows in shown:
        table(heading, columns, [[text.replace("<br>", "  ") for text in row] for row in rows])
    text = (
        f"{title}.\n\n{markdown(*shown[0][1:])}\nBelow each value its 95 % interval.\n\n{markdown(heads, distances)}\n"
        f"{markdown(option_heads, options)}\n"
        f"Images a second on {hardware['cores']} core{'s' * (hardware['cores'] > 1)}, {hardware['cpu']}, bfloat16, "
        f"batches of {BATCH}, medians of {ROUNDS} turns; PSNR and SSIM against the first line's images in float32.\n"
    )
    record = {
        "command": "python experiments/diffusion_phantom/run.py", "title": title, "hardware": hardware,
        "versions": results.versions(), "git_commit": results.git_commit(), "rates": rates,
        "trained": {key: trained[key] for key in ("timing", "energy", "hardware", "world_size", "threads_per_rank")},
        "metrics": {name: r["metrics"] for name, r in records.items()} | {"untrained": untrained["metrics"]},
        "intervals": {name: r["intervals"] for name, r in records.items()} | {"untrained": untrained["intervals"]},
        "counts": best["counts"], "warnings": best["warnings"], "markdown": text,
    }  # fmt: skip
    publish(HERE, record)


if __name__ == "__main__":
    main()
