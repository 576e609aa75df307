"""Exact search over MPI ranks, each in its part of the archive.

Shapes: Q = queries, D = width of an embedding, K = hits a query.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from mmpds.console import say
from mmpds.launch import allowed, diagnose, mpi_launcher
from mmpds.search.archive import Archive
from mmpds.search.exact import Exact, Hits, merged
from mmpds.world import adopt, cap_threads, cores


def search(exact: Exact, queries: np.ndarray, k: int, comm: Any) -> Hits | None:
    """The K best of all ranks' parts, merged in pairs: log2(ranks) steps; on rank 0, None elsewhere.

    Args:
        exact: this rank's part.
        queries: float32 [Q, D], the same on every rank.
        k: K.
        comm: an mpi4py communicator, all of whose ranks call this.
    """
    hits = exact.search(queries, k)
    step = 1
    while step < comm.size:
        if comm.rank % (2 * step):
            comm.Send(hits.score, comm.rank - step)
            comm.Send(hits.row, comm.rank - step)
            return None
        if comm.rank + step < comm.size:
            other = Hits(np.empty_like(hits.score), np.empty_like(hits.row))
            comm.Recv(other.score, comm.rank + step)
            comm.Recv(other.row, comm.rank + step)
            hits = merged([hits, other], k)
        step *= 2
    return hits


def start(folder: Path, queries: np.ndarray, k: int, ranks: int, device: str = "cpu") -> Hits:
    """Search an archive on so many ranks, which mpirun starts.

    Args:
        folder: of an archive that is whole.
        queries: float32 [Q, D].
        k: K.
        ranks: number of them.
        device: `cpu` or `cuda`, of which each rank of a machine then takes the next.

    Raises:
        OSError: a rank failed, or there is no mpirun; the text names the cause.
    """
    environment = dict(os.environ) | allowed()
    cap_threads(1, environment)  # those that search are ours
    with tempfile.TemporaryDirectory() as room:
        asked, answer = Path(room, "queries.npy"), Path(room, "hits.npz")
        np.save(asked, queries)
        command = [
            *mpi_launcher(ranks), sys.executable, "-m", "mmpds.search.ranks", str(folder.resolve()), str(asked), str(k),
            device, str(answer),
        ]  # fmt: skip
        done = subprocess.run(command, env=environment, stderr=subprocess.PIPE, text=True, check=False)
        if done.returncode:
            raise OSError(f"the search on {ranks} ranks failed: {diagnose(done.stderr, done.returncode)}")
        with np.load(answer) as found:
            return Hits(found["score"], found["row"])


def main(folder: str, asked: str, k: str, device: str, answer: str) -> int:
    """A rank that `start` started."""
    world = adopt(os.environ)

    from mpi4py import MPI  # imported here: importing it starts MPI

    try:
        threads = max(1, cores() // world.local_size)
        if device == "cuda":
            import torch

            device = f"cuda:{world.local_rank % torch.cuda.device_count()}"
        exact = Exact(Archive.open(Path(folder)).vectors(), world.rank, world.size, threads, device)
        hits = search(exact, np.load(asked), int(k), MPI.COMM_WORLD)
        if hits is not None:
            np.savez(answer, score=hits.score, row=hits.row)
    except Exception as error:  # the others wait for this rank
        say(f"mmpds: rank {world.rank} failed: {' '.join(str(error).split())}")
        MPI.COMM_WORLD.Abort(1)
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
