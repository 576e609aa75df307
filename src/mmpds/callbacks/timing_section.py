"""The `timing` section of results.json: what the timings of all ranks say together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

STAGES = ("fit", "test", "predict")
FRACTIONS = ("data_wait_fraction", "comm_fraction")
KEPT = ("items_total", "items", "batches", "warmup_s", "seconds", *FRACTIONS)


def combine(per_rank: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The `timing` section of results.json (seconds, items/s, ms) from every rank's `Timing.summary()`.

    Figures without a stage in their name are of the main stage: fit if it ran, else test, else predict.
    Stage and warm-up times are those of the slowest rank; `cpu_s` is what all ranks computed;
    throughput is the items of all ranks over the
    steady seconds of the slowest one; each percentile of `step_ms` is that of the worst rank; the fractions
    are over the steady seconds of all ranks. `items` and `batches` count the steady state, `items_total` every item
    of every stage. What did not run or could not be measured is None.

    `rank_wait_fraction` is the share of the slowest rank's steady seconds that a rank waited for slower ones. Under
    DDP all ranks leave an all-reduce together, and who comes last does not wait: what a rank's communication in a
    step takes longer than the shortest of that step is waiting. In evaluation nothing holds ranks together: the
    early ones wait at the end.
    """
    stages = {name: [rank[name] for rank in per_rank if name in rank] for name in STAGES}
    main = next((name for name in STAGES if stages[name]), "fit")
    ranks = stages[main]
    section: dict[str, Any] = {f"{name}_s": _each(max, stages[name], "total_s") for name in STAGES}
    section["warmup_s"] = _each(max, ranks, "warmup_s")
    section["cpu_s"] = _each(sum, ranks, "cpu_s")
    section["items"] = _each(sum, ranks, "items")
    section["items_total"] = sum(rank["items_total"] for name in STAGES for rank in stages[name])
    section["throughput_items_per_s"] = _throughput(ranks)
    section |= {f"{name}_items_per_s": _throughput(stages[name]) for name in STAGES}
    steps = [rank["step_ms"] for rank in ranks]
    known = all(steps) and steps
    section["step_ms"] = {p: max(step[p] for step in steps) if known else None for p in ("p50", "p95", "p99")}
    for name in FRACTIONS:
        spent = [None if rank[name] is None else rank[name] * rank["seconds"] for rank in ranks]
        seconds = sum(rank["seconds"] for rank in ranks)
        measured = [value for value in spent if value is not None]
        section[name] = sum(measured) / seconds if ranks and len(measured) == len(ranks) else None
    slowest = max((rank["seconds"] for rank in ranks), default=0.0)
    waits = _waits(ranks, main) if slowest else None
    shares = [wait / slowest for wait in waits] if waits else [None] * len(ranks)
    section["rank_wait_fraction"] = sum(waits) / len(waits) / slowest if waits else None
    numbers = [rank["rank"] for rank in per_rank if main in rank]
    section["per_rank"] = [
        {"rank": number} | {name: rank[name] for name in KEPT} | {"rank_wait_fraction": share}
        for number, rank, share in zip(numbers, ranks, shares, strict=True)
    ]
    return section


def _waits(ranks: Sequence[dict[str, Any]], stage: str) -> list[float] | None:
    """Seconds that each rank waited for slower ones; None where that cannot be told from computing."""
    if stage != "fit" or len(ranks) == 1:
        slowest = max(rank["seconds"] for rank in ranks)
        return [slowest - rank["seconds"] for rank in ranks]
    steps = [rank["comm_steps"] for rank in ranks]
    if None in steps:
        return None
    least = sum(map(min, zip(*steps, strict=True)))
    return [sum(mine) - least for mine in steps]


def _each(function: Callable[[list[float]], float], ranks: Sequence[dict[str, Any]], name: str) -> float | None:
    return function([rank[name] for rank in ranks]) if ranks else None


def _throughput(ranks: Sequence[dict[str, Any]]) -> float | None:
    seconds = max((rank["seconds"] for rank in ranks), default=0.0)
    return sum(rank["items"] for rank in ranks) / seconds if seconds else None
