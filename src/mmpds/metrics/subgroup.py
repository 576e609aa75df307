"""How well one finding is told in one group of patients: under resampling, and each patient's part in it.

Shapes: n = the group's labelled items, P = patients of the whole set, R = replicates.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.sparse import csr_array
from scipy.stats import rankdata

from mmpds.metrics.classification import Array

METRICS = ("auroc", "tpr", "fpr", "calibration_gap")
FEWEST_PATIENTS = 10
"""Patients of the positives and of the negatives: with fewer, resampling them understates the spread
(Cameron, Gelbach & Miller, Rev. Econ. Stat. 2008)."""


@dataclass(frozen=True)
class Subgroup:
    """The items of one group that are labelled for one finding.

    Args:
        name: of the group.
        prob: float [n] in [0, 1].
        label: float [n], 1 or 0.
        decision: bool [n].
        member: int [n], the patient of each item, 0 to P - 1.
    """

    name: str
    prob: Array
    label: Array
    decision: Array
    member: Array

    @cached_property
    def positive(self) -> Array:
        """Which items show the finding: bool [n]."""
        return np.asarray(self.label == 1)

    def why_not(self, fewest: int) -> str | None:
        """Why the group cannot be judged; None where it can."""
        lacks = []
        for kind, rows in (("positives", self.positive), ("negatives", ~self.positive)):
            items, patients = int(rows.sum()), len(np.unique(self.member[rows]))
            if items < fewest:
                lacks.append(f"{items} {kind}, fewer than {fewest}")
            elif patients < FEWEST_PATIENTS:
                lacks.append(f"{kind} of {patients} patients, fewer than {FEWEST_PATIENTS}")
        return "; ".join(lacks) or None

    def sums(self, patients: int) -> Array:
        """Each patient's positives, true positives, negatives, false positives and excess: float32 [5, P].

        The excess is the sum of probability - label.
        """
        yes, flagged = self.positive, self.decision
        columns = (yes, yes & flagged, ~yes, ~yes & flagged, self.prob - self.label)
        return np.stack([np.bincount(self.member, column, patients) for column in columns]).astype(np.float32)

    def resampled(self, weight: Array, weighted_sums: Array) -> dict[str, Array]:
        """Metric -> float64 [R], NaN where undefined.

        Args:
            weight: float32 [P, R], how often each patient is drawn.
            weighted_sums: [5, R], `sums @ weight`.
        """
        positives, true, negatives, false, excess = weighted_sums.astype(np.float64)
        with np.errstate(divide="ignore", invalid="ignore"):
            return {
                "auroc": self._wins(weight) / (positives * negatives),
                "tpr": true / positives,
                "fpr": false / negatives,
                "calibration_gap": excess / (positives + negatives),
            }

    def _wins(self, weight: Array) -> Array:
        """The weighted pairs that a positive wins over a negative, ties half (Mann-Whitney), float64 [R].

        Equal to what `Ranking` counts. Here the negatives between two scores of positives are added up by a sparse
        product, which an audit of some hundred groups needs: it is ten times faster.
        """
        score, place = np.unique(self.prob[self.positive], return_inverse=True)
        negative, owner = self.prob[~self.positive], self.member[~self.positive]
        shape = (len(score) + 1, len(weight))  # the last row: negatives that no positive beats
        row = np.concatenate([np.searchsorted(score, negative, side) for side in ("left", "right")])
        half = np.full(len(row), 0.5, dtype=np.float32)
        beaten = np.cumsum(csr_array((half, (row, np.tile(owner, 2))), shape) @ weight, axis=0)
        one = np.ones(len(place), dtype=np.float32)
        winners = csr_array((one, (place, self.member[self.positive])), shape) @ weight
        return np.asarray(np.einsum("kr,kr->r", winners, beaten, dtype=np.float64))

    def shares(self, patients: int) -> dict[str, tuple[Array, Array, float]]:
        """Metric -> each patient's share of its value and of its weight, float64 [P] both, and its effective items.

        The value is the sum of the first over the sum of the second. An item's part in the AUROC is its placement:
        the share of the other class that it is told apart from (DeLong et al., Biometrics 1988).
        """
        yes, count = self.positive, len(self.positive)
        positives, negatives = int(yes.sum()), int((~yes).sum())
        ranks = rankdata(self.prob)
        for kind in (yes, ~yes):
            ranks[kind] -= rankdata(self.prob[kind])
        placement = np.where(yes, ranks / negatives, 1 - ranks / positives)
        of_yes, of_no = yes / positives, ~yes / negatives
        parts = {
            "auroc": (placement, of_yes + of_no, positives * negatives / count),
            "tpr": (self.decision, of_yes, positives),
            "fpr": (self.decision, of_no, negatives),
            "calibration_gap": (self.prob - self.label, np.full(count, 1 / count), count),
        }
        return {
            metric: (np.bincount(self.member, value * part, patients), np.bincount(self.member, part, patients), items)
            for metric, (value, part, items) in parts.items()
        }
