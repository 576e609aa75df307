"""Exact search by inner product with FAISS, or torch on a GPU; equal scores in the order of the archive.

FAISS's own flat index reads the vectors once a query where there are few, with one thread where there is one, and lets
its heap decide between equal scores. Here every thread has a part of the vectors, in blocks that stay in its cache.

Shapes: N = vectors of the archive, D = their width, Q = queries, K = hits a query, n = vectors of a block.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import NamedTuple

import faiss
import numpy as np
import torch
from torch import Tensor

QUERIES = 1024
"""Queries that are answered in one pass over the archive; more take more passes."""
UNIT = 1024
"""Vectors that FAISS multiplies at once: parts and blocks are whole units, whose scores are then always the same."""
CACHED = 4096
"""Vectors of a block that several queries find in the cache, and that half precision is widened by."""
LARGEST = 65536
"""Vectors of a block at most on a CPU: of one query, and of very many."""
SCORES = 1 << 28
"""Numbers of a block at most on a GPU, scores of all queries or a block of float16 widened: 1 GiB."""


class Hits(NamedTuple):
    """The best of each query, the best first; equal scores in the order of the rows.

    score: float32 [Q, K].
    row: int64 [Q, K], the position in the archive; -1, of score -inf, where fewer than K vectors were searched.
    """

    score: np.ndarray
    row: np.ndarray


class Part(NamedTuple):
    """Vectors that follow one another: float16 or float32 [n, D], and the first one's position in the archive."""

    vectors: Tensor
    first: int


class Exact:
    """One rank's part of an archive, searched by all its threads.

    On a CPU scores are the same bit by bit at any number of ranks and threads. Between machines, or asked together with
    other queries, they may differ in the last bit.

    Args:
        shards: float16 or float32 [n, D] each, in the archive's order; may be memory-mapped.
        rank: of the ranks, each of which has an equal part.
        size: number of ranks.
        threads: of this rank.
        device: `cpu`, or a GPU, to whose memory the part is moved.
    """

    def __init__(
        self, shards: Sequence[np.ndarray], rank: int = 0, size: int = 1, threads: int = 1, device: str = "cpu"
    ) -> None:
        self._device = torch.device(device)
        threads = threads if self._device.type == "cpu" else 1  # a GPU's queue is one
        tensors = [torch.from_numpy(shard) for shard in shards]
        self._parts = [cut(tensors, rank * threads + thread, size * threads) for thread in range(threads)]
        if self._device.type != "cpu":
            self._parts = [joined(part, self._device) for part in self._parts]
        self._pool = ThreadPoolExecutor(threads, initializer=_alone)

    def search(self, queries: np.ndarray, k: int) -> Hits:
        """The K best of this rank's part.

        Args:
            queries: float32 [Q, D].
            k: K, from 1 up.
        """
        queries = np.ascontiguousarray(queries, np.float32)
        found = []
        for start in range(0, max(len(queries), 1), QUERIES):
            wanted = queries[start : start + QUERIES]
            found.append(merged(list(self._pool.map(partial(_best, wanted, k, self._device), self._parts)), k))
        return Hits(*(np.concatenate(column) for column in zip(*found, strict=True)))


def cut(shards: Sequence[Tensor], place: int, parts: int) -> list[Part]:
    """The vectors of one of so many equal parts, whole units of each shard."""
    units = [-(-len(shard) // UNIT) for shard in shards]
    bounds = [sum(units) * edge // parts for edge in (place, place + 1)]
    found, row, unit = [], 0, 0
    for shard, count in zip(shards, units, strict=True):
        start, end = (min(max(bound - unit, 0) * UNIT, len(shard)) for bound in bounds)
        if start < end:
            found.append(Part(shard[start:end], row + start))
        row, unit = row + len(shard), unit + count
    return found


def joined(parts: Sequence[Part], device: torch.device) -> list[Part]:
    """Parts that follow one another, of one dtype, as one on a device, where blocks need not end with a shard."""
    if not parts:
        return []
    first, count = parts[0], sum(len(part.vectors) for part in parts)
    whole = torch.empty(count, first.vectors.shape[1], dtype=first.vectors.dtype, device=device)
    for vectors, row in parts:
        whole[row - first.first :][: len(vectors)] = vectors
    return [Part(whole, first.first)]


def _alone() -> None:
    """A thread of ours starts no threads of the libraries'."""
    faiss.omp_set_num_threads(1)
    torch.set_num_threads(1)


def _best(queries: np.ndarray, k: int, device: torch.device, parts: Sequence[Part]) -> Hits:
    """The K best of a thread's vectors."""
    found = Hits(np.full((len(queries), k), -np.inf, np.float32), np.full((len(queries), k), -1, np.int64))
    scored = _cpu(queries) if device.type == "cpu" else _gpu(torch.from_numpy(queries).to(device))
    for vectors, first in parts:
        rows = _rows(len(queries), vectors)
        for start in range(0, len(vectors), rows):
            block = vectors[start : start + rows]
            hits = _nearest(scored(block), len(block), k)
            found = merged([found, Hits(hits.score, hits.row + first + start)], k)
    return found


def _rows(queries: int, vectors: Tensor) -> int:
    """Vectors of a block.

    On a GPU as many as fit; on a CPU for one query the more the quicker, for several few enough to be found in the
    cache again.
    """
    if vectors.device.type != "cpu":
        return SCORES // max(queries, 1 if vectors.dtype == torch.float32 else vectors.shape[1])
    if vectors.dtype != torch.float32:
        return CACHED
    return LARGEST if queries == 1 else min(max(CACHED, 64 * queries // UNIT * UNIT), LARGEST)


Best = Callable[[int], tuple[np.ndarray, np.ndarray]]
"""From a number to so many hits a query in a block: score and row within it, the best first, of equal ones any."""


def _cpu(queries: np.ndarray) -> Callable[[Tensor], Best]:
    single = torch.empty(CACHED, queries.shape[1])  # one for all blocks: it stays in the cache

    def scored(block: Tensor) -> Best:
        if block.dtype != torch.float32:
            block = single[: len(block)].copy_(block)
        return lambda count: faiss.knn(queries, block.numpy(), count, faiss.METRIC_INNER_PRODUCT)

    return scored


def _gpu(queries: Tensor) -> Callable[[Tensor], Best]:
    def scored(block: Tensor) -> Best:
        score = queries @ block.float().T

        def best(count: int) -> tuple[np.ndarray, np.ndarray]:
            value, row = torch.topk(score, count)
            return value.cpu().numpy(), row.cpu().numpy()

        return best

    return scored


def _nearest(best: Best, rows: int, k: int) -> Hits:
    """The K best of a block; while some beyond them may score as the last, it asks for more."""
    count = min(k + 1, rows)
    while True:
        score, row = best(count)
        if count == rows or not (score[:, k - 1] == score[:, -1]).any():
            order = np.lexsort((row, -score), axis=1)[:, :k]
            return Hits(np.take_along_axis(score, order, 1), np.take_along_axis(row, order, 1))
        count = min(2 * count, rows)


def merged(parts: Sequence[Hits], k: int) -> Hits:
    """The K best of parts that follow one another, float32 and int64 [Q, K]; all where there are fewer."""
    score, row = (np.concatenate(column, axis=1) for column in zip(*parts, strict=True))
    order = np.argsort(-score, axis=1, kind="stable")[:, :k]
    return Hits(np.take_along_axis(score, order, 1), np.take_along_axis(row, order, 1))
