"""Detection metrics: one implementation for point values, ranks and bootstrap replicates.

Shapes: N = items, C = findings, R = columns of item weights
(one of ones for point values, a column a replicate for a bootstrap).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

FALSE_POSITIVE_RATE = "false_positive_rate/No Finding"
ECE_BINS = 15

Array = NDArray[Any]


def check_arrays(prob: ArrayLike, label: ArrayLike) -> tuple[Array, Array]:
    """Probabilities and labels as float arrays [N, C] of equal shape.

    Args:
        prob: [N, C] in [0, 1].
        label: [N, C], 1 = present, 0 = absent, NaN = not labelled.

    Raises:
        ValueError: shapes differ or are not [N, C], or values are out of range; it says which and how many.
    """
    prob, label = np.asarray(prob), np.asarray(label, dtype=np.float64)
    if prob.ndim != 2 or prob.shape != label.shape:
        raise ValueError(f"prob {prob.shape} and label {label.shape} must both be [items, findings]")
    if prob.dtype not in (np.float32, np.float64):
        prob = prob.astype(np.float64)
    if wrong := int(np.count_nonzero(~((prob >= 0) & (prob <= 1)))):
        missing = int(np.count_nonzero(np.isnan(prob)))
        found = f"{wrong} of {prob.size} values are outside [0, 1], {missing} of them NaN"
        raise ValueError(f"prob: {found}; give finite probabilities, not logits")
    if wrong := int(np.count_nonzero(~np.isin(label, (0, 1)) & ~np.isnan(label))):
        raise ValueError(f"label: {wrong} of {label.size} values are none of 0, 1 and NaN (not labelled)")
    return prob, label


def decide(prob: Array, threshold: ArrayLike) -> NDArray[np.bool_]:
    """`prob >= threshold` in float32, the precision that thresholds are kept in: bool [N, C] (or [N])."""
    return prob.astype(np.float32) >= np.asarray(threshold, dtype=np.float32)


class Ranking:
    """One finding's labelled items in descending order of score, ready to be counted under any item weights.

    Args:
        prob: [N] in [0, 1].
        label: [N], 1, 0 or NaN; unlabelled items take no part.
        threshold: the operating point; an item is flagged when `decide` says so.

    Attributes:
        score: [K], the distinct scores of positive items, descending. Every optimum of a ROC or
            precision-recall curve lies at one of these K scores: between them only false positives are added.
        below: [K], the next lower score of any labelled item; NaN where there is none.
    """

    def __init__(self, prob: Array, label: Array, threshold: float = 0.5) -> None:
        rows = np.flatnonzero(~np.isnan(label))
        self._rows = rows[np.argsort(-prob[rows], kind="stable")]
        score = prob[self._rows].astype(np.float64)
        self._positive = label[self._rows] == 1
        before = np.concatenate(([0], np.cumsum(self._positive)))  # positives ahead of each position

        # tied scores can only be flagged together: [start, end) of each tie that holds a positive
        start = np.flatnonzero(np.diff(score, prepend=np.nan))
        end = np.append(start, len(score))[1:]
        kept = before[end] > before[start]
        self._start, self._end = start[kept], end[kept]
        self._hits_start, self._hits_end = before[self._start], before[self._end]
        self.score = score[self._start]
        self.below = np.append(score, np.nan)[self._end]

        self._flagged = int(np.count_nonzero(decide(prob[self._rows], threshold)))
        self._hits = int(before[self._flagged])
        # bins are (lower, upper], the first one closed, as in Guo et al.
        bins = np.searchsorted(np.linspace(0, 1, ECE_BINS + 1)[1:-1], score, side="left")
        self._bins = np.flatnonzero(np.diff(bins, prepend=-1))
        self._residual = (self._positive - score)[:, np.newaxis]
        self._squared = self._residual[:, 0] ** 2

    def curve(self, weight: Array) -> tuple[Array, Array]:
        """True and false positives when flagging all at or above each of `score`, float64 [K, R] each."""
        _, total, hits = self._cumulate(weight)
        true = hits[self._hits_end]
        return true, total[self._end] - true

    def metrics(self, weight: Array) -> dict[str, Array]:
        """Metric -> float64 [R]; NaN where undefined.

        auroc: P(score of a positive > that of a negative), ties half (Mann-Whitney; Hanley & McNeil 1982).
            Undefined unless both classes occur.
        average_precision: sum over distinct scores of (recall step) x precision, without interpolation.
            Undefined without positives.
        f1: 2 TP / (2 TP + FP + FN), thus 0 when nothing is flagged. Undefined without positives.
        precision: TP / (TP + FP). Undefined when nothing is flagged.
        recall: TP / positives. Undefined without positives.
        specificity: TN / negatives. Undefined without negatives.
        ece: expected calibration error of the finding's probability: sum over 15 bins of equal width of
            (share of items in the bin) x |mean label - mean probability| (Naeini et al., AAAI 2015; Guo et
            al., ICML 2017, there of the top class). Undefined without labelled items.
        brier: mean of (label - probability)^2 (Brier, Mon. Weather Rev. 1950). Undefined without labelled items.

        Args:
            weight: [N, R], non-negative. In float32, multiplicities are counted exactly up to 2^24 items.
        """
        ranked, total, hits = self._cumulate(weight)
        # summed apart, not subtracted: fractional weights of an absent class must add up to exactly zero
        negatives = ranked[~self._positive].sum(axis=0, dtype=np.float64)
        positives, flagged, true = hits[-1], total[self._flagged], hits[self._hits]
        true_start, true_end = hits[self._hits_start], hits[self._hits_end]
        false_start, false_end = total[self._start] - true_start, total[self._end] - true_end
        step = true_end - true_start
        with np.errstate(divide="ignore", invalid="ignore"):
            gained = np.where(step > 0, step * true_end / total[self._end], 0)
            return {
                "auroc": (step * (negatives - (false_start + false_end) / 2)).sum(axis=0) / (positives * negatives),
                "average_precision": gained.sum(axis=0) / positives,
                "f1": np.where(positives > 0, 2 * true / (flagged + positives), np.nan),
                "precision": true / flagged,
                "recall": true / positives,
                "specificity": (negatives - (flagged - true)) / negatives,
                "ece": self._calibration_gaps(ranked) / (positives + negatives),
                "brier": self._squared.astype(ranked.dtype) @ ranked / (positives + negatives),
            }

    def _calibration_gaps(self, ranked: Array) -> Array:
        """Sum over the bins of |sum of label - probability|: [R]."""
        if not len(ranked):
            return np.zeros(ranked.shape[1])
        gaps: Array = np.add.reduceat(ranked * self._residual.astype(ranked.dtype), self._bins, axis=0)
        return np.asarray(np.abs(gaps).sum(axis=0, dtype=np.float64))

    def _cumulate(self, weight: Array) -> tuple[Array, _Sums, _Sums]:
        """Ranked weights [n, R], and their running sums over all items and over positives alone."""
        ranked = weight[self._rows]
        return ranked, _Sums(ranked), _Sums(ranked[self._positive])


class _Sums:
    """`sums[k]` is the sum of the first k rows, float64; summed in the rows' own type, which is faster."""

    def __init__(self, rows: Array) -> None:
        self._sums = np.zeros((len(rows) + 1, rows.shape[1]), dtype=rows.dtype)
        np.cumsum(rows, axis=0, out=self._sums[1:])

    def __getitem__(self, count: int | Array) -> Array:
        return self._sums[count].astype(np.float64)


class Detection:
    """All detection metrics of a set of predictions: call it with item weights.

    Values are named `auroc/Pneumonia`, …, and `auroc/macro`: the mean over the findings for which the metric
    is defined on the whole set. With `normal`, also the shares of normal items flagged for any finding
    (`false_positive_rate/No Finding`) and for one (`false_positive_rate/No Finding/Pneumonia`).

    Args:
        prob: float [N, C] in [0, 1].
        label: [N, C], 1, 0 or NaN (not labelled: left out of that finding).
        threshold: [C], one operating point a finding.
        findings: C names.
        normal: bool [N], items without any finding.

    Raises:
        ValueError: as `check_arrays`, or a name, threshold or row too few or too many, or a NaN threshold.
    """

    def __init__(
        self, prob: ArrayLike, label: ArrayLike, threshold: ArrayLike, findings: Sequence[str],
        normal: ArrayLike | None = None,
    ) -> None:  # fmt: skip
        prob, label = check_arrays(prob, label)
        items, width = prob.shape
        threshold = np.asarray(threshold, dtype=np.float32)
        if len(findings) != width or len(set(findings)) != width:
            raise ValueError(f"findings: {list(findings)} must be {width} different names, one a column of prob")
        if threshold.shape != (width,) or np.isnan(threshold).any():
            raise ValueError(f"threshold: {threshold.tolist()} must be {width} numbers, one a finding; fit them first")
        self.findings = tuple(findings)
        self._rankings = [Ranking(prob[:, c], label[:, c], float(threshold[c])) for c in range(width)]
        self._normal: Array | None = None
        if normal is not None:
            normal = np.asarray(normal)
            if normal.shape != (items,) or normal.dtype != np.bool_:
                raise ValueError(f"normal: {normal.dtype} {normal.shape} must be bool ({items},), one an item")
            self._normal = np.flatnonzero(normal)
            flagged = decide(prob[normal], threshold)
            self._flagged = np.concatenate([flagged.any(axis=1, keepdims=True), flagged], axis=1).T
        self._defined = {metric: ~np.isnan(value[:, 0]) for metric, value in self._metrics(np.ones((items, 1))).items()}

    def __call__(self, weight: Array) -> dict[str, Array]:
        """Every metric under each column of weights, float64 [R]; NaN where undefined.

        A macro value is undefined as soon as one of its findings is: it never averages over other findings
        in one replicate than in another.

        Args:
            weight: [N, R], non-negative.
        """
        named: dict[str, Array] = {}
        for metric, values in self._metrics(weight).items():
            named |= {f"{metric}/{finding}": value for finding, value in zip(self.findings, values, strict=True)}
            defined = values[self._defined[metric]]
            named[f"{metric}/macro"] = defined.mean(axis=0) if len(defined) else np.full(weight.shape[1], np.nan)
        if self._normal is not None:
            drawn = weight[self._normal]
            with np.errstate(divide="ignore", invalid="ignore"):
                rates = (self._flagged.astype(drawn.dtype) @ drawn).astype(np.float64) / drawn.sum(axis=0)
            names = [FALSE_POSITIVE_RATE, *(f"{FALSE_POSITIVE_RATE}/{finding}" for finding in self.findings)]
            named |= dict(zip(names, rates, strict=True))
        return named

    def _metrics(self, weight: Array) -> dict[str, Array]:
        """Metric -> [C, R]."""
        values = [ranking.metrics(weight) for ranking in self._rankings]
        return {metric: np.stack([value[metric] for value in values]) for metric in values[0]}


class Scores(Metric):
    """Collects the probabilities and labels of all ranks' items; ranks may hold different numbers, also none.

    Args:
        findings: C different names.

    Raises:
        ValueError: `findings` is empty or names one twice.
    """

    full_state_update = False
    prob: list[Tensor] | Tensor  # torchmetrics joins the ranks' lists into one tensor while it computes
    label: list[Tensor] | Tensor

    def __init__(self, findings: Sequence[str]) -> None:
        super().__init__()
        self.findings = tuple(findings)
        if not findings or len(set(findings)) < len(findings):
            raise ValueError(f"findings: {list(findings)} must be one or more different names")
        self.add_state("prob", [], dist_reduce_fx="cat")
        self.add_state("label", [], dist_reduce_fx="cat")
        self.reset()

    def update(self, prob: Tensor, label: Tensor) -> None:
        """Add items.

        Args:
            prob: float [B, C] in [0, 1].
            label: float [B, C], 1, 0 or NaN.

        Raises:
            ValueError: a shape is not [B, C].
        """
        if prob.shape != label.shape or prob.shape[1:] != (len(self.findings),):
            shapes = f"prob {tuple(prob.shape)} and label {tuple(label.shape)}"
            raise ValueError(f"{shapes} must both be [items, {len(self.findings)}], a column a finding")
        cast("list[Tensor]", self.prob).append(prob.detach().float())
        cast("list[Tensor]", self.label).append(label.detach().float())

    def reset(self) -> None:
        """Forget all items."""
        super().reset()
        # torchmetrics gathers [0] for a rank without items, which gloo cannot join with the others' [n, C]
        for items in (self.prob, self.label):
            cast("list[Tensor]", items).append(torch.zeros(0, len(self.findings), device=self.device))

    def map(self, function: Callable[[Tensor], Tensor]) -> None:
        """Put `function`, float [n, C] to float [n, C], on the probabilities collected so far."""
        self.prob = [function(prob) for prob in cast("list[Tensor]", self.prob)]

    def items(self) -> tuple[Array, Array]:
        """Collected probabilities and labels, float32 [N, C]; inside `compute` those of all ranks."""
        return dim_zero_cat(self.prob).cpu().numpy(), dim_zero_cat(self.label).cpu().numpy()


class DetectionMetrics(Scores):
    """The metrics of `Detection` over all items of all ranks.

    Attributes:
        threshold: float [C], the operating points that `compute` judges at; 0.5 until set.
    """

    def __init__(self, findings: Sequence[str]) -> None:
        super().__init__(findings)
        self.threshold = torch.full((len(self.findings),), 0.5)

    def compute(self) -> dict[str, Tensor]:
        """Name -> float32 scalar, NaN where undefined."""
        prob, label = self.items()
        named = Detection(prob, label, self.threshold.cpu(), self.findings)(np.ones((len(prob), 1)))
        values = torch.tensor(np.concatenate(list(named.values())), dtype=torch.float32, device=self.device)
        return dict(zip(named, values, strict=True))
