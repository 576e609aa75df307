"""Exact search against sorting all scores; ties; the same bits however the archive is shared out."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmpds.search.exact import UNIT, Exact, Hits, _gpu, _nearest, cut, joined, merged


def vectors(rows, width=16, seed=0):
    made = np.random.default_rng(seed).standard_normal((rows, width), dtype=np.float32)
    return made / np.linalg.norm(made, axis=1, keepdims=True)


def sorted_scores(queries, archive, k):
    score = queries.astype(np.float64) @ archive.astype(np.float64).T
    order = np.argsort(-score, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(score, order, 1), order


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("count", [1, 7, 32, 1100])
def test_hits_are_the_best_of_all_scores(dtype, count):
    archive, queries = vectors(3 * UNIT + 77).astype(dtype), vectors(count, seed=1)
    found = Exact([archive[:900], archive[900:]], threads=2).search(queries, 10)
    score, row = sorted_scores(queries, archive, 10)
    assert found.score.dtype == np.float32
    assert np.allclose(found.score, score, atol=1e-6)
    # two scores closer than single precision may change places
    assert (found.row == row).mean() > 0.999


@pytest.mark.parametrize("count", [1, 40])
@pytest.mark.parametrize("k", [1, 3, 10, 150])
def test_equal_scores_are_in_the_order_of_the_archive(k, count):
    archive = vectors(2 * UNIT + 300)
    copies = np.sort(np.random.default_rng(2).choice(len(archive), 200, replace=False))
    archive[copies] = archive[copies[0]]
    queries = np.concatenate([archive[copies[:1]], vectors(count - 1, seed=1)])
    for parts in ([archive], [archive[:1500], archive[1500:]]):
        for threads in (1, 2, 3):
            assert Exact(parts, threads=threads).search(queries, k).row[0].tolist() == copies[:k].tolist()


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_any_ranks_and_threads_give_the_same_bits(data):
    rows = data.draw(st.lists(st.integers(1, 2 * UNIT + 5), min_size=1, max_size=4))
    k, count = data.draw(st.integers(1, 30)), data.draw(st.sampled_from([1, 2, 19, 20, 33]))
    archive = vectors(sum(rows), width=4)
    archive = np.round(archive * 4) / 4  # many ties
    shards = np.split(archive, np.cumsum(rows)[:-1])
    queries = np.round(vectors(count, width=4, seed=1) * 4) / 4
    alone = Exact(shards).search(queries, k)
    size, threads = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 3))
    parts = [Exact(shards, rank, size, threads).search(queries, k) for rank in range(size)]
    together = merged(parts, k)
    assert np.array_equal(together.score, alone.score)
    assert np.array_equal(together.row, alone.row)
    _, row = sorted_scores(queries, archive, k)
    assert np.array_equal(alone.row[:, : row.shape[1]], row)


def test_a_small_archive_gives_all_it_has():
    found = Exact([vectors(3)], rank=0, size=2).search(vectors(2, seed=1), 5)  # nothing is left for this rank
    assert (found.row == -1).all()
    assert np.isneginf(found.score).all()
    found = Exact([vectors(3)]).search(vectors(2, seed=1), 5)
    assert (np.sort(found.row) == [-1, -1, 0, 1, 2]).all()


def test_no_queries_have_no_hits():
    assert Exact([vectors(3)]).search(vectors(0), 2).row.shape == (0, 2)


def test_parts_are_merged_by_score_then_by_row():
    left = Hits(np.array([[0.5, 0.2]], np.float32), np.array([[4, 1]]))
    right = Hits(np.array([[0.5, 0.5]], np.float32), np.array([[7, 9]]))
    found = merged([left, right], 3)
    assert found.row.tolist() == [[4, 7, 9]]


@pytest.mark.parametrize("place", [0, 1])
def test_a_part_s_shards_are_one_piece_on_a_gpu(place):
    """On the CPU here."""
    archive = torch.from_numpy(vectors(5 * UNIT + 9))
    shards = [archive[: 2 * UNIT], archive[2 * UNIT : 3 * UNIT], archive[3 * UNIT :]]
    (part,) = joined(cut(shards, place, 2), torch.device("cpu"))
    assert torch.equal(part.vectors, archive[part.first :][: len(part.vectors)])
    assert (part.first, len(part.vectors)) == [(0, 3 * UNIT), (3 * UNIT, 2 * UNIT + 9)][place]


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("k", [1, 10, 400])
def test_what_a_gpu_runs_gives_the_same_hits(dtype, k):
    """On the CPU here; equal scores beyond the last hit are asked for until all are seen."""
    archive = vectors(500).astype(dtype)
    copies = np.sort(np.random.default_rng(2).choice(500, 80, replace=False))
    archive[copies] = archive[copies[0]]
    queries = np.concatenate([archive[copies[:1]].astype(np.float32), vectors(30, seed=1)])
    found = _nearest(_gpu(torch.from_numpy(queries))(torch.from_numpy(archive)), len(archive), k)
    expected = Exact([archive]).search(queries, k)
    assert np.allclose(found.score, expected.score, atol=1e-6)
    assert found.row[0, : min(k, 80)].tolist() == copies[:k].tolist()
    assert (found.row == expected.row).mean() > 0.99
