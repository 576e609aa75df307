"""Prompts handed out to ranks really started: each once, in the same batches, whoever is slow or has nothing to do."""

import json
import os
import subprocess
import sys
import time
from itertools import chain

import pytest

from tests.conftest import ROOT
from tests.distributed.test_ranks import AS_ROOT, MPIRUN

WORKER = ROOT / "tests" / "distributed" / "schedule_worker.py"
BATCHES = {
    "one": [[0]],
    "five": [[0, 1], [2, 3], [4]],
    "nine": [[0, 1], [2, 3], [4, 5], [6, 7], [8]],
    "resumed": [[1, 4], [6, 7], [8]],
    "nothing left": [],
    "rank 0 is slow": [[row, row + 1] for row in range(0, 24, 2)],
}


def mpirun(ranks, *arguments):
    environment = os.environ | AS_ROOT | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [*MPIRUN, str(ranks), sys.executable, str(WORKER), *map(str, arguments)]
    return subprocess.run(command, env=environment, timeout=60, capture_output=True, text=True)


@pytest.fixture(scope="module")
def handed_out(tmp_path_factory):
    found = {}
    for ranks in (1, 2, 3):
        out = tmp_path_factory.mktemp("schedule") / f"{ranks}.json"
        done = mpirun(ranks, out, "no fault")
        assert done.returncode == 0, done.stderr
        found[ranks] = json.loads(out.read_text())
    return found


@pytest.mark.parametrize("schedule", ["static", "dynamic"])
@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_every_batch_is_made_once_and_is_the_same_at_any_number_of_ranks(handed_out, ranks, schedule):
    for name, batches in BATCHES.items():
        each = [rank["rows"] for rank in handed_out[ranks][schedule][name]]
        assert sorted(chain.from_iterable(each)) == batches, name
        if schedule == "static":
            assert each == [batches[rank::ranks] for rank in range(ranks)], name


def test_a_slow_rank_takes_fewer_batches_from_the_shared_counter(handed_out):
    slow = handed_out[3]["dynamic"]["rank 0 is slow"][0]["rows"]
    assert len(slow) < len(handed_out[3]["static"]["rank 0 is slow"][0]["rows"])


@pytest.mark.parametrize("schedule", ["static", "dynamic"])
def test_ranks_with_nothing_left_wait_for_the_others(handed_out, schedule):
    ranks = handed_out[3][schedule]["rank 0 is slow"]
    assert min(rank["ended"] for rank in ranks) > max(rank["worked"] for rank in ranks)


def test_the_hooks_run_also_where_nothing_is_left_to_be_made(handed_out):
    assert all(rank["ended"] for rank in handed_out[3]["dynamic"]["nothing left"])


def test_more_ranks_than_batches_is_said(handed_out):
    said = "1 item in 1 batch on 3 ranks: 2 ranks have nothing to do"
    assert handed_out[3]["static"]["one"][0]["notes"] == [said]
    assert not handed_out[3]["static"]["five"][0]["notes"]
    assert not handed_out[3]["static"]["nothing left"][0]["notes"]


def test_a_rank_that_fails_leaves_no_other_waiting(tmp_path):
    began = time.monotonic()
    done = mpirun(2, tmp_path / "none.json", "fault")
    assert done.returncode != 0
    assert "the planted fault" in done.stderr
    assert time.monotonic() - began < 60
