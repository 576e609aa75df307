"""What of a GPU's memory does DeepSpeed's ZeRO leave free, against DDP, in training BLIP-base?

    python experiments/zero/run.py [--steps 12] [--batch 8]

Runs a few steps under each strategy on all GPUs of this machine. Writes results.json beside this file and renews the
READMEs.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

sys.path.append(str(Path(__file__).resolve().parents[1]))

from measure import named, publish

from mmpds import results
from mmpds.console import table
from mmpds.sweep import markdown

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
SIZES = {"vision.intermediate_size": 3072, "vision.num_hidden_layers": 12, "vision.num_attention_heads": 12,
         "vision.patch_size": 16, "text.intermediate_size": 3072, "text.num_hidden_layers": 12,
         "text.num_attention_heads": 12, "text.vocab_size": 30524, "text.max_position_embeddings": 512,
         "width": 768, "stem": "patch", "size": 384}  # fmt: skip
STRATEGIES = {
    "DDP": ["trainer=mpi_gpu"],
    "ZeRO-2": ["trainer=deepspeed"],
    "ZeRO-2, optimizer in CPU memory": ["trainer=deepspeed", "trainer.strategy.offload_optimizer=true"],
    "ZeRO-3": ["trainer=deepspeed_zero3"],
    "ZeRO-3, weights and optimizer in CPU memory": [
        "trainer=deepspeed_zero3", "trainer.strategy.offload_optimizer=true",
        "trainer.strategy.offload_parameters=true",
    ],
}  # fmt: skip


def main():
    """Train, compare, keep."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--batch", type=int, default=8, help="images of a step of a GPU")
    given = parser.parse_args()
    if not (gpus := torch.cuda.device_count()):
        parser.error("torch.cuda finds no GPU here")
    common = [
        sys.executable, ROOT / "train.py", "model=blip_caption", "data=phantom", "stages=[fit]", "report=false",
        *(f"model.{name}={value}" for name, value in SIZES.items()), f"data.size={SIZES['size']}", f"ranks={gpus}",
        f"data.batch_size={given.batch * gpus}", f"data.source.images={4 * given.steps * given.batch * gpus}",
        "trainer.max_epochs=1", f"+trainer.limit_train_batches={given.steps}", "+trainer.limit_val_batches=1",
        "trainer.log_every_n_steps=1",
    ]  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        records = {}
        for name, overrides in STRATEGIES.items():
            run_dir = f"{folder}/{len(records)}"
            command = [*common, f"data.cache_dir={folder}/cache", f"run_dir={run_dir}", *overrides]
            if subprocess.run(command, cwd=ROOT, check=False).returncode:
                raise SystemExit(f"{name} failed")
            records[name] = results.read(run_dir)
            shutil.rmtree(run_dir)  # with gigabytes of checkpoints
    peaks = {name: record["memory"]["peak_device_bytes"] for name, record in records.items()}
    rows = [
        [name, f"{peak / 2**30:.2f}", f"{1 - peak / peaks['DDP']:.0%}",
         f"{record['timing']['step_ms']['p50']:.0f}", f"{record['memory']['peak_rss_bytes'] / 2**30:.1f}"]
        for (name, record), peak in zip(records.items(), peaks.values(), strict=True)
    ]  # fmt: skip
    first = records["DDP"]
    title = (
        f"Training of BLIP-base, {SIZES['size']} px, {given.batch} images a step and GPU, {first['precision']}; "
        f"{named(first['hardware'])}"
    )
    heads = ["strategy", "GiB of a GPU at most", "less than DDP", "ms a step, p50",
             "GiB of CPU memory, checkpoints included"]  # fmt: skip
    table(title, heads, rows)
    record = {
        "command": "python experiments/zero/run.py", "title": title, "hardware": first["hardware"],
        "versions": results.versions(), "git_commit": results.git_commit(),
        **{key: {name: each[key] for name, each in records.items()} for key in ("memory", "timing", "energy")},
        "markdown": f"{title}.\n\n{markdown(heads, rows)}",
    }  # fmt: skip
    publish(HERE, record)


if __name__ == "__main__":
    main()
