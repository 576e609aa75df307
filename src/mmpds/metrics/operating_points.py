"""Rules for thresholds side by side: what each costs and catches on the same items, under the same replicates.

Shapes: N = items, C = findings, K = rules, R = columns of item weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from mmpds.metrics.classification import FALSE_POSITIVE_RATE, Array, check_arrays, decide
from mmpds.metrics.intervals import interval, members, resamples


def operating_points(
    prob: ArrayLike, label: ArrayLike, thresholds: Mapping[str, ArrayLike], findings: Sequence[str], *,
    group: ArrayLike | None = None, normal: ArrayLike | None = None, replicates: int = 1000, seed: int = 0,
) -> list[dict[str, Any]]:  # fmt: skip
    """Judge several sets of thresholds at once.

    Definitions, bootstrap and replicates are those of `mmpds.metrics.intervals.evaluate`: with the same seed
    the intervals of two rules are of the same patients, and equal those of `evaluate` at the same thresholds.

    Args:
        prob: [N, C] in [0, 1].
        label: [N, C], 1, 0 or NaN (not labelled: left out of that finding).
        thresholds: rule -> [C], NaN where the rule says nothing of a finding; or [N, C], where groups of items have
            thresholds of their own.
        findings: C names.
        group: [N], the patient of each item; without it each item is its own group.
        normal: bool [N], items without any finding.
        replicates: number of bootstrap replicates; 0 for no intervals.
        seed: of the bootstrap.

    Returns:
        Rows of each rule: one a finding that it has a threshold for, and, where it has all, one whose
        `finding` is `macro` (the mean over the findings for which a metric is defined). Columns: `rule`,
        `finding`, `threshold` (where it is one number), `precision`, `recall`, `f1`, `specificity`, and, given
        `normal`, `false_positive_rate/No Finding`: the share of normal items flagged for this finding, for any finding
        in the row of macro. Each has its 95 % interval beside it, `<name>_interval`: [low, high]. What is
        undefined, or too rarely defined in the replicates, is absent.

    Raises:
        ValueError: shapes differ, or values are out of range.
    """
    prob, label = check_arrays(prob, label)
    given = [np.asarray(value, dtype=np.float32) for value in thresholds.values()]
    fits = len(findings) == prob.shape[1]
    if not fits or any(value.shape not in (prob.shape, prob.shape[1:]) for value in given):
        shapes = [value.shape for value in given]
        raise ValueError(f"thresholds {shapes} must be a number a finding of prob {prob.shape} and {findings}")
    value = np.stack([np.broadcast_to(one, prob.shape) for one in given])
    counted = _Confusion(prob, label, value, normal)
    point = counted(np.ones((len(prob), 1), dtype=np.float32))
    defined = {name: ~np.isnan(rates[..., 0]) for name, rates in point.items()}
    point = _with_macro(point, defined)
    member = members(prob, label, group)
    drawn: dict[str, Array] = {}
    if replicates and member.max() > 0:
        chunks = [_with_macro(counted(weight), defined) for weight in resamples(member, replicates, seed)]
        drawn = {name: np.concatenate([chunk[name] for chunk in chunks], axis=-1) for name in point}
    rows = []
    for k, rule in enumerate(thresholds):
        for c, finding in enumerate([*findings, "macro"]):
            of_all = c == len(findings)
            if np.isnan(value[k] if of_all else value[k, :, c]).any():
                continue
            # the shortest text of a float32 is the same float32
            row: dict[str, Any] = {"rule": rule, "finding": finding}
            row |= {} if of_all or given[k].ndim > 1 else {"threshold": float(str(given[k][c]))}
            for name, rates in point.items():
                if not np.isnan(rates[k, c, 0]):
                    row[name] = float(rates[k, c, 0])
                    if drawn and (found := interval(drawn[name][k, c])):
                        row[f"{name}_interval"] = list(found)
            rows.append(row)
    return rows


class _Confusion:
    """Confusion counts of all rules as one product of indicators with item weights."""

    def __init__(self, prob: Array, label: Array, value: Array, normal: ArrayLike | None) -> None:
        flagged = decide(prob, value)  # [K, N, C]; nothing reaches NaN
        positive, negative = label == 1, label == 0
        parts = {"true": flagged & positive, "false": flagged & negative, "positives": positive[np.newaxis],
                 "negatives": negative[np.newaxis]}  # fmt: skip
        if normal is not None:
            of = np.asarray(normal, dtype=bool)[:, np.newaxis]
            parts |= {"flagged": flagged & of, "any": (flagged & of).any(2, keepdims=True), "normal": of[np.newaxis]}
        self._places, columns, start = {}, [], 0
        for name, part in parts.items():
            columns.append(part.transpose(0, 2, 1).reshape(-1, part.shape[1]))
            self._places[name] = (slice(start, start + len(columns[-1])), (part.shape[0], part.shape[2], -1))
            start += len(columns[-1])
        self._indicators = np.concatenate(columns).astype(np.float32)

    def __call__(self, weight: Array) -> dict[str, Array]:
        """Metric -> [K, C, R], that of No Finding [K, C + 1, R], of any finding last; NaN where undefined."""
        sums = (self._indicators.astype(weight.dtype, copy=False) @ weight).astype(np.float64)
        counts = {name: sums[place].reshape(shape) for name, (place, shape) in self._places.items()}
        true, false, positives = counts["true"], counts["false"], counts["positives"]
        negatives = counts["negatives"]
        with np.errstate(divide="ignore", invalid="ignore"):
            rates = {
                "precision": true / (true + false),
                "recall": true / positives,
                "f1": np.where(positives > 0, 2 * true / (true + false + positives), np.nan),
                "specificity": (negatives - false) / negatives,
            }
            if "normal" in counts:
                both = np.concatenate([counts["flagged"], counts["any"]], axis=1)
                rates[FALSE_POSITIVE_RATE] = both / counts["normal"]
        return rates


def _with_macro(rates: Mapping[str, Array], defined: Mapping[str, Array]) -> dict[str, Array]:
    """Metric -> [K, C + 1, R]: beside the findings their mean, undefined as soon as one that counts in it is."""
    joined = {}
    for name, rate in rates.items():
        if name == FALSE_POSITIVE_RATE:
            joined[name] = rate
            continue
        macro = [
            rule[known].mean(0) if known.any() else np.full(rate.shape[2], np.nan)
            for rule, known in zip(rate, defined[name], strict=True)
        ]
        joined[name] = np.concatenate([rate, np.stack(macro)[:, np.newaxis]], axis=1)
    return joined
