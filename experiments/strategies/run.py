"""The same images on one core, on threads, on MPI ranks, on GPUs: one sweep, its tables kept.

    python experiments/strategies/run.py [--checkpoint FILE.ckpt]

Writes results.json beside this file and renews the READMEs.
"""

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path

from mmpds import results
from mmpds.world import cores

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
CHECKPOINT = ROOT / "runs/diffusion_phantom_study/generator/checkpoints/best.ckpt"


def main():
    """Run the sweep and keep its tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", type=Path, default=CHECKPOINT)
    arguments = parser.parse_args()
    if not arguments.checkpoint.is_file():
        parser.error(
            f"--checkpoint {arguments.checkpoint}: no such file; experiments/diffusion_phantom/run.py makes one"
        )
    folder = ROOT / "sweeps" / "strategies"
    shutil.rmtree(folder, ignore_errors=True)
    overrides = [
        "experiment=generate", f"checkpoint={arguments.checkpoint.resolve()}", "data.prompts=phantom", "data.count=48",
        "data.batch_size=4", "trainer=cpu_seq,cpu,mpi_cpu,gpu,mpi_gpu", "seed=1,2,3",
    ]  # fmt: skip
    command = [sys.executable, ROOT / "train.py", "-m", *overrides, f"hydra.sweep.dir={folder}"]
    if code := subprocess.run(command, cwd=ROOT, check=False).returncode:
        return code
    hardware = results.hardware([], cores())
    machine = f"{hardware['cpu']}, {hardware['cores']} cores"
    title = f"48 captions of phantoms, 64 px, 25 steps, batches of 4, three seeds; {machine}"
    summary = (folder / "summary.md").read_text()
    record = {
        "command": "python experiments/strategies/run.py", "title": title, "hardware": hardware,
        "versions": results.versions(), "git_commit": results.git_commit(), "markdown": f"{title}.\n\n{summary}",
    }  # fmt: skip
    results.write_text(HERE / "results.json", json.dumps(record, indent=2) + "\n")
    return subprocess.run([sys.executable, HERE.parent / "publish.py"], check=True).returncode


if __name__ == "__main__":
    sys.exit(main())
