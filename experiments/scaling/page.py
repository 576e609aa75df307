"""The study's record as one HTML file with plots, which loads nothing from anywhere."""

from pathlib import Path

import tables
from jinja2 import Environment, FileSystemLoader

from mmpds.bottleneck import EVIDENCE
from mmpds.report.figures import figure
from mmpds.report.page import Plots, rendered

INK = {"cpu_seq": "var(--quiet)", "cpu": "var(--finding-1)", "mpi_cpu": "var(--finding-0)", "gpu": "var(--finding-2)",
       "mpi_gpu": "var(--finding-3)"}  # fmt: skip


def html(record):
    """The whole page."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    plots = Plots()
    return rendered(
        environment.get_template("page.html"), plots, record=record, tables=tables, figures=figures,
    )  # fmt: skip


def figures(found):
    """The plots of a workload."""
    drawn = [speedup(found), spent(found, "command", "the whole command"), spent(found, "steady", "the steady state")]
    return [each for each in [*drawn, time_model(found)] if each]


def speedup(found):
    """Speed-up of every way against its processors, with the spread, beside the ideal."""
    rows = [row for row in found["strong"] if "speedup_steady" in row]
    most = max(row["processors"] for row in rows)
    data = [{"x": [1, most], "y": [1, most], "mode": "lines", "name": "ideal",
             "line": {"color": "var(--rule)", "dash": "dot"}}]  # fmt: skip
    for scope, dash in (("steady", "solid"), ("command", "dash")):
        name = f"speedup_{scope}"
        for trainer, ink in INK.items():
            mine = [row for row in rows if f"trainer={trainer}" in row["job"].split(",") and name in row]
            if mine:
                label = trainer + (", whole command" if scope == "command" else "")
                data.append(_points(mine, name, label, ink, dash))
    alt = f"Speed-up of {len(rows)} ways to run {found['title']}; the table has the numbers"
    processors = sorted({row["processors"] for row in rows})
    return figure(alt, data, {"title": "Cores, or GPUs", "tickvals": processors}, {"title": "Speed-up"},
                  showlegend=True, height=360)  # fmt: skip


def _points(rows, name, label, ink, dash):
    y = [row[name] for row in rows]
    above = [row.get(f"{name}_max", row[name]) - row[name] for row in rows]
    below = [row[name] - row.get(f"{name}_min", row[name]) for row in rows]
    return {
        "x": [row["processors"] for row in rows], "y": y, "mode": "lines+markers", "name": label,
        "line": {"color": ink, "dash": dash}, "marker": {"color": ink, "size": 8},
        "error_y": {"array": above, "arrayminus": below, "symmetric": False, "thickness": 1},
    }  # fmt: skip


def spent(found, scope, what):
    """What the ranks of every way spent their time on, as stacked bars."""
    rows = [row for row in found["strong"] if f"{scope}_limit" in row][::-1]
    if not rows:
        return None
    data = []
    for place, name in enumerate(EVIDENCE):
        shares = [row.get(f"{scope}/{name}", 0) for row in rows]
        if max(shares) >= 0.005:
            ink = "var(--rule)" if name == "compute" else f"var(--finding-{place % 6})"
            data.append({"type": "bar", "orientation": "h", "name": name, "x": shares, "marker": {"color": ink},
                         "y": [row["job"].replace("trainer=", "") for row in rows]})  # fmt: skip
    alt = f"{found['title']}: what the ranks spent {what} on"
    return figure(alt, data, {"title": f"Share of {what}", "tickformat": ".0%", "range": [0, 1]}, {"title": ""},
                  barmode="stack", showlegend=True, height=130 + 40 * len(rows))  # fmt: skip


def time_model(found):
    """Measured seconds of whole commands against the model's, with the run that it has not seen."""
    model = found["model"]
    if not model:
        return None
    terms, unseen, data = model["terms"], model["unseen"], []
    for place, ranks in enumerate(sorted({p for p, _, _ in model["observed"]})):
        ink, told = f"var(--finding-{place % 6})", f"{ranks} rank{'s' * (ranks > 1)}"
        items = [0, unseen["items"]]
        line = [terms["start"] + terms["rank"] * (ranks - 1) + n * (terms["serial"] + terms["shared"] / ranks)
                for n in items]  # fmt: skip
        data.append({"x": items, "y": line, "mode": "lines", "name": f"{told}, model", "line": {"color": ink}})
        mine = [(n, seconds) for p, n, seconds in model["observed"] if p == ranks]
        open_ = ["circle-open" if (ranks, n) == (unseen["ranks"], unseen["items"]) else "circle" for n, _ in mine]
        data.append({"x": [n for n, _ in mine], "y": [s["median"] for _, s in mine], "mode": "markers",
                     "name": f"{told}, measured", "marker": {"color": ink, "symbol": open_, "size": 9},
                     "error_y": {"array": [s["max"] - s["median"] for _, s in mine], "symmetric": False,
                                 "arrayminus": [s["median"] - s["min"] for _, s in mine]}})  # fmt: skip
    alt = f"{found['title']}: seconds of the whole command against items; the open mark was not used for the fit"
    return figure(alt, data, {"title": "Items"}, {"title": "Whole command, s", "rangemode": "tozero"},
                  showlegend=True, height=360)  # fmt: skip
