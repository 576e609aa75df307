"""STREAM's triad (McCalpin 1995) on one core and on several, a process each, as ranks would run it."""

import multiprocessing
import time

import numpy as np

ELEMENTS = 1 << 24  # float64, three arrays: 0.4 GB, beyond any cache
REPEATS = 10  # as in stream.c
BYTES = 3 * 8
BLOCK = 1 << 12
"""Elements: three blocks lie in a core's first cache."""


def triad(processes):
    """Bytes a second of so many processes at once: the best repeat, each as long as its slowest process."""
    context = multiprocessing.get_context("spawn")
    barrier, queue = context.Barrier(processes), context.Queue()
    workers = [context.Process(target=_work, args=(barrier, queue, ELEMENTS // processes)) for _ in range(processes)]
    for worker in workers:
        worker.start()
    repeats = [max(seconds) for seconds in zip(*(queue.get() for _ in workers), strict=True)]
    for worker in workers:
        worker.join()
    return BYTES * (ELEMENTS // processes) * processes / min(repeats)


def _work(barrier, queue, elements):
    a, b, c = (np.ones(elements) for _ in range(3))
    spent = []
    for _ in range(REPEATS):
        barrier.wait()
        began = time.perf_counter()
        # two passes through the cache, block by block: NumPy has no triad of one pass
        for first in range(0, elements, BLOCK):
            part = slice(first, first + BLOCK)
            np.multiply(c[part], 3.0, out=a[part])
            np.add(a[part], b[part], out=a[part])
        spent.append(time.perf_counter() - began)
    queue.put(spent)
