"""Where this process stands among its run's ranks, and what of the machine it may use.

Nothing here imports torch: ranks must be known and threads capped before its import.
"""

from __future__ import annotations

import ctypes
import os
import re
from collections.abc import MutableMapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from omegaconf import DictConfig

# rank, world size, local rank, local size, as each launcher names them
LAUNCHERS = {
    "mpi": (
        "OMPI_COMM_WORLD_RANK",
        "OMPI_COMM_WORLD_SIZE",
        "OMPI_COMM_WORLD_LOCAL_RANK",
        "OMPI_COMM_WORLD_LOCAL_SIZE",
    ),
    "mpich": ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"),
    "torchrun": ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"),
    "srun": ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", "SLURM_STEP_TASKS_PER_NODE"),
}


@dataclass(frozen=True)
class World:
    """Where this process stands among its run's ranks."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    launcher: str = "none"


def adopt(environ: MutableMapping[str, str], alone: bool = False) -> World:
    """The world that the launcher's environment describes; sets RANK, LOCAL_RANK and WORLD_SIZE in it.

    Lightning reads these at its import and knows no MPI's own variables: without this every MPI rank
    believes it is rank 0.

    Args:
        environ: the process's.
        alone: whether the only task of an srun is a rank; else it is taken for a shell that a person works in.
    """
    for launcher, (rank, size, local_rank, local_size) in LAUNCHERS.items():
        # all four, for PMI_* alone may be srun's
        if {rank, size, local_rank, local_size} <= set(environ):
            if launcher == "srun" and environ[size] == "1" and not alone:
                continue
            world = World(
                rank=int(environ[rank]),
                size=int(environ[size]),
                local_rank=int(environ[local_rank]),
                # Slurm writes "2(x3)": two tasks on each of three nodes
                local_size=int(re.split(r"[(,]", environ[local_size])[0]),
                launcher=launcher,
            )
            environ["RANK"], environ["LOCAL_RANK"] = str(world.rank), str(world.local_rank)
            environ["WORLD_SIZE"], environ["LOCAL_WORLD_SIZE"] = str(world.size), str(world.local_size)
            return world
    return World()


def cores() -> int:
    """Physical cores this process may use: the least of its affinity mask, its container's quota and the machine's."""
    import psutil

    allowed = min(len(os.sched_getaffinity(0)), psutil.cpu_count(logical=False) or 1)
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
    except (OSError, ValueError):
        quota, period = "max", "1"
    return max(1, allowed if quota == "max" else min(allowed, int(quota) // int(period)))


def gpus() -> int:
    """GPUs this process may use, counted without loading torch."""
    if (visible := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return len([device for device in visible.split(",") if device.strip() not in ("", "-1")])
    try:
        import pynvml

        pynvml.nvmlInit()
        return int(pynvml.nvmlDeviceGetCount())
    except Exception:  # no driver, no library, no device: all mean none
        return 0


@cache
def cpu_features() -> frozenset[str]:
    """What the CPU can do, as /proc/cpuinfo names it, such as "avx512_bf16"; empty where there is no such file."""
    try:
        return frozenset(Path("/proc/cpuinfo").read_text().split())
    except OSError:
        return frozenset()


def has_vnni() -> bool:
    """Whether the CPU multiplies and adds int8 in one instruction."""
    return bool(cpu_features() & {"avx512_vnni", "avx_vnni"})


def ranks(cfg: DictConfig) -> int:
    """How many ranks the configuration asks for, outside any launcher; auto takes no more than the batch divides by."""
    if cfg.trainer.launcher == "none":
        return 1
    if cfg.ranks != "auto":
        return int(cfg.ranks)
    if (tasks := int(os.environ.get("SLURM_NTASKS", 1))) > 1:
        return tasks
    if cfg.trainer.accelerator == "gpu":
        return max(1, gpus())
    if "prompts" in cfg.data:  # a batch of prompts is one rank's
        return cores()
    batch = cfg.data.batch_size
    return max((n for n in range(1, cores() + 1) if isinstance(batch, int) and batch % n == 0), default=1)


def threads(cfg: DictConfig, world: World) -> int:
    """CPU threads a rank may use: N ranks times all cores would fight for the machine."""
    wanted = cfg.trainer.threads
    if wanted == "auto" and world.launcher == "srun":  # which may have bound each rank to its own share already
        wanted = os.environ.get("SLURM_CPUS_PER_TASK", "auto")
    return max(1, cores() // world.local_size) if wanted == "auto" else int(wanted)


def cap_threads(count: int, environ: MutableMapping[str, str]) -> None:
    """Limit the OpenMP and BLAS pools; must precede the import of numpy and torch."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        environ[name] = str(count)


def reuse_memory() -> None:
    """Let malloc keep what is freed, for the next batch to use.

    glibc gives large blocks back to the system and gets them again, zeroed page by page, at every batch, which
    costs CPU inference a good part of its time. Other C libraries have no such setting, or ignore it.
    """
    M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # noqa: N806 - glibc's malloc.h
    if mallopt := getattr(ctypes.CDLL(None), "mallopt", None):
        mallopt(M_MMAP_THRESHOLD, 1 << 30) or mallopt(M_MMAP_THRESHOLD, 1 << 25)  # older glibc takes no more
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
