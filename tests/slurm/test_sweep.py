"""A sweep whose jobs are one Slurm array, each job on whichever node is free."""

import csv
import sys

import pytest

from tests.conftest import ROOT, TINY
from tests.slurm.cluster import NODES, PATIENCE_S

pytestmark = pytest.mark.timeout(3 * PATIENCE_S)


def test_a_sweep_is_an_array_of_jobs(cluster, place):
    done = cluster.run(
        sys.executable, str(ROOT / "train.py"), "-m", "sweep=slurm", "experiment=demo", *TINY, "trainer.max_epochs=1",
        "trainer=mpi_cpu", "ranks=2", "seed=1,2", "hydra.launcher.cpus_per_task=2", "hydra.launcher.timeout_min=30",
        cwd=place, timeout=2 * PATIENCE_S,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    (summary,) = place.glob("sweeps/*/summary.csv")
    with summary.open(newline="") as file:
        rows = {row["job"]: row for row in csv.DictReader(file)}
    assert {job: row["status"] for job, row in rows.items()} == {"seed=1": "finished", "seed=2": "finished"}
    shown = cluster.run("scontrol", "--oneliner", "show", "job").stdout.splitlines()
    array = [
        dict(text.split("=", 1) for text in line.split() if "=" in text) for line in shown if "ArrayTaskId" in line
    ]
    assert sorted(job["ArrayTaskId"] for job in array) == ["0", "1"]
    assert len({job["ArrayJobId"] for job in array}) == 1
    assert sorted(job["NodeList"] for job in array) == list(NODES), "of two cores, one job each"
