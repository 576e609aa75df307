"""A Slurm cluster of two nodes on this machine: its own munged, slurmctld and slurmds, all below one folder.

Each slurmd lives in namespaces of its own, in which the machine is called node1 or node2 and both names resolve:
for mpirun, gloo and Slurm these are two machines. Nothing outside the folder changes.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "unshare")
NODES = ("node1", "node2")
PATIENCE_S = 300
"""How long a test waits for what takes seconds on a machine that does nothing else."""
ADDRESSES = ("127.0.0.11", "127.0.0.12")
CONF = """
ClusterName=mmpds
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser={user}
SlurmdUser={user}
AuthInfo=socket={folder}/munge/socket,cred_expire=5
SlurmctldPidFile={folder}/slurmctld.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdPidFile={folder}/%n.pid
SlurmdLogFile={folder}/%n.log
SlurmdSpoolDir={folder}/%n
StateSaveLocation={folder}/state
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
MpiDefault=none
GresTypes=gpu
SlurmdTimeout=8
KillWait=10
ReturnToService=2
SchedulerParameters=batch_sched_delay=0,bf_interval=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
NodeName=node1 NodeHostname=node1 NodeAddr={addresses[0]} Port={ports[1]} CPUs=2 RealMemory=64000 Gres=gpu:2
NodeName=node2 NodeHostname=node2 NodeAddr={addresses[1]} Port={ports[2]} CPUs=2 RealMemory=64000 Gres=gpu:2
PartitionName=normal Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=1 GraceTime=250
PartitionName=urgent Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=2 PreemptMode=off
"""
ENTER = 'mount --bind "$1" /etc/hosts && hostname "$2" && shift 2 && exec "$@"'


def lacking() -> str | None:
    """Why no cluster can be started here, or None."""
    os.environ["PATH"] += ":/usr/sbin"
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    if missing:
        return (
            f"no {', '.join(missing)} here: apt-get install --no-install-recommends slurmctld slurmd slurm-client munge"
        )
    if subprocess.run(["unshare", "--mount", "--uts", "true"], capture_output=True).returncode:
        return "this user may make no namespaces, in which the nodes have their names: run the tests as root"
    return None


class Cluster:
    """The daemons of a cluster; a context manager.

    Args:
        folder: where its configuration, logs and state go.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.daemons: dict[str, subprocess.Popen[bytes]] = {}
        self.namespaces: dict[str, Path] = {}
        self.environ = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "OMPI_", "PMIX_", "PRTE_"))}
        self.environ |= {"SLURM_CONF": str(folder / "slurm.conf"), "PYTHONUNBUFFERED": "1"}

    def __enter__(self) -> Cluster:
        try:
            self._start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for name in ("slurmctld", *NODES, "munged"):
            self.kill(name)
        for name in self.namespaces:
            self.clear(name)

    def _start(self) -> None:
        for name in ("munge", "state", *NODES):
            (self.folder / name).mkdir()
        key = self.folder / "munge" / "key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o600)
        ports = free_ports(3)
        text = CONF.format(
            folder=self.folder, host=socket.gethostname(), user=os.environ.get("USER", "root"), ports=ports,
            addresses=ADDRESSES,
        )  # fmt: skip
        (self.folder / "slurm.conf").write_text(text)
        (self.folder / "gres.conf").write_text("Name=gpu File=/dev/null\nName=gpu File=/dev/zero\n")
        names = "".join(f"{address} {name}\n" for address, name in zip(ADDRESSES, NODES, strict=True))
        (self.folder / "hosts").write_text(Path("/etc/hosts").read_text() + "\n" + names)
        munge = self.folder / "munge"
        # --force: a folder of a test is no place that munged would choose
        self._daemon(
            "munged", "munged", "--foreground", "--force", f"--socket={munge}/socket", f"--key-file={key}",
            f"--log-file={munge}/log", f"--pid-file={munge}/pid", f"--seed-file={munge}/seed",
        )  # fmt: skip
        wait_for((munge / "socket").exists, PATIENCE_S, "munged")
        self._daemon("slurmctld", "slurmctld", "-D")
        for name in NODES:
            self.start_node(name)

    def start_node(self, name: str) -> None:
        """Start a node's slurmd and wait until jobs can be sent there."""
        enter = ["unshare", "--mount", "--uts", "sh", "-c", ENTER, "sh", str(self.folder / "hosts"), name]
        daemon = self._daemon(name, *enter, "slurmd", "-D", "-N", name)
        wait_for(lambda: self.run("sinfo", "-hN", "-n", name, "-o", "%t").stdout.startswith("idle"), PATIENCE_S, name)
        self.namespaces[name] = namespace(daemon.pid)
        assert self.namespaces[name] != namespace(os.getpid()), "what the tests kill must be the node's alone"

    def lose_node(self, name: str) -> None:
        """Kill a node's slurmd, and freeze all else there: as when the power fails, nobody is told."""
        self.kill(name)
        for process in self._processes(name):
            os.kill(process, signal.SIGSTOP)

    def clear(self, name: str) -> None:
        """Kill all that runs on a node, as starting the machine anew does."""
        for process in self._processes(name):
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)

    def _processes(self, name: str) -> list[int]:
        found = [int(path.name) for path in Path("/proc").glob("[0-9]*")]
        return [process for process in found if namespace(process) == self.namespaces[name]]

    def kill(self, name: str) -> None:
        """Kill a daemon outright."""
        if daemon := self.daemons.pop(name, None):
            daemon.kill()
            daemon.wait()

    def _daemon(self, name: str, *command: str) -> subprocess.Popen[bytes]:
        with (self.folder / f"{name}.out").open("ab") as log:
            self.daemons[name] = subprocess.Popen(command, env=self.environ, stdout=log, stderr=log)
        return self.daemons[name]

    def run(self, *command: str, cwd: Path | None = None, timeout: float = 120) -> subprocess.CompletedProcess[str]:
        """Run a command of a user of the cluster."""
        return subprocess.run(command, cwd=cwd, env=self.environ, capture_output=True, text=True, timeout=timeout)

    def job(self, job: str) -> dict[str, str]:
        """What Slurm knows of a job, by its names: JobState, Reason, Restarts, ExitCode, …"""
        shown = self.run("scontrol", "--oneliner", "show", "job", job).stdout.split()
        return dict(text.split("=", 1) for text in shown if "=" in text)


def namespace(process: int) -> Path | None:
    """The namespace in which a process knows the machine's name; None once it has ended."""
    with suppress(OSError):
        return Path(f"/proc/{process}/ns/uts").readlink()
    return None


def free_ports(count: int) -> list[int]:
    """TCP ports that are free on this machine now."""
    sockets = [socket.create_server(("", 0)) for _ in range(count)]
    found = [int(one.getsockname()[1]) for one in sockets]
    for one in sockets:
        one.close()
    return found


def wait_for(condition: Callable[[], Any], seconds: float, what: str) -> Any:
    """The first true value that `condition()` gives."""
    end = time.monotonic() + seconds
    while not (met := condition()):
        assert time.monotonic() < end, f"{what}: nothing within {seconds} s"
        time.sleep(0.1)
    return met
