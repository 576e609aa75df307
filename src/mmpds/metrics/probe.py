"""What a few labelled examples are worth: logistic regression on embeddings that stand still.

Shapes: N = test items, M = training items, D = width of an embedding, C = findings.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike
from sklearn.linear_model import LogisticRegression

from mmpds.metrics.classification import Array, Detection
from mmpds.metrics.intervals import Evaluation, interval, members, resamples

DRAWS = 5


def probe(
    train: ArrayLike, train_label: ArrayLike, test: ArrayLike, label: ArrayLike, findings: Sequence[str], *,
    shots: Sequence[int] = (1, 4, 16, 64), group: ArrayLike | None = None, replicates: int = 1000, seed: int = 0,
) -> Evaluation:  # fmt: skip
    """AUROC of classifiers that saw `shots` positives and as many negatives of each finding, or all training items.

    The few-shot classifiers and the linear probe of Radford et al. (ICML 2021, sections 3.1.4 and 3.2): logistic
    regression with an L2 penalty on standardised embeddings, a finding at a time. Metrics are
    `few_shot_K/auroc/<finding>`, the mean over five draws of the examples, and `linear_probe/auroc/<finding>`; `macro`
    is the mean over findings. The intervals hold for the test items (see `evaluate`), not for other draws.

    Args:
        train: [M, D], embeddings to learn from.
        train_label: [M, C], 1, 0 or NaN (not labelled: left out of that finding).
        test: [N, D], embeddings to judge on.
        label: [N, C], as `train_label`.
        findings: C names.
        shots: numbers of positives; one that a finding has too few of is left out, with a warning.
        group: [N], the patient of each test item; without it each item is its own group.
        replicates: of the bootstrap; 0 for no intervals.
        seed: of the draws and of the bootstrap.
    """
    seen, known = np.asarray(train, np.float64), np.asarray(train_label, np.float32)
    spread = np.where(seen.std(0) > 0, seen.std(0), 1)
    seen, new = (seen - seen.mean(0)) / spread, (np.asarray(test, np.float64) - seen.mean(0)) / spread
    truth = np.asarray(label, np.float32)
    sides = [[np.flatnonzero(known[:, c] == value) for value in (1, 0)] for c in range(len(findings))]
    rarest = min(len(side) for pair in sides for side in pair)
    if not rarest:
        return Evaluation({}, {}, {}, ["no linear probe: a finding has no positive or no negative to learn from"])
    rng = np.random.default_rng(seed)
    kinds = {"linear_probe": [[np.concatenate(pair) for pair in sides]]}
    for count in (count for count in shots if count <= rarest):
        kinds[f"few_shot_{count}"] = [
            [np.concatenate([rng.choice(side, count, replace=False) for side in pair]) for pair in sides]
            for _ in range(DRAWS)
        ]
    half = np.full(len(findings), 0.5)  # AUROC needs no threshold
    judges = {
        kind: [Detection(_learnt(seen, known, rows, new), truth, half, findings) for rows in draws]
        for kind, draws in kinds.items()
    }

    def judged(weight: Array) -> dict[str, Array]:
        return {
            f"{kind}/auroc/{finding}": np.mean([found[f"auroc/{finding}"] for found in draws], axis=0)
            for kind, draws in ((kind, [judge(weight) for judge in each]) for kind, each in judges.items())
            for finding in (*findings, "macro")
        }

    metrics = {name: float(v[0]) for name, v in judged(np.ones((len(new), 1))).items() if not np.isnan(v[0])}
    chunks = [judged(weight) for weight in resamples(members(new, truth, group), replicates, seed)]
    drawn = {name: interval(np.concatenate([chunk[name] for chunk in chunks])) for name in metrics if chunks}
    left = [str(count) for count in shots if count > rarest]
    warnings = [f"no classifiers of {', '.join(left)} shots: a finding has only {rarest} examples"] if left else []
    counts = {"probe/train": len(seen)}
    return Evaluation(metrics, {name: ends for name, ends in drawn.items() if ends}, counts, warnings)


def _learnt(train: Array, label: Array, rows: Sequence[Array], test: Array) -> Array:
    """Probabilities float32 [N, C] of a classifier a finding, each learnt from its own rows."""
    columns = [
        LogisticRegression(max_iter=1000).fit(train[mine], label[mine, c]).predict_proba(test)[:, 1]
        for c, mine in enumerate(rows)
    ]
    return np.stack(columns, axis=1)
