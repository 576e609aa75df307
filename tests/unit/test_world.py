"""A rank is adopted from whichever launcher started it."""

import subprocess
import sys

import pytest
from omegaconf import OmegaConf

from mmpds.launch import diagnose
from mmpds.world import World, adopt, cores, threads
from tests.conftest import ROOT


@pytest.mark.parametrize(
    ("environ", "world"),
    [
        ({}, World()),
        (
            {"OMPI_COMM_WORLD_RANK": "3", "OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_LOCAL_RANK": "1",
             "OMPI_COMM_WORLD_LOCAL_SIZE": "2"}, World(3, 4, 1, 2, "mpi"),
        ),
        (
            {"PMI_RANK": "1", "PMI_SIZE": "2", "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "2"},
            World(1, 2, 1, 2, "mpich"),
        ),
        ({"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}, World(1, 2, 1, 2, "torchrun")),
        (
            {"SLURM_PROCID": "5", "SLURM_STEP_NUM_TASKS": "6", "SLURM_LOCALID": "1",
             "SLURM_STEP_TASKS_PER_NODE": "2(x3)"}, World(5, 6, 1, 2, "srun"),
        ),
        # a batch script itself runs as task 0 of the job's batch step; it is no rank
        ({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "6", "SLURM_PROCID": "0"}, World()),
    ],
)  # fmt: skip
def test_adopt(environ, world):
    assert adopt(environ) == world
    if world.size > 1:
        assert environ["RANK"] == str(world.rank)
        assert environ["WORLD_SIZE"] == str(world.size)
        assert environ["LOCAL_RANK"] == str(world.local_rank)


def test_one_task_of_srun_is_a_rank_where_it_is_known_to_be():
    environ = {
        "SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1", "SLURM_LOCALID": "0", "SLURM_STEP_TASKS_PER_NODE": "1",
    }  # fmt: skip
    assert adopt(dict(environ)) == World()
    assert adopt(environ, alone=True) == World(0, 1, 0, 1, "srun")
    assert environ["LOCAL_RANK"] == "0"


def test_ranks_of_srun_take_the_share_that_it_gave_each(monkeypatch):
    cfg = OmegaConf.create({"trainer": {"threads": "auto"}})
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "3")
    assert threads(cfg, World(0, 2, 0, 2, "srun")) == 3
    assert threads(cfg, World(0, 2, 0, 2, "mpi")) == max(1, cores() // 2)
    monkeypatch.delenv("SLURM_CPUS_PER_TASK")
    assert threads(cfg, World(0, 2, 0, 2, "srun")) == max(1, cores() // 2)


def test_a_killed_rank_is_named_before_the_peers_that_fail_because_of_it():
    stderr = (
        "mmpds: rank 0 failed: RuntimeError: Connection closed by peer (run.py:1)\n" + "-" * 60 + "\n"
        "prterun noticed that process rank 1 with PID 4289 on node vm exited on\nsignal 9 (Killed).\n"
    )
    assert diagnose(stderr, 137) == "rank 1 on vm was killed by signal 9 (SIGKILL; out of memory?)"


def test_the_first_rank_that_failed_is_the_cause():
    stderr = "mmpds: rank 2 failed: ValueError (a.py:3)\nmmpds: rank 0 failed: RuntimeError: closed (b.py:1)\n"
    assert diagnose(stderr, 1) == "rank 2 failed: ValueError (a.py:3)"


def test_the_front_door_loads_nothing_heavy():
    code = (
        "import sys; sys.argv=['train.py','experiment=none']; import train; "
        "from mmpds import check, launch, sweep, results, console, world; "
        "print([m for m in ('torch','lightning','pandas','numpy','hydra','rich','mpi4py') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


FAULTS = """
import resource, numpy, mmpds.world
{setting}
for turn in range(20):
    if turn == 2:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    numpy.ones(8_000_000)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def test_freed_memory_is_used_again_without_asking_the_system():
    def faults(setting):
        code = [sys.executable, "-c", FAULTS.format(setting=setting)]
        return int(subprocess.run(code, capture_output=True, text=True, check=True).stdout)

    assert faults("mmpds.world.reuse_memory()") * 20 < faults("")
