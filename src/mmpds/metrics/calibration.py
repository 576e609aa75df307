"""Probabilities that mean what they say: fitted on validation, kept in the checkpoint, applied on test.

Shapes: N = items, C = findings, K = knots of a piecewise linear function.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from scipy.optimize import minimize_scalar
from scipy.special import logit
from sklearn.isotonic import IsotonicRegression
from torch import Tensor

from mmpds.metrics.classification import Array, Scores, check_arrays

METHODS = ("none", "temperature", "isotonic")
TEMPERATURES = (0.05, 20.0)
"""Beyond these a fit has run away: classes that validation parts without error, or scores that rank no better
than chance."""
KNOTS = 256
"""Two bound a step, and N items give some N^(1/3) steps: 128 are enough for a million."""


class Calibration(Scores):
    """A map of each finding's probability to its observed frequency, fitted on validation.

    Feed it the validation items as the model gives them (`update`), then `compute()` fits over all ranks' items:

    none: probabilities stay as they are.
    temperature: log-odds are divided by one temperature a finding, that of the least negative log-likelihood of
        its labelled items (Guo et al., On Calibration of Modern Neural Networks, ICML 2017; there one for a
        softmax, here one for each finding's sigmoid). Strictly increasing: every ROC curve stays.
    isotonic: the best increasing function in least squares (Zadrozny & Elkan, KDD 2002). It may tie scores and
        give exactly 0 or 1, and wants some hundred positives.

    A finding without a positive or without a negative validation item stays as it is, and so does one whose
    temperature has no optimum from 0.05 to 20.

    Args:
        findings: C different names.
        method: one of `METHODS`.

    Attributes:
        temperature: float32 [C], a buffer of the checkpoint; NaN until fitted.
        knots: float32 [C, 2, 256], probabilities and the calibrated ones, each increasing, the last repeated to
            the end; a buffer of the checkpoint; NaN until fitted.
        unfit: why the last fit left a finding as it is, finding -> reason.

    Raises:
        ValueError: an unknown method, or findings that are none or named twice.
    """

    temperature: Tensor
    knots: Tensor

    def __init__(self, findings: Sequence[str], method: str = "none") -> None:
        super().__init__(findings)
        if method not in METHODS:
            raise ValueError(f"method: no calibration method {method!r}; choose from {', '.join(METHODS)}")
        self.method = method
        self.unfit: dict[str, str] = {}
        # both whatever the method: a checkpoint of one loads strictly into a model of another
        self.register_buffer("temperature", torch.full((len(self.findings),), torch.nan))
        self.register_buffer("knots", torch.full((len(self.findings), 2, KNOTS), torch.nan))

    @property
    def fitted(self) -> bool:
        """Whether this method has what it needs; `none` needs nothing."""
        buffers = {"temperature": self.temperature, "isotonic": self.knots}
        return self.method == "none" or not bool(buffers[self.method].isnan().any())

    def compute(self) -> None:
        """Fit over the items of all ranks and keep the result in the buffers.

        Raises:
            ValueError: a collected probability is outside [0, 1], or a label none of 1, 0 and NaN.
        """
        self.unfit = {}
        if self.method == "none":
            return
        prob, label = check_arrays(*self.items())
        for c, finding in enumerate(self.findings):
            known = ~np.isnan(label[:, c])
            score, truth = prob[known, c].astype(np.float64), label[known, c]
            if missing := _missing_class(truth):
                self.unfit[finding] = f"{missing} among {len(truth):,} labelled validation items; not calibrated"
            if self.method == "isotonic":
                self.knots[c] = torch.from_numpy(_isotonic(score, truth) if not missing else _padded([0, 1], [0, 1]))
                continue
            fitted = 1.0 if missing else _temperature(score, truth)
            if fitted is None:
                limits = " to ".join(f"{limit:g}" for limit in TEMPERATURES)
                self.unfit[finding] = f"no temperature from {limits} fits the validation items best; not calibrated"
            self.temperature[c] = 1.0 if fitted is None else fitted

    def calibrate(self, prob: Tensor) -> Tensor:
        """Calibrated probabilities, float [N, C] of float [N, C] in [0, 1]; unchanged until fitted.

        Raises:
            ValueError: the shape is not [N, C].
        """
        if prob.ndim != 2 or prob.shape[1] != len(self.findings):
            raise ValueError(f"prob {tuple(prob.shape)} must be [items, {len(self.findings)}], a column a finding")
        if self.method == "none" or not self.fitted:
            return prob
        # in float64, for rounding on the way would tie neighbouring scores or swap them
        if self.method == "isotonic":
            return _interpolate(prob.double(), self.knots.to(prob.device).double()).to(prob.dtype)
        temperature = self.temperature.to(prob.device).double()
        scaled = torch.sigmoid(torch.logit(prob.double()) / temperature).to(prob.dtype)
        return torch.where(temperature == 1, prob, scaled)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        # a checkpoint from before there was a calibration is one that was not calibrated
        for name in ("temperature", "knots"):
            state_dict.setdefault(f"{prefix}{name}", getattr(self, name).clone())
        super()._load_from_state_dict(state_dict, prefix, *args)


def _missing_class(truth: Array) -> str:
    if not (truth == 1).any():
        return "no positive"
    return "" if (truth == 0).any() else "no negative"


def _temperature(score: Array, truth: Array) -> float | None:
    """The temperature of the least negative log-likelihood, or None where it has no minimum within the limits."""
    log_odds = logit(np.clip(score, 1e-7, 1 - 1e-7)) * np.where(truth == 1, 1, -1)

    def loss(log_temperature: float) -> float:
        return float(np.logaddexp(0, -log_odds * np.exp(-log_temperature)).mean())

    limits = np.log(TEMPERATURES)
    # convex in 1 / T (a logistic regression without intercept), so there is one minimum in log T
    found = float(minimize_scalar(loss, bounds=limits, method="bounded", options={"xatol": 1e-6}).x)
    inside = loss(found) < min(loss(limits[0]), loss(limits[1])) and np.abs(limits - found).min() > 1e-3
    return float(np.exp(found)) if inside else None


def _isotonic(score: Array, truth: Array) -> Array:
    """Knots float32 [2, 256] of the isotonic regression."""
    fit = IsotonicRegression(y_min=0, y_max=1, out_of_bounds="clip").fit(score, truth)
    knots = len(fit.X_thresholds_)
    kept = np.unique(np.linspace(0, knots - 1, min(knots, KNOTS)).round().astype(int))
    return _padded(fit.X_thresholds_[kept], fit.y_thresholds_[kept])


def _padded(score: ArrayLike, calibrated: ArrayLike) -> Array:
    knots = np.stack([np.asarray(score), np.asarray(calibrated)]).astype(np.float32)
    return np.pad(knots, ((0, 0), (0, KNOTS - knots.shape[1])), mode="edge")


def _interpolate(prob: Tensor, knots: Tensor) -> Tensor:
    """The piecewise linear functions through knots [C, 2, K] of prob [N, C], constant beyond the ends."""
    at, to, place = knots[:, 0].contiguous(), knots[:, 1], prob.T.contiguous()
    after = torch.searchsorted(at, place, right=True)
    left, right = (after - 1).clamp(min=0), after.clamp(max=at.shape[1] - 1)
    start, width = at.gather(1, left), at.gather(1, right) - at.gather(1, left)
    share = torch.where(width > 0, (place - start) / width, 0)
    return torch.lerp(to.gather(1, left), to.gather(1, right), share).T
