"""Ranks really started: by train.py itself, by hand with mpirun; and what happens when one of them dies."""

import sys
import time
from pathlib import Path

import pytest

from tests.conftest import ROOT, TINY, results_of

MPIRUN = [
    str(Path(sys.executable).with_name("mpirun")),
    "--map-by",
    "slot:OVERSUBSCRIBE",
    "--bind-to",
    "none",
    "-n",
]
AS_ROOT = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}


def test_train_starts_mpirun_by_itself(train, tmp_path):
    done = train("experiment=demo", *TINY, "trainer=mpi_cpu", "ranks=2", check=0)
    result = results_of(tmp_path)
    assert (result["status"], result["world_size"]) == ("finished", 2)
    assert [rank["rank"] for rank in result["timing"]["per_rank"]] == [0, 1]
    assert "2 ranks × 1 thread" in done.stdout
    assert list((tmp_path / "runs" / "demo").iterdir()) == [result["dir"]]


def test_mpirun_by_hand_makes_one_run_directory(train, tmp_path):
    train("experiment=demo", *TINY, "trainer=mpi_cpu", before=[*MPIRUN, "2"], environ=AS_ROOT, check=0)
    result = results_of(tmp_path)
    assert (result["status"], result["world_size"]) == ("finished", 2)


def test_more_ranks_by_hand_than_the_trainer_takes_is_a_problem(train):
    done = train("experiment=demo", *TINY, "trainer=cpu", before=[*MPIRUN, "2"], environ=AS_ROOT)
    assert done.returncode == 2
    assert "2 ranks were started; use trainer=mpi_cpu" in done.stderr


@pytest.mark.parametrize(
    ("action", "cause"),
    [
        ("kill", "rank 1 on "),
        ("raise", "rank 1 failed: RuntimeError: the planted fault (faults.py:"),
    ],
)
def test_a_dead_rank_ends_the_run_and_is_named(train, tmp_path, action, cause):
    began = time.monotonic()
    done = train(
        "experiment=demo", *TINY, "trainer=mpi_cpu", "ranks=3", "trainer.max_epochs=500",
        "+callbacks.fault._target_=tests.distributed.faults.Fault", "+callbacks.fault.step=4",
        "+callbacks.fault.rank=1", f"+callbacks.fault.action={action}", timeout=90,
    )  # fmt: skip
    assert time.monotonic() - began < 60
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith(f"mmpds: {cause}")
    if action == "kill":
        assert "SIGKILL" in last
    result = results_of(tmp_path)
    assert result["status"] == "failed"
    assert last == f"mmpds: {result['error']}"


SCRIPT = ROOT / "tests" / "distributed" / "exactly_once.py"


def test_metrics_at_two_and_three_ranks_equal_one(tmp_path):
    import json
    import os
    import subprocess

    import numpy as np

    found = {}
    for ranks in (1, 2, 3):
        out = tmp_path / f"{ranks}.json"
        environment = os.environ | AS_ROOT | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        command = [*MPIRUN, str(ranks), sys.executable, str(SCRIPT), str(tmp_path / "images"), str(out)]
        subprocess.run(command, env=environment, check=True, timeout=120, capture_output=True)
        found[ranks] = json.loads(out.read_text())
    for items in ("1", "5", "6", "7"):
        one = found[1][items]
        assert len(one["prob"]) == int(items)
        for ranks in (2, 3):
            assert found[ranks][items]["rows"] == one["rows"]
            np.testing.assert_allclose(found[ranks][items]["prob"], one["prob"], atol=1e-6)
            assert found[ranks][items]["metrics"].keys() == one["metrics"].keys()
            for name, value in one["metrics"].items():
                assert found[ranks][items]["metrics"][name] == pytest.approx(value, abs=1e-6, nan_ok=True), name
            assert found[ranks][items]["threshold"] == pytest.approx(one["threshold"], abs=1e-6)
