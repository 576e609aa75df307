"""Recall@k against a plain loop, and chance against a simulation."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import hypergeom

from mmpds.metrics.retrieval import retrieval


def unit(count, seed, width=6):
    drawn = np.random.default_rng(seed).normal(size=(count, width)).astype(np.float32)
    return drawn / np.linalg.norm(drawn, axis=1, keepdims=True)


def by_hand(query, answer, name, k):
    """A sort for each query, wrong answers first among equals."""
    hits = 0
    for row in range(len(query)):
        score = query[row] @ answer.T
        order = sorted(range(len(answer)), key=lambda other: (-score[other], name[other] == name[row]))
        hits += any(name[other] == name[row] for other in order[:k])
    return hits / len(query)


@given(st.integers(0, 1000), st.integers(2, 30), st.integers(1, 8))
def test_as_a_plain_loop_has_it(seed, count, kinds):
    name = np.random.default_rng(seed).integers(kinds, size=count)
    image, text = unit(count, seed), unit(kinds, seed + 1)[name]
    found = retrieval(image, text, caption_id=name, ks=(1, 3, 50), replicates=0).metrics
    for k in (1, 3):
        if k <= count:
            assert found[f"image_to_text/recall@{k}"] == pytest.approx(by_hand(image, text, name, k))
            assert found[f"text_to_image/recall@{k}"] == pytest.approx(by_hand(text, image, name, k))
    assert "image_to_text/recall@50" not in found


def test_perfect_embeddings_find_everything_and_constant_ones_nothing():
    image, name = unit(40, 0), np.arange(40)
    perfect = retrieval(image, image, caption_id=name, replicates=0).metrics
    assert perfect["image_to_text/recall@1"] == perfect["text_to_image/recall@1"] == 1
    assert perfect["image_to_text/median_rank"] == 1
    same = np.repeat(image[:1], 40, axis=0)
    assert retrieval(same, same, caption_id=name, replicates=0).metrics["image_to_text/recall@10"] == 0


@given(st.integers(1, 60), st.integers(1, 10), st.integers(1, 10))
def test_chance_is_that_of_drawing_without_replacement(others, matches, k):
    name = np.r_[np.zeros(matches), np.arange(1, others + 1)].astype(int)
    count = len(name)
    if k > count:
        return
    found = retrieval(unit(count, 0), unit(count, 1), caption_id=name, ks=(k,), replicates=0).metrics
    expected = np.mean([1 - hypergeom(count, np.sum(name == own), k).pmf(0) for own in name])
    assert found[f"text_to_image/recall_chance@{k}"] == pytest.approx(expected)


def test_random_embeddings_are_at_chance():
    name = np.random.default_rng(0).integers(200, size=1500)  # more than a block
    found = retrieval(unit(1500, 1, 16), unit(200, 2, 16)[name], caption_id=name, replicates=200)
    low, high = found.intervals["text_to_image/recall@10"]
    assert found.metrics["text_to_image/recall_chance@10"] == pytest.approx(0.05, abs=0.02)
    assert found.metrics["image_to_text/recall@10"] < 0.2
    assert low <= found.metrics["text_to_image/recall@10"] <= high


def test_shapes_that_do_not_agree_are_told():
    with pytest.raises(ValueError, match="one row an item"):
        retrieval(unit(4, 0), unit(5, 0), caption_id=np.arange(4))
