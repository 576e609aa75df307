"""How fast is search in an archive of embeddings against FAISS's flat index, memory, and two processes?

A contestant has a process of its own, in which it works only when it is its turn.

    python experiments/search_speed/run.py [--rounds 5] [--vectors 1000000] [--width 512] [--approximate 200000]
    python experiments/search_speed/run.py --gpu

Writes results.json (with --gpu, gpu.json) beside this file and renews the READMEs.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from functools import partial
from multiprocessing.connection import Client, Listener
from pathlib import Path

import numpy as np
import torch

sys.path.append(str(Path(__file__).resolve().parents[1]))

from measure import apart, chosen_device, conclude, rate

from mmpds.launch import allowed, mpi_launcher
from mmpds.search import approximate, ranks
from mmpds.search.archive import ROWS, Archive, begin, write_shard
from mmpds.search.exact import Exact
from mmpds.world import cap_threads, cores

HERE = Path(__file__).resolve().parent
K = 10
CALLS = {1: 40, 32: 4, 1024: 1}
"""Calls of a turn at each number of queries, which then take seconds."""
GPU_LONGER = 20
"""How many times as many on a GPU."""
COPIED, COPIES = 2**28, 8
"""Bytes that a copy reads, far beyond any cache, and copies of a turn."""
CLUSTER, SPREAD = 100, 0.5
"""Vectors a cluster, and how far they are from its centre, in the centre's length."""
SECTIONS = ("exact", "bandwidth", "ranks", "approximate")
PAIRS = {
    **{f"one rank ÷ faiss.IndexFlatIP, batches of {n}": ("exact", f"mmpds, {n}", f"faiss, {n}", 1.0) for n in CALLS},
    "vectors read by a single query ÷ memory copy": ("bandwidth", "mmpds", "copy", 0.7),
    **{f"2 MPI ranks ÷ 2 independent processes, batches of {n}": ("ranks", f"MPI, {n}", f"apart, {n}", 0.95)
       for n in CALLS},
    **{f"{kind} ÷ exact search, batches of 32": ("approximate", kind, "exact", None) for kind in approximate.KINDS},
}  # fmt: skip

GPU_PAIRS = {
    **{f"mmpds ÷ a product and topk in torch, batches of {n}": ("exact", f"mmpds, {n}", f"torch, {n}", 1.0)
       for n in CALLS},
    "vectors read by a single query ÷ memory copy": ("bandwidth", "mmpds", "copy", 0.7),
}  # fmt: skip


def clustered(rows, width, clusters, seed):
    """Unit vectors about the centres of clusters, as those of images are; float32 [rows, width]."""
    centres = np.random.default_rng(0).standard_normal((clusters, width), np.float32)
    random = np.random.default_rng(seed)
    made = centres[random.integers(clusters, size=rows)] + SPREAD * random.standard_normal((rows, width), np.float32)
    return made / np.linalg.norm(made, axis=1, keepdims=True)


def write_archive(folder, rows, width):
    """An archive of so many vectors, and `queries.npy` beside it."""
    clusters = max(1, rows // CLUSTER)
    _, source = begin(folder, "0123456789abcdef", None, "float32", "/images")
    for first in range(0, rows, ROWS):
        part = clustered(min(ROWS, rows - first), width, clusters, seed=1 + first)
        write_shard(folder, f"shard-{first // ROWS:05d}", source, part, [str(first + row) for row in range(len(part))])
    Archive.read(folder).settle()
    np.save(folder / "queries.npy", clustered(max(CALLS), width, clusters, seed=rows + 1))


def asked(folder, queries, search, longer=1):
    """A measurement: queries a second, in batches of so many."""
    every = np.load(folder / "queries.npy")
    batches = [every[call * queries % len(every) :][:queries] for call in range(longer * CALLS[queries])]

    def work():
        for batch in batches:
            search(batch)

    return lambda: rate(work, queries * len(batches))


def ours(folder, queries, device="cpu"):
    """One rank with all cores, the archive memory-mapped, or with one GPU."""
    exact = Exact(Archive.open(folder).vectors(), threads=cores(), device=device)
    return asked(folder, queries, lambda batch: exact.search(batch, K), GPU_LONGER if device == "cuda" else 1)


def torch_alone(folder, queries, device):
    """The same in torch, as one would write it: the scores of all vectors, and their best."""
    vectors = torch.cat([torch.from_numpy(part).to(device) for part in Archive.open(folder).vectors()])

    def search(batch):
        score, row = torch.topk(torch.from_numpy(batch).to(device) @ vectors.T, K)
        return score.cpu(), row.cpu()

    return asked(folder, queries, search, GPU_LONGER)


def theirs(folder, queries):
    """FAISS's flat index as it comes, with all cores, the vectors in its memory."""
    import faiss

    archive = Archive.open(folder)
    index = faiss.IndexFlatIP(archive.width)
    for vectors in archive.vectors():
        index.add(vectors)
    return asked(folder, queries, lambda batch: index.search(batch, K))


def index_of(folder, queries, kind):
    """An approximate index, made already."""
    made = approximate.index(Archive.open(folder), kind)
    return asked(folder, queries, lambda batch: approximate.search(made, batch, K))


def reading(folder, device="cpu"):
    """Gigabytes of vectors a second that a single query reads."""
    archive = Archive.open(folder)
    measure, size = ours(folder, 1, device), 4 * len(archive) * archive.width
    return lambda: measure() * size / 1e9


def copy(folder, device="cpu"):
    """Gigabytes a second, read and written, as STREAM counts them."""
    source, target = torch.ones(COPIED // 4, device=device), torch.zeros(COPIED // 4, device=device)
    copies = COPIES * (GPU_LONGER if device == "cuda" else 1)

    def work():
        for _ in range(copies):
            target.copy_(source)
        target[0].item()  # waits for a GPU

    return lambda: rate(work, 2 * COPIED * copies / 1e9)


def half(folder, place, queries, address):
    """A process that searches its half of the archive in one thread when told to: alone, or as a rank of two."""
    comm = None
    if place == "mpi":
        from mpi4py import MPI

        comm = MPI.COMM_WORLD
    rank = comm.rank if comm else int(place)
    exact = Exact(Archive.open(folder).vectors(), rank, 2)
    search = partial(ranks.search, exact, k=K, comm=comm) if comm else partial(exact.search, k=K)
    measure = asked(folder, queries, search)
    with Client(address) as pipe, suppress(EOFError):
        while pipe.recv():  # asleep until its turn, where MPI would wait at full speed
            pipe.send(measure())


def halves(folder, queries, launcher, places):
    """Queries a second of two processes at once, each over its half, the mean of both."""
    environment = dict(os.environ) | allowed()
    cap_threads(1, environment)
    with Listener(family="AF_UNIX") as listener:
        command = [*launcher, sys.executable, __file__, "--half", str(folder)]
        for place in places:
            started = subprocess.Popen([*command, place, str(queries), listener.address], env=environment)
            threading.Thread(target=lambda half=started: half.wait() and os._exit(1), daemon=True).start()
        pipes = [listener.accept() for _ in range(2)]

    def measure():
        for pipe in pipes:
            pipe.send(True)
        return statistics.mean(pipe.recv() for pipe in pipes)

    return measure


def of_each_number(builders, rounds, folder):
    """Rates of the contestants at each number of queries."""
    turns = {queries: apart(builders, rounds, folder, queries) for queries in CALLS}
    return {f"{name}, {queries}": each for queries, found in turns.items() for name, each in found.items()}


def approximated(folder, rounds):
    """Queries a second of each index beside exact search; and what each finds, as Markdown."""
    archive, queries = Archive.open(folder), np.load(folder / "queries.npy")
    exact = Exact(archive.vectors(), threads=cores()).search(queries, K)
    lines = [f"| of {len(archive):,} vectors | recall@{K} | seconds to make |", "| --- | --- | --- |"]
    recalls = {}
    for kind in approximate.KINDS:
        began = time.perf_counter()
        made = approximate.index(archive, kind)
        spent = time.perf_counter() - began
        recalls[kind] = approximate.recall(approximate.search(made, queries, K), exact)
        lines.append(f"| {kind} | {recalls[kind]:.3f} | {spent:.0f} |")
    builders = {"exact": ours} | {kind: partial(index_of, kind=kind) for kind in approximate.KINDS}
    return apart(builders, rounds, folder, 32), recalls, "\n".join(lines)


def main():
    """Measure, print, and keep the whole measurement in results.json."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--vectors", type=int, default=1_000_000)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--approximate", type=int, default=200_000, help="vectors of the approximate indices")
    parser.add_argument("--gpu", action="store_true", help="exact search on one GPU")
    parser.add_argument("--half", nargs=4, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.half:
        folder, place, queries, address = given.half
        half(Path(folder), place, int(queries), address)
        return 0
    device = chosen_device(parser, given)
    title = (
        f"Search of the {K} best of {given.vectors:,} vectors of {given.width} numbers, float32, "
        f"{4 * given.vectors * given.width / 1e9:.2f} GB; rates in queries a second, of bandwidth in GB/s"
    )
    with tempfile.TemporaryDirectory() as room:
        folder, smaller = Path(room, "archive"), Path(room, "smaller")
        write_archive(folder, given.vectors, given.width)
        other = {"torch": partial(torch_alone, device=device)} if given.gpu else {"faiss": theirs}
        rates = {"exact": of_each_number({"mmpds": partial(ours, device=device)} | other, given.rounds, folder)}
        rates["bandwidth"] = apart({"mmpds": reading, "copy": copy}, given.rounds, folder, device)
        if given.gpu:
            return conclude(HERE, title, rates, GPU_PAIRS, ("exact", "bandwidth"), unit="rate", gpu=True)
        pairs = {
            "MPI": partial(halves, launcher=mpi_launcher(2), places=["mpi"]),
            "apart": partial(halves, launcher=[], places=["0", "1"]),
        }
        rates["ranks"] = of_each_number(pairs, given.rounds, folder)
        write_archive(smaller, given.approximate, given.width)
        rates["approximate"], recalls, remarks = approximated(smaller, given.rounds)
    return conclude(HERE, title, rates, PAIRS, SECTIONS, remarks, unit="rate", recall=recalls)


if __name__ == "__main__":
    sys.exit(main())
