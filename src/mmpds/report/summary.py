"""What a run says, in words: one sentence, what is suspicious, what it cost and where it came from."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from mmpds.console import rate
from mmpds.report import generation
from mmpds.report.stored import StoredRun

STAGES = {
    "startup_s": "Start-up",
    "build_s": "Build",
    "load_s": "Load",
    "fit_s": "Fit",
    "test_s": "Test",
    "predict_s": "Predict",
    "evaluate_s": "Evaluate",
}
ENERGY = {
    "nvml": "measured by the GPU boards' counters (NVML)",
    "rapl": "measured by the CPU packages' counters (RAPL)",
    "estimate": "estimated from CPU time and thermal design power, not measured",
}


def name(run: StoredRun) -> str:
    """The recipe and the run."""
    return " · ".join(dict.fromkeys(str(run.result.get(key) or "") for key in ("experiment", "run_id"))).strip(" ·")


def sentence(run: StoredRun) -> str:
    """What the run says, for readers who stop here."""
    counts, metrics, status = run.section("counts"), run.section("metrics"), run.result.get("status")
    ended = {"failed": "failed", "interrupted": "was interrupted"}.get(str(status), f"is {status}")
    before = "" if status == "finished" else f"The run {ended}: {run.result.get('error') or 'no error was kept'}. "
    if run.generator:
        return before + generation.sentence(run.result)
    if (right := metrics.get("test/accuracy/closed")) is not None:
        guess = metrics.get("test/accuracy_blank/closed", metrics.get("test/accuracy_majority/closed"))
        beside = "" if guess is None else f"; without looking at the image {100 * guess:.1f} %"
        told = f"It answers {100 * right:.1f} % of {counts['test/questions/closed']:,} closed test questions right"
        return f"{before}{told}{beside}."
    if (similar := metrics.get("test/rouge_l")) is not None and "test/accuracy/all" not in metrics:
        told = f"On {counts.get('test/items', 0):,} test images its captions have a ROUGE-L of {similar:.3f}"
        if (missed := metrics.get("test/omission/all")) is not None:
            told += f"; {100 * missed:.1f} % of the findings that are there are not named"
        if (made_up := metrics.get("test/hallucination/all")) is not None:
            told += f"; {100 * made_up:.1f} % of those named are absent"
        return f"{before}{told}."
    items, auroc = counts.get("test/items"), metrics.get("test/auroc/macro")
    if not items or auroc is None:
        seen = f" It predicted {len(run.predicted):,} images without a known answer." if len(run.predicted) else ""
        return f"{before}No test split was judged, so nothing here says how good the model is.{seen}"
    low, high = run.section("intervals").get("test/auroc/macro") or (None, None)
    between = f", 95 % interval {low:.3f} to {high:.3f}" if low is not None else ""
    told = f"On {items:,} test images of {counts.get('test/groups', items):,} patients, the model scores an image with "
    told += f"a finding above one without it in {100 * auroc:.1f} % of pairs (mean AUROC {auroc:.3f}{between})"
    recall, precision = metrics.get("test/recall/macro"), metrics.get("test/precision/macro")
    if recall is not None and precision is not None:
        told += f"; at its thresholds it finds {100 * recall:.0f} % of what is there, and "
        told += f"{100 * precision:.0f} % of its flags are right"
    many = len([key for key in metrics if key.startswith("test/auroc/")]) - 1
    return f"{before}{told}{f', averaged over {many} findings' if many > 1 else ''}."


def diagnosis(run: StoredRun) -> list[dict[str, str]]:
    """What the diagnosis found: `title`, `evidence` and `cure` of each."""
    return [
        {
            "title": str(row.get("name", "")).replace("_", " ").capitalize()
            + (f" · {row['finding']}" if row.get("finding") else ""),
            "evidence": str(row.get("evidence") or ""),
            "cure": str(row.get("cure") or ""),
        }
        for row in run.result.get("diagnosis") or []
    ]


def verdict(run: StoredRun) -> str:
    """The outcome of diagnosis and warnings together."""
    causes, warnings = len(run.result.get("diagnosis") or []), len(run.result.get("warnings") or [])
    if run.result.get("status") != "finished":
        return "The run did not finish: what it left is incomplete."
    if causes or warnings:
        told = [f"{n} {word}{'s' * (n > 1)}" for n, word in ((causes, "suspicion"), (warnings, "warning")) if n]
        return f"{' and '.join(told)}: read {'it' if causes + warnings == 1 else 'them'} before any figure below."
    if run.generator:
        return "No warnings."
    if not run.section("counts").get("test/items"):
        return "No warnings; no test split was judged, so there was little to diagnose."
    if not any(name.startswith("test/auroc/") for name in run.section("metrics")):
        return "No warnings."
    if run.result.get("diagnosis") is None:
        return "No warnings. This run kept no diagnosis."
    return "Nothing suspicious found."


def stages(run: StoredRun) -> list[tuple[str, float]]:
    """Seconds of each stage that took any."""
    timing = run.section("timing")
    return [(label, float(timing[key])) for key, label in STAGES.items() if timing.get(key)]


def started(run: StoredRun) -> str:
    """When the run began, in UTC."""
    moment = run.result.get("started")
    return f"{datetime.fromtimestamp(moment, UTC):%Y-%m-%d %H:%M} UTC" if moment else ""


def provenance(run: StoredRun) -> dict[str, str]:
    """Cost, hardware, versions and command, each with its unit; what is not known is left out."""
    timing, energy, memory = run.section("timing"), run.section("energy"), run.section("memory")
    hardware, step = run.section("hardware"), timing.get("step_ms") or {}
    joules, method = energy.get("joules"), str(energy.get("method"))
    per_item, speed = energy.get("joules_per_item"), timing.get("throughput_items_per_s")
    told: dict[str, Any] = {
        "Time": " · ".join(f"{label} {seconds:,.1f} s" for label, seconds in stages(run)),
        "Throughput": f"{rate(speed, ',.1f')} images/s" if speed is not None else "",
        "Step": f"{step['p50']:.0f} ms median, {step['p95']:.0f} ms 95th percentile" if step.get("p50") else "",
        "Waiting for data": _unit(timing.get("data_wait_fraction"), "{:.1f} % of the steps' time", 0.01),
        "Communication": _unit(timing.get("comm_fraction") or None, "{:.1f} % of the steps' time", 0.01),
        "Energy": "not available on this machine" if energy and joules is None else "",
        "Peak memory": _unit(memory.get("peak_rss_bytes"), "{:.1f} GiB a rank", 2**30),
        "Peak GPU memory": _unit(memory.get("peak_device_bytes") or None, "{:.1f} GiB", 2**30),
        "CPU": f"{hardware['cpu']}, {_count(hardware['cores'], 'core')}" if hardware.get("cpu") else "",
        "GPU": ", ".join(hardware.get("gpu") or []),
        "Ranks": f"{run.result['world_size']} × {_count(run.result.get('threads_per_rank'), 'thread')}"
        if run.result.get("world_size")
        else "",
        "Features": run.result.get("extractor"),
        "Precision": run.result.get("precision"),
        "Calibration": run.section("calibration").get("method"),
        "Threshold rule": run.section("threshold").get("rule"),
        "Seed": run.result.get("seed"),
        "Started": started(run),
        "Commit": run.result.get("git_commit"),
        "Versions": " · ".join(f"{package} {version}" for package, version in run.section("versions").items()),
        "Command": run.result.get("command"),
    }
    if joules is not None:
        each = f", {per_item:.2g} J an image" if per_item else ""
        told["Energy"] = f"{joules:,.0f} J{each}: {ENERGY.get(method, method)}"
    return {term: str(text) for term, text in told.items() if text not in (None, "")}


def _unit(value: float | None, text: str, over: float = 1) -> str:
    return "" if value is None else text.format(value / over)


def _count(number: Any, thing: str) -> str:
    return f"{number} {thing}{'s' * (number != 1)}"
