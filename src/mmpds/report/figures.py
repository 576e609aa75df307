"""The plots of a report as Plotly figures, and the counts behind the threshold slider.

Colours are written `var(--name)`: the page fills in those of its light or dark scheme.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest
from sklearn.metrics import precision_recall_curve, roc_curve

from mmpds.report import generation
from mmpds.report.stored import StoredRun, column
from mmpds.report.tables import title

Figure = dict[str, Any]
Array = NDArray[Any]

COLOURS = 6
DASHES = ("solid", "dash", "dot")
MOST_POINTS = 400
HISTOGRAM_BINS = 40
RELIABILITY_BINS = 15  # those of the ECE in results.json
STOPS = 500
FIDELITY = {
    "fidelity": "generated, asked for",
    "fidelity_chance": "generated, not asked for",
    "fidelity_real": "real, asked for",
    "fidelity_chance_real": "real, not asked for",
}


def figure(alt: str, data: Sequence[Figure], x: Figure, y: Figure, **layout: Any) -> Figure:
    """A Plotly figure of two axes, and `alt`, the text that stands for it."""
    return {"alt": alt, "data": list(data), "layout": {"xaxis": x, "yaxis": y, **layout}}


def colour(position: int) -> str:
    """The colour of the finding at a position, the same in every plot."""
    return f"var(--finding-{position % COLOURS})"


def dash(position: int) -> str:
    """How its line is drawn: beyond six findings a colour serves again, with another dash."""
    return DASHES[position // COLOURS % len(DASHES)]


def curves(run: StoredRun) -> dict[str, Figure]:
    """`roc` and `pr`: the curves of all findings, each with its operating point."""
    roc: list[Figure] = [_diagonal()]
    pr: list[Figure] = []
    for finding, judged in run.judged.items():
        position, positives, negatives = run.findings.index(finding), judged.positives, judged.negatives
        if positives and negatives:
            fpr, tpr, _ = roc_curve(judged.positive, judged.prob)
            at = judged.false / negatives, judged.hits / positives
            roc += _curve(finding, position, fpr, tpr, at, "linear")
        if positives:
            precision, recall, _ = precision_recall_curve(judged.positive, judged.prob, drop_intermediate=True)
            flagged = judged.hits + judged.false
            at = judged.hits / positives, judged.hits / flagged if flagged else np.nan
            pr += _curve(finding, position, recall, precision, at, "hv")
    alt = f"curves of {len(run.judged)} findings with their operating points; the table above has the areas"
    unit = {"range": [-0.01, 1.01]}
    fpr_axis, tpr_axis = {"title": "False-positive rate (1 − specificity)"}, {"title": "True-positive rate (recall)"}
    return {
        "roc": figure(f"ROC {alt}", roc, fpr_axis | unit, tpr_axis | unit),
        "pr": figure(f"Precision-recall {alt}", pr, {"title": "Recall"} | unit, {"title": "Precision"} | unit),
    }


def histogram(run: StoredRun, finding: str) -> Figure:
    """Scores of the images with the finding and of those without, each as shares of their own number."""
    judged, tone = run.judged[finding], colour(run.findings.index(finding))
    edges = _edges(judged.prob)
    data = [
        _steps(judged.prob[~judged.positive], edges, "without it", "var(--quiet)"),
        _steps(judged.prob[judged.positive], edges, "with it", tone),
    ]
    threshold = run.section("metrics").get(f"test/threshold/{finding}")
    line = {"type": "line", "yref": "paper", "y0": 0, "y1": 1, "x0": threshold, "x1": threshold,
            "line": {"color": "var(--ink)", "width": 1, "dash": "dash"}}  # fmt: skip
    inside = threshold is not None and threshold <= edges[-1]
    alt = f"{finding}: scores of {judged.positives:,} images with it and {judged.negatives:,} without"
    return _scores(alt, data, edges, shapes=[line] if inside else [])


def pair_histogram(run: StoredRun, pair: tuple[str, str]) -> Figure:
    """The scores of two findings over each other: filled for the images with the finding, dotted for the rest."""
    edges = _edges(np.concatenate([run.judged[finding].prob for finding in pair]))
    data = []
    for finding in pair:
        judged, tone, name = run.judged[finding], colour(run.findings.index(finding)), escape(finding)
        data.append(_steps(judged.prob[judged.positive], edges, f"{name}, present", tone))
        data.append(_steps(judged.prob[~judged.positive], edges, f"{name}, absent", tone, filled=False))
    alt = f"Scores of {pair[0]} and {pair[1]}, each for the images with the finding and those without"
    return _scores(alt, data, edges, showlegend=True)


def predicted_histogram(run: StoredRun, finding: str) -> Figure:
    """Scores of images without a known answer."""
    prob = column(run.predicted, finding, "probability").to_numpy(float)
    edges = _edges(prob)
    alt = f"{finding}: scores of {len(prob):,} images without a known answer; median {np.median(prob):.3f}"
    return _scores(alt, [_steps(prob, edges, "predicted", colour(run.findings.index(finding)))], edges)


def reliability(run: StoredRun, finding: str) -> Figure:
    """Observed frequency against mean score in 15 bins of equal width, with 95 % intervals (Wilson, JASA 1927)."""
    judged, tone = run.judged[finding], colour(run.findings.index(finding))
    # bins are (lower, upper], the first one closed
    inner = np.linspace(0, 1, RELIABILITY_BINS + 1)[1:-1]
    member = np.searchsorted(inner, judged.prob.astype(float), side="left")
    points = []
    for bin in np.unique(member):
        prob, positive = judged.prob[member == bin], judged.positive[member == bin]
        interval = binomtest(int(positive.sum()), len(positive)).proportion_ci(method="wilson")
        rate = float(positive.mean())
        points.append((float(prob.mean()), rate, interval.high - rate, rate - interval.low, len(positive)))
    mean, rate, above, below, count = np.round(points, 4).T.tolist()
    drawn = {
        "x": mean, "y": rate, "customdata": count, "mode": "lines+markers", "cliponaxis": False,
        "line": {"color": tone, "width": 1}, "marker": {"color": tone, "size": 6},
        "error_y": {"array": above, "arrayminus": below, "symmetric": False, "thickness": 1, "width": 0},
        "hovertemplate": "mean score %{x:.3f}<br>observed %{y:.3f}<br>%{customdata:,} images<extra></extra>",
    }  # fmt: skip
    alt = f"{finding}: observed frequency against mean score in {len(points)} bins"
    unit = {"range": [-0.02, 1.02], "tickvals": [0, 0.5, 1]}
    return figure(alt, [_diagonal(), drawn], {"title": "Mean score"} | unit, {"title": "Observed"} | unit)


def fairness(run: StoredRun) -> dict[str, list[Figure]]:
    """For each attribute the groups' AUROC, true- and false-positive rate of every finding, with intervals."""
    rows = [row for row in run.section("fairness").get("groups") or [] if row["judged"]]
    found: dict[str, list[Figure]] = {}
    for attribute in dict.fromkeys(row["attribute"] for row in rows):
        here = [row for row in rows if row["attribute"] == attribute]
        names = list(dict.fromkeys(row["group"] for row in here))
        findings = list(dict.fromkeys(row["finding"] for row in here))[::-1]
        y = {"tickvals": list(range(len(findings))), "ticktext": [escape(name) for name in findings]}
        y |= {"range": [-0.6, len(findings) - 0.4]}
        for metric in ("auroc", "tpr", "fpr"):
            data = []
            for position, name in enumerate(names):
                drawn = [row for row in here if row["group"] == name and row.get(metric) is not None]
                lift = 0.5 * (0.5 - position / max(1, len(names) - 1))
                places = [findings.index(row["finding"]) + lift for row in drawn]
                points = [(row[metric], row.get(f"{metric}_interval")) for row in drawn]
                data.append(_dots(str(name), points, places, colour(position), position))
            alt = f"{title(metric)} of {len(findings)} findings by {attribute}, in {len(names)} groups"
            shown = figure(alt, data, {"title": title(metric)}, y, showlegend=True, height=110 + 28 * len(findings))
            found.setdefault(attribute, []).append(shown)
    return found


def fidelity(run: StoredRun) -> Figure | None:
    """How often each finding is detected where a prompt asks for it, and where not, in generated and real images."""
    metrics, intervals = run.section("metrics"), run.section("intervals")
    findings = [name for name in generation.asked(run.result) if f"test/fidelity/{name}" in metrics][::-1]
    if not findings:
        return None
    data = []
    for position, (kind, title_) in enumerate(FIDELITY.items()):
        known = [finding for finding in findings if f"test/{kind}/{finding}" in metrics]
        points = [(metrics[f"test/{kind}/{finding}"], intervals.get(f"test/{kind}/{finding}")) for finding in known]
        places = [findings.index(finding) + 0.27 - 0.18 * position for finding in known]
        tone = "var(--finding-0)" if kind.endswith("_real") else "var(--finding-1)"
        data.append(_dots(title_, points, places, tone, "circle-open" if "chance" in kind else "circle"))
    alt = f"Share of images in which each of {len(findings)} findings is detected; the table has the numbers"
    x = {"title": "Share of images in which it is detected", "range": [-0.03, 1.03], "tickformat": ".0%"}
    y = {"tickvals": list(range(len(findings))), "ticktext": [escape(name) for name in findings]}
    y |= {"range": [-0.6, len(findings) - 0.4]}
    return figure(alt, data, x, y, showlegend=True, height=130 + 44 * len(findings))


def confusion(run: StoredRun) -> list[dict[str, Any]]:
    """For each finding the true and false positives at every stop of the threshold slider.

    The stops are 501 even thresholds, 501 quantiles of the scores, and the operating point, whose counts are those
    of the stored decisions, unless these are of thresholds that differ by group. Counts are exact at each stop.

    Returns:
        A row a finding: `name`, `positives`, `negatives`, `stops` ascending, `tp`, `fp`, and `start`, the position
        of the operating point, or where none is known (`fitted` is false) of 0.5.
    """
    found = []
    for finding, judged in run.judged.items():
        threshold = run.section("metrics").get(f"test/threshold/{finding}")
        first = np.float32(0.5 if threshold is None else threshold)
        even = np.linspace(0, 1, STOPS + 1)
        stops = np.unique(np.concatenate([even, np.quantile(judged.prob, even), [first]]).astype(np.float32))
        start = int(np.searchsorted(stops, first))
        tp, fp = (
            np.count_nonzero(here) - np.searchsorted(np.sort(judged.prob[here]), stops)
            for here in (judged.positive, ~judged.positive)
        )
        if threshold is not None and not run.section("threshold").get("by"):
            tp[start], fp[start] = judged.hits, judged.false
        found.append({
            "name": finding, "positives": judged.positives, "negatives": judged.negatives, "start": start,
            "fitted": threshold is not None, "stops": [float(str(stop)) for stop in stops],
            "tp": tp.tolist(), "fp": fp.tolist(),
        })  # fmt: skip
    return found


def _curve(finding: str, position: int, x: Array, y: Array, at: tuple[float, float], shape: str) -> list[Figure]:
    kept = np.unique(np.linspace(0, len(x) - 1, min(len(x), MOST_POINTS)).round().astype(int))
    name, tone = escape(finding), colour(position)
    line = {
        "x": x[kept].round(4).tolist(), "y": y[kept].round(4).tolist(), "mode": "lines", "meta": position,
        "line": {"color": tone, "dash": dash(position), "width": 1.8, "shape": shape},
        "hovertemplate": f"{name}<br>%{{x:.3f}}, %{{y:.3f}}<extra></extra>",
    }  # fmt: skip
    if np.isnan(at).any():
        return [line]
    dot = {
        "x": [at[0]], "y": [at[1]], "mode": "markers", "meta": position,
        "marker": {"color": tone, "size": 9, "line": {"color": "var(--paper)", "width": 1.5}},
        "hovertemplate": f"{name}, operating point<br>%{{x:.3f}}, %{{y:.3f}}<extra></extra>",
    }  # fmt: skip
    return [line, dot]


def _dots(
    name: str, points: Sequence[tuple[float, Sequence[float] | None]], places: Sequence[float], tone: str, symbol: Any
) -> Figure:
    """Values with their intervals lying, one at each place of the vertical axis."""
    value = [at for at, _ in points]
    limits = np.array([interval or [at] * 2 for at, interval in points]).reshape(-1, 2)
    return {
        "x": value, "y": list(places), "mode": "markers", "name": escape(name),
        "marker": {"color": tone, "size": 7, "symbol": symbol},
        "error_x": {"array": (limits[:, 1] - value).tolist(), "arrayminus": (value - limits[:, 0]).tolist(),
                    "symmetric": False, "thickness": 1.5, "width": 0},
        "hovertemplate": f"{escape(name)}: %{{x:.3f}}<extra></extra>",
    }  # fmt: skip


def _diagonal() -> Figure:
    line = {"color": "var(--quiet)", "dash": "dot", "width": 1.5}
    return {"x": [0, 1], "y": [0, 1], "mode": "lines", "hoverinfo": "skip", "line": line}


def _steps(prob: Array, edges: Array, name: str, tone: str, filled: bool = True) -> Figure:
    share = np.append(np.histogram(prob, edges)[0] / max(1, len(prob)), 0)
    return {
        "x": edges.tolist(), "y": share.round(4).tolist(), "mode": "lines", "name": name,
        "line": {"shape": "hv", "color": tone, "width": 1.5, "dash": "solid" if filled else "dot"},
        "fill": "tozeroy" if filled else "none", "fillcolor": f"{tone}40",
        "hovertemplate": f"{name}: %{{y:.1%}} from %{{x:.3f}}<extra></extra>",
    }  # fmt: skip


def _scores(alt: str, data: Sequence[Figure], edges: Array, **layout: Any) -> Figure:
    x = {"title": "Score", "range": [0, float(edges[-1])], "nticks": 6}
    return figure(alt, data, x, {"rangemode": "tozero", "tickformat": ".0%", "nticks": 5}, **layout)


def _edges(prob: Array) -> Array:
    """Bins that begin at 0 and end at 1, or sooner where all scores are small."""
    top = float(prob.max())
    limit = next((limit for limit in (0.01, 0.02, 0.05, 0.1, 0.2, 0.5) if top <= limit), 1.0)
    return np.linspace(0, limit, HISTOGRAM_BINS + 1).round(6)
