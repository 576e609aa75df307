"""Which of several classes an image is of, where it is of exactly one.

Shapes: N = items, C = classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from mmpds.metrics.classification import Array, check_arrays
from mmpds.metrics.intervals import Evaluation, interval, members, resamples


def multiclass(
    prob: ArrayLike, label: ArrayLike, classes: Sequence[str], *, group: ArrayLike | None = None,
    replicates: int = 1000, seed: int = 0,
) -> Evaluation:  # fmt: skip
    """Judge the most probable class of each item.

    top1_accuracy: the share of items whose most probable class is theirs.
    top1_balanced_accuracy: the mean over classes of the share found; 1 / C for a constant answer.
    top1_recall/<class>: the share of a class's items that are given to it.

    Args:
        prob: [N, C] in [0, 1]; of equal ones the first class is taken.
        label: [N, C], 1 for the one class of an item and 0 for the others; rows with NaN are left out.
        classes: C names.
        group: [N], the patient of each item, for the bootstrap; without it each item is its own group.
        replicates: of the bootstrap; 0 for no intervals.
        seed: of the bootstrap.

    Returns:
        Nothing but a warning where an item has no class or several.
    """
    prob, label = check_arrays(prob, label)
    known = ~np.isnan(label).any(axis=1)
    prob, label = prob[known], label[known]
    if wrong := int(np.count_nonzero(label.sum(1) != 1)):
        told = f"no accuracy: {wrong} of {len(label)} items have no class or several; exclusive classes need one each"
        return Evaluation({}, {}, {}, [told])
    if not len(prob):
        return Evaluation({}, {}, {}, ["no accuracy: no item has a known class"])
    truth, chosen = label.argmax(1), prob.argmax(1)
    right = (truth == chosen).astype(float)

    def judged(weight: Array) -> dict[str, Array]:
        of = [truth == c for c in range(len(classes))]
        with np.errstate(invalid="ignore"):
            recall = np.stack([right[rows] @ weight[rows] / weight[rows].sum(0) for rows in of])
        named = {f"top1_recall/{name}": recall[c] for c, name in enumerate(classes)}
        named["top1_balanced_accuracy"] = recall[[rows.any() for rows in of]].mean(0)
        return named | {"top1_accuracy": right @ weight / weight.sum(0)}

    metrics = {name: float(v[0]) for name, v in judged(np.ones((len(prob), 1))).items() if not np.isnan(v[0])}
    patients = None if group is None else np.asarray(group)[known]
    chunks = [judged(weight) for weight in resamples(members(prob, label, patients), replicates, seed)]
    drawn = {name: interval(np.concatenate([chunk[name] for chunk in chunks])) for name in metrics if chunks}
    counts = {f"items/{name}": int((truth == c).sum()) for c, name in enumerate(classes)}
    return Evaluation(metrics, {name: ends for name, ends in drawn.items() if ends}, counts, [])
