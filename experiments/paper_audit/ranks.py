"""The study's prompts on its number of ranks, really run."""

import subprocess
import sys
import tempfile
from pathlib import Path

import pandas as pd
from rows import CONFIRMED, CORRECTED, Row

from mmpds import results

ROOT = Path(__file__).resolve().parents[2]
# a generator of no use: who gets which prompt does not depend on what it draws
TRAIN = (
    "experiment=diffusion_phantom", "stages=[fit]", "data.source.images=60", "data.batch_size=6", "data.cache_dir=null",
    "model.unet.block_out_channels=[32,32,64]", "model.size=32", "model.sampling.steps=2", "trainer.max_epochs=1",
    "trainer=cpu_seq",
)  # fmt: skip
GENERATE = ("experiment=generate", "data.prompts=study", "data.batch_size=1", "trainer=mpi_cpu")


def run(folder, *overrides):
    """The real command; its output."""
    command = [sys.executable, ROOT / "train.py", *overrides, "trainer.precision=32-true", "report=false"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, command))}\n{(done.stdout + done.stderr)[-3000:]}")
    return done.stdout


def generated(ranks):
    """Images of each rank that made any, what the run warned of, and its seconds of starting and of generating."""
    with tempfile.TemporaryDirectory() as folder:
        run(folder, *TRAIN, "run_dir=generator")
        checkpoint = "checkpoint=generator/checkpoints/best.ckpt"
        printed = run(folder, *GENERATE, checkpoint, f"ranks={ranks}", "run_dir=out")
        record = results.read(Path(folder, "out"))
        made = pd.read_csv(Path(folder, "out", "images", "manifest.csv"))["rank"].value_counts().sort_index()
    assert all(warning in printed for warning in record["warnings"])
    return {
        "ranks": record["world_size"],
        "images_of_rank": {str(rank): int(images) for rank, images in made.items()},
        "warnings": record["warnings"],
        "start_up_s": record["timing"]["startup_s"] + record["timing"]["build_s"],
        "predict_s": record["timing"]["predict_s"],
    }


def rows_of(claims, found):
    """The row of the claim that communication limits the ranks."""
    generation = claims["generation"]
    first, mpi = (next(m for m in generation["modes"] if m["mode"] == name) for name in ("Sequential", "MPI"))
    speedup = float(first["seconds"]) / float(mpi["seconds"])
    ranks, images = int(mpi["workers"]), int(generation["images"])
    working = len(found["images_of_rank"])
    idle = found["ranks"] - working
    measured = (
        f"{sum(found['images_of_rank'].values())} images on {found['ranks']} ranks: {working} made "
        f"{' or '.join(map(str, sorted(set(found['images_of_rank'].values()))))} each, {idle} none; speed-up "
        f"{speedup:.2g} is {100 * speedup / ranks:.0f} % of {ranks} ranks, {100 * speedup / images:.0f} % of {images}"
    )
    quoted = "; ".join(f"“{warning}”" for warning in found["warnings"])
    why = (
        f"The run itself says: {quoted}. Batches of one prompt give work to as many ranks as can have any; images need "
        "no communication that could saturate."
    )
    verdict = CORRECTED if idle else CONFIRMED
    says = f"speed-up {mpi['speedup']} on {mpi['workers']} ranks, for communication saturates"
    return [Row("What limits MPI", says, measured, verdict, why)]
