"""Whether images generated for a finding look like real images of that finding, not only like real images.

Shapes: N = pairs of a real image and one generated from its caption, M = training images, D = features, C = findings.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from mmpds.metrics.classification import Array
from mmpds.metrics.generation import feature_distances, frechet_distance
from mmpds.metrics.intervals import Evaluation

FEWEST = 20
"""Images of a finding below which nothing is said of it."""


def class_distances(
    real: ArrayLike, generated: ArrayLike, label: ArrayLike, training: ArrayLike, training_label: ArrayLike,
    findings: Sequence[str], *, group: ArrayLike | None = None, seed: int = 0,
) -> Evaluation:  # fmt: skip
    """FID and KID within each finding (intra-FID: Miyato & Koyama, ICLR 2018), and their means over the findings.

    Each compares the real test images of a finding with as many others:

    class_fid/<finding>, class_kid/<finding>: those generated from the same captions.
    class_fid_shuffled/…, class_kid_shuffled/…: training images whatever their findings, so as if labels were shuffled:
        what a perfect generator that ignores its prompts reaches.
    class_fid_real/…, class_kid_real/…: training images of the finding: what a perfect generator reaches.

    FID is biased upwards where images are few, equally so in the three. Intervals, of KID alone: see
    `feature_distances`; for the means, those of the mean of independent findings.

    Args:
        real: float [N, D].
        generated: float [N, D]; row i is of the same caption as the real row i.
        label: float [N, C], 1, 0 or NaN.
        training: float [M, D].
        training_label: float [M, C].
        findings: C names.
        group: [N], the patient of each pair.
        seed: of the draws of training images and of the folds.
    """
    x, y, known = (np.asarray(part, dtype=np.float64) for part in (real, generated, training))
    asked, seen = np.asarray(label) == 1, np.asarray(training_label) == 1
    member = np.arange(len(x)) if group is None else np.asarray(group)
    rng, found = np.random.default_rng(seed), Evaluation({}, {}, {}, [])
    judged = []
    for column, finding in enumerate(findings):
        rows, alike = np.flatnonzero(asked[:, column]), np.flatnonzero(seen[:, column])
        count = min(len(rows), len(alike))
        if count < FEWEST:
            found.warnings.append(f"class_fid, class_kid: fewer than {FEWEST} images of {finding}")
            continue
        rows = rows[:count]
        others = {
            "": y[rows],
            "_shuffled": known[rng.choice(len(known), count, replace=False)],
            "_real": known[rng.choice(alike, count, replace=False)],
        }
        for suffix, other in others.items():
            distances = feature_distances(x[rows], other, group=member[rows], seed=seed, only="kid")
            found.metrics[f"class_fid{suffix}/{finding}"] = frechet_distance(x[rows], other)
            found.metrics[f"class_kid{suffix}/{finding}"] = distances.metrics["kid"]
            if "kid" in distances.intervals:
                found.intervals[f"class_kid{suffix}/{finding}"] = distances.intervals["kid"]
        judged.append(finding)
    for name in ("class_fid", "class_kid") if judged else ():
        for suffix in ("", "_shuffled", "_real"):
            keys = [f"{name}{suffix}/{finding}" for finding in judged]
            mean = float(np.mean([found.metrics[key] for key in keys]))
            found.metrics[f"{name}{suffix}/macro"] = mean
            if all(key in found.intervals for key in keys):
                half = _half_width([found.intervals[key] for key in keys])
                found.intervals[f"{name}{suffix}/macro"] = (mean - half, mean + half)
    return found


def _half_width(ends: Sequence[tuple[float, float]]) -> float:
    halves: Array = np.array([(high - low) / 2 for low, high in ends])
    return float(np.sqrt((halves**2).sum()) / len(halves))
