"""What more cores, ranks or GPUs gave: the jobs of a sweep, each beside the sequential one.

Speed-up and parallel efficiency are those of Amdahl's and Gustafson's literature: S = reference / job in time for
the same work, E = S / processors. Two speed-ups are kept apart, for a short job's is mostly start-up: that of the
steady state (a ratio of throughputs) and that of the whole command (a ratio of wall times, all cold).
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mmpds.bottleneck import EVIDENCE, Limits, bottleneck, evidence, limits
from mmpds.check import STAGES

WAYS = ("trainer", "ranks", "trainer.threads")
"""Overrides that say how a job is run; whatever else two jobs differ in makes them different work."""
SEQUENTIAL = "cpu_seq"
COLD = ("startup_s", "build_s", "load_s", "warmup_s", "steady_s")
FIGURES = ("stage_s", "command_s", "images_per_s", "speedup_steady", "speedup_command", "efficiency",
           "joules_per_image", "utilisation", *COLD, "end_s", *(f"{scope}/{name}" for scope in ("steady", "command")
           for name in EVIDENCE))  # fmt: skip
SHOWN = 0.005
"""A loss that takes a smaller share of every row has no column."""

Way = tuple[str | None, ...]


@dataclass
class _Job:
    result: Mapping[str, Any]
    overrides: dict[str, str]
    figures: dict[str, float] = field(default_factory=dict)
    limits: Limits = field(default_factory=Limits)

    @classmethod
    def of(cls, result: Mapping[str, Any]) -> _Job:
        pairs = (text.lstrip("+").partition("=") for text in result.get("overrides") or ())
        job = cls(result, {key: value for key, _, value in pairs})
        if job.finished:
            job.figures = _figures(result, job.processors)
        return job

    @property
    def finished(self) -> bool:
        return bool(self.result.get("status") == "finished")

    @property
    def way(self) -> Way:
        return tuple(self.overrides.get(key) for key in WAYS)

    @property
    def work(self) -> frozenset[tuple[str, str]]:
        return frozenset((key, value) for key, value in self.overrides.items() if key not in (*WAYS, "seed"))

    @property
    def ranks(self) -> int:
        return int(self.result.get("world_size", 1))

    @property
    def gpus(self) -> int:
        return len((self.result.get("hardware") or {}).get("gpu") or ())

    @property
    def unit(self) -> str:
        return "GPU" if self.gpus else "core"

    @property
    def processors(self) -> int:
        """The GPUs that it ran on, else the cores: its ranks times the threads of each."""
        return self.gpus or self.ranks * int(self.result.get("threads_per_rank", 1))


def compare(results: Iterable[Mapping[str, Any]], triad: Mapping[int, float] | None = None) -> list[dict[str, Any]]:
    """One row for each way of running the same work; [] where all jobs ran in the same way.

    The reference of a job is trainer=cpu_seq with the same other overrides and the same seed; where there is none,
    the slowest way of one rank. Efficiency compares like with like: cores with the reference's cores, GPUs with the
    slowest job of one GPU. Jobs that differ in their seed alone share a row.

    Args:
        results: contents of results.json, also of jobs that failed or were skipped.
        triad: number of cores -> bytes/s of STREAM's triad on this machine, where it was measured; see `bottleneck`.

    Returns:
        Rows with `job` (what it varies), `status`, `jobs` (how many seeds), `ranks`, `threads`, `processors`, `unit`
        (core | GPU), `reference`, `energy_method`, `remark`, and for each of FIGURES that is known its median
        over the seeds and, from two on, `<name>_min` and `<name>_max`. Seconds end in _s: `stage_s` is the wall
        time of the main stage (fit, else test, else predict), `command_s` that from the start of a job's processes
        to their end. `efficiency` and `utilisation` (CPU time over wall time times cores) are shares of 1, and so are
        those of the ranks' time, `steady/<name>` and `command/<name>`. `steady_limit`, `command_limit` name what
        limits the row, `steady_evidence` and `command_evidence` are the sentences whose figures show it.
    """
    jobs = sorted(map(_Job.of, results), key=lambda job: job.result.get("started") or 0)
    if len({job.way for job in jobs}) < 2:
        return []
    keys = list(dict.fromkeys(key for job in jobs for key in job.overrides if key != "seed"))
    varied = [key for key in keys if len({job.overrides.get(key) for job in jobs}) > 1]
    rows = []
    for work in dict.fromkeys(job.work for job in jobs):
        same = [job for job in jobs if job.work == work]
        reference = _reference(same)
        peers = {unit: _reference([job for job in same if job.unit == unit]) for unit in ("core", "GPU")}
        for job in same:
            _relate(job, _twin(job, reference, same), _twin(job, peers[job.unit], same), triad)
        for way in dict.fromkeys(job.way for job in same):
            row = _row([job for job in same if job.way == way], varied)
            rows.append(row | {"reference": reference and _label(_first(reference, same), varied)})
    return rows


def _figures(result: Mapping[str, Any], processors: int) -> dict[str, float]:
    timing, energy = result.get("timing") or {}, result.get("energy") or {}
    stage = next((timing[f"{name}_s"] for name in STAGES if timing.get(f"{name}_s") is not None), None)
    known = {name: timing.get(name) for name in (*COLD, "command_s")} | {
        "stage_s": stage,
        "images_per_s": timing.get("throughput_items_per_s"),
        "joules_per_image": energy.get("joules_per_item"),
        "steady_s": max((rank["seconds"] for rank in timing.get("per_rank") or ()), default=None),
        "utilisation": timing["cpu_s"] / (stage * processors) if stage and timing.get("cpu_s") else None,
    }
    if (result.get("hardware") or {}).get("gpu"):
        known["utilisation"] = None  # of the processors, which are GPUs there
    if (result.get("counts") or {}).get("predict/already_made"):
        known["command_s"] = None  # another command made a part of the images
    return {name: float(value) for name, value in known.items() if value is not None}


def _reference(jobs: Sequence[_Job]) -> Way | None:
    """The way of the sequential job: trainer=cpu_seq, else the slowest of one rank."""
    alone = [job for job in jobs if job.ranks == 1 and "stage_s" in job.figures]
    named = [job for job in alone if job.overrides.get("trainer") == SEQUENTIAL]
    slowest = max(named or alone, key=lambda job: job.figures["stage_s"], default=None)
    return slowest.way if slowest else None


def _first(way: Way, jobs: Sequence[_Job]) -> _Job:
    return next(job for job in jobs if job.way == way)


def _twin(job: _Job, way: Way | None, jobs: Sequence[_Job]) -> _Job | None:
    """The job of another way that did the same work from the same seed."""
    seed = job.overrides.get("seed")
    return next((other for other in jobs if other.way == way and other.overrides.get("seed") == seed), None)


def _relate(job: _Job, reference: _Job | None, peer: _Job | None, triad: Mapping[int, float] | None) -> None:
    """Add the speed-ups, the efficiency and the limits of a job, as far as both sides were measured."""
    own, base = job.figures, reference.figures if reference else {}
    if "images_per_s" in own and "images_per_s" in base:
        own["speedup_steady"] = own["images_per_s"] / base["images_per_s"]
    if "command_s" in own and "command_s" in base:
        own["speedup_command"] = base["command_s"] / own["command_s"]
    if peer and "images_per_s" in own and "images_per_s" in peer.figures:
        own["efficiency"] = own["images_per_s"] / peer.figures["images_per_s"] * peer.processors / job.processors
    if job.finished:
        job.limits = limits(job.result, peer.result if peer else None, triad)
        for scope, shares in (("steady", job.limits.steady), ("command", job.limits.command)):
            own |= {f"{scope}/{name}": share for name, share in shares.items()}
        if "end_s" in job.limits.facts:
            own["end_s"] = job.limits.facts["end_s"]


def _label(job: _Job, varied: Sequence[str]) -> str:
    return ",".join(f"{key}={job.overrides[key]}" for key in varied if key in job.overrides)


def _row(jobs: Sequence[_Job], varied: Sequence[str]) -> dict[str, Any]:
    """Jobs that differ in their seed alone."""
    done = [job for job in jobs if job.finished]
    states = list(dict.fromkeys(job.result.get("status") for job in jobs))
    one = done[0] if done else jobs[0]
    row: dict[str, Any] = {
        "job": _label(one, varied),
        "status": states[0] if len(states) == 1 else f"{len(done)} of {len(jobs)} finished",
        "jobs": len(jobs),
    }
    if done:
        row |= {
            "ranks": one.ranks,
            "threads": one.result.get("threads_per_rank", 1),
            "processors": one.processors,
            "unit": one.unit,
            "energy_method": (one.result.get("energy") or {}).get("method"),
        }
    for name in FIGURES:
        if values := [job.figures[name] for job in done if name in job.figures]:
            row[name] = statistics.median(values)
            if len(values) > 1:
                row |= {f"{name}_min": min(values), f"{name}_max": max(values)}
    for scope in ("steady", "command"):
        shares = {name: row[f"{scope}/{name}"] for name in EVIDENCE if f"{scope}/{name}" in row}
        if (limit := bottleneck(shares)) is not None:
            usual, known = row.get("command_s", 0.0), [job for job in done if limit in getattr(job.limits, scope)]
            telling = min(known, key=lambda job: abs(job.figures.get("command_s", 0.0) - usual))
            row |= {f"{scope}_limit": limit, f"{scope}_evidence": evidence(limit, shares, telling.limits.facts)}
    row["remark"] = "; ".join(dict.fromkeys(text for job in jobs for text in _remarks(job)))
    return row


def _remarks(job: _Job) -> list[str]:
    """What a reader must know of a job before its figures."""
    if not job.finished:
        return [f"{job.result.get('status')}: {job.result.get('error')}"]
    items = (job.result.get("timing") or {}).get("items_total") or 0
    said = []
    if 0 < items < job.ranks:
        said.append(f"{items} items keep at most {items} of {job.ranks} ranks busy")
    if "images_per_s" not in job.figures:
        said.append("no steady state: every batch was warm-up")
    return said


def tables(rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[str], list[list[str]]]]:
    """The rows as three tables, of speed, of where the time went and of what limits it: title, heads and cells of each.

    A column that no row fills is left out. Several seeds are written as median (min–max).
    """
    references = list(dict.fromkeys(row["reference"] for row in rows if row["reference"]))
    against = f", against {' and '.join(references)}" if references else ""
    losses = {f"steady/{name}": name for name in EVIDENCE if any(row.get(f"steady/{name}", 0) >= SHOWN for row in rows)}
    parts = (
        (f"Speed{against}", {"stage_s": "stage s", "images_per_s": "images/s", "speedup_steady": "speed-up",
         "speedup_command": "speed-up, whole command", "efficiency": "efficiency", "joules_per_image": "J/image",
         "utilisation": "utilisation"}),
        ("Where the time went, in seconds", {"startup_s": "start-up", "build_s": "build", "load_s": "load",
         "warmup_s": "warm-up", "steady_s": "steady", "end_s": "the end", "command_s": "whole command"}),
        ("What limits it, and what the ranks spent the steady state on", {"command_limit": "whole command",
         "steady_limit": "steady state", **losses}),
    )  # fmt: skip
    found: list[tuple[str, list[str], list[list[str]]]] = []
    for title, columns in parts:
        shown = {name: head for name, head in columns.items() if any(name in row for row in rows)}
        if found and not shown:
            continue  # the jobs are listed already
        cells = [[row["job"], row["status"], _resources(row), *(_cell(row, name) for name in shown)] for row in rows]
        found.append((title, ["job", "status", "on", *shown.values()], cells))
    return found


def remarks(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """A line for each row that needs a word, and where no sequential job is the reference; what limits each row."""
    said = [f"{row['job']}: {row['remark']}" for row in rows if row["remark"]]
    for name in dict.fromkeys(row["reference"] for row in rows):
        if name is None:
            said.append("no speed-up: no job of one rank finished")
        elif f"trainer={SEQUENTIAL}" not in name.split(","):
            said.append(f"no trainer={SEQUENTIAL} finished: {name} is the reference, the slowest of one rank")
    for row in rows:
        parts = [
            f"{row[f'{scope}_limit']} limits {what}: {row[f'{scope}_evidence']}"
            for scope, what in (("steady", "the steady state"), ("command", "the whole command"))
            if f"{scope}_limit" in row
        ]
        said += [f"{row['job']}: {'; '.join(parts)}"] if parts else []
    return said


def _resources(row: Mapping[str, Any]) -> str:
    if "unit" not in row:
        return ""
    if row["unit"] == "GPU":
        return f"{row['processors']} GPU{'s' * (row['processors'] > 1)}"
    return f"{row['ranks']} rank{'s' * (row['ranks'] > 1)} × {row['threads']} thread{'s' * (row['threads'] > 1)}"


def _cell(row: Mapping[str, Any], name: str) -> str:
    if name not in row:
        return ""
    if name.endswith("_limit"):
        return str(row[name])
    share = name in ("efficiency", "utilisation") or "/" in name
    values = [row[key] for key in (name, f"{name}_min", f"{name}_max") if key in row]
    values = [100 * value for value in values] if share else values
    shown = [f"{value:,.0f}" if share or value >= 1000 else f"{value:.3g}" for value in values]
    text = shown[0] if len(set(shown)) == 1 else f"{shown[0]} ({shown[1]}–{shown[2]})"
    method = f" {row['energy_method']}" if name == "joules_per_image" else ""
    return text + " %" * share + method
