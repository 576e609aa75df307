"""Are batches of unequal cost shared out well among MPI ranks, and what does the shared counter cost?

    python experiments/schedule/run.py

Writes results.json beside this file and renews the READMEs.
"""

import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from mmpds import results
from mmpds.console import table
from mmpds.launch import allowed, free_port, mpi_launcher, rendezvous
from mmpds.sweep import markdown
from mmpds.world import adopt, cores

HERE = Path(__file__).resolve().parent
RANKS = (2, 4)
ITEMS, CHEAPEST, DEAREST = 64, 0.04, 0.16  # seconds: the dearest costs four times the cheapest
REPEATS = 3
TARGET = 1.1


def cases():
    """Name -> each item's cost in seconds, and by how much rank 0 is slower than the others."""
    rising = [CHEAPEST + (DEAREST - CHEAPEST) * place / (ITEMS - 1) for place in range(ITEMS)]
    mixed = random.Random(0).sample(rising, ITEMS)
    return {"random order": (mixed, 1), "dearest last": (rising, 1), "random order, rank 0 half as fast": (mixed, 2)}


def ideal(costs, slower, ranks):
    """Seconds that no schedule can beat: all ranks work all the time, and one of them does the dearest item."""
    return max(sum(costs) / (ranks - 1 + 1 / slower), max(costs))


def worker(out):
    """One rank: measure the counters, then both schedules in turns."""
    world = adopt(os.environ)
    rendezvous(world, os.environ)
    import lightning.pytorch as pl
    import torch.distributed as dist
    from lightning.pytorch.plugins.environments import TorchElasticEnvironment
    from lightning.pytorch.strategies import DDPStrategy

    from mmpds.data.prompts import PromptData

    class Sleeper(pl.LightningModule):
        """Works by sleeping, which needs no core: four ranks on two cores are then as good as on four."""

        def __init__(self, costs):
            super().__init__()
            self.costs = costs

        def on_predict_start(self):
            dist.barrier()
            self.began = time.time()

        def predict_step(self, batch):
            time.sleep(sum(self.costs[row] for row in batch["index"].tolist()))
            self.ended = time.time()
            return 0

    def makespan(schedule, costs, slower):
        trainer = pl.Trainer(
            accelerator="cpu", devices=world.size, strategy=DDPStrategy(process_group_backend="gloo"),
            plugins=[TorchElasticEnvironment()], logger=False, enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False, use_distributed_sampler=False,
        )  # fmt: skip
        data = PromptData(["a chest radiograph"] * ITEMS, batch_size=1, schedule=schedule)
        model = Sleeper([cost * slower for cost in costs] if world.rank == 0 else costs)
        trainer.predict(model, data, return_predictions=False)
        spans = gathered((model.began, model.ended))
        return max(ended for _, ended in spans) - min(began for began, _ in spans)

    def gathered(mine):
        every = [None] * world.size
        dist.all_gather_object(every, mine)
        return every

    makespan("dynamic", [0.0] * ITEMS, 1)  # warm-up; it also makes the process group that the counters need
    found = {"fetch": fetches(world.rank, gathered), "makespan": []}
    for _ in range(REPEATS):
        for name, (costs, slower) in cases().items():
            for schedule in ("static", "dynamic"):
                found["makespan"].append([name, schedule, makespan(schedule, costs, slower)])
    if world.rank == 0:
        Path(out).write_text(json.dumps(found))
    gathered(None)


def fetches(rank, gathered):
    """Milliseconds of each fetch of the other ranks while rank 0 waits in a collective, or computes."""
    import torch
    from mpi4py import MPI

    from mmpds.data.schedule import SharedCounter

    window = MPI.Win.Allocate(8 * (rank == 0), 8, comm=MPI.COMM_WORLD)
    if rank == 0:
        memoryview(window).cast("B")[:] = bytes(8)
    one, old, shared = bytearray((1).to_bytes(8, "little")), bytearray(8), SharedCounter()

    def one_sided():
        window.Lock(0, MPI.LOCK_SHARED)
        window.Fetch_and_op([one, MPI.INT64_T], [old, MPI.INT64_T], 0, 0, MPI.SUM)
        window.Unlock(0)
        return int.from_bytes(old, "little")

    matrix, found = torch.randn(1500, 1500), {}
    for name, take in {"TCPStore": shared.take, "MPI_Fetch_and_op": one_sided}.items():
        for state in ("idle", "computing"):
            gathered(None)
            began, spent, numbers = time.perf_counter(), [], []
            while time.perf_counter() - began < 1.5:
                if rank == 0:
                    if state == "idle":
                        break
                    matrix @ matrix
                    continue
                before = time.perf_counter()
                numbers.append(take())
                spent.append(1000 * (time.perf_counter() - before))
                time.sleep(0.005)
            every = gathered((spent, numbers))
            taken = [number for _, numbers in every for number in numbers]
            assert len(set(taken)) == len(taken), f"{name}: a number was given twice"
            found[f"{name}, rank 0 {state}"] = sorted(one for spent, _ in every for one in spent)
    window.Free()
    return found


def started(ranks, folder):
    """What the ranks measured."""
    out = Path(folder) / f"{ranks}.json"
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    environment |= allowed()
    # its component ucx complains about itself
    command = [*mpi_launcher(ranks), "--mca", "osc", "^ucx", sys.executable, __file__, str(out)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    if done.returncode:
        raise SystemExit(f"{ranks} ranks failed:\n{done.stderr[-3000:]}")
    return json.loads(out.read_text())


def compared(measured):
    """Each case's ideal and median makespans in seconds, and their ratios to the ideal."""
    rows = []
    for ranks, found in measured.items():
        for name, (costs, slower) in cases().items():
            best = ideal(costs, slower, ranks)
            row = {"ranks": ranks, "case": name, "ideal_s": best}
            for schedule in ("static", "dynamic"):
                spans = [span for case, used, span in found["makespan"] if (case, used) == (name, schedule)]
                row |= {f"{schedule}_s": statistics.median(spans), f"{schedule}_spans_s": spans}
                row[f"{schedule}_ratio"] = row[f"{schedule}_s"] / best
            rows.append(row)
    return rows


def main():
    """Measure, print, keep."""
    with tempfile.TemporaryDirectory() as folder:
        measured = {ranks: started(ranks, folder) for ranks in RANKS}
    makespans = compared(measured)
    fetch = [
        {"ranks": ranks, "counter": name, "fetches": len(spent), "median_ms": statistics.median(spent),
         "p99_ms": spent[int(0.99 * len(spent))]}
        for ranks, found in measured.items()
        for name, spent in found["fetch"].items()
    ]  # fmt: skip
    heads = ["ranks", "case", "ideal s", "static s", "dynamic s", "static ÷ ideal", "dynamic ÷ ideal"]
    rows = [
        [str(row["ranks"]), row["case"], *(f"{row[f'{name}_s']:.2f}" for name in ("ideal", "static", "dynamic")),
         *(f"{row[f'{name}_ratio']:.2f}" for name in ("static", "dynamic"))]
        for row in makespans
    ]  # fmt: skip
    fetch_heads = ["ranks", "counter", "median ms", "99 % ms"]
    fetch_rows = [[str(r["ranks"]), r["counter"], f"{r['median_ms']:.3f}", f"{r['p99_ms']:.3f}"] for r in fetch]
    title = f"{ITEMS} items of {CHEAPEST} to {DEAREST} s, one a batch, median of {REPEATS}"
    table(title, heads, rows)
    table("A fetch", fetch_heads, fetch_rows)
    text = f"{title}; target: dynamic ÷ ideal at most {TARGET}.\n\n{markdown(heads, rows)}\n"
    text += markdown(fetch_heads, fetch_rows)
    record = {"hardware": results.hardware([], cores()), "versions": results.versions()}
    record |= {"makespan": makespans, "fetch": fetch, "markdown": text}
    results.write_text(HERE / "results.json", json.dumps(record, indent=2) + "\n")
    subprocess.run([sys.executable, HERE.parent / "publish.py"], check=True)
    missed = [f"{r['case']} on {r['ranks']} ranks" for r in makespans if r["dynamic_ratio"] > TARGET]
    if missed:
        print("  above target: " + "; ".join(missed))
    return int(bool(missed))


if __name__ == "__main__":
    sys.exit(worker(sys.argv[1]) if len(sys.argv) > 1 else main())
