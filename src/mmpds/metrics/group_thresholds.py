"""Operating points of each group of patients, for a model that does not serve them alike at a common one.

Shapes: N = items, C = findings.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from numpy.typing import ArrayLike

from mmpds.metrics.classification import Array, check_arrays, decide
from mmpds.metrics.fairness import FEWEST
from mmpds.metrics.thresholds import GIVEN, Threshold


@dataclass(frozen=True)
class GroupThresholds:
    """A threshold for each group of one attribute and each finding.

    overall: float32 [C], those of groups that are unknown or were not seen in fitting.
    values: group -> float32 [C].
    notes: a sentence for each group that overall thresholds apply to.
    """

    overall: Array
    values: dict[str, Array]
    notes: list[str]

    def decide(self, prob: ArrayLike, attribute: ArrayLike) -> Array:
        """Whether each probability is at or above its group's threshold: bool [N, C] of [N, C] and groups [N]."""
        return decide(np.asarray(prob), self.thresholds(attribute))

    def thresholds(self, attribute: ArrayLike) -> Array:
        """Those of each item, float32 [N, C], by its group [N]."""
        names = _names(attribute)
        threshold = np.tile(self.overall, (len(names), 1))
        for name, value in self.values.items():
            threshold[names == name] = value
        return threshold


def group_thresholds(
    prob: ArrayLike, label: ArrayLike, attribute: ArrayLike, findings: Sequence[str], rule: str = "f1", *,
    specificity: float = 0.9, sensitivity: float = 0.9, fewest: int = FEWEST,
) -> GroupThresholds:  # fmt: skip
    """Fit a rule of `Threshold` in each group apart, on other items than those to be judged.

    With rule `specificity@sensitivity` the groups' true positive rates become alike (equal opportunity: Hardt et
    al., NeurIPS 2016), with `sensitivity@specificity` their false positive rates; the other rate pays for it. A
    finding of which a group has fewer than `fewest` positives or negatives gets the threshold of all items there.

    Args:
        prob: [N, C] in [0, 1].
        label: [N, C], 1, 0 or NaN.
        attribute: [N], the group of each item; where it is missing the item counts for the overall ones alone.
        findings: C names.
        rule: a rule that is fitted, not stated.
        specificity: of rule `sensitivity@specificity`.
        sensitivity: of rule `specificity@sensitivity`.
        fewest: positives, and negatives, that a group needs.

    Raises:
        ValueError: as `Threshold` and `check_arrays`; the rule is stated; or groups and items differ in number.
    """
    prob, label = check_arrays(prob, label)
    names = _names(attribute)
    if len(names) != len(prob):
        raise ValueError(f"attribute: {len(names)} groups for {len(prob)} items; give each item its own")
    if rule in GIVEN:
        raise ValueError(f"rule: {rule} states its thresholds, so groups cannot have their own; choose one that fits")

    def fit(rows: Array) -> Array:
        threshold = Threshold(findings, rule, specificity=specificity, sensitivity=sensitivity)
        threshold.update(torch.from_numpy(prob[rows]), torch.from_numpy(label[rows]))
        threshold.compute()
        return threshold.value.numpy()

    overall = fit(np.arange(len(prob)))
    values, notes = {}, []
    for name in sorted(set(names) - {None}):
        rows = np.flatnonzero(names == name)
        enough = np.minimum((label[rows] == 1).sum(axis=0), (label[rows] == 0).sum(axis=0)) >= fewest
        values[name] = np.where(enough, fit(rows), overall) if enough.any() else overall
        if few := [finding for finding, one in zip(findings, enough, strict=True) if not one]:
            notes.append(f"{name}: too few items of {', '.join(few)}; the thresholds of all groups apply")
    return GroupThresholds(overall, values, notes)


def _names(attribute: ArrayLike) -> Array:
    """Object [N], None where unknown."""
    names = pd.Series(np.asarray(attribute, dtype=object)).astype("string").astype(object)
    return names.where(names.notna(), None).to_numpy()
