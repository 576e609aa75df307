"""Vector addition, c = a + b, in Python on the CPU, one way a process.

    python add.py HOW ELEMENTS REPEATS TYPE

HOW is a function of this file. Prints one line of JSON: seconds of allocation and first touch, of each repetition
after the warm-up, and of the data's way to the ranks and back; two checksums of c. As many threads as OMP_NUM_THREADS.
"""

import json
import os
import sys
import time
from array import array
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np

WARM_UP = 3
TRANSFERS = 5
THREADS = int(os.environ.get("OMP_NUM_THREADS", 1))


def timed(work, repeats, before=lambda: None):
    """Seconds of each repetition of `work` after the warm-up; `before` is called each time and not counted."""
    times = []
    for _ in range(WARM_UP + repeats):
        before()
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return times[WARM_UP:]


def record(c, first_touch, times, transfers=(), workers=1):
    """What a program prints; the sums are whole numbers below 2^53 and so exact in any order."""
    c = np.asarray(c, dtype=np.float64)
    return {
        "first_touch_s": first_touch, "times_s": times, "transfer_s": list(transfers), "workers": workers,
        "sum": float(c.sum()), "weighted": float((c * (np.arange(c.size) % 97 + 1)).sum()),
    }  # fmt: skip


def vectors(dtype, first, size):
    """a, b and c = 0 at the places first, first + 1, … of the whole vectors."""
    places = np.arange(first, first + size)
    return (places % 1000).astype(dtype), (places % 777).astype(dtype), np.full(size, 0, dtype)


def parts(size):
    """One slice a thread."""
    edges = [size * thread // THREADS for thread in range(THREADS + 1)]
    return [slice(*edge) for edge in pairwise(edges)]


def sequential(size, repeats, dtype):
    """A loop of the interpreter."""
    began = time.perf_counter()
    code = np.dtype(dtype).char
    a = array(code, (i % 1000 for i in range(size)))
    b = array(code, (i % 777 for i in range(size)))
    c = array(code, bytes(size * a.itemsize))
    first_touch = time.perf_counter() - began

    def add():
        for i in range(size):
            c[i] = a[i] + b[i]

    return record(c, first_touch, timed(add, repeats))


def numpy(size, repeats, dtype):
    began = time.perf_counter()
    a, b, c = vectors(dtype, 0, size)
    first_touch = time.perf_counter() - began
    return record(c, first_touch, timed(lambda: np.add(a, b, out=c), repeats))


def numpy_threads(size, repeats, dtype):
    """NumPy lets go of the interpreter's lock while it adds."""
    with ThreadPoolExecutor(THREADS) as pool:
        began = time.perf_counter()
        a, b, c = (np.empty(size, dtype) for _ in range(3))

        def touch(part):
            a[part], b[part], c[part] = vectors(dtype, part.start, part.stop - part.start)

        def add(part):
            np.add(a[part], b[part], out=c[part])

        list(pool.map(touch, parts(size)))
        first_touch = time.perf_counter() - began
        times = timed(lambda: list(pool.map(add, parts(size))), repeats)
    return record(c, first_touch, times, workers=THREADS)


def numpy_mpi(size, repeats, dtype):
    """Each rank adds its share; a transfer is from rank 0's whole vectors to the ranks and back."""
    from mpi4py import MPI

    world = MPI.COMM_WORLD
    edges = [size * rank // world.size for rank in range(world.size + 1)]
    first, share = edges[world.rank], edges[world.rank + 1] - edges[world.rank]
    world.Barrier()
    began = time.perf_counter()
    a, b, c = vectors(dtype, first, share)
    first_touch = time.perf_counter() - began
    times = timed(lambda: np.add(a, b, out=c), repeats, world.Barrier)

    counts, transfers = [after - before for before, after in pairwise(edges)], []
    whole = vectors(dtype, 0, size) if world.rank == 0 else (None, None, None)
    buffers = [(values, counts) if world.rank == 0 else None for values in whole]
    for _ in range(1 + TRANSFERS):
        world.Barrier()
        began = time.perf_counter()
        world.Scatterv(buffers[0], a)
        world.Scatterv(buffers[1], b)
        there = time.perf_counter() - began
        np.add(a, b, out=c)
        world.Barrier()
        began = time.perf_counter()
        world.Gatherv(c, buffers[2])
        transfers.append(there + time.perf_counter() - began)
    found = world.gather((first_touch, times, transfers[1:]))
    if world.rank:
        return None
    touches, times, transfers = zip(*found, strict=True)
    slowest = [list(map(max, zip(*each, strict=True))) for each in (times, transfers)]
    return record(whole[2], max(touches), *slowest, workers=world.size)


def numba(size, repeats, dtype):
    """A loop compiled by Numba, parallel where there are threads; c is touched by the thread that writes it."""
    from numba import njit, prange

    @njit(parallel=THREADS > 1)
    def touch(a, b, c):
        for i in prange(c.size):
            a[i] = i % 1000
            b[i] = i % 777
            c[i] = 0

    @njit(parallel=THREADS > 1)
    def add(a, b, c):
        for i in prange(c.size):
            c[i] = a[i] + b[i]

    touch(*vectors(dtype, 0, 1))  # compiles it
    began = time.perf_counter()
    a, b, c = (np.empty(size, dtype) for _ in range(3))
    touch(a, b, c)
    first_touch = time.perf_counter() - began
    return record(c, first_touch, timed(lambda: add(a, b, c), repeats), workers=THREADS)


def torch(size, repeats, dtype):
    import torch

    kind = getattr(torch, dtype)
    began = time.perf_counter()
    a, b = (torch.arange(size).remainder_(modulus).to(kind) for modulus in (1000, 777))
    c = torch.zeros(size, dtype=kind)
    first_touch = time.perf_counter() - began
    times = timed(lambda: torch.add(a, b, out=c), repeats)
    return record(c, first_touch, times, workers=torch.get_num_threads())


if __name__ == "__main__":
    found = globals()[sys.argv[1]](int(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
    if found:
        print(json.dumps(found))
