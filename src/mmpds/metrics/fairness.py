"""Whether a model serves groups of patients alike: its metrics in each group, and gaps told from chance.

Shapes: N = items, C = findings, P = patients, R = replicates.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
from fairlearn.metrics import MetricFrame
from numpy.typing import ArrayLike

from mmpds.metrics.classification import Array, Ranking, check_arrays
from mmpds.metrics.intervals import LEVEL
from mmpds.metrics.subgroup import METRICS, Subgroup

FEWEST = 20
"""Positives and negatives that a group needs: the standard error of a rate of 20 items reaches 0.11 already."""
CHANCE = 0.05
JOINED = " & "
"""Between the names of two attributes, or of their groups, that are taken together."""


def audit(
    prob: ArrayLike, label: ArrayLike, decision: ArrayLike, findings: Sequence[str], attributes: pd.DataFrame,
    group: ArrayLike, *, replicates: int = 1000, seed: int = 0, fewest: int = FEWEST,
) -> dict[str, Any]:  # fmt: skip
    """Compare the groups of each attribute, and of each pair of attributes, finding by finding.

    auroc: P(score of a positive > that of a negative), both of the group.
    tpr, fpr: share of its positives, of its negatives, that are flagged.
    calibration_gap: mean probability - share of positives; below 0 the model underrates the risk.

    Their 95 % intervals are percentiles of a bootstrap of patients. Worse is a lower auroc or tpr, a higher fpr, a
    calibration gap farther from 0.

    A gap is `found` by a test that keeps the chance of finding *any* gap in the whole audit at 5 % where there is
    none, over all pairs of groups, findings, metrics and attributes (familywise error). Each difference of two groups
    is divided by its standard error over patients, taken around the value pooled over both. The critical value is the
    95 % quantile of the largest of all these ratios when patients' contributions change sign at random, which keeps
    their correlations (maxT: Westfall & Young, Resampling-Based Multiple Testing, 1993; Romano & Wolf, Econometrica
    2005; the signs: Davidson & Flachaire, J. Econometrics 2008; AUROC by patient: Obuchowski, Biometrics 1997). The
    interval of a gap is the difference -+ critical value x standard error: with 95 % all of them hold together. Of
    several gaps found in an attribute the widest is told; where none is found, the widest of all.

    Args:
        prob: [N, C] in [0, 1].
        label: [N, C], 1, 0 or NaN (not labelled: left out of that finding).
        decision: bool [N, C], flagged at the operating point.
        findings: C names.
        attributes: a column an attribute, N rows of group names; where one is missing the item is in no group.
        group: [N], the patient of each item. A patient's items may be of several groups (views, ages).
        replicates: of the bootstrap and of the signs; 0 for no intervals, and then no gap is found.
        seed: of both.
        fewest: positives, and negatives, that a group needs to be judged; 10 patients must share them.

    Returns:
        groups: a dict a group and finding: attribute, group, finding, items, patients, positives, judged, why,
            and each metric with its `_interval`, None where not judged.
        gaps: a dict an attribute, finding and metric with two groups judged: attribute, finding, metric,
            worst_group, best_group, gap, interval, found.
        notes: sentences on what was compared and what could not be.

    Raises:
        ValueError: what does not fit, all of it.
    """
    prob, label = check_arrays(prob, label)
    decision, member = np.asarray(decision), pd.factorize(np.asarray(group), sort=True)[0]
    _check(prob, decision, findings, attributes, member, replicates)
    rng, patients = np.random.default_rng(seed), int(member.max()) + 1
    draws = [np.bincount(rng.integers(patients, size=patients), minlength=patients) for _ in range(replicates)]
    weight = np.array(draws, dtype=np.float32).reshape(replicates, patients).T.copy()
    sign = rng.choice(np.array([-1, 1], dtype=np.float32), size=(patients, replicates))
    groups: list[dict[str, Any]] = []
    pairs: list[dict[str, Any]] = []
    largest = np.zeros(replicates)
    for attribute, names in _partitions(attributes):
        point = _point_values(prob, label, decision, names)
        for c, finding in enumerate(findings):
            labelled = ~np.isnan(label[:, c])
            cells = [
                Subgroup(name, prob[rows, c], label[rows, c], decision[rows, c], member[rows])
                for name in point
                if len(rows := np.flatnonzero(labelled & (names == name)))
            ]
            of = {"attribute": attribute, "finding": finding}
            value = {cell.name: {metric: float(point[cell.name][metric][c]) for metric in METRICS} for cell in cells}
            judged = [cell for cell in cells if cell.why_not(fewest) is None]
            interval = _intervals(judged, weight)
            groups += [of | _row(cell, cell.why_not(fewest), value[cell.name], interval) for cell in cells]
            compared = _compared(judged, value, patients)
            pairs += [of | pair for pair, _ in compared]
            if compared and replicates:
                ratios = np.stack([ratio for _, ratio in compared]) @ sign
                largest = np.maximum(largest, np.abs(ratios).max(axis=0))
    critical = float(np.quantile(largest, 1 - CHANCE)) if replicates and pairs else None
    return {"groups": groups, "gaps": _gaps(pairs, critical), "notes": _notes(groups, pairs, critical, attributes)}


def _check(
    prob: Array, decision: Array, findings: Sequence[str], attributes: pd.DataFrame, member: Array, replicates: int
) -> None:
    wrong = []
    if not len(prob):
        wrong.append("prob: no item to audit")
    if decision.shape != prob.shape or decision.dtype != np.bool_:
        wrong.append(f"decision: {decision.dtype} {decision.shape} must be bool {prob.shape}, as prob")
    if len(findings) != prob.shape[1]:
        wrong.append(f"findings: {len(findings)} names for {prob.shape[1]} columns of prob")
    if member.shape != (len(prob),) or (member < 0).any():
        wrong.append(f"group: give each of the {len(prob)} items its patient")
    if len(attributes) != len(prob):
        wrong.append(f"attributes: {len(attributes)} rows for {len(prob)} items")
    wrong += [
        f"attributes: {name} holds numbers; give names of groups, such as bands of age"
        for name in attributes
        if pd.api.types.is_numeric_dtype(attributes[name])
    ]
    if replicates < 0:
        wrong.append(f"replicates: {replicates} is negative; give 0 for no intervals")
    if wrong:
        raise ValueError("; ".join(wrong))


def _partitions(attributes: pd.DataFrame) -> Iterator[tuple[str, Array]]:
    """Each attribute and each pair of them, with every item's group: object [N], None where unknown."""
    named = {str(name): attributes[name].astype("string").reset_index(drop=True) for name in attributes}
    for one, other in combinations(tuple(named), 2):
        named[f"{one}{JOINED}{other}"] = named[one] + JOINED + named[other]
    for name, column in named.items():
        groups = column.astype(object)
        yield name, groups.where(groups.notna(), None).to_numpy()


def _point_values(prob: Array, label: Array, decision: Array, names: Array) -> dict[str, dict[str, Array]]:
    """Group -> metric -> value [C], NaN where undefined."""
    known = names != None  # noqa: E711 - elementwise
    if not known.any():
        return {}
    scored = {"auroc": _each(_auroc), "calibration_gap": _each(_excess)}
    flagged = {"tpr": _each(partial(_flagged, among=1)), "fpr": _each(partial(_flagged, among=0))}
    frames = [
        MetricFrame(metrics=metrics, y_true=label[known], y_pred=said[known], sensitive_features=names[known]).by_group
        for metrics, said in ((scored, prob), (flagged, decision))
    ]
    return {str(name): dict(row) for name, row in pd.concat(frames, axis=1).iterrows()}


def _each(metric: Callable[[Array, Array], float]) -> Callable[[Array, Array], Array]:
    """A metric of one finding's labelled items as one of all findings: two arrays [n, C] -> [C]."""

    def metrics(label: Array, said: Array) -> Array:
        label, said = label.reshape(len(label), -1), said.reshape(len(label), -1)  # fairlearn squeezes one finding
        columns = [~np.isnan(column) for column in label.T]
        return np.array([metric(label[rows, c], said[rows, c]) for c, rows in enumerate(columns)])

    return metrics


def _auroc(label: Array, prob: Array) -> float:
    return float(Ranking(prob, label).metrics(np.ones((len(prob), 1)))["auroc"][0])


def _flagged(label: Array, decision: Array, *, among: int) -> float:
    rows = label == among
    return float(decision[rows].mean()) if rows.any() else np.nan


def _excess(label: Array, prob: Array) -> float:
    return float((prob - label).mean()) if len(label) else np.nan


def _intervals(cells: Sequence[Subgroup], weight: Array) -> dict[str, dict[str, list[float]]]:
    """Group -> metric -> (low, high)."""
    patients, replicates = weight.shape
    if not cells or not replicates:
        return {}
    sums = np.concatenate([cell.sums(patients) for cell in cells]) @ weight
    drawn = [cell.resampled(weight, of) for cell, of in zip(cells, np.split(sums, len(cells)), strict=True)]
    return {
        cell.name: {metric: np.nanquantile(values, LEVEL).tolist() for metric, values in each.items()}
        for cell, each in zip(cells, drawn, strict=True)
    }


def _row(
    cell: Subgroup, why: str | None, value: Mapping[str, float], interval: Mapping[str, Mapping[str, list[float]]]
) -> dict[str, Any]:
    row = {
        "group": cell.name, "items": len(cell.label), "patients": len(np.unique(cell.member)),
        "positives": int(cell.positive.sum()), "judged": why is None, "why": why,
    }  # fmt: skip
    for metric in METRICS:
        row[metric] = value[metric] if why is None else None
        row[f"{metric}_interval"] = interval.get(cell.name, {}).get(metric)
    return row


def _compared(
    cells: Sequence[Subgroup], value: Mapping[str, Mapping[str, float]], patients: int
) -> list[tuple[dict[str, Any], Array]]:
    """Each pair of groups and metric: the gap with its standard error, and each patient's part in their ratio.

    Residuals are taken from the value pooled over both groups. A group's variance is what its own residuals say, but
    no less than what those of both groups together say for so many items: where a small group happens to have every
    item flagged, or none, its own are nearly nothing, and where it has a few flagged of many, those of both are.
    """
    shares = {cell.name: cell.shares(patients) for cell in cells}
    found = []
    for names in combinations([cell.name for cell in cells], 2):
        for metric in METRICS:
            values = np.array([value[name][metric] for name in names])
            items = np.array([shares[name][metric][2] for name in names])
            pooled = float(values @ items / items.sum())
            residual = np.stack([part - pooled * weight for part, weight, _ in (shares[n][metric] for n in names)])
            covariance = residual @ residual.T
            own = np.diag(covariance)
            alike = (items**2 @ own) / items.sum() / items
            error = float(np.sqrt(max(0.0, np.maximum(own, alike).sum() - 2 * covariance[0, 1])))
            difference = residual[0] - residual[1]
            if not (size := float(np.linalg.norm(difference))):
                continue  # the model says the same of everyone
            best, worst = sorted(range(2), key=lambda k: _badness(metric, float(values[k])))
            gap = {
                "metric": metric, "worst_group": names[worst], "best_group": names[best],
                "gap": float(abs(values[0] - values[1])), "error": error,
            }  # fmt: skip
            found.append((gap, (difference / size).astype(np.float32)))
    return found


def _badness(metric: str, value: float) -> float:
    return abs(value) if metric == "calibration_gap" else value if metric == "fpr" else -value


def _gaps(pairs: Sequence[dict[str, Any]], critical: float | None) -> list[dict[str, Any]]:
    """The pair of groups that speaks for each attribute, finding and metric."""
    told: dict[tuple[str, ...], dict[str, Any]] = {}
    for pair in pairs:
        gap, error = pair["gap"], pair["error"]
        interval = None if critical is None else [gap - critical * error, gap + critical * error]
        row = {name: entry for name, entry in pair.items() if name != "error"}
        row |= {"interval": interval, "found": interval is not None and interval[0] > 0}
        key = (pair["attribute"], pair["finding"], pair["metric"])
        if key not in told or (row["found"], gap) > (told[key]["found"], told[key]["gap"]):
            told[key] = row
    return list(told.values())


def _notes(
    groups: Sequence[dict[str, Any]], pairs: Sequence[dict[str, Any]], critical: float | None, attributes: pd.DataFrame
) -> list[str]:
    notes = [
        f"{name} is unknown for {missing:,} of {len(attributes):,} items: they are in no group of it"
        for name in attributes
        if (missing := int(attributes[name].isna().sum()))
    ]
    if small := sum(not row["judged"] for row in groups):
        notes.append(f"{small} of {len(groups)} groups (a finding each) are too small to judge")
    if critical is None:
        notes.append("no gap can be told from chance: " + ("bootstrap=0" if pairs else "no two groups to compare"))
    else:
        notes.append(
            f"{len(pairs):,} comparisons: a gap is found where it exceeds {critical:.2f} standard errors, which leaves "
            f"a chance of {CHANCE:.0%} that any is found where there is none (maxT over patients)"
        )
    return notes
