"""Which rank takes which batch: a fixed share each, or the next one from a counter that all ranks share.

The counter is a key of a TCPStore (torch.distributed), which a thread of rank 0's process serves while rank 0
itself computes. One-sided MPI (MPI_Fetch_and_op) is as quick where ranks share memory, but needs ranks that MPI
started and, between nodes, a target that makes progress; the store works under mpirun, srun and torchrun alike, and
a fetch costs a fraction of a millisecond beside batches of seconds. Both are measured, also while rank 0 is busy, by
`python experiments/schedule/run.py`.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from functools import partial

SCHEDULES = ("static", "dynamic")
POLL_S = 0.05
"""Seconds between two looks whether the other ranks have arrived."""


class SharedCounter:
    """A counter that counts each number for one rank only, from 0; all ranks of the process group must make it.

    Rank 0 serves it, at MASTER_ADDR and a port of the system's choice.
    """

    def __init__(self) -> None:
        import torch.distributed as dist

        store = partial(dist.TCPStore, os.environ["MASTER_ADDR"], wait_for_workers=False)  # type: ignore[attr-defined]
        server = store(0, is_master=True) if dist.get_rank() == 0 else None
        port = [server.port if server else 0]
        dist.broadcast_object_list(port, src=0)
        self._store = server or store(port[0], is_master=False)
        self._ranks = dist.get_world_size()

    def take(self) -> int:
        """The next number."""
        return int(self._store.add("taken", 1)) - 1

    def wait(self) -> None:
        """Return when every rank is here, however long that takes.

        A collective would give up after the process group's timeout (30 minutes by default), and one batch of a
        diffusion model on a CPU core can take longer than that.
        """
        import torch.distributed as dist

        self._store.add("arrived", 1)
        while self._store.add("arrived", 0) < self._ranks:
            time.sleep(POLL_S)
        dist.barrier()  # rank 0 serves until all have seen that all are here


def turns(batches: int, schedule: str, rank: int, world_size: int) -> Iterator[int]:
    """The numbers of the batches that a rank takes, in [0, batches); all ranks together take each once.

    With several ranks it ends on all of them at the same time, so that no later collective waits for a slow rank;
    all ranks must go through it to its end.

    Args:
        batches: their number.
        schedule: static: rank r takes r, r + world_size, r + 2 world_size, …; dynamic: a rank takes the next batch
            whenever it is free (self-scheduling), which balances batches or ranks of unequal speed.
        rank: of this process, in [0, world_size).
        world_size: number of ranks; those of torch.distributed's process group, where there are several.
    """
    if world_size == 1:
        yield from range(batches)
        return
    counter = SharedCounter()
    if schedule == "static":
        yield from range(rank, batches, world_size)
    else:
        while (turn := counter.take()) < batches:
            yield turn
    counter.wait()
