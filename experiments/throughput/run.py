"""How fast is mmpds against plain loops, hand-tuned loops, threads and MPI? One run, interleaved, medians.

A contestant has a process of its own, in which it works only when it is its turn.

    python experiments/throughput/run.py [--rounds 5] [--size 224] [--only inference|training|mpi]

Writes results.json beside this file and renews the READMEs; --only renews one section on the same hardware.
"""

import argparse
import logging
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import warnings
from functools import partial
from pathlib import Path

import torch
from torch.nn import functional as F

sys.path.append(str(Path(__file__).resolve().parents[1]))

from measure import apart, conclude, interleaved, kept, rate, steady

from mmpds.world import cores, reuse_memory

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
BATCH = 32
INFERENCE_BATCH = 8  # what the study used, and the fastest here: a batch's features stay in the cache
# name: (section, numerator, denominator, target)
PAIRS = {
    "inference ÷ plain torchxrayvision loop": ("inference", "mmpds", "plain", None),
    "compiled inference ÷ plain torchxrayvision loop": ("inference", "mmpds, compiled", "plain", 3.5),
    "inference ÷ hand-tuned loop": ("inference", "mmpds", "tuned", 0.97),
    "training ÷ plain PyTorch loop": ("training", "mmpds", "plain", 2.0),
    "training ÷ hand-tuned loop": ("training", "mmpds", "tuned", 0.97),
    "2 MPI ranks ÷ 2 independent processes": ("mpi", "2 MPI ranks", "2 processes", 0.95),
    "2 MPI ranks ÷ 2 threads": ("mpi", "2 MPI ranks", "2 threads", None),
    "2 MPI ranks ÷ 1 thread": ("mpi", "2 MPI ranks", "1 thread", None),
}


class Ours:
    """mmpds as a user gets it: the phantom through the cache, our DataModule, our model, our callbacks."""

    def __init__(self, size, folder, batch):
        import lightning.pytorch as pl

        from mmpds.callbacks.resume import StepSeed
        from mmpds.callbacks.timing import Timing
        from mmpds.callbacks.timing_section import combine
        from mmpds.data.module import ImageData
        from mmpds.data.phantom import Phantom
        from mmpds.models.densenet import DenseNet121
        from mmpds.stages import has_bfloat16

        logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
        warnings.filterwarnings("ignore")
        torch.manual_seed(0)
        self.bfloat16 = has_bfloat16("cpu")
        self.data = ImageData(
            partial(Phantom, images=800), size=size, batch_size=batch, cache_dir=f"{folder}/cache",
            fractions=(0.5, 0.1, 0.4),
        )  # fmt: skip
        self.model = DenseNet121(self.data.findings).to(memory_format=torch.channels_last)
        self.data.prepare_data()
        self.data.setup("fit")
        self.trainer = partial(
            pl.Trainer, accelerator="cpu", devices=1, precision="bf16-mixed" if self.bfloat16 else "32-true",
            logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
            use_distributed_sampler=False, num_sanity_val_steps=0, max_epochs=1, limit_val_batches=0,
            default_root_dir=folder,
        )  # fmt: skip
        self.timing, self.combine, self.step_seed = Timing, combine, StepSeed

    def batches(self, name, count):
        size = self.data.batch_size
        images = self.data.images[name]
        rows = [images.source.image(int(row), images.size) for row in images.rows[: count * size]]
        stack = torch.stack([torch.from_numpy(row) for row in rows]).unsqueeze(1).float().div_(255)
        return [(stack[i : i + size], images.label[i : i + size]) for i in range(0, len(stack), size)]

    def test(self, batches):
        timing = self.timing(warmup_steps=1)
        self.trainer(callbacks=[timing], limit_test_batches=batches).test(self.model, self.data, verbose=False)
        return self.combine([timing.summary()])["test_items_per_s"]

    def fit(self, batches):
        timing = self.timing(warmup_steps=1)
        trainer = self.trainer(callbacks=[timing, self.step_seed(0)], limit_train_batches=batches)
        trainer.fit(self.model, self.data)
        return self.combine([timing.summary()])


def plain_model():
    """Torchxrayvision's DenseNet-121 with random weights: the same network as ours."""
    import torchxrayvision

    from mmpds.data.phantom import Phantom

    torch.manual_seed(0)
    return torchxrayvision.models.DenseNet(num_classes=len(Phantom(images=1).findings))


def our_inference(size, folder, count, compiled=False):
    """Images a second of `stages=[test]` as a user runs it."""
    reuse_memory()
    ours = Ours(size, folder, INFERENCE_BATCH)
    if compiled:
        ours.model.compile()
    return lambda: ours.test(count)


def plain_inference(size, folder, count):
    """Images a second of a plain torchxrayvision loop: fp32, batch 8."""
    images = torch.cat([image for image, _ in Ours(size, folder, INFERENCE_BATCH).batches("test", count)])
    model = plain_model().eval()

    def loop():
        with torch.no_grad():
            for start in range(0, len(images), INFERENCE_BATCH):
                model(images[start : start + INFERENCE_BATCH] * 2048 - 1024).sigmoid().numpy()

    return lambda: rate(loop, len(images))


def tuned_inference(size, folder, count):
    """Images a second of a hand-tuned bare PyTorch loop: bf16 where the hardware has it, channels-last, no loading."""
    ours = Ours(size, folder, INFERENCE_BATCH)
    batches = ours.batches("test", count)[1:]
    model = plain_model().eval().to(memory_format=torch.channels_last)

    def loop():
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=ours.bfloat16):
            for image, _ in batches:
                model(image * 2048 - 1024).sigmoid().float().numpy()

    return lambda: rate(loop, len(batches) * INFERENCE_BATCH)


def our_training(size, folder, count):
    """Images a second of `stages=[fit]` as a user runs it."""
    reuse_memory()
    ours = Ours(size, folder, BATCH)
    return lambda: ours.fit(count)["fit_items_per_s"]


def training_loop(size, folder, count, tuned=False):
    """Images a second of a PyTorch loop, plain (fp32, Adam) or tuned (bf16, channels-last, fused), no loading."""
    ours = Ours(size, folder, BATCH)
    batches = ours.batches("train", count)[1:]
    model = plain_model().train()
    if tuned:
        model.to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=tuned)

    def loop():
        for image, label in batches:
            with torch.autocast("cpu", torch.bfloat16, enabled=tuned and ours.bfloat16):
                logit = model.classifier(model.features2(image * 4 - 2))
                loss = F.binary_cross_entropy_with_logits(logit.float(), label)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    return lambda: rate(loop, len(batches) * BATCH)


def mpi(size, folder, rounds):
    """Inference from the command line: one thread, all threads, 2 MPI ranks, 2 independent processes at once.

    Each core gets the same number of images, so that all are timed over about the same span.
    """
    command = [
        sys.executable, "train.py", f"data.size={size}",
        f"data.cache_dir={folder}/cache", "data.fractions=[0.3,0.1,0.6]", "bootstrap=10", "callbacks=none",
    ]  # fmt: skip
    environment = {k: v for k, v in os.environ.items() if not k.endswith("_NUM_THREADS")}
    checkpoint = f"{folder}/fit/checkpoints/last.ckpt"
    fit = [
        "stages=[fit]",
        "callbacks=default",
        "trainer.max_epochs=1",
        "+trainer.limit_train_batches=1",
        "data.source.seed=1",  # what is tested it has not seen
        f"run_dir={folder}/fit",
    ]
    subprocess.run(
        [*command[:-1], "data.source.images=800", *fit], cwd=ROOT, env=environment, check=True, capture_output=True
    )

    def start(name, *overrides, ranks=1, busy=1):
        run_dir = f"{folder}/{name}"
        test = [*command, "stages=[test]", f"checkpoint={checkpoint}", f"run_dir={run_dir}", *overrides]
        test += [f"data.batch_size={ranks * INFERENCE_BATCH}", f"data.source.images={busy * 800}"]
        process = subprocess.Popen(test, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL)
        return process, run_dir

    contestants = {
        "1 thread": lambda: steady([start("seq", "trainer=cpu_seq")]),
        "2 threads": lambda: steady([start("threads", "trainer=cpu", "trainer.threads=2", busy=2)]),
        "2 MPI ranks": lambda: steady([start("mpi", "trainer=mpi_cpu", "ranks=2", ranks=2, busy=2)]),
        "2 processes": lambda: steady([start("one", "trainer=cpu_seq"), start("two", "trainer=cpu_seq")]),
    }
    return interleaved(contestants, rounds)


def main():
    """Measure, print, and keep the whole measurement in results.json."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--only", choices=["inference", "training", "mpi"])
    arguments = parser.parse_args()
    torch.set_num_threads(cores())
    rates, wait = {}, None
    with tempfile.TemporaryDirectory() as folder:
        ours = Ours(arguments.size, folder, BATCH)
        if arguments.only in (None, "inference"):
            builders = {"mmpds": our_inference, "plain": plain_inference, "tuned": tuned_inference}
            if shutil.which("g++"):
                builders["mmpds, compiled"] = partial(our_inference, compiled=True)
            rates["inference"] = apart(builders, arguments.rounds, arguments.size, folder, 24)
        if arguments.only in (None, "training"):
            builders = {"mmpds": our_training, "plain": training_loop, "tuned": partial(training_loop, tuned=True)}
            rates["training"] = apart(builders, arguments.rounds, arguments.size, folder, 7)
            wait = statistics.median(ours.fit(7)["data_wait_fraction"] for _ in range(3))
        if arguments.only in (None, "mpi"):
            rates["mpi"] = mpi(arguments.size, folder, arguments.rounds)
    if arguments.only and (old := kept(HERE)):
        rates = old["images_per_s"] | rates  # a ratio never compares two sections
        wait = old["data_wait_fraction"] if wait is None else wait
    batches = f"batch {BATCH} in training and {INFERENCE_BATCH} in inference"
    title = f"DenseNet-121, {arguments.size} px, {batches}"
    remarks = (
        wait and f"Share of training spent waiting for data, through the cache: {wait:.4f} (target: at most 0.05)."
    )
    sections = ("inference", "training", "mpi")
    return conclude(HERE, title, rates, PAIRS, sections, remarks, data_wait_fraction=wait)


if __name__ == "__main__":
    sys.exit(main())
