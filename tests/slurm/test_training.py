"""Training over two nodes: pre-empted, out of time or without one of its nodes, it ends with the same weights."""

import pytest
import torch

from mmpds.results import read
from tests.distributed.test_resume import RECIPE, state
from tests.slurm.cluster import NODES, PATIENCE_S, wait_for

pytestmark = pytest.mark.timeout(3 * PATIENCE_S)

ONE_RANK_A_NODE = ("--ntasks-per-node=1", "--cpus-per-task=1", "--output=job.out")
SRUN = (*ONE_RANK_A_NODE, "--gpus-per-node=1", "slurm/gpu_nodes.sbatch", "trainer=slurm_cpu")
MPI = (*ONE_RANK_A_NODE, "slurm/mpi_cpu.sbatch")
# nothing is saved inside an epoch but for a signal
TRAINING = (
    *RECIPE, "run_dir=run", "callbacks.last.every_n_steps=1000", "+callbacks.hold.folder=hold",
    "+callbacks.hold._target_=tests.slurm.faults.Hold",
)  # fmt: skip
HELD_AT = 10
"""Of 21 steps in 3 epochs of 7: inside the second epoch."""


def submit(cluster, place, *arguments):
    done = cluster.run("sbatch", "--parsable", *arguments, cwd=place)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def wait_until(cluster, place, job, state):
    ended = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL"}

    def found():
        now = cluster.job(job)["JobState"]
        assert now == state or now not in ended, f"{now}\n{output(place)}"
        return now == state

    wait_for(found, PATIENCE_S, f"job {job} to be {state}")


def output(place):
    path = place / "job.out"
    return path.read_text() if path.exists() else ""


def held(cluster, place, script):
    """A job that waits in the middle of its second epoch; the step of its last.ckpt is the first epoch's."""
    job = submit(cluster, place, *script, *TRAINING, f"+callbacks.hold.step={HELD_AT}")
    wait_for((place / "hold" / "held").exists, PATIENCE_S, f"job {job} to come to step {HELD_AT}")
    return job


def step(run_dir):
    return torch.load(run_dir / "checkpoints" / "last.ckpt", weights_only=True)["global_step"]


@pytest.fixture(scope="module")
def whole(cluster, tmp_path_factory, checkout):
    """The run directory of a training that nothing disturbs."""
    place = checkout(tmp_path_factory.mktemp("whole"))
    job = submit(cluster, place, *SRUN, *TRAINING)
    wait_until(cluster, place, job, "COMPLETED")
    return place / "run"


def assert_same(run_dir, whole):
    expected, found = state(whole), state(run_dir)
    assert int(found["step"]) == 21
    assert found.keys() == expected.keys()
    different = [name for name in expected if expected[name].numpy().tobytes() != found[name].numpy().tobytes()]
    assert different == []


def test_srun_starts_one_run_on_two_nodes(whole):
    result = read(whole)
    assert (result["status"], result["world_size"], result["threads_per_rank"]) == ("finished", 2, 1)
    assert sorted(path.read_text() for path in (whole.parent / "hold").glob("rank?")) == list(NODES)


def test_one_rank_of_one_node_is_a_run_too(cluster, place):
    job = submit(cluster, place, "--nodes=1", *SRUN, *TRAINING, "trainer.max_epochs=1")
    wait_until(cluster, place, job, "COMPLETED")
    assert (read(place / "run")["status"], read(place / "run")["world_size"]) == ("finished", 1)


@pytest.mark.parametrize("script", [SRUN, MPI], ids=["srun", "mpirun"])
def test_before_its_time_is_up_a_job_saves_and_goes_on(cluster, place, whole, script):
    job = held(cluster, place, script)
    assert step(place / "run") == 7
    # what Slurm does at --signal=…@120, whose clock has no finer unit than minutes
    cluster.run("scancel", "--signal=USR1", *(["--batch"] if script == MPI else []), job)
    wait_for(lambda: cluster.job(job)["Restarts"] == "1", PATIENCE_S, f"job {job} to be requeued")
    assert step(place / "run") == HELD_AT
    assert read(place / "run")["status"] == "interrupted"
    wait_until(cluster, place, job, "COMPLETED")
    assert_same(place / "run", whole)
    assert read(place / "run")["status"] == "finished"
    assert "Traceback" not in output(place)


def test_a_preempted_job_saves_and_goes_on(cluster, place, whole):
    job = held(cluster, place, SRUN)
    urgent = submit(
        cluster, place, "--nodes=2", "--exclusive", "--partition=urgent", "--output=urgent.out", "--wrap=true"
    )
    wait_until(cluster, place, urgent, "COMPLETED")
    assert step(place / "run") == HELD_AT
    wait_until(cluster, place, job, "COMPLETED")
    assert cluster.job(job)["Restarts"] == "1"
    assert_same(place / "run", whole)
    assert "Traceback" not in output(place)


@pytest.mark.parametrize("wrong", ["data.batch_size=31", "data.source.images=0"], ids=["refused", "failed"])
def test_a_job_that_cannot_run_fails_once(cluster, place, wrong):
    """The other ranks are then ended by srun, with the signal that a pre-emption has."""
    job = submit(cluster, place, *SRUN, *TRAINING, wrong)
    wait_until(cluster, place, job, "FAILED")
    assert cluster.job(job)["Restarts"] == "0"


def test_a_cancelled_job_stays_cancelled_and_leaves_a_whole_checkpoint(cluster, place):
    job = held(cluster, place, SRUN)
    cluster.run("scancel", job)  # srun then kills its ranks at once
    wait_until(cluster, place, job, "CANCELLED")
    assert step(place / "run") in (7, HELD_AT)
    assert cluster.job(job)["Restarts"] == "0"
    assert "CANCELLED" in output(place)


def test_a_job_that_loses_a_node_goes_on_when_there_are_two_again(cluster, place, whole):
    job = held(cluster, place, SRUN)
    cluster.lose_node("node2")
    wait_until(cluster, place, job, "PENDING")
    assert "DUE TO NODE FAILURE" in output(place)
    cluster.clear("node2")
    cluster.start_node("node2")
    wait_until(cluster, place, job, "COMPLETED")
    assert_same(place / "run", whole)
