"""Sweeps by the real command: failures stay in their job, resuming runs what is missing, Optuna searches."""

import csv
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from mmpds.world import cores
from tests.conftest import ROOT, TINY, results_of

SMALL = (*TINY, "trainer.max_epochs=1", "trainer.threads=1")
CORES = sorted(os.sched_getaffinity(0))[:2]  # as many ranks as cores: at most two, which divide TINY's batch


def train(folder, *arguments, **variables):
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("OMPI_", "PMIX_", "SLURM_"))}
    environment |= {"PYTHONPATH": str(ROOT)} | variables
    bound = ["taskset", "--cpu-list", ",".join(map(str, CORES))]
    command = [*bound, sys.executable, str(ROOT / "train.py"), *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=180)


def sweep_of(folder):
    (found,) = (folder / "sweeps").iterdir()
    return found


def rows(folder):
    with (sweep_of(folder) / "summary.csv").open(newline="") as file:
        return {row["job"]: row for row in csv.DictReader(file)}


def statuses(found):
    return {job: row["status"] for job, row in found.items()}


JOBS = {"trainer=mpi_cpu", "trainer=cpu", "trainer=cpu_seq"}
COMMAND = (
    "-m", "experiment=demo", *SMALL, "trainer=mpi_cpu,cpu,cpu_seq", "mpirun=./mpirun",
    "+callbacks.fault._target_=tests.distributed.faults2.UntilMended", "+callbacks.fault.file=mended",
    "+callbacks.fault.trainer=cpu",
)  # fmt: skip
"""Three jobs: the first fails for its configuration, the second at run time, the third finishes."""


@pytest.fixture(scope="module")
def broken(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sweep")
    done = train(folder, *COMMAND)
    found = rows(folder)
    return folder, done, found, {job: results_of(sweep_of(folder) / job) for job in found}


@pytest.fixture(scope="module")
def mended(broken):
    folder, *_ = broken
    kept = sweep_of(folder) / "trainer=cpu_seq" / "results.json"
    before = kept.read_bytes(), kept.stat().st_mtime_ns
    (folder / "mended").touch()
    (folder / "mpirun").symlink_to(Path(sys.executable).with_name("mpirun"))
    done = train(folder, *COMMAND, "resume_sweep=true")
    return folder, done, before == (kept.read_bytes(), kept.stat().st_mtime_ns)


def test_a_sweep_goes_on_after_failures_and_exits_with_1(broken):
    _, done, found, results = broken
    assert done.returncode == 1
    assert found.keys() == JOBS
    assert statuses(results) == {
        "trainer=mpi_cpu": "failed", "trainer=cpu": "failed", "trainer=cpu_seq": "finished"
    }  # fmt: skip
    assert "Traceback" not in done.stdout + done.stderr


def test_failed_jobs_say_why(broken):
    _, done, found, results = broken
    assert "mpirun=./mpirun: no such program" in results["trainer=mpi_cpu"]["error"]
    assert "RuntimeError: there is no mended yet (faults2.py:" in results["trainer=cpu"]["error"]
    for cause in ("mpirun=./mpirun: no such program", "there is no mended yet"):
        assert done.stderr.count(cause) == 1, "said once"
    for job, result in results.items():
        assert found[job]["error"] == (result["error"] or "")
    assert (results["trainer=cpu"]["dir"] / "logs" / "traceback-rank0.txt").exists()


def test_the_summaries_and_the_table_list_every_job_with_its_status(broken):
    folder, done, found, results = broken
    assert statuses(found) == statuses(results)
    figure = results["trainer=cpu_seq"]["metrics"]["test/auroc/macro"]
    assert float(found["trainer=cpu_seq"]["test/auroc/macro"]) == pytest.approx(figure)
    markdown = (sweep_of(folder) / "summary.md").read_text()
    for job, result in results.items():
        assert f"| {job} | {result['status']} |" in markdown
        assert any(job in line and result["status"] in line for line in done.stdout.splitlines())


def test_a_resumed_sweep_runs_only_what_is_missing(mended):
    folder, done, untouched = mended
    assert done.returncode == 0, done.stderr[-2000:]
    assert untouched
    assert "trainer=cpu_seq is finished already" in done.stderr
    assert statuses(rows(folder)) == dict.fromkeys(JOBS, "finished")


def test_jobs_of_different_trainers_share_no_state(mended):
    folder, _, _ = mended
    results = {job: results_of(sweep_of(folder) / job) for job in JOBS}
    assert all(result["error"] is None for result in results.values())
    ranks = {job: result["world_size"] for job, result in results.items()}
    assert ranks == {"trainer=mpi_cpu": min(len(CORES), cores()), "trainer=cpu": 1, "trainer=cpu_seq": 1}
    # one thread, one seed: what ran before a job changes nothing in it
    tables = {(sweep_of(folder) / f"trainer={name}" / "predictions.csv").read_text() for name in ("cpu", "cpu_seq")}
    assert len(tables) == 1


NO_GPU = {"CUDA_VISIBLE_DEVICES": ""}


@pytest.fixture(scope="module")
def partly(tmp_path_factory):
    """A sweep over trainers, of which this machine lacks one."""
    folder = tmp_path_factory.mktemp("partly")
    done = train(folder, "-m", "experiment=demo", *SMALL, "trainer=cpu_seq,cpu,gpu", **NO_GPU)
    return folder, done, rows(folder)


def test_a_sweep_skips_what_the_machine_lacks(partly):
    folder, done, found = partly
    assert done.returncode == 0, done.stderr[-2000:]
    assert statuses(found) == {"trainer=cpu_seq": "finished", "trainer=cpu": "finished", "trainer=gpu": "skipped"}
    assert "mmpds: skipped: trainer.accelerator=gpu: no GPU here" in done.stderr
    assert "no GPU here" in results_of(sweep_of(folder) / "trainer=gpu")["error"]


def test_a_sweep_over_trainers_ends_with_speed_ups(partly):
    folder, done, found = partly
    with (sweep_of(folder) / "scaling.csv").open(newline="") as file:
        ways = {row["job"]: row for row in csv.DictReader(file)}
    assert list(ways) == ["trainer=cpu_seq", "trainer=cpu", "trainer=gpu"], "in the order of the command"
    rate = {job: float(row["timing.throughput_items_per_s"] or "nan") for job, row in found.items()}
    command = {job: float(row["timing.command_s"] or "nan") for job, row in found.items()}
    row = ways["trainer=cpu"]
    assert float(row["speedup_steady"]) == pytest.approx(rate["trainer=cpu"] / rate["trainer=cpu_seq"])
    assert float(row["speedup_command"]) == pytest.approx(command["trainer=cpu_seq"] / command["trainer=cpu"])
    assert float(row["command_s"]) > float(row["startup_s"]) + float(row["stage_s"])
    assert ways["trainer=gpu"]["speedup_steady"] == ""
    text = (sweep_of(folder) / "summary.md").read_text()
    for shown in (
        "Speed, against trainer=cpu_seq",
        "Where the time went",
        "trainer=gpu: skipped: trainer.accelerator=gpu: no GPU",
    ):
        assert shown in text
        assert shown in done.stdout


def test_a_sweep_of_which_nothing_can_run_says_so(tmp_path):
    done = train(tmp_path, "-m", "experiment=demo", "trainer=gpu,mpi_gpu", **NO_GPU)
    assert done.returncode == 1
    assert "every job was skipped" in done.stderr
    assert set(statuses(rows(tmp_path)).values()) == {"skipped"}


def test_a_mistake_beside_what_the_machine_lacks_is_a_failure(tmp_path):
    done = train(tmp_path, "-m", "experiment=demo", "trainer=gpu", "data.size=8,9", **NO_GPU)
    assert done.returncode == 1
    assert set(statuses(rows(tmp_path)).values()) == {"failed"}


def test_one_run_alone_is_not_skipped(tmp_path):
    done = train(tmp_path, "experiment=demo", "trainer=gpu", **NO_GPU)
    assert done.returncode == 2
    assert list(tmp_path.iterdir()) == []


OPTUNA = ("-m", "experiment=demo", *SMALL, "sweep=optuna", "hydra.sweeper.n_trials=2")


def test_optuna_searches(tmp_path):
    done = train(tmp_path, *OPTUNA)
    assert done.returncode == 0, done.stderr[-2000:]
    best = yaml.safe_load((sweep_of(tmp_path) / "optimization_results.yaml").read_text())
    found = rows(tmp_path)
    assert len(found) == 2
    assert {row["status"] for row in found.values()} == {"finished"}
    assert best["best_value"] == pytest.approx(max(float(row["val/auroc/macro"]) for row in found.values()))
    for job in found:
        assert "model.learning_rate=" in job
        assert "model.weight_decay=" in job
        # names of some eighty characters must not push the status out of the table
        assert any(job in line and "finished" in line for line in done.stdout.splitlines())


def test_optuna_outlives_trials_that_fail(tmp_path):
    done = train(tmp_path, *OPTUNA, "data.size=8")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    found = rows(tmp_path)
    assert [row["status"] for row in found.values()] == ["failed"] * 2
    assert all("data.size=8" in row["error"] for row in found.values())


def test_a_slurm_sweep_without_slurm_says_what_is_missing(tmp_path):
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "taskset").symlink_to(shutil.which("taskset"))  # and no srun, where this machine has one
    done = train(tmp_path, "-m", "experiment=demo", "sweep=slurm", "seed=1,2", PATH=str(programs))
    assert done.returncode in (1, 2)
    assert "Traceback" not in done.stderr
    assert "slurm" in done.stderr.lower()
    assert len(done.stderr.splitlines()) <= 5


def test_jobs_run_where_a_launcher_of_hydra_sends_them(tmp_path):
    # submitit's local executor pickles the job as its Slurm one does
    done = train(tmp_path, "-m", "experiment=demo", "hydra/launcher=submitit_local", "data.size=8,9")
    assert done.returncode == 1
    assert statuses(rows(tmp_path)) == {"data.size=8": "failed", "data.size=9": "failed"}


def test_folders_are_named_by_what_varies_alone(tmp_path):
    # Hydra writes what it parsed anew: 1e-4 as 0.0001, quotes as escapes
    fixed = ("model.learning_rate=1e-4", "+note='two words'", "data.source.images=null", "+x.y=${seed}")
    train(tmp_path, "-m", "experiment=demo", *fixed, "data.size=8", "seed=1,2")
    assert rows(tmp_path).keys() == {"seed=1", "seed=2"}
