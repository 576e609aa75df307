"""Vector addition, c = a + b, in six languages: on one core, on threads, on MPI ranks and on a GPU, against STREAM.

    python experiments/vector_addition/run.py [--elements N] [--type float32|float64] [--repeats N] [--gpu]

Builds and runs what the machine's toolchains allow, checks every result, and tells what is skipped or fails and why;
--gpu runs the GPU's programs alone. Writes results.json (with --gpu, gpu.json) beside this file and renews the READMEs.
It takes about 6 GB of memory where the cache is large.
"""

import argparse
import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from functools import cache
from importlib import metadata
from pathlib import Path

import numpy as np
import tables
from entries import KERNELS, additions, triads

from mmpds import results
from mmpds.launch import allowed, mpirun
from mmpds.world import cores

HERE = Path(__file__).resolve().parent
LIMIT_S = 120
STREAM_REPEATS = 10  # as in stream.c


class ProgramError(Exception):
    """A program that cannot be built or run, or whose result is wrong; the message says why."""


def carried_out(command, environ=()):
    """Standard output of a command, which is run in the folder of the kernels.

    Raises:
        ProgramError: it fails, or takes more than LIMIT_S seconds.
    """
    environment = os.environ | dict(environ) | allowed()
    try:
        done = subprocess.run(
            command, cwd=KERNELS, env=environment, capture_output=True, text=True, timeout=LIMIT_S, check=False
        )
    except subprocess.TimeoutExpired:
        raise ProgramError(f"{Path(command[0]).name} did not end in {LIMIT_S} s") from None
    except OSError as error:
        raise ProgramError(f"{Path(command[0]).name} cannot be started: {error.strerror}") from None
    if done.returncode:
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        telling = [line for line in lines if re.search(r"(error|exception)( in .*)?\s*:", line, re.IGNORECASE)]
        cause = (telling or lines[-1:] or [f"exit status {done.returncode}"])[0]
        raise ProgramError(f"{Path(command[0]).name}: {cause}")
    return done.stdout


@cache
def expected(elements, scalar):
    """The two checksums of c = a + scalar × b: its sum, and its sum weighted by 1 to 97, which tells places apart."""
    total = weighted = 0
    for first in range(0, elements, 1 << 22):
        places = np.arange(first, min(first + (1 << 22), elements))
        values = places % 1000 + scalar * (places % 777)
        total += int(values.sum())
        weighted += int((values * (places % 97 + 1)).sum())
    return total, weighted


def measured(entry, repeats):
    """What a program prints, checked.

    Raises:
        ProgramError: it fails, or its result is wrong.
    """
    printed = carried_out([*entry.run, str(entry.elements), str(repeats), *entry.more], entry.environ)
    try:
        found = json.loads(printed.splitlines()[-1])
    except (IndexError, ValueError):
        raise ProgramError(f"printed no figures but {printed[-200:]!r}") from None
    sums = found["sum"], found["weighted"]
    if sums != expected(entry.elements, entry.scalar):
        raise ProgramError(f"wrong result: checksums {sums}, not {expected(entry.elements, entry.scalar)}")
    if found["workers"] != entry.workers:
        raise ProgramError(f"ran with {found['workers']} workers, not {entry.workers}")
    return found


def prepared(entry):
    """Build a program; returns the status and reason of one that will not run, else ("measured", "")."""
    if problem := entry.problem():
        return "skipped", problem
    try:
        for command in entry.build:
            carried_out(command, entry.environ)
    except ProgramError as error:
        return "failed", str(error)
    return ("skipped", entry.lacks) if entry.lacks else ("measured", "")


def taken_in_turns(programs, rounds, repeats):
    """Build the programs and run them in turns: a slow minute slows all.

    Returns:
        A dict for each program: status, reason and, of each round, what it printed.
    """
    rows = []
    for entry in programs:
        status, reason = prepared(entry)
        rows.append({"status": status, "reason": reason, "rounds": []})
        print(f"  {entry.name}: " + (f"{status}: {reason}" if reason else "built"), flush=True)
    for turn in range(rounds):
        print(f"  round {turn + 1}", flush=True)
        for entry, row in zip(programs, rows, strict=True):
            if row["status"] == "measured":
                try:
                    row["rounds"].append(measured(entry, STREAM_REPEATS if entry.bound else repeats))
                except ProgramError as error:
                    row |= {"status": "failed", "reason": str(error)}
                    print(f"  {entry.name}: failed: {error}", flush=True)
    return rows


def rated(programs, rows, elements, itemsize):
    """Add to each measured row its times, for `elements` elements, its rates and its shares of the triads' rates.

    A rate counts 3 × itemsize bytes an element, and is that of the fastest repetition, as STREAM's; a share is of two
    rates of one round, the second that of the fastest triad of the same device.
    """
    for entry, row in zip(programs, rows, strict=True):
        row |= {"language": entry.language, "how": entry.how, "device": entry.device, "bound": entry.bound}
        row |= {"workers": entry.workers, "elements": entry.elements}
        row["rates"] = [3 * itemsize * entry.elements / min(found["times_s"]) / 1e9 for found in row["rounds"]]
    for row in (row for row in rows if row["status"] == "measured"):
        scale = 1 if row["bound"] else elements / row["elements"]
        times = [scale * spent for found in row["rounds"] for spent in found["times_s"]]
        transfers = [spent for found in row["rounds"] for spent in found["transfer_s"]]
        row |= {
            "first_touch_s": scale * float(np.median([found["first_touch_s"] for found in row["rounds"]])),
            "transfer_s": float(np.median(transfers)) if transfers else None,
            "min_s": min(times), "median_s": float(np.median(times)),
            "p10_s": float(np.percentile(times, 10)), "p90_s": float(np.percentile(times, 90)),
            "gb_per_s": max(row["rates"]),
        }  # fmt: skip
        for bound in ("memory", "size"):
            of = [
                r["rates"] for r in rows if (r["bound"], r["device"], r["status"]) == (bound, row["device"], "measured")
            ]
            if of:
                best = np.max(of, axis=0)
                row[f"share_of_{bound}"] = float(np.median(np.asarray(row["rates"]) / best))
    return rows


def versions():
    """Versions of the packages and tools that decide a result."""
    found = results.versions()
    with contextlib.suppress(metadata.PackageNotFoundError):
        found["numba"] = metadata.version("numba")
    for tool in ("gcc", "g++", "gfortran", "nvcc", "julia", "Rscript", mpirun("auto")):
        if shutil.which(tool):
            told = subprocess.run([tool, "--version"], capture_output=True, text=True, check=False)
            if number := re.search(r"\d+\.\d+(\.\d+)?", told.stdout + told.stderr):
                found[Path(tool).name] = number[0]
    return found


def count(text):
    """A whole number from 1 to 2^31 - 1: MPI counts with such."""
    if not text.isdecimal() or not 1 <= int(text) < 2**31:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number from 1 to {2**31 - 1}")
    return int(text)


def main():
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--elements", type=count, default=10_000_000)
    parser.add_argument("--type", choices=["float32", "float64"], default="float64")
    parser.add_argument("--repeats", type=count, default=20, help="timed additions of a program in a round")
    parser.add_argument("--rounds", type=count, default=3, help="how often every program has its turn")
    parser.add_argument("--stream-elements", type=count, help="of the triad's vectors; default: four caches each")
    parser.add_argument("--gpu", action="store_true", help="the programs of the GPU alone")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    kept = HERE / ("gpu.json" if arguments.gpu else results.FILE)
    itemsize, workers = np.dtype(arguments.type).itemsize, cores()
    with tempfile.TemporaryDirectory() as folder:
        programs = triads(Path(folder), arguments.elements, itemsize, workers, arguments.stream_elements)
        programs += additions(Path(folder), arguments.elements, arguments.type, workers)
        programs = [entry for entry in programs if not arguments.gpu or entry.device == "gpu"]
        rows = taken_in_turns(programs, arguments.rounds, arguments.repeats)
    rated(programs, rows, arguments.elements, itemsize)
    gpus = sorted({found["device"] for row in rows for found in row["rounds"] if "device" in found})
    record = {
        "hardware": results.hardware(gpus, workers), "versions": versions(), "type": arguments.type,
        "elements": arguments.elements, "rounds": arguments.rounds, "repeats": arguments.repeats, "programs": rows,
    }  # fmt: skip
    record["targets"] = tables.targets(record)
    record["study"] = [row for row in tables.study(record) if row["here_s"] or not arguments.gpu]
    record["markdown"] = tables.page(record)
    print(record["markdown"])
    results.write_text(arguments.output or kept, json.dumps(record, indent=1) + "\n")
    if arguments.output is None:
        subprocess.run([sys.executable, HERE.parent / "publish.py"], check=True)
    return int(any(row["status"] == "failed" for row in rows))


if __name__ == "__main__":
    sys.exit(main())
