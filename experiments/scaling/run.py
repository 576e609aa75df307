"""How do the workloads scale over threads, MPI ranks and GPUs, what limits each, and what would more ranks give?

    python experiments/scaling/run.py [--workload NAME …] [--ranks 1 2 …] [--rounds 3] [--items FACTOR]

Writes results.json beside this file, runs/scaling/report.html, and renews the READMEs. --workload renews some beside
what was measured on the same hardware; `overhead` is the framework's beside a bare PyTorch loop.
"""

import argparse
import json
import math
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))

import bandwidth
import contestants
import overhead
import page
import tables
from measure import compared, kept
from workloads import WORKLOADS

from mmpds import results
from mmpds.world import cores

HERE = Path(__file__).resolve().parent
REPORT = HERE.parents[1] / "runs" / "scaling" / "report.html"
OVERHEAD = "overhead"
BATCHES = 6  # of a rank, of which up to three warm up


def default_ranks():
    """1, 2, 4, … and as many as there are cores."""
    return sorted({*(1 << power for power in range(cores().bit_length())), cores()})


def arguments():
    """The command line, checked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workload", nargs="+", choices=[*WORKLOADS, OVERHEAD], default=[*WORKLOADS, OVERHEAD])
    parser.add_argument("--ranks", nargs="+", type=int, default=default_ranks(), help="numbers of MPI ranks")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--items", type=float, default=1.0, help="factor on the items of every workload")
    given = parser.parse_args()
    given.ranks = sorted({1, *given.ranks})
    if given.ranks[0] < 1 or given.rounds < 1 or given.items <= 0:
        parser.error("--ranks and --rounds are at least 1, --items is above 0")
    return given


def resized(workload, factor, ranks):
    """A workload of other size: a multiple of a batch of all ranks, and enough of them to leave the warm-up."""
    whole = workload.batch * max(ranks)
    least = math.ceil(BATCHES / max(ranks)) if workload.joint else BATCHES
    items = max(least, round(workload.items * factor / whole)) * whole
    return replace(workload, items=items, images=max(workload.images, 2 * items * max(3, *ranks)))


def main():
    """Measure, print, keep."""
    given = arguments()
    record = {"workloads": {}} | {key: kept(HERE).get(key) or {} for key in ("workloads", OVERHEAD)}
    hardware = results.hardware([], cores())
    with tempfile.TemporaryDirectory() as folder:
        # before the rest, and at every number of ranks that has a core each
        triad = {p: bandwidth.triad(p) for p in given.ranks if p <= cores()}
        print(
            "  STREAM triad: " + ", ".join(f"{p} × {rate / p / 1e9:.3g} GB/s" for p, rate in triad.items()), flush=True
        )
        for name in [name for name in WORKLOADS if name in given.workload]:
            workload = resized(WORKLOADS[name], given.items, given.ranks)
            print(f"{workload.title}, {workload.items} items a core", flush=True)
            found = contestants.taken_in_turns(workload, given.ranks, given.rounds, Path(folder) / name)
            record["workloads"][name] = {
                "title": workload.title, "items": workload.items, "rounds": given.rounds,
                "target": workload.independent, **contestants.concluded(found, triad),
            }  # fmt: skip
        if OVERHEAD in given.workload:
            print("The framework beside a bare loop", flush=True)
            rates = overhead.measured(folder, given.rounds)
            record[OVERHEAD] = {"images_per_s": rates, "ratios": compared(rates, overhead.PAIRS)}
    record |= {
        "title": f"{hardware['cpu']}, {hardware['cores']} cores", "triad": triad, "hardware": hardware,
        "versions": results.versions(), "git_commit": results.git_commit(),
    }  # fmt: skip
    record["markdown"] = tables.markdown_of(record)
    print(record["markdown"])
    results.write_text(HERE / results.FILE, json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    REPORT.parent.mkdir(parents=True, exist_ok=True)
    results.write_text(REPORT, page.html(record))
    print(f"  {REPORT}")
    subprocess.run([sys.executable, HERE.parent / "publish.py"], check=True)
    missed = tables.missed(record)
    if missed:
        print("  below target: " + "; ".join(missed))
    return int(bool(missed))


if __name__ == "__main__":
    sys.exit(main())
