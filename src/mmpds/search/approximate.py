"""Approximate search with FAISS: of a large archive quicker than exact search, and not always right.

Shapes: N = vectors of the archive, D = their width, Q = queries, K = hits a query.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np

from mmpds.results import whole
from mmpds.search.archive import Archive
from mmpds.search.exact import Hits

KINDS = ("ivf", "hnsw")
LISTS = 4
"""IVF has this many lists times the square root of N, as FAISS advises."""
EXAMPLES = 39
"""Vectors a list, at least, that its centre is learnt from: with fewer FAISS warns."""
PROBED = 16
"""One of so many lists is searched."""
LINKS, BREADTH = 32, 128
"""Of HNSW: links a vector, and vectors in view while it is built and searched."""
BLOCK = 8192
"""Vectors that are added at once."""
SAMPLE = 100
"""Vectors of the archive whose recall is measured."""
TOLERANCE = 1e-6
"""Two libraries may give the scores of equal vectors so far apart."""


def index(archive: Archive, kind: str) -> Any:
    """A FAISS index of an archive's vectors, kept beside them as `<kind>-<digest>.faiss`.

    The digest is of the vectors: once the archive has others, the index is made anew.

    Args:
        archive: one that is whole.
        kind: `ivf`, inverted lists (Sivic & Zisserman, ICCV 2003), or `hnsw`, a graph of neighbours (Malkov &
            Yashunin, TPAMI 2020).
    """
    import faiss

    files = repr([shard.files[f"{shard.name}.npy"] for shard in archive.shards])
    path = archive.folder / f"{kind}-{hashlib.sha256(files.encode()).hexdigest()[:16]}.faiss"
    if not path.is_file():
        made = _made(archive, kind)
        with whole(path) as part:
            faiss.write_index(made, str(part))
        for old in archive.folder.glob(f"{kind}-*.faiss"):
            if old != path:
                old.unlink()
    return faiss.read_index(str(path))


def _made(archive: Archive, kind: str) -> Any:
    import faiss

    count, metric = len(archive), faiss.METRIC_INNER_PRODUCT
    made: Any
    if kind == "hnsw":
        made = faiss.IndexHNSWFlat(archive.width, LINKS, metric)
        made.hnsw.efConstruction = made.hnsw.efSearch = BREADTH
    else:
        lists = max(1, min(round(LISTS * count**0.5), count // EXAMPLES))
        made = faiss.IndexIVFFlat(faiss.IndexFlatIP(archive.width), archive.width, lists, metric)
        made.nprobe = -(-lists // PROBED)
        made.cp.min_points_per_centroid = 1  # an archive may have few vectors
        made.train(_spread(archive, EXAMPLES * lists))
    for shard in archive.vectors():
        for first in range(0, len(shard), BLOCK):
            made.add(shard[first : first + BLOCK].astype(np.float32))
    return made


def search(made: Any, queries: np.ndarray, k: int) -> Hits:
    """The K best that the index finds; equal scores among them in the order of the rows.

    Args:
        made: see `index`.
        queries: float32 [Q, D].
        k: K.
    """
    score, row = made.search(np.ascontiguousarray(queries, np.float32), k)
    score[row < 0] = -np.inf
    order = np.lexsort((row, -score), axis=1)
    return Hits(np.take_along_axis(score, order, 1), np.take_along_axis(row, order, 1))


def recall(found: Hits, exact: Hits) -> float:
    """Share of the exact hits that were found; any vector that scores as the last of them is as right as that."""
    right = (found.row >= 0) & (found.score >= exact.score[:, -1:] - TOLERANCE)
    return float(right.mean())


def sample(archive: Archive) -> np.ndarray:
    """Vectors of the archive, to be looked for themselves: float32 [Q, D]."""
    return _spread(archive, SAMPLE)


def _spread(archive: Archive, count: int) -> np.ndarray:
    """Vectors at equal distances in the archive, float32 [count, D]; all where there are fewer."""
    rows = np.unique(np.linspace(0, len(archive) - 1, count).round().astype(np.int64))
    ends = np.cumsum([shard.rows for shard in archive.shards])
    parts = [
        vectors[rows[(rows >= end - len(vectors)) & (rows < end)] - (end - len(vectors))]
        for vectors, end in zip(archive.vectors(), ends, strict=True)
    ]
    return np.concatenate(parts).astype(np.float32)
