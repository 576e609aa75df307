"""All that a person reads in the terminal: the help page, problems, the closing tables."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mmpds.check import Problem

USAGE = """\
mmpds {version}: train, evaluate and generate with multi-modal medical-imaging models, on one core or on a cluster.

  python train.py experiment=NAME trainer=NAME [key=value ...]      one run
  python train.py -m experiment=NAME trainer=A,B,C seed=1,2,3       a sweep: every combination
"""
GROUPS = {"experiment": "Experiments", "trainer": "Trainers", "model": "Models", "data": "Data sets",
          "logger": "Loggers", "callbacks": "Callbacks", "sweep": "Sweeps"}  # fmt: skip
FOOTER = """\
Often used: stages=[fit,test] seed=1 ranks=4 run_dir=PATH resume=last checkpoint=FILE data.root=PATH data.size=224
  --cfg job     print the composed configuration       --hydra-help   Hydra's own options
"""


def say(text: str) -> None:
    """A line for the user on standard error, where tables and results do not go."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def print_help(conf: Path) -> int:
    """The help page: what every group offers, told by the first comment of each of its files."""
    from mmpds import __version__

    lines = [USAGE.format(version=__version__)]
    for group, title in GROUPS.items():
        names = {path.stem: _first_comment(path) for path in sorted((conf / group).glob("*.yaml"))}
        names.pop("base", None)
        width = max(map(len, names), default=0)
        lines += [f"{title} ({group}=…)", *(f"  {name:<{width}}  {text}" for name, text in names.items()), ""]
    sys.stdout.write("\n".join(lines) + "\n" + FOOTER)
    return 0


def _first_comment(path: Path) -> str:
    lines = path.read_text().splitlines()
    return next((line[2:] for line in lines if line.startswith("# ") and not line.startswith("# @")), "")


def print_problems(problems: Sequence[Problem]) -> int:
    """List every configuration problem; returns the exit status 2."""
    count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
    say("\n".join([f"mmpds: {count} in the configuration", *(f"  {problem}" for problem in problems)]))
    return 2


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table on standard output; the first column is left-aligned, the others right."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    drawn = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
    for position, column in enumerate(columns):
        drawn.add_column(column, justify="right" if position else "left", no_wrap=True)
    for row in rows:
        drawn.add_row(*row)
    console = Console()
    if not console.is_terminal:  # a pipe or a log has no width to fit: never cut a figure off
        console = Console(width=max(80, drawn.__rich_measure__(console, Console(width=9999).options).maximum))
    console.print(drawn)


SHOWN = {
    "auroc": "ROC-AUC",
    "average_precision": "AP",
    "f1": "F1",
    "precision": "precision",
    "recall": "recall",
    "specificity": "specificity",
}
STAGES = {
    "startup_s": "start-up",
    "build_s": "build",
    "load_s": "load",
    "fit_s": "fit",
    "test_s": "test",
    "predict_s": "predict",
    "evaluate_s": "evaluate",
}
POINTS = {
    "precision": "precision",
    "recall": "recall",
    "specificity": "specificity",
    "f1": "F1",
    "false_positive_rate/No Finding": "normal flagged",
}
"""What is shown of each operating point."""


def print_results(result: Mapping[str, Any], run_dir: Path) -> None:
    """The closing tables of a run: metrics a finding with intervals, then time, energy and where it all lies."""
    metrics, counts = result.get("metrics", {}), result.get("counts", {})
    names = [name.rsplit("/", 1)[1] for name in metrics if name.startswith("test/auroc/")]
    if names:
        title = f"Test: {counts['test/items']:,} images of {counts['test/groups']:,} patients"
        if result["intervals"]:
            title += "; below each value its 95 % interval, by patient"
        rows = [
            [
                name,
                f"{counts[f'test/positives/{name}']:,}" if name != "macro" else "",
                *(figure(result, f"test/{metric}/{name}") for metric in SHOWN),
            ]
            for name in names
        ]
        table(title, ["finding", "n+", *SHOWN.values()], rows)
    if "predict/images" in counts or "extractor" in result:
        _print_generated(result, run_dir)
    _print_written(result)
    if (false := figure(result, "test/false_positive_rate/No Finding", " in ")) != MISSING:
        say_out(f"  normal images flagged for any finding: {false}")
    if points := [row for row in result.get("operating_points", []) if row["finding"] == "macro"]:
        title = f"Threshold rules fitted on {counts['fit/items']:,} images of {counts['fit/groups']:,} other patients"
        title += "; means over the findings, and normal images flagged for any"
        rows = [
            [row["rule"], *(ranged(row.get(name), row.get(f"{name}_interval")) for name in POINTS)] for row in points
        ]
        table(title, ["rule", *POINTS.values()], rows)
    for remark in remarks(result):
        say_out(f"  ! {remark}")
    say_out(f"  {place(result)}: " + " · ".join(spent(result)))
    say_out(f"  {run_dir}")
    if (run_dir / "report.html").exists():
        say_out(f"  {run_dir / 'report.html'}")


def _print_generated(result: Mapping[str, Any], run_dir: Path) -> None:
    """What a generator made, and how good it is; the same tables as in its report."""
    from mmpds.report import generation

    for drawn in (generation.quality(result), generation.classes(result), generation.fidelity(result)):
        if drawn:
            heads = [head.replace(": ", "\n") for head in drawn.heads]
            table(drawn.caption, heads, [["\n".join(filter(None, cell)) for cell in row] for row in drawn.rows])
    if made := generation.counted(result.get("counts", {})):
        say_out(f"  {made}")


def _print_written(result: Mapping[str, Any]) -> None:
    """How good answers and captions are; the same tables as in the report."""
    if not any(name.startswith(("test/accuracy/", "test/rouge_l", "test/omission/")) for name in result["metrics"]):
        return
    from mmpds.report import writing

    for drawn in writing.written(result):
        table(drawn.caption, drawn.heads, [["\n".join(filter(None, cell)) for cell in row] for row in drawn.rows])


def remarks(result: Mapping[str, Any]) -> list[str]:
    """What a reader must know before any figure: diagnoses with their cures, unfair gaps, warnings."""
    said = [
        f"{found['finding'] + ': ' if found['finding'] else ''}{found['evidence']} {found['cure']}"
        for found in result.get("diagnosis", [])
    ]
    if gaps := [gap for gap in result.get("fairness", {}).get("gaps", []) if gap["found"]]:
        widest = max(gaps, key=lambda gap: abs(gap["gap"]))
        said.append(
            f"groups of patients differ in {len(gaps)} way{'s' * (len(gaps) > 1)}; the widest: {widest['metric']} of "
            f"{widest['finding']}, "
            f"{widest['attribute'].replace('_', ' ')} {widest['worst_group']} worse than {widest['best_group']} by "
            f"{abs(widest['gap']):.2f}"
        )
    return said + list(result.get("warnings", []))


MISSING = "–"


def figure(result: Mapping[str, Any], name: str, between: str = "\n", digits: int = 3) -> str:
    """A metric and, after `between`, its interval; a dash where it is undefined."""
    return ranged(result.get("metrics", {}).get(name), result.get("intervals", {}).get(name), between, digits)


def ranged(value: float | None, interval: Sequence[float] | None, between: str = "\n", digits: int = 3) -> str:
    """A value and, after `between`, its interval; a dash where it is undefined."""
    if value is None:
        return MISSING
    low, high = interval or (None, None)
    return f"{value:.{digits}f}" + (f"{between}{low:.{digits}f}–{high:.{digits}f}" if low is not None else "")


def place(result: Mapping[str, Any]) -> str:
    """On how many ranks and threads it ran."""
    ranks, threads = result["world_size"], result["threads_per_rank"]
    return f"{ranks} rank{'s' * (ranks > 1)} × {threads} thread{'s' * (threads > 1)}"


def spent(result: Mapping[str, Any]) -> list[str]:
    """Time, throughput, energy and memory, each with its unit."""
    timing, energy, memory = result.get("timing", {}), result.get("energy", {}), result.get("memory", {})
    told = [f"{label} {timing[key]:.1f} s" for key, label in STAGES.items() if timing.get(key)]
    if (speed := timing.get("throughput_items_per_s")) is not None:
        told.append(f"{rate(speed)} images/s")
    if (joules := energy.get("joules")) is not None:
        told.append(f"{joules:,.0f} J ({'estimated' if energy['method'] == 'estimate' else energy['method']})")
    if memory.get("peak_rss_bytes"):
        told.append(f"{memory['peak_rss_bytes'] / 2**30:.1f} GiB")
    return told


def rate(per_second: float, form: str = ".1f") -> str:
    """Items a second; below 1 with two significant digits, for a large generator makes few."""
    return f"{per_second:{form}}" if per_second >= 1 else f"{per_second:.2g}"


def say_out(text: str) -> None:
    """A line of results on standard output."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()
