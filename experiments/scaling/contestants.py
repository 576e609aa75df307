"""The runs of one workload that take turns, and what their figures say together."""

import os
import shutil
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import model
from workloads import ONE_STEP, filled

from mmpds import results, scaling
from mmpds.world import cores, gpus

ROOT = Path(__file__).resolve().parents[2]
PREDICTED = (1, 2, 4, 8, 16, 32)


@dataclass(frozen=True)
class Contestant:
    """Processes that are started together: `copies` of one command.

    Attributes:
        kind: strong, weak, model (more items, for the model of time) or independent.
        trainer: overrides that say how it is run.
        ranks: of an MPI trainer, else 1.
        items: of the whole command.
        lacks: why it cannot run here, or "".
    """

    kind: str
    trainer: tuple[str, ...]
    ranks: int
    items: int
    copies: int = 1
    lacks: str = ""

    @property
    def name(self):
        how = ", ".join(text.removeprefix("trainer=") for text in self.trainer)
        return f"{self.copies} × {how}" if self.copies > 1 else f"{how}, {self.items} items"


def contestants(workload, ranks):
    """All ways to run a workload. The model and the independent processes go as far as ranks have a core each."""
    own, most = workload.items, most_ranks(ranks)
    here, no_gpu = gpus(), "" if gpus() else "no GPU here"
    found = [Contestant("strong", ("trainer=cpu_seq",), 1, own)]
    if most > 1:
        found.append(Contestant("strong", ("trainer=cpu", f"trainer.threads={most}"), 1, own))
    found += [Contestant("strong", mpi(p), p, own) for p in ranks]
    found.append(Contestant("strong", ("trainer=gpu",), 1, own, lacks=no_gpu))
    two = "" if here > 1 else no_gpu or "one GPU here: it takes two"
    found.append(Contestant("strong", ("trainer=mpi_gpu",), here, own, lacks=two))
    found += [Contestant("weak", mpi(p), p, p * own) for p in ranks if p > 1]
    if most > 1:
        found.append(Contestant("model", mpi(1), 1, 2 * own))
        if workload.joint:  # under weak scaling its batch grows with the ranks, which is other work
            found.append(Contestant("model", mpi(most), most, 2 * own))
        found.append(Contestant("model", mpi(most), most, 3 * own))
        found.append(Contestant("independent", ("trainer=cpu_seq",), 1, own, copies=most))
    return found


def mpi(ranks):
    """The overrides of so many MPI ranks, a thread each."""
    return "trainer=mpi_cpu", f"ranks={ranks}", "trainer.threads=1"


def most_ranks(ranks):
    """The greatest number of ranks that have a core each; where there is none, the greatest of all."""
    return max((p for p in ranks if p <= cores()), default=max(ranks)) if max(ranks) > 1 and cores() > 1 else max(ranks)


def checkpoint(workload, folder):
    """The checkpoint that a workload's runs load, made by one step of training."""
    if not workload.prepare:
        return ""
    run_dir = folder / "prepared"
    made = [filled(text, {"images": workload.images}) for text in workload.prepare]
    started([*made, *ONE_STEP, *cache(folder, made), f"run_dir={run_dir}"])[0]()
    return run_dir / "checkpoints" / "last.ckpt"


def cache(folder, overrides):
    """The study's own cache of images, for what reads images."""
    mine = ("data.prompts", "data.cache_dir")
    return () if any(text.startswith(mine) for text in overrides) else (f"data.cache_dir={folder.parent / 'cache'}",)


def started(overrides, copies=1):
    """Start copies of a run; functions that wait for its end and return its results, with the command's wall time."""
    environment = {key: value for key, value in os.environ.items() if not key.endswith("_NUM_THREADS")}
    run_dir = Path(next(text for text in overrides if text.startswith("run_dir=")).removeprefix("run_dir="))
    shutil.rmtree(run_dir, ignore_errors=True)
    waiting = []
    for copy in range(copies):
        where = run_dir / str(copy) if copies > 1 else run_dir
        command = [sys.executable, ROOT / "train.py", *overrides[:-1], f"run_dir={where}"]
        began = time.perf_counter()
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        waiting.append((process, where, began))

    def ended(process, where, began):
        error = process.communicate()[1].decode(errors="replace")
        seconds = time.perf_counter() - began
        if process.returncode:
            raise SystemExit(f"{' '.join(map(str, overrides))}\n{error[-3000:]}")
        record = results.read(where)
        return record | {"timing": record["timing"] | {"command_s": seconds}}

    return [lambda each=each: ended(*each) for each in waiting]


def taken_in_turns(workload, ranks, rounds, folder):
    """Run every contestant in every round, so that a slow minute slows all; those for the model in the first alone.

    Returns:
        Contestant -> the results of each round; of several copies a list of theirs.
    """
    weights = checkpoint(workload, folder)
    found = {each: [] for each in contestants(workload, ranks)}
    for turn in range(rounds):
        for each, kept in found.items():
            if each.lacks or (each.kind == "model" and turn):
                continue
            began = time.perf_counter()
            weak = each.kind == "weak"
            made = workload.command(each.items, each.ranks, weights, weak=weak)
            overrides = [*made, *cache(folder, made), *each.trainer, f"seed={turn + 1}", f"run_dir={folder / 'run'}"]
            done = [wait() for wait in started(overrides, each.copies)]
            kept.append(done if each.copies > 1 else done[0])
            speed = sum(record["timing"]["throughput_items_per_s"] or 0 for record in done)
            print(
                f"  round {turn + 1}, {each.name}: {speed:.4g} items/s, {time.perf_counter() - began:.1f} s", flush=True
            )
    return found


def concluded(found, triad):
    """What the runs of a workload say: rows of strong and weak scaling, ratio to independent processes, a model."""
    jobs = [job for each, done in found.items() if each.kind == "strong" for job in as_jobs(each, done)]
    rows = scaling.compare(jobs, triad)
    for row in rows:
        if row.get("ranks", 1) > 1 and row.get("processors", 1) <= cores() and "speedup_steady" in row:
            row["serial_fraction"] = model.serial_fraction(row["speedup_steady"], row["processors"])
    alone = next(done for each, done in found.items() if each.kind == "strong" and each.trainer == mpi(1))
    weak = [
        {"ranks": each.ranks, "items": each.items, "images_per_s": model.spread(rates(done)),
         "efficiency": model.spread([a / b / each.ranks for a, b in zip(rates(done), rates(alone), strict=True)])}
        for each, done in found.items() if each.kind == "weak"
    ]  # fmt: skip
    told = {"strong": rows, "weak": weak, "independent": None, "model": None}
    if pair := next(((each, done) for each, done in found.items() if each.kind == "independent"), None):
        copies = pair[0].copies
        together = next(done for each, done in found.items() if each.kind == "weak" and each.ranks == copies)
        apart = [sum(rates(copy)) for copy in pair[1]]
        ratio = [a / b for a, b in zip(rates(together), apart, strict=True)]
        told["independent"] = {"processes": copies, "images_per_s": model.spread(apart), "ratio": model.spread(ratio)}
        told["model"] = modelled(found, copies)
    return told


def as_jobs(each, done):
    """The rounds of a contestant as the jobs of a sweep, whose seed is the round."""
    names = [text for text in each.trainer if not text.startswith("trainer.threads=")]
    if each.lacks:
        return [{"status": "skipped", "error": each.lacks, "overrides": names}]
    return [result | {"overrides": [*names, f"seed={turn}"]} for turn, result in enumerate(done, 1)]


def rates(done):
    """Items a second of each result."""
    return [result["timing"]["throughput_items_per_s"] for result in done]


def modelled(found, most):
    """The model of a command's time, fitted to all runs of MPI but the longest, which it then predicts."""
    kept = [
        (each, done) for each, done in found.items()
        if "trainer=mpi_cpu" in each.trainer and each.ranks <= most and not (each.kind == "weak" and joint(found))
    ]  # fmt: skip
    longest = max(each.items for each, _ in kept if each.kind == "model")
    rounds = max(len(done) for _, done in kept)
    fit = [
        [
            (each.ranks, each.items, done[min(turn, len(done) - 1)]["timing"]["command_s"])
            for each, done in kept
            if each.items < longest
        ]
        for turn in range(rounds)
    ]
    held = next((each, done) for each, done in kept if each.items == longest)
    own = min(each.items for each, _ in kept)
    unseen = model.predicted(fit, [(held[0].ranks, longest)])[0]
    seconds = model.spread([result["timing"]["command_s"] for result in held[1]])
    terms = [model.fitted(observed).__dict__ for observed in fit]
    return {
        "terms": {name: statistics.median(each[name] for each in terms) for name in terms[0]},
        "unseen": unseen | {"measured": seconds, "error": unseen["seconds"]["median"] / seconds["median"] - 1},
        "predicted": model.predicted(fit, [(p, own) for p in PREDICTED]),
        "observed": [[each.ranks, each.items, model.spread([r["timing"]["command_s"] for r in done])]
                     for each, done in kept],
    }  # fmt: skip


def joint(found):
    """Whether the steps are of all ranks together: its model has a run of its own in the place of the weak one."""
    doubled = [each for each in found if each.kind == "model" and each.ranks > 1]
    return len(doubled) > 1
