"""How the studies here run, and benchmarks measure: contestants take turns; a ratio is of two turns of one round."""

import json
import multiprocessing
import statistics
import subprocess
import sys
import time
from collections import Counter
from functools import partial
from pathlib import Path

import torch

from mmpds import results
from mmpds.console import table
from mmpds.report import writing
from mmpds.sweep import markdown
from mmpds.world import cores

HERE = Path(__file__).resolve().parent
GPU_FILE = "gpu.json"
"""Measured on a GPU, beside results.json, which is of a CPU."""


def rate(work, items):
    """Items a second of one call; one that ends with results on the host has waited for the GPU."""
    began = time.perf_counter()
    work()
    return items / (time.perf_counter() - began)


def operations(work):
    """Floating-point operations of the matrix products, convolutions and attention of a call."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


def bfloat16_peak():
    """Floating-point operations a second of a product of bfloat16 matrices on this GPU, the fastest of twenty."""
    size = 8192
    a, b = (torch.randn(size, size, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    rates = []
    for _ in range(20):
        torch.cuda.synchronize()
        rates.append(rate(lambda: (a @ b, torch.cuda.synchronize()), 2 * size**3))
    return max(rates)


def of_peak(items_per_s, operations_an_item):
    """What share of the GPU's bfloat16 peak these items are, in words."""
    peak, used = bfloat16_peak(), statistics.median(items_per_s) * operations_an_item
    return (
        f"{operations_an_item / 1e9:,.0f} GFLOP each: {used / 1e12:.0f} TFLOP/s, {used / peak:.0%} of the "
        f"{peak / 1e12:.0f} TFLOP/s that a product of bfloat16 matrices reaches here"
    )


def chosen_device(parser, given):
    """`cuda` where --gpu asks for it, else `cpu`; ends with the reason where there is no GPU."""
    if given.gpu and not torch.cuda.is_available():
        parser.error("--gpu: torch.cuda finds no GPU here")
    if given.gpu and getattr(given, "only", None):
        parser.error("--gpu goes without --only")
    return "cuda" if given.gpu else "cpu"


def machine(gpu=False):
    """What this is measured on; with its GPU only where that does the work."""
    return results.hardware([torch.cuda.get_device_name()] if gpu else [], cores())


def named(hardware):
    """A machine in words."""
    gpus = "".join(f"{count} × {gpu}, " for gpu, count in Counter(hardware["gpu"]).items())
    return f"{gpus}{hardware['cpu']}, {hardware['cores']} cores"


def interleaved(contestants, rounds):
    """Rates of each contestant over rounds that take turns, so that a slow minute slows all; the first is warm-up."""
    rates = {name: [] for name in contestants}
    for turn in range(rounds + 1):
        for name, measure in contestants.items():
            value = measure()
            if turn:
                rates[name].append(value)
        print(f"  round {turn}: " + ", ".join(f"{n} {r[-1]:.4g}" for n, r in rates.items() if r), flush=True)
    return rates


def apart(builders, rounds, *arguments):
    """`interleaved`, each contestant in a process of its own: none profits from another's memory or settings."""
    spawn, pipes = multiprocessing.get_context("spawn"), {}
    for name, build in builders.items():
        pipes[name], inner = spawn.Pipe()
        spawn.Process(target=serve, args=(inner, build, arguments), daemon=True).start()

    def ask(pipe):
        pipe.send(True)
        return pipe.recv()

    rates = interleaved({name: partial(ask, pipe) for name, pipe in pipes.items()}, rounds)
    for pipe in pipes.values():
        pipe.send(False)
    return rates


def serve(pipe, build, arguments):
    """A contestant's process: measures when it is asked to."""
    torch.set_num_threads(cores())
    measure = build(*arguments)
    while pipe.recv():
        pipe.send(measure())


def steady(started):
    """Items a second of runs of train.py that were started together, pairs of a process and its run directory."""
    total = 0.0
    for process, run_dir in started:
        if process.wait():
            raise SystemExit(f"{run_dir} failed")
        total += results.read(Path(run_dir))["timing"]["throughput_items_per_s"]
    return total


def finished(run_dir, *overrides):
    """The results of a study's run, which is started unless it has finished."""
    known = results.read(run_dir)
    decisive = {text for text in overrides if not text.startswith("trainer.threads=")}
    if known and not decisive <= set(known["overrides"]):
        raise SystemExit(f"{run_dir} is a run of other settings: delete it to run anew")
    if known.get("status") != "finished":
        command = [sys.executable, HERE.parent / "train.py", *overrides, f"run_dir={run_dir}", "resume=auto"]
        if subprocess.run(command, cwd=HERE.parent, check=False).returncode:
            raise SystemExit(f"{run_dir} failed")
    return results.read(run_dir)


def training_time(record):
    """How long a fit took, by the clock and by its cores: other work on the machine lengthens the first alone."""
    timing, used = record["timing"], record["world_size"] * record["threads_per_rank"]
    return (
        f"{timing['fit_s'] / 60:.0f} minutes on {used} core{'s' * (used > 1)} of {record['hardware']['cpu']} "
        f"({timing['cpu_s'] / 60:.0f} core minutes)"
    )


def compared(rates, pairs):
    """Each ratio within one round: its median and spread over the rounds.

    pairs: name -> (section of the rates, numerator, denominator, target or None).
    """
    ratios = {}
    for name, (section, ours, other, target) in pairs.items():
        if {ours, other} <= set(rates.get(section, ())):
            each = [a / b for a, b in zip(rates[section][ours], rates[section][other], strict=True)]
            ratios[name] = {"median": statistics.median(each), "min": min(each), "max": max(each), "target": target}
    return ratios


def conclude(folder, title, rates, pairs, sections, remarks="", unit="images/s", gpu=False, **more):
    """Print rates and ratios; where all sections are measured keep them, on a GPU in gpu.json, and renew the READMEs.

    Args:
        folder: the benchmark's.
        title: of what; the machine is added.
        rates: section -> contestant -> items a second of each round.
        pairs: see `compared`.
        sections: names of all sections.
        remarks: Markdown below the tables.
        unit: of the rates.
        gpu: whether this is of a GPU.
        more: what results.json keeps besides.

    Returns:
        The exit status: 1 where a ratio is below its target.
    """
    title, ratios = f"{title}; {named(machine(gpu))}", compared(rates, pairs)
    spread = "{:.4g} to {:.4g}".format
    rate_rows = [
        [f"{section}, {name}", f"{statistics.median(each):.4g}", spread(min(each), max(each))]
        for section, group in rates.items()
        for name, each in group.items()
    ]
    ratio_rows = [
        [name, f"{r['median']:.2f}", f"{r['min']:.2f} to {r['max']:.2f}", f"≥ {r['target']}" if r["target"] else ""]
        for name, r in ratios.items()
    ]
    shown = ([unit, "median", "spread"], rate_rows), (["ratio", "median", "spread", "target"], ratio_rows)
    for heading, (heads, rows) in zip((title, "Ratios, each of two turns of one round"), shown, strict=True):
        table(heading, heads, rows)
    if remarks:
        print(remarks)
    if set(rates) == set(sections):
        text = f"{title}.\n\n" + "\n".join(markdown(heads, rows) for heads, rows in shown)
        record = {"title": title, "hardware": machine(gpu), "versions": results.versions()}
        record |= {"images_per_s" if unit == "images/s" else "rates": rates, "ratios": ratios} | more
        record["markdown"] = text + (f"\n{remarks}\n" if remarks else "")
        publish(folder, record, gpu)
    missed = [name for name, r in ratios.items() if r["target"] and r["median"] < r["target"]]
    if missed:
        print("  below target: " + "; ".join(missed))
    return int(bool(missed))


def publish(folder, record, gpu=False):
    """Keep a study's record and renew the READMEs."""
    results.write_text(folder / (GPU_FILE if gpu else results.FILE), json.dumps(record, indent=2) + "\n")
    subprocess.run([sys.executable, HERE / "publish.py"], check=True)


def texts(run):
    """How good a run's answers or captions are, what guessing scores, and what they name wrongly, as Markdown."""
    parts = []
    for shown in writing.written(run):
        rows = [["<br>".join(filter(None, cell)) for cell in row] for row in shown.rows]
        parts.append(f"{shown.caption}.\n\n{markdown(shown.heads, rows)}")
    return "\n".join([*parts, *(f"Note: {text}.\n" for text in run["warnings"])])


def kept(folder):
    """What an earlier measurement on the same hardware kept: a single section may be renewed beside the others."""
    path = folder / results.FILE
    record = json.loads(path.read_text()) if path.exists() else {}
    return record if record.get("hardware") == machine() else {}
