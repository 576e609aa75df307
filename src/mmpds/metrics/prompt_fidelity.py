"""Whether generated images show what their prompts ask for, as an independent classifier sees it.

Shapes: N = images, C = findings.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from mmpds.metrics.classification import Array, Detection, check_arrays
from mmpds.metrics.intervals import Evaluation, interval, members, resamples

REAL = "_real"


def prompt_fidelity(
    prob: ArrayLike, asked: ArrayLike, threshold: ArrayLike, findings: Sequence[str], *,
    real_prob: ArrayLike | None = None, group: ArrayLike | None = None, replicates: int = 1000, seed: int = 0,
) -> Evaluation:  # fmt: skip
    """How often a classifier finds in generated images what was asked for, beside chance and beside real images.

    Of each finding, and of `macro`, the mean over those for which the metric is defined:

    fidelity: the share flagged among images whose prompt asks for the finding.
    fidelity_chance: the share flagged among those whose prompt does not. A generator that ignores its prompts
        has as much of the one as of the other.
    fidelity_auroc: P(an asked image has a higher probability than one not asked); 0.5 for ignored prompts.
    fidelity_real, fidelity_chance_real, fidelity_auroc_real: the same of real images of the same captions, thus the
        classifier's own recall, false positive rate and AUROC: the level that a faithful generator reaches.

    A classifier in the place of a reader: Ravuri & Vinyals, NeurIPS 2019. It must not have trained on generated
    images, and a finding that it cannot see in real images cannot be judged in generated ones: a warning says so.
    The intervals are percentiles of a bootstrap by patient, of real and generated images together.

    Args:
        prob: [N, C] in [0, 1], of the generated images.
        asked: [N, C], 1 where the prompt names the finding, 0 where not, NaN where unknown: left out.
        threshold: [C], the classifier's; a finding is flagged where prob >= threshold.
        findings: C names.
        real_prob: [N, C], of the real images of the same captions.
        group: [N], the patient of each caption; without it each item is its own group.
        replicates: of the bootstrap; 0 for no intervals.
        seed: of the bootstrap.

    Raises:
        ValueError: an argument's shape or values are wrong; the text says which.
    """
    prob, asked = check_arrays(prob, asked)
    if not len(prob):
        raise ValueError("prob: no image to judge")
    judges = {"": Detection(prob, asked, threshold, findings)}
    if real_prob is not None:
        judges[REAL] = Detection(real_prob, asked, threshold, findings)

    def rates(weight: Array) -> dict[str, Array]:
        named: dict[str, Array] = {}
        for of, judge in judges.items():
            found = judge(weight)
            for finding in (*findings, "macro"):
                named[f"fidelity{of}/{finding}"] = found[f"recall/{finding}"]
                named[f"fidelity_chance{of}/{finding}"] = 1 - found[f"specificity/{finding}"]
                named[f"fidelity_auroc{of}/{finding}"] = found[f"auroc/{finding}"]
        return named

    metrics = {name: float(v[0]) for name, v in rates(np.ones((len(prob), 1))).items() if not np.isnan(v[0])}
    counts = {"items": len(prob)}
    warnings = []
    for c, finding in enumerate(findings):
        for name, value in (("asked", 1), ("not_asked", 0)):
            counts[f"{name}/{finding}"] = int(np.count_nonzero(asked[:, c] == value))
        if not (counts[f"asked/{finding}"] and counts[f"not_asked/{finding}"]):
            which = "not one" if not counts[f"asked/{finding}"] else "every one"
            warnings.append(f"{finding}: {which} of the prompts asks for it: fidelity and chance cannot be compared")
    member = members(prob, asked, group)
    if not replicates or member.max() == 0:
        why = "no intervals of fidelity: all prompts are of one patient"
        return Evaluation(metrics, {}, counts, warnings + [why] * bool(replicates))
    chunks = [rates(weight) for weight in resamples(member, replicates, seed)]
    drawn = {name: interval(np.concatenate([chunk[name] for chunk in chunks])) for name in metrics}
    intervals = {name: ends for name, ends in drawn.items() if ends}
    if withheld := [name for name in metrics if name not in intervals]:
        listed = ", ".join(withheld[:4]) + (f" and {len(withheld) - 4} more" if len(withheld) > 4 else "")
        warnings.append(f"too few prompts for an interval of {listed}")
    for finding in findings:
        low, high = intervals.get(f"fidelity_auroc{REAL}/{finding}", (1.0, 1.0))
        if low <= 0.5:
            warnings.append(
                f"{finding}: the classifier does not surely see it in real images either (AUROC {low:.2f} to "
                f"{high:.2f}), so that its fidelity says little"
            )
    return Evaluation(metrics, intervals, counts, warnings)
