"""Detection metrics with 95 % confidence intervals from a bootstrap by patient.

Shapes: N = items, C = findings, G = groups (patients), R = bootstrap replicates.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from mmpds.metrics.classification import FALSE_POSITIVE_RATE, Array, Detection, check_arrays

LEVEL = (0.025, 0.975)
MOST_UNDEFINED = 0.1
CHUNK = 2**21  # item weights drawn at a time: 8 MiB, about what stays in a core's cache


@dataclass(frozen=True)
class Evaluation:
    """What a set of predictions is worth.

    metrics: flat name -> value, such as `auroc/Pneumonia`, `f1/macro`, `threshold/Pneumonia`; absent where
        undefined.
    intervals: name -> (low, high), 95 %; absent where withheld.
    counts: `items`, `groups`, `normal` where known, `labelled/<finding>`, `positives/<finding>`.
    warnings: a sentence for whatever is absent, with its reason.
    """

    metrics: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    counts: dict[str, int]
    warnings: list[str]


def evaluate(
    prob: ArrayLike, label: ArrayLike, threshold: ArrayLike, findings: Sequence[str], *,
    group: ArrayLike | None = None, normal: ArrayLike | None = None, replicates: int = 1000, seed: int = 0,
) -> Evaluation:  # fmt: skip
    """Judge predictions at given operating points.

    The intervals are percentiles of a bootstrap (Efron & Tibshirani, An Introduction to the Bootstrap, 1993)
    that draws whole groups with replacement, every item of a group moving together (the cluster bootstrap:
    Field & Welsh, J. R. Stat. Soc. B 2007), for images of one patient are no independent observations. The
    thresholds are not refitted in a replicate. The same seed gives the same intervals, in any order of items.
    The expected calibration error grows with noise: near 0 its interval can lie above its value.

    Args:
        prob: [N, C] in [0, 1].
        label: [N, C], 1, 0 or NaN (not labelled: left out of that finding).
        threshold: [C]; a finding is flagged where prob >= threshold, in float32.
        findings: C names.
        group: [N], the patient of each item; without it each item is its own group.
        normal: bool [N], items without any finding, for the false positives on them.
        replicates: number of bootstrap replicates; 0 for no intervals.
        seed: of the bootstrap.

    Raises:
        ValueError: an argument's shape or values are wrong; the text says which and how many.
    """
    prob, label = check_arrays(prob, label)
    if not len(prob):
        raise ValueError("prob: no item to evaluate")
    if replicates < 0:
        raise ValueError(f"replicates: {replicates} is negative; give 0 for no intervals")
    member = members(prob, label, group)
    detection = Detection(prob, label, threshold, findings, normal)
    point = {name: float(value[0]) for name, value in detection(np.ones((len(prob), 1))).items()}
    metrics = {name: value for name, value in point.items() if not np.isnan(value)}

    groups = int(member.max()) + 1
    counts = {"items": len(prob), "groups": groups}
    if normal is not None:
        counts["normal"] = int(np.count_nonzero(normal))
    for c, finding in enumerate(findings):
        counts[f"labelled/{finding}"] = int(np.count_nonzero(~np.isnan(label[:, c])))
        counts[f"positives/{finding}"] = int(np.count_nonzero(label[:, c] == 1))
    warnings = [_why_undefined(finding, point, counts) for finding in findings]
    if counts.get("normal") == 0:
        warnings.append(f"{FALSE_POSITIVE_RATE} is undefined: no normal item among {len(prob)}")

    intervals: dict[str, tuple[float, float]] = {}
    if replicates and groups == 1:
        warnings.append("no intervals: all items are of one group, and a bootstrap by group needs two or more")
    elif replicates:
        intervals, withheld = _intervals(detection, metrics, member, replicates, seed)
        warnings += withheld
    # the shortest text of a float32 says 0.6, not 0.6000000238418579, and is the same float32
    stated = [float(str(value)) for value in np.asarray(threshold, dtype=np.float32)]
    metrics |= {f"threshold/{finding}": value for finding, value in zip(findings, stated, strict=True)}
    return Evaluation(metrics, intervals, counts, [text for text in warnings if text])


def members(prob: Array, label: Array, group: ArrayLike | None) -> Array:
    """The group of each item as a number from 0 to G - 1 that no order of the items changes: int [N]."""
    if group is None:
        member = np.empty(len(prob), dtype=np.intp)
        member[np.lexsort((*label.T, *prob.T))] = np.arange(len(prob))
        return member
    group = np.asarray(group)
    if group.shape != (len(prob),):
        raise ValueError(f"group: shape {group.shape} must be ({len(prob)},), one an item")
    member, _ = pd.factorize(group, sort=True)
    if missing := int(np.count_nonzero(member < 0)):
        raise ValueError(f"group: {missing} of {len(group)} items have none; give each item its patient")
    return member


def resamples(member: Array, replicates: int, seed: int) -> Iterator[Array]:
    """Item weights of a bootstrap by group, a column a replicate: how often the item's group was drawn.

    Args:
        member: int [N], the group of each item, as `members` numbers them.
        replicates: columns in all.
        seed: the same one gives the same weights.

    Yields:
        [N, r], as many columns at a time as stay in a core's cache. They are float32 where that counts exactly
        (to 2^24), which halves the work, else float64. Nothing of a single group, whose draws are all the same.
    """
    rng = np.random.default_rng(seed)
    groups, width = int(member.max()) + 1, max(1, CHUNK // len(member))
    exact = np.float32 if len(member) < 2**22 else np.float64
    for start in range(0, replicates if groups > 1 else 0, width):
        draws = [
            np.bincount(rng.integers(groups, size=groups), minlength=groups)
            for _ in range(min(width, replicates - start))
        ]
        yield np.stack(draws, axis=1).astype(exact)[member]


def interval(values: Array) -> tuple[float, float] | None:
    """The 95 % percentile interval of replicates [R]; None where over a tenth of them are undefined (NaN)."""
    defined = values[~np.isnan(values)]
    if len(defined) < (1 - MOST_UNDEFINED) * len(values) or not len(defined):
        return None
    low, high = np.quantile(defined, LEVEL)
    return float(low), float(high)


def ratios(
    parts: Mapping[str, tuple[Array, Array]], group: ArrayLike, replicates: int, seed: int
) -> tuple[dict[str, float], dict[str, tuple[float, float]]]:
    """Values and 95 % intervals of sums divided by sums, from a bootstrap by group.

    Args:
        parts: name -> what is summed above and below, float [N] each; left out where nothing is below.
        group: [N], the group of each item.
        replicates: of the bootstrap; 0, or a single group, for no intervals.
        seed: of the bootstrap.
    """
    known = {name: (above, below) for name, (above, below) in parts.items() if np.sum(below) > 0}
    values = {name: float(np.sum(above) / np.sum(below)) for name, (above, below) in known.items()}
    member, groups = pd.factorize(np.asarray(group), sort=True)
    if not replicates or len(groups) < 2 or not known:
        return values, {}
    above, below = (np.stack([pair[side] for pair in known.values()]).astype(np.float64) for side in (0, 1))
    with np.errstate(invalid="ignore", divide="ignore"):
        chunks = [(above @ weight) / (below @ weight) for weight in resamples(member, replicates, seed)]
    found = dict(zip(known, (interval(row) for row in np.concatenate(chunks, axis=1)), strict=True))
    return values, {name: span for name, span in found.items() if span}


def _intervals(
    detection: Detection, metrics: Mapping[str, float], member: Array, replicates: int, seed: int
) -> tuple[dict[str, tuple[float, float]], list[str]]:
    """Percentile intervals of `metrics`, and a warning for each that is withheld."""
    chunks = [detection(weight) for weight in resamples(member, replicates, seed)]
    intervals, withheld = {}, []
    for name in metrics:
        if found := interval(np.concatenate([chunk[name] for chunk in chunks])):
            intervals[name] = found
        else:
            withheld.append(name)
    if not withheld:
        return intervals, []
    listed = ", ".join(withheld[:4]) + (f" and {len(withheld) - 4} more" if len(withheld) > 4 else "")
    share = f"over {MOST_UNDEFINED:.0%} of {replicates:,} bootstrap replicates leave them undefined"
    return intervals, [f"too few items for an interval of {listed}: {share}"]


def _why_undefined(finding: str, point: Mapping[str, float], counts: Mapping[str, int]) -> str:
    """Which metrics of a finding are undefined and why; an empty text when none is."""
    names = [
        name.partition("/")[0] for name, value in point.items() if name.endswith(f"/{finding}") and np.isnan(value)
    ]
    names = [name for name in names if not name.startswith("false_positive_rate")]
    if not names:
        return ""
    labelled, positives = counts[f"labelled/{finding}"], counts[f"positives/{finding}"]
    reasons = []
    if not positives:
        reasons.append(f"no positive among {labelled:,} labelled items")
    if positives == labelled:
        reasons.append(f"no negative among {labelled:,} labelled items")
    if "precision" in names:
        reasons.append("nothing flagged at its threshold")
    return f"{finding}: {', '.join(names)} undefined and left out of macro, for there is {' and '.join(reasons)}"
