"""Operating points: fitted on validation, kept in the checkpoint, applied on test and never refitted there.

Shapes: N = items, C = findings, K = distinct scores of one finding's positive items.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchmetrics.utilities import rank_zero_warn

from mmpds.metrics.classification import Array, Ranking, Scores, check_arrays

GIVEN = ("fixed", "class_specific")
"""Rules whose thresholds are stated, not fitted."""
RULES = (*GIVEN, "paper", "f1", "youden", "sensitivity@specificity", "specificity@sensitivity")
FALLBACK = 0.5


class Threshold(Scores):
    """One threshold a finding by a named rule; an item is flagged when its probability is at or above it.

    Feed it the validation items (`update`), then `compute()` fits over all ranks' items and keeps the result:

    fixed: `fixed` for every finding.
    class_specific: `values[finding]`.
    paper: max(0.6, mean + 0.25 standard deviations) of the probabilities, at most 1; it needs no labels
        (N. Khan, "Multi Modal Machine Learning on Parallel and Distributed Systems", U. of Colorado Denver).
    f1: the highest F1.
    youden: the highest sensitivity + specificity - 1 (Youden, Cancer 1950).
    sensitivity@specificity: the highest sensitivity with a specificity of at least `specificity`.
    specificity@sensitivity: the highest specificity with a sensitivity of at least `sensitivity`.

    The last four lie midway between two adjacent scores; of equally good thresholds the highest is taken.
    A finding without a positive or without a negative validation item has no such optimum: it gets 0.5 and
    a warning.

    Args:
        findings: C different names.
        rule: one of `RULES`.
        fixed: the threshold of rule `fixed`, in [0, 1].
        specificity: the least specificity of rule `sensitivity@specificity`, in [0, 1].
        sensitivity: the least sensitivity of rule `specificity@sensitivity`, in [0, 1].
        values: the thresholds of rule `class_specific`, finding -> value in [0, 1].

    Attributes:
        value: float32 [C], a buffer of the checkpoint; NaN until fitted. A checkpoint's thresholds do not
            replace stated ones.
        unfit: why the last fit fell back, finding -> reason; empty when every finding was fitted.

    Raises:
        ValueError: an unknown rule, a number outside [0, 1], or `values` that do not fit the findings.
    """

    value: Tensor

    def __init__(
        self, findings: Sequence[str], rule: str = "f1", fixed: float = 0.5, specificity: float = 0.9,
        sensitivity: float = 0.9, values: Mapping[str, float] | None = None,
    ) -> None:  # fmt: skip
        super().__init__(findings)
        if rule not in RULES:
            close = difflib.get_close_matches(str(rule), RULES, n=2)
            cure = f"did you mean {' or '.join(close)}?" if close else f"choose from {', '.join(RULES)}"
            raise ValueError(f"rule: no threshold rule {rule!r}; {cure}")
        values = dict(values or {})
        numbers = {"fixed": fixed, "specificity": specificity, "sensitivity": sensitivity}
        for name, number in (numbers | {f"values[{finding}]": value for finding, value in values.items()}).items():
            if not 0 <= number <= 1:
                raise ValueError(f"{name}: {number} is no probability; give a number from 0 to 1")
        if rule == "class_specific" and (wrong := set(values) ^ set(self.findings)):
            raise ValueError(
                f"values: {sorted(wrong)} missing or unknown; give a value for each of {list(self.findings)}"
            )
        self.rule, self.specificity, self.sensitivity = rule, specificity, sensitivity
        self.unfit: dict[str, str] = {}
        stated = (
            values if rule == "class_specific" else dict.fromkeys(self.findings, fixed if rule == "fixed" else np.nan)
        )
        self.register_buffer("value", torch.tensor([float(stated[finding]) for finding in self.findings]))

    @property
    def fitted(self) -> bool:
        """Whether there are thresholds to decide with."""
        return not bool(self.value.isnan().any())

    def compute(self) -> Tensor:
        """Fit over the items of all ranks and keep the thresholds in `value`; returns a copy of it.

        Raises:
            ValueError: a collected probability is outside [0, 1], or a label none of 1, 0 and NaN.
        """
        if self.rule not in GIVEN:
            prob, label = check_arrays(*self.items())
            self.unfit = {}
            fitted = [self._fit(finding, prob[:, c], label[:, c]) for c, finding in enumerate(self.findings)]
            self.value.copy_(torch.tensor(fitted))
            for finding, reason in self.unfit.items():
                rank_zero_warn(f"{finding}: {reason}")
        return self.value

    def decide(self, prob: Tensor) -> Tensor:
        """Whether each probability is at or above its finding's threshold: bool [N, C] of float [N, C].

        Raises:
            RuntimeError: the thresholds were never fitted.
        """
        if not self.fitted:
            raise RuntimeError(
                f"the {self.rule} thresholds are not fitted: validate before testing, load a checkpoint of a "
                "validated model, or state them with rule=fixed or rule=class_specific"
            )
        return prob.float() >= self.value.to(prob.device)

    def _fit(self, finding: str, prob: Array, label: Array) -> float:
        if self.rule == "paper":
            if not len(prob):
                return self._fall_back(finding, "no validation item")
            return min(1.0, max(0.6, float(prob.mean(dtype=np.float64) + 0.25 * prob.std(dtype=np.float64))))
        positives, negatives = int(np.count_nonzero(label == 1)), int(np.count_nonzero(label == 0))
        if not positives or not negatives:
            kind = "positive" if not positives else "negative"
            return self._fall_back(finding, f"no {kind} among {positives + negatives} labelled validation items")
        ranking = Ranking(prob, label)
        true, false = (counts[:, 0] for counts in ranking.curve(np.ones((len(prob), 1))))
        best = self._best(true, false, positives, negatives)
        if best is None:
            limit = f"only flagging nothing has a specificity of {self.specificity}"
            self.unfit[finding] = f"{limit}; the threshold is set above every score"
            return _above(float(prob.max()))
        return _midway(ranking.score[best], ranking.below[best])

    def _best(self, true: Array, false: Array, positives: int, negatives: int) -> int | None:
        """The best of K operating points by their true and false positives, or None where none is allowed."""
        sensitivity, specificity = true / positives, (negatives - false) / negatives
        match self.rule:
            case "f1":
                return int(np.argmax(2 * true / (true + false + positives)))
            case "youden":
                # from counts: equal points must compare as equal, whatever their fractions round to
                return int(np.argmax(true * negatives - false * positives))
            case "sensitivity@specificity":
                allowed = np.where(specificity >= self.specificity, sensitivity, -1)
                return int(np.argmax(allowed)) if allowed.max() >= 0 else None
            case _:
                return int(np.argmax(np.where(sensitivity >= self.sensitivity, specificity, -1)))

    def _fall_back(self, finding: str, reason: str) -> float:
        self.unfit[finding] = f"{reason}; the {self.rule} threshold falls back to {FALLBACK}"
        return FALLBACK

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        # stated thresholds were meant for this run; a checkpoint's would silently undo them
        if self.rule in GIVEN:
            state_dict[f"{prefix}value"] = self.value.clone()
        super()._load_from_state_dict(state_dict, prefix, *args)


def _midway(score: float, below: float) -> float:
    """The float32 middle of two adjacent scores, above the lower; the score itself where none is below."""
    middle = float(np.float32((score + below) / 2))
    return middle if below < middle <= score else score


def _above(top: float) -> float:
    """A threshold that flags nothing: midway to 1, or the next float32 above 1 where a score is 1."""
    return _midway(1.0, top) if top < 1 else float(np.nextafter(np.float32(1), np.float32(2)))
