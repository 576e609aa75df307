"""How a detector's figures fall as its test images are corrupted: curves, a table and a sentence."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from itertools import groupby
from math import floor, inf, isnan
from pathlib import Path
from typing import Any

import pandas as pd

from mmpds.report.figures import Figure, colour, dash, figure
from mmpds.report.tables import Cell, Table, number

FILE = "robustness.csv"
METRICS = {"auroc": "AUROC", "balanced_accuracy": "Balanced accuracy", "accuracy": "Accuracy"}
CHANCE = {"AUROC": 0.5, "Balanced accuracy": 0.5}
NAMES = {"jpeg": "JPEG compression", "window": "Contrast window", "noise": "Gaussian noise"}
HEIGHT = 230
"""Pixels of a curve's picture."""
LEGEND = 29
"""Pixels of a run's line in the legend."""

Row = Mapping[str, Any]
"""A row of robustness.csv; NaN is what is not known."""


def read(run_dir: Path) -> list[Row]:
    """The rows of a run's robustness.csv; none where there is no such file.

    Raises:
        ValueError: the file is damaged.
    """
    path = run_dir / FILE
    if not path.is_file():
        return []
    texts = ("corruption", "unit", "level", "finding")
    numbers = [f"{m}{drop}{end}" for m in METRICS for drop in ("", "_drop") for end in ("", "_low", "_high")]
    types = dict.fromkeys(texts, str) | dict.fromkeys(["undisturbed", *numbers], float)
    try:  # a level may read "none"
        table = pd.read_csv(path, dtype=types, keep_default_na=False, na_values=[""])
    except (ValueError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    if missing := [name for name in types if name not in table]:
        raise ValueError(f"{path} is damaged: no column {', '.join(missing)}")
    rows = table.fillna({"unit": ""}).to_dict("records")
    return [{str(name): value for name, value in row.items()} for row in rows]


def curves(runs: Mapping[str, Sequence[Row]], finding: str = "macro") -> dict[str, dict[str, Figure]]:
    """For each metric a curve a corruption, with its 95 % interval as a band; all of a metric have one scale.

    Levels stand evenly, ascending; the undisturbed one is an open circle.

    Args:
        runs: a run's name -> its rows, as `read` gives them; several are drawn over each other, with a legend.
        finding: whose curves; `macro` for the mean.

    Returns:
        Title of the metric -> title of the corruption -> figure; {} where no run has that finding.
    """
    kept = {name: [row for row in rows if row["finding"] == finding] for name, rows in runs.items()}
    every = [row for rows in kept.values() for row in rows]
    several = len(runs) if len(runs) > 1 else 0
    found: dict[str, dict[str, Figure]] = {}
    for metric, label in METRICS.items() if every else ():
        lowest = min(value for row in every for value in (row[metric], row[f"{metric}_low"]) if not isnan(value))
        y = {"title": label, "range": [min(0.9, floor(lowest * 10) / 10) - 0.02, 1.02]}
        for corruption in dict.fromkeys(row["corruption"] for row in every):
            here = {name: [row for row in rows if row["corruption"] == corruption] for name, rows in kept.items()}
            unit = next(row["unit"] for rows in here.values() for row in rows)
            levels = _ordered(row["level"] for rows in here.values() for row in rows)
            x = {"title": unit.capitalize(), "type": "category", "categoryorder": "array", "categoryarray": levels}
            said = "; ".join(f"{name} {_ends(rows, metric)}" for name, rows in here.items() if rows)
            found.setdefault(label, {})[title(corruption)] = figure(
                f"{label} against {title(corruption)}: {said}",
                [trace for at, (name, rows) in enumerate(here.items()) for trace in _curve(name, rows, metric, at)],
                x | {"tickangle": 0}, y, height=HEIGHT + LEGEND * several, showlegend=several > 0,
                scattermode="overlay" if unit else "group",  # names stand side by side
                shapes=[_level(CHANCE[label])] if label in CHANCE else [],
            )  # fmt: skip
    return found


def table(rows: Sequence[Row]) -> Table | None:
    """The means over findings under each corruption, and how far they fell; None without any."""
    cells = [
        [
            Cell(f"{title(row['corruption'])} {_at(row)}" + ", undisturbed" * int(row["undisturbed"])),
            *(number(row[name], _interval(row, name)) for m in METRICS for name in (m, f"{m}_drop")),
        ]
        for row in _means(rows)
    ]
    heads = ["Corruption", *(head for label in METRICS.values() for head in (label, "its fall"))]
    caption = "Means over findings; beneath a value its 95 % interval, of a fall that of the paired difference"
    return Table(caption, heads, cells) if cells else None


def sentence(rows: Sequence[Row]) -> str:
    """What lowers the mean AUROC most; "" without any figure."""
    fallen = [row for row in _means(rows) if not isnan(row["auroc_drop"])]
    worst = max(fallen, key=lambda row: float(row["auroc_drop"]), default=None)
    if worst is None:
        return ""
    if worst["auroc_drop"] <= 0:
        return "No corruption lowers the mean AUROC."
    ends = _interval(worst, "auroc_drop")
    between = f" (95 % interval {ends[0]:.3f} to {ends[1]:.3f})" if ends else ""
    at = f"{title(worst['corruption'])} {_at(worst)}"
    return f"The mean AUROC falls most under {at}: by {worst['auroc_drop']:.3f}{between}."


def title(corruption: str) -> str:
    """A corruption's name for people."""
    return NAMES.get(corruption, corruption.capitalize())


def _at(row: Row) -> str:
    """The level with its unit."""
    return _words(row["level"]) + (f" ({row['unit']})" if row["unit"] else "")


def _words(level: str) -> str:
    return level.replace("_", " ")


def _means(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if row["finding"] == "macro"]


def _interval(row: Row, name: str) -> tuple[float, float] | None:
    low, high = row[f"{name}_low"], row[f"{name}_high"]
    return None if isnan(low) or isnan(high) else (low, high)


def _ordered(levels: Iterable[str]) -> list[str]:
    """Each once, in words: numbers ascending, then names as they come."""
    return [_words(level) for level in sorted(dict.fromkeys(levels), key=_number)]


def _number(level: str) -> float:
    try:
        return float(level)
    except ValueError:
        return inf


def _curve(name: str, rows: Sequence[Row], metric: str, position: int) -> list[Figure]:
    """The band, in pieces where intervals are missing, and the line; dots and bars where levels are names."""
    tone, label = colour(position), escape(name)
    rows = sorted(rows, key=lambda row: _number(row["level"]))
    ends = [_interval(row, metric) for row in rows]
    line: Figure = {
        "x": [_words(row["level"]) for row in rows], "y": [row[metric] for row in rows], "mode": "lines+markers",
        "name": label, "legendgroup": label, "line": {"color": tone, "width": 1.8, "dash": dash(position)},
        "marker": {"color": tone, "size": 7, "symbol": ["circle-open" if r["undisturbed"] else "circle" for r in rows]},
        "customdata": [f" ({between[0]:.3f}–{between[1]:.3f})" if between else "" for between in ends],
        "hovertemplate": f"{label} at %{{x}}<br>%{{y:.3f}}%{{customdata}}<extra></extra>",
    }  # fmt: skip
    if rows and not rows[0]["unit"]:
        below, above = ([e and abs(row[metric] - e[at]) for row, e in zip(rows, ends, strict=True)] for at in (0, 1))
        bars = {"array": above, "arrayminus": below, "symmetric": False, "thickness": 1.5, "width": 0}
        return [line | {"mode": "markers", "error_y": bars, "offsetgroup": label}]
    traces: list[Figure] = []
    for known, piece in groupby(rows, key=lambda row: _interval(row, metric) is not None):
        there = list(piece) if known else []
        levels = [_words(row["level"]) for row in there]
        low, high = ([row[f"{metric}{end}"] for row in there] for end in ("_low", "_high"))
        traces += [{
            "x": levels + levels[::-1], "y": high + low[::-1], "mode": "lines", "line": {"width": 0},
            "fill": "toself", "fillcolor": f"{tone}33", "hoverinfo": "skip", "showlegend": False, "legendgroup": label,
        }] * known  # fmt: skip
    return [*traces, line]


def _level(value: float) -> Figure:
    line = {"color": "var(--quiet)", "dash": "dot", "width": 1.5}
    return {"type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": value, "y1": value, "line": line}


def _ends(rows: Sequence[Row], metric: str) -> str:
    usual, worst = next(row for row in rows if row["undisturbed"]), min(rows, key=lambda row: float(row[metric]))
    return f"{usual[metric]:.3f} undisturbed, at worst {worst[metric]:.3f} at {_at(worst)}"
