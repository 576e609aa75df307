"""Models that have stopped telling images apart, named in words instead of averaged away.

Shapes: N = items, C = findings.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from mmpds.metrics.classification import Array, Ranking, check_arrays

FEWEST_ITEMS = 10
LEAST_SPREAD = 0.02
USEFUL_AUROC = 0.6


def collapse(prob: ArrayLike, decision: ArrayLike, label: ArrayLike, findings: Sequence[str]) -> list[str]:
    """A sentence for each finding whose scores or decisions carry no information, with the evidence.

    Three signs, each of which alone is enough:
    - the scores barely vary: the central 98 % of them lie within 0.02 in log-odds (0.005 in probability
      around 0.5); log-odds, for the small probabilities of a rare finding vary little and may rank well;
    - every item is flagged, or none although positives occur;
    - the AUROC is clearly near chance or below it: its 95 % interval under the Mann-Whitney null variance
      (n1 + n0 + 1) / (12 n1 n0) reaches down to 0.5 and stays under 0.6.

    Args:
        prob: [N, C] in [0, 1].
        decision: bool [N, C], flagged at the operating point.
        label: [N, C], 1, 0 or NaN (not labelled).
        findings: C names.

    Returns:
        A sentence a collapsed finding, in the order of `findings`. Fewer than 10 items tell too little: none.

    Raises:
        ValueError: shapes differ, or values are out of range.
    """
    prob, label = check_arrays(prob, label)
    decision = np.asarray(decision, dtype=np.bool_)
    if decision.shape != prob.shape or len(findings) != prob.shape[1]:
        raise ValueError(f"decision {decision.shape} and {len(findings)} findings must fit prob {prob.shape}")
    if len(prob) < FEWEST_ITEMS:
        return []
    sentences = []
    for c, finding in enumerate(findings):
        evidence = [
            *_constant(prob[:, c]),
            *_one_class(decision[:, c], label[:, c]),
            *_chance(prob[:, c], label[:, c]),
        ]
        if evidence:
            sentences.append(f"{finding}: {'; '.join(evidence)}")
    return sentences


def _constant(prob: Array) -> list[str]:
    bounded = np.clip(prob.astype(np.float64), 1e-7, 1 - 1e-7)
    log_odds = np.log(bounded) - np.log1p(-bounded)
    low, high = np.quantile(log_odds, (0.01, 0.99))
    if high - low > LEAST_SPREAD:
        return []
    central = np.sort(prob[(log_odds >= low) & (log_odds <= high)])
    every = log_odds.max() - log_odds.min() <= LEAST_SPREAD
    first, last = (prob.min(), prob.max()) if every else (central[0], central[-1])
    share = f"all {len(prob):,}" if every else f"{len(central):,} of {len(prob):,}"
    return [f"{share} scores lie in {first:.4f}-{last:.4f} (standard deviation {prob.std(dtype=np.float64):.1g})"]


def _one_class(decision: Array, label: Array) -> list[str]:
    positives, labelled = int(np.count_nonzero(label == 1)), int(np.count_nonzero(~np.isnan(label)))
    if decision.all():
        if not labelled:
            return ["every image flagged"]
        prevalence = positives / labelled
        always = f"precision equals the prevalence {prevalence:.2f}, F1 {2 * prevalence / (1 + prevalence):.2f}"
        return [f"every image flagged: {always} is what always saying yes gives"]
    if not decision.any() and positives:
        return [f"no image flagged: all {positives:,} positives missed"]
    return []


def _chance(prob: Array, label: Array) -> list[str]:
    positives, negatives = int(np.count_nonzero(label == 1)), int(np.count_nonzero(label == 0))
    if not positives or not negatives:
        return []
    auroc = float(Ranking(prob, label).metrics(np.ones((len(prob), 1)))["auroc"][0])
    margin = 1.96 * np.sqrt((positives + negatives + 1) / (12 * positives * negatives))
    low, high = auroc - margin, auroc + margin
    if low > 0.5 or high >= USEFUL_AUROC:
        return []
    if high < 0.5:
        return [f"AUROC {auroc:.2f} is below chance: are labels or findings swapped?"]
    counts = f"{positives:,} positives and {negatives:,} negatives"
    return [f"AUROC {auroc:.2f} is no better than chance (0.5), with {counts}"]
