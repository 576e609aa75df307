"""Approximate search: how much of the exact hits it finds, and when its index is made anew."""

import numpy as np
import pytest

from mmpds.search import approximate
from mmpds.search.archive import Archive, begin, write_shard
from mmpds.search.exact import Exact, Hits
from tests.unit.search.test_archive import MODEL


def clustered(rows, width=32, clusters=40, seed=0):
    random = np.random.default_rng(seed)
    made = random.standard_normal((clusters, width))[random.integers(clusters, size=rows)]
    made = made + 0.4 * random.standard_normal((rows, width))
    return (made / np.linalg.norm(made, axis=1, keepdims=True)).astype(np.float32)


def add(folder, vectors):
    archive, source = begin(folder, MODEL, None, "float32", "/images")
    write_shard(folder, archive.free(0, 1)[0], source, vectors, [f"{row}.png" for row in range(len(vectors))])
    Archive.read(folder).settle()
    return Archive.open(folder)


@pytest.mark.parametrize("kind", approximate.KINDS)
def test_most_of_the_exact_hits_are_found_in_clusters(kind, tmp_path):
    archive = add(tmp_path, clustered(5000))
    made, queries = approximate.index(archive, kind), approximate.sample(archive)
    found = approximate.search(made, queries, 10)
    exact = Exact(archive.vectors()).search(queries, 10)
    recall = approximate.recall(found, exact)
    assert 0.9 < recall <= 1
    same = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(found.row, exact.row, strict=True)])
    assert recall == pytest.approx(same, abs=0.01)
    assert (np.diff(found.score, axis=1) <= 0).all()


@pytest.mark.parametrize("kind", approximate.KINDS)
def test_an_index_is_kept_until_the_archive_has_other_vectors(kind, tmp_path):
    archive = add(tmp_path, clustered(300))
    approximate.index(archive, kind)
    (first,) = tmp_path.glob("*.faiss")
    stamp = first.stat().st_mtime_ns
    approximate.index(archive, kind)
    assert first.stat().st_mtime_ns == stamp
    archive = add(tmp_path, clustered(100, seed=1))
    assert approximate.index(archive, kind).ntotal == 400
    (second,) = tmp_path.glob("*.faiss")
    assert second != first


@pytest.mark.parametrize("kind", approximate.KINDS)
def test_an_archive_of_few_vectors_has_an_index_too(kind, tmp_path):
    archive = add(tmp_path, clustered(3))
    found = approximate.search(approximate.index(archive, kind), approximate.sample(archive), 5)
    assert found.row.shape == (3, 5)
    assert found.row[:, 0].tolist() == [0, 1, 2]
    assert (found.row[:, 3:] == -1).all()


def test_recall_is_the_share_of_the_exact_hits_and_equal_scores_are_as_good():
    exact = Hits(np.array([[0.9, 0.5]], np.float32), np.array([[1, 2]]))
    for row, score, share in (([1, 2], [0.9, 0.5], 1), ([1, 7], [0.9, 0.5], 1), ([1, 7], [0.9, 0.4], 0.5)):
        assert approximate.recall(Hits(np.array([score], np.float32), np.array([row])), exact) == share
    assert approximate.recall(Hits(np.array([[0.9, -np.inf]], np.float32), np.array([[1, -1]])), exact) == 0.5
