"""What is wrong with a model's scores, named in words, with its figures and a cure, instead of averaged away.

Shapes: N = items, C = findings.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import logit

from mmpds.metrics.classification import Array, Ranking, check_arrays, decide

FEWEST_ITEMS = 10
LEAST_SPREAD = 0.02
USEFUL_AUROC = 0.6
TWICE = (0.5, 0.7312)
"""The sigmoid of 0 and, rounded up, of 1: all that a sigmoid makes of a probability."""
UNDECIDED = 0.5125
TOO_SURE = 0.1
ORDINARY_VARIANCE = 20.0
"""A first layer is linear: the variance of its answers goes with the square of the input's contrast, which between
scanners, exposures and hospitals differs less than fourfold; confused ranges ([0, 1], [0, 255], [-1024, 1024]) change
it much more: 255 and 1024 in the square. The two normalisations closest to [0, 1], by ImageNet's deviation and to
[-1, 1], lie within."""


@dataclass(frozen=True)
class Diagnosis:
    """One thing that is wrong.

    name: constant_scores, chance_ranking, double_sigmoid, always_positive, never_positive,
        threshold_outside_scores, one_class_labels, unexpected_input_range or leakage.
    finding: the finding it concerns; None where it concerns all.
    evidence: what was seen, a sentence with its figures.
    cure: what to do, a sentence.
    """

    name: str
    finding: str | None
    evidence: str
    cure: str


def diagnose(
    prob: ArrayLike, label: ArrayLike, threshold: ArrayLike, findings: Sequence[str], *,
    input_range: Mapping[str, float] | None = None, leaks: Sequence[str] = (),
) -> list[Diagnosis]:  # fmt: skip
    """Everything that is recognisably wrong with a set of predictions; empty if nothing is.

    Of the whole set:

    - leakage: `leaks` is not empty.
    - unexpected_input_range: the first layer answers these images with 20 times the variance that the weights were
      trained with, with a twentieth of it, or shifted by as much (the root of 20 standard deviations).
    - double_sigmoid: the scores of all findings lie in [0.5, 0.7311], all that a sigmoid makes of a probability,
      some above 0.5125 (a network that has learnt nothing may answer 0.5), and the labels speak against them, for
      scores can lie there rightly: undone by one sigmoid they have a lower Brier score, or their mean exceeds the
      share of positives by 0.1; either by more than 1.96 standard errors over the items. A calibration hides it.

    Of one finding:

    - constant_scores: the central 98 % of the scores lie within 0.02 in log-odds (0.005 in probability around
      0.5); log-odds, for the small probabilities of a rare finding vary little and may rank well.
    - always_positive, never_positive: every item is flagged though there are negatives, or none though there are
      positives.
    - threshold_outside_scores: the same, of scores that vary: another threshold would part them.
    - chance_ranking: the AUROC is clearly near chance or below it: its 95 % interval under the Mann-Whitney null
      variance (n1 + n0 + 1) / (12 n1 n0) reaches down to 0.5 and stays under 0.6.
    - one_class_labels: the labelled items are all positive or all negative.

    Fewer than 10 items (labelled ones, where labels are judged) tell too little of scores: then only leakage and
    the input range are looked at.

    Args:
        prob: [N, C] in [0, 1].
        label: [N, C], 1, 0 or NaN (not labelled).
        threshold: [C]; a finding is flagged where prob >= threshold, in float32.
        findings: C names.
        input_range: `callbacks.input_range.InputRange.summary()`, None where nothing was measured.
        leaks: a text for each patient or image that splits share.

    Returns:
        Those of the whole set, then those of each finding, in the order of `findings`.

    Raises:
        ValueError: shapes differ, or values are out of range.
    """
    prob, label = check_arrays(prob, label)
    threshold = np.asarray(threshold, dtype=np.float32)
    if threshold.shape != (prob.shape[1],) or len(findings) != prob.shape[1]:
        raise ValueError(f"threshold {threshold.shape} and {len(findings)} findings must fit prob {prob.shape}")
    found = [*_leakage(leaks), *_input_range(input_range)]
    if len(prob) < FEWEST_ITEMS:
        return found
    found += _double_sigmoid(prob, label)
    for c, finding in enumerate(findings):
        score, truth = prob[:, c], label[:, c]
        constant = _constant(finding, score)
        found += constant
        found += _one_sided(finding, score, truth, threshold[c], varied=not constant)
        found += _chance(finding, score, truth)
        found += _one_class(finding, truth)
    return found


def _leakage(leaks: Sequence[str]) -> list[Diagnosis]:
    if not leaks:
        return []
    listed = "; ".join(leaks[:5]) + (f"; and {len(leaks) - 5:,} more" if len(leaks) > 5 else "")
    cure = "Split by patient (data.split=own) and judge again: a model remembers what it was trained on."
    return [Diagnosis("leakage", None, f"Training and test images are not independent: {listed}.", cure)]


def _input_range(measured: Mapping[str, float] | None) -> list[Diagnosis]:
    if measured is None:
        return []
    ratio, shift = measured["variance_ratio"], measured["mean_shift"]
    # said so that NaN, of inputs that are not finite, is out of the ordinary
    if 1 / ORDINARY_VARIANCE <= ratio <= ORDINARY_VARIANCE and shift**2 <= ORDINARY_VARIANCE:
        return []
    times = np.sqrt(ratio if ratio > 1 else 1 / max(ratio, 1e-30))
    evidence = (
        f"The {measured['items']:,.0f} images looked at reach the network with values from {measured['minimum']:.2f} "
        f"to {measured['maximum']:.2f}: its first layer sees {times:,.1f} times {'more' if ratio > 1 else 'less'} "
        f"contrast than in the images it was trained on, and a brightness {shift:,.1f} standard deviations away; up "
        f"to {ORDINARY_VARIANCE**0.5:.1f} is ordinary for either."
    )
    cure = (
        "Scale the images to the range that the weights were trained on, for torchxrayvision's -1024 to 1024; "
        "init_from=NAME does that for the weights it names."
    )
    return [Diagnosis("unexpected_input_range", None, evidence, cure)]


def _double_sigmoid(prob: Array, label: Array) -> list[Diagnosis]:
    low, high = float(prob.min()), float(prob.max())
    known = ~np.isnan(label)
    items = known.any(axis=1)
    if low < TWICE[0] or not UNDECIDED < high <= TWICE[1] or np.count_nonzero(items) < FEWEST_ITEMS:
        return []
    score = prob.astype(np.float64)
    undone = np.clip(logit(score), 0, 1)

    def per_item(values: Array) -> Array:
        # one value an item: the findings of an image are no independent observations
        return np.asarray(np.nansum(values, axis=1)[items] / known.sum(axis=1)[items])

    after, before = per_item((score - label) ** 2), per_item((undone - label) ** 2)
    if not _surely_above(after - before, 0) and not _surely_above(per_item(score - label), TOO_SURE):
        return []
    evidence = (
        f"All {prob.size:,} scores lie in {low:.4f}-{high:.4f}, inside 0.5-0.7311, where every score falls when a "
        f"probability is put through a sigmoid again. Their mean is {score[known].mean():.2f}, the share of positive "
        f"labels {label[known].mean():.2f}; with one sigmoid undone they lie in {undone.min():.4f}-{undone.max():.4f}, "
        f"and their mean squared error goes from {after.mean():.3f} to {before.mean():.3f}."
    )
    cure = (
        "Apply the sigmoid once: leave it out where the model already returns probabilities, as torchxrayvision's "
        "pretrained models do, then fit the thresholds again."
    )
    return [Diagnosis("double_sigmoid", None, evidence, cure)]


def _surely_above(values: Array, limit: float) -> bool:
    """Whether the mean of values [N] lies more than 1.96 standard errors above `limit`."""
    return bool(values.mean() - 1.96 * values.std() / np.sqrt(len(values)) > limit)


def _constant(finding: str, prob: Array) -> list[Diagnosis]:
    log_odds = logit(np.clip(prob.astype(np.float64), 1e-7, 1 - 1e-7))
    low, high = np.quantile(log_odds, (0.01, 0.99))
    if high - low > LEAST_SPREAD:
        return []
    central = np.sort(prob[(log_odds >= low) & (log_odds <= high)])
    every = log_odds.max() - log_odds.min() <= LEAST_SPREAD
    first, last = (prob.min(), prob.max()) if every else (central[0], central[-1])
    share = f"All {len(prob):,}" if every else f"{len(central):,} of {len(prob):,}"
    spread = f"standard deviation {prob.std(dtype=np.float64):.1g}"
    evidence = f"{share} scores lie in {first:.4f}-{last:.4f} ({spread}): every image gets the same answer."
    cure = (
        "No threshold can repair this: see that the images reach the network in the range it expects and differ "
        "there, then that the training loss falls."
    )
    return [Diagnosis("constant_scores", finding, evidence, cure)]


def _one_sided(finding: str, prob: Array, label: Array, threshold: float, *, varied: bool) -> list[Diagnosis]:
    """always_positive or never_positive, and whether the threshold is to blame."""
    decision = decide(prob, threshold)
    positives, negatives = int(np.count_nonzero(label == 1)), int(np.count_nonzero(label == 0))
    if decision.all() and (negatives or not positives):  # flagging positives alone is right
        name, side = "always_positive", "not above any"
        evidence = f"All {len(prob):,} images are flagged at threshold {threshold:.4g}"
        if negatives:
            prevalence = positives / (positives + negatives)
            evidence += (
                f": precision {prevalence:.2f} is the share of positive images, and F1 "
                f"{2 * prevalence / (1 + prevalence):.2f} is what saying yes to every image gives"
            )
    elif not decision.any() and positives:
        name, side = "never_positive", "above all"
        evidence = f"No image is flagged at threshold {threshold:.4g}: all {positives:,} positives are missed"
    else:
        return []
    cure = "Look at ROC-AUC, which needs no threshold, before precision or F1: it says whether the scores tell anything"
    found = [Diagnosis(name, finding, f"{evidence}.", f"{cure}; if they do, fit another threshold.")]
    if varied:
        scores = f"scores, which reach from {prob.min():.4f} to {prob.max():.4f}"
        evidence = f"The threshold {threshold:.4g} is {side} of the {len(prob):,} {scores}: it parts nothing."
        cure = "Fit it on validation scores of these very weights: model.threshold.rule=f1 or youden."
        found.append(Diagnosis("threshold_outside_scores", finding, evidence, cure))
    return found


def _chance(finding: str, prob: Array, label: Array) -> list[Diagnosis]:
    positives, negatives = int(np.count_nonzero(label == 1)), int(np.count_nonzero(label == 0))
    if not positives or not negatives:
        return []
    auroc = float(Ranking(prob, label).metrics(np.ones((len(prob), 1)))["auroc"][0])
    margin = 1.96 * np.sqrt((positives + negatives + 1) / (12 * positives * negatives))
    low, high = auroc - margin, auroc + margin
    if low > 0.5 or high >= USEFUL_AUROC:
        return []
    counts = f"{positives:,} positive and {negatives:,} negative images"
    if high < 0.5:
        evidence = f"ROC-AUC {auroc:.2f} is below chance (0.5) on {counts}: healthy images score higher than ill ones."
        cure = "See whether labels are inverted, or findings or rows swapped."
    else:
        evidence = f"ROC-AUC {auroc:.2f} is no better than chance (0.5) on {counts}: the scores rank like a coin."
        cure = "See that images and labels belong together, that training loss falls, and that the weights were loaded."
    return [Diagnosis("chance_ranking", finding, evidence, cure)]


def _one_class(finding: str, label: Array) -> list[Diagnosis]:
    positives, negatives = int(np.count_nonzero(label == 1)), int(np.count_nonzero(label == 0))
    if positives + negatives < FEWEST_ITEMS or (positives and negatives):
        return []
    kind, missing = ("positive", "specificity") if positives else ("negative", "recall")
    evidence = f"All {positives + negatives:,} labelled images are {kind}: ROC-AUC and {missing} cannot be known."
    cure = "Judge on images of both kinds: take other data.fractions or a larger set, or see how the labels were read."
    return [Diagnosis("one_class_labels", finding, evidence, cure)]
