"""What keeps a run from being faster: the time of its ranks, divided by what they spent it on, the largest loss named.

Shares are of the ranks' time: of their steady seconds, from the first batch after the warm-up to the end of the
slowest rank, or of the whole command. Whatever is no loss is computing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

NOTABLE = 0.1
"""A smaller share of the time is no bottleneck."""
SUPPORT = 0.5
"""Memory bandwidth is named where STREAM, which needs nothing else, loses at least this share of what the run loses."""

COMPUTE = "compute"
EVIDENCE = {
    COMPUTE: "the ranks compute {share:.0%} of their time",
    "loading": "the ranks wait {share:.0%} of their time for data",
    "communication": "the all-reduce takes {share:.0%} of the ranks' time, waiting for slower ranks not counted",
    "imbalance": "the ranks wait {share:.0%} of their time for the slowest; theirs are {fastest_s:.3g} to "
    "{slowest_s:.3g} s",
    "too few items": "{pieces} {unit}, at most {most} a rank, leave {ranks} ranks idle for {share:.0%} of their time",
    "memory bandwidth": "an item costs {excess:.2f} times the reference's core seconds; STREAM's triad on {processors} "
    "cores reaches {triad:.2f} times that of one",
    "serial part": "an item costs {excess:.2f} times the reference's core seconds: {threads} threads share a part of "
    "the work only",
    "too few cores": "{processors} threads share {cores} cores: an item costs {excess:.2f} times the reference's "
    "core seconds",
    "slower compute": "an item costs {excess:.2f} times the reference's core seconds",
    "start-up": "{cold_s:.3g} of {command_s:.3g} s go by before the steady state",
    "the end": "{end_s:.3g} of {command_s:.3g} s go to validation, other stages, metrics, reports and the end",
}
"""Each thing that can limit a run, and the sentence whose figure shows it."""


@dataclass(frozen=True)
class Limits:
    """Where the time of a run's ranks went.

    Attributes:
        steady: name of EVIDENCE -> share of the steady state, which sum to 1; {} where no rank did anything.
        command: the same of the whole command; {} where its time is not known.
        facts: what the sentences of EVIDENCE quote.
    """

    steady: dict[str, float] = field(default_factory=dict)
    command: dict[str, float] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)


def bottleneck(shares: Mapping[str, float]) -> str | None:
    """The name of the largest loss of at least NOTABLE, else compute; None for no shares."""
    if not shares:
        return None
    losses = {name: share for name, share in shares.items() if name != COMPUTE}
    worst = max(losses, key=lambda name: losses[name], default=COMPUTE)
    return worst if losses.get(worst, 0.0) >= NOTABLE else COMPUTE


def evidence(name: str, shares: Mapping[str, float], facts: Mapping[str, Any]) -> str:
    """The sentence whose figure shows a name that `bottleneck` gave."""
    return EVIDENCE[name].format(share=shares.get(name, 0.0), **facts)


def limits(
    result: Mapping[str, Any],
    reference: Mapping[str, Any] | None = None,
    triad: Mapping[int, float] | None = None,
) -> Limits:
    """Divide a run's time.

    Args:
        result: contents of the results.json of a finished run.
        reference: those of the sequential run of the same work on the same kind of processor; with it, core seconds
            beyond the reference's count as lost.
        triad: number of cores -> bytes/s of STREAM's triad (McCalpin 1995) on this machine, to tell memory bandwidth
            from other reasons for slower computing.
    """
    timing = result.get("timing") or {}
    ranks = timing.get("per_rank") or []
    if not ranks or not any(rank.get("items_total") for rank in ranks):
        return Limits()
    steady, facts = _steady(result, ranks)
    if reference and (base := _core_seconds(reference)) and (own := _core_seconds(result)) and own > base:
        lost = steady[COMPUTE] * (1 - base / own)
        steady[COMPUTE] -= lost
        facts["excess"] = own / base
        facts["triad"] = _gain(triad, _processors(result))
        steady[_reason(result, reference, own / base, facts["triad"])] = lost
    return Limits(steady, _command(timing, ranks, steady, facts), facts)


def _steady(result: Mapping[str, Any], ranks: Sequence[Mapping[str, Any]]) -> tuple[dict[str, float], dict[str, Any]]:
    """Shares without regard to a reference, and facts."""
    warm = not any(rank["seconds"] for rank in ranks)  # then the warm-up is all there is
    spent = [rank["warmup_s"] if warm else rank["seconds"] for rank in ranks]
    span, available = max(spent), max(spent) * len(ranks)
    loading = sum((rank["data_wait_fraction"] or 0.0) * own for rank, own in zip(ranks, spent, strict=True)) / available
    talking = sum((rank["comm_fraction"] or 0.0) * own for rank, own in zip(ranks, spent, strict=True)) / available
    waits = [
        1 - own / span if warm else rank["rank_wait_fraction"] or 0.0 for rank, own in zip(ranks, spent, strict=True)
    ]
    waiting = sum(waits) / len(waits)
    idle = 1 - sum(spent) / available
    work = [rank["items_total"] if warm else rank["batches"] for rank in ranks]
    best = math.ceil(sum(work) / len(ranks))  # batches of the busiest rank under the best schedule
    few = min(waiting, 1 - sum(work) / (best * len(ranks)))
    shares = {
        "loading": loading,
        "communication": max(0.0, talking - max(0.0, waiting - idle)),  # DDP's ranks wait inside of it
        "imbalance": waiting - few,
        "too few items": few,
    }
    shares[COMPUTE] = max(0.0, 1 - sum(shares.values()))
    facts = {
        "ranks": len(ranks),
        "pieces": sum(work),
        "unit": "items" if warm else "batches",
        "most": max(work),
        "fastest_s": min(spent),
        "slowest_s": span,
        "threads": int(result.get("threads_per_rank", 1)),
        "processors": _processors(result),
        "cores": int((result.get("hardware") or {}).get("cores") or 0),
    }
    return shares, facts


def _command(
    timing: Mapping[str, Any], ranks: Sequence[Mapping[str, Any]], steady: Mapping[str, float], facts: dict[str, Any]
) -> dict[str, float]:
    """Shares of the whole command; a warm-up batch counts as cold only as far as it was slower than later ones."""
    total = timing.get("command_s")
    if not total:
        return {}
    cold = sum(timing.get(name) or 0.0 for name in ("startup_s", "build_s", "load_s"))
    work = 0.0
    for rank in ranks:
        pace = rank["seconds"] / rank["items"] if rank["items"] else math.inf
        usual = min(rank["warmup_s"], pace * (rank["items_total"] - rank["items"]) if rank["items_total"] else 0.0)
        work = max(work, rank["seconds"] + usual)
    warmup = max(rank["warmup_s"] + rank["seconds"] for rank in ranks) - work
    work = min(work, total)
    facts["command_s"], facts["cold_s"] = total, min(cold + warmup, total - work)
    facts["end_s"] = total - work - facts["cold_s"]
    shares = {name: share * work / total for name, share in steady.items()}
    return shares | {"start-up": facts["cold_s"] / total, "the end": facts["end_s"] / total}


def _processors(result: Mapping[str, Any]) -> int:
    gpus = len((result.get("hardware") or {}).get("gpu") or ())
    return gpus or int(result.get("world_size", 1)) * int(result.get("threads_per_rank", 1))


def _core_seconds(result: Mapping[str, Any]) -> float | None:
    """Steady seconds of computing that an item costs, summed over the processors of its rank."""
    ranks = (result.get("timing") or {}).get("per_rank") or []
    items = sum(rank["items"] for rank in ranks)
    if not items:
        return None
    fractions = ("data_wait_fraction", "comm_fraction")
    computing = sum(rank["seconds"] * (1 - sum(rank[name] or 0.0 for name in fractions)) for rank in ranks)
    return float(computing * _processors(result) / len(ranks) / items)


def _gain(triad: Mapping[int, float] | None, processors: int) -> float:
    """How many times the bandwidth of one core so many have; NaN where it was not measured."""
    return triad[processors] / triad[1] if triad and {1, processors} <= set(triad) else math.nan


def _starved(result: Mapping[str, Any], processors: int) -> bool:
    """Whether threads were kept from their cores, as far as is known: `hardware` tells of one node among many."""
    timing = result["timing"]
    stage = next((timing[f"{name}_s"] for name in ("fit", "test", "predict") if timing.get(f"{name}_s")), None)
    return not stage or not timing.get("cpu_s") or timing["cpu_s"] < (1 - NOTABLE) * stage * processors


def _reason(result: Mapping[str, Any], reference: Mapping[str, Any], excess: float, gain: float) -> str:
    """Why an item costs more core seconds than the reference's."""
    hardware, processors = result.get("hardware") or {}, _processors(result)
    if not hardware.get("gpu") and processors > (hardware.get("cores") or math.inf) and _starved(result, processors):
        return "too few cores"
    if int(result.get("threads_per_rank", 1)) > int(reference.get("threads_per_rank", 1)):
        return "serial part"
    stream = processors / gain  # what the same would cost if it did nothing but wait for memory
    return "memory bandwidth" if stream - 1 >= SUPPORT * (excess - 1) else "slower compute"
