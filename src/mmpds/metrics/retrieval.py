"""Whether an image finds its report among all, and a report its image.

Shapes: N = pairs of an image and a text, D = width of an embedding.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import gammaln

from mmpds.metrics.classification import Array
from mmpds.metrics.intervals import Evaluation, interval, members, resamples

BLOCK = 1024
"""Queries that are ranked at a time."""


def retrieval(
    image: ArrayLike, text: ArrayLike, *, caption_id: ArrayLike, group: ArrayLike | None = None,
    ks: Sequence[int] = (1, 5, 10), replicates: int = 1000, seed: int = 0,
) -> Evaluation:  # fmt: skip
    """Recall@k of image to text and of text to image, and what chance gives.

    Each item asks once in either direction, among all N of the other kind. Pairs with the same text are right answers
    to one another: nothing tells them apart. Metrics, for `image_to_text` and `text_to_image`:

    <way>/recall@k: the share of queries with a right answer among the first k (Karpathy & Fei-Fei, CVPR 2015).
    <way>/recall_chance@k: the same of answers in random order, exactly: 1 - C(N - m, k) / C(N, k) with m right ones.
    <way>/median_rank: of the first right answer, from 1.

    Among equal scores wrong answers come first: embeddings that are all alike find nothing. The intervals are of the
    queries, by patient; what they are searched in stays.

    Args:
        image: [N, D], of unit length.
        text: [N, D], of unit length.
        caption_id: int [N], equal for equal texts.
        group: [N], the patient of each item; without it each item is its own group.
        ks: each from 1 up; those above N are left out.
        replicates: of the bootstrap; 0 for no intervals.
        seed: of the bootstrap.

    Raises:
        ValueError: the shapes do not agree.
    """
    pictures, texts = np.asarray(image, np.float32), np.asarray(text, np.float32)
    name = np.asarray(caption_id)
    if pictures.shape != texts.shape or name.shape != (len(pictures),) or not len(pictures):
        raise ValueError(f"image {pictures.shape}, text {texts.shape}, caption_id {name.shape}: give one row an item")
    count = len(name)
    kept = [k for k in ks if k <= count]
    right = np.unique(name, return_inverse=True, return_counts=True)
    matches = right[2][right[1]]
    chance = {k: _chance(count, matches, k) for k in kept}
    ranks = {"image_to_text": _ranks(pictures, texts, name), "text_to_image": _ranks(texts, pictures, name)}
    each = {f"{way}/recall@{k}": (rank <= k).astype(float) for way, rank in ranks.items() for k in kept}
    each |= {f"{way}/recall_chance@{k}": chance[k] for way in ranks for k in kept}

    def judged(weight: Array) -> dict[str, Array]:
        return {metric: hits @ weight / weight.sum(0) for metric, hits in each.items()}

    metrics = {metric: float(v[0]) for metric, v in judged(np.ones((count, 1))).items()}
    metrics |= {f"{way}/median_rank": float(np.median(rank)) for way, rank in ranks.items()}
    member = members(name[:, None].astype(float), np.zeros((count, 1)), group)
    chunks = [judged(weight) for weight in resamples(member, replicates, seed)]
    drawn = {metric: interval(np.concatenate([c[metric] for c in chunks])) for metric in each if chunks}
    intervals = {metric: ends for metric, ends in drawn.items() if ends and "chance" not in metric}
    return Evaluation(metrics, intervals, {"retrieval/items": count, "retrieval/texts": len(right[0])}, [])


def _ranks(query: Array, answer: Array, name: Array) -> Array:
    """The place of each query's first right answer, from 1, behind all wrong ones of its score: int [N]."""
    ranks = []
    for start in range(0, len(query), BLOCK):
        score = query[start : start + BLOCK] @ answer.T
        right = name[start : start + BLOCK, None] == name
        best = np.where(right, score, -np.inf).max(1, keepdims=True)
        ranks.append(1 + np.count_nonzero((score >= best) & ~right, axis=1))
    return np.concatenate(ranks)


def _chance(count: int, matches: Array, k: int) -> Array:
    """The probability that k of `count` answers drawn at random hold one of each query's `matches` right ones."""
    wrong = count - matches
    with np.errstate(invalid="ignore"):
        missed = gammaln(wrong + 1) - gammaln(wrong - k + 1) + gammaln(count - k + 1) - gammaln(count + 1)
    return np.where(wrong < k, 1.0, 1 - np.exp(missed))
