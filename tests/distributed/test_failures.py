"""Full disks, failures and signals on real processes: told in one line, recorded, nothing left behind."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tests.conftest import ROOT, TINY, results_of

SMALL = ("experiment=demo", *TINY, "trainer.max_epochs=1", "trainer=cpu_seq")
OUT_OF_ROOM = "No space left on device"


@pytest.fixture(scope="module")
def small_disk(tmp_path_factory):
    """Makes prefixes that run a command with a file system of some size at a folder, copied to `…-after`."""

    def prefix(folder, size, unshare):
        folder.mkdir()
        mount = f"mount -t tmpfs -o size={size} tmpfs {folder} || exit 77"
        return [
            *unshare,
            "sh",
            "-c",
            f'{mount}; "$@"; status=$?; cp -r {folder} {folder}-after; exit $status',
            "sh",
        ]

    for unshare in (["unshare", "--map-root-user", "--mount"], ["unshare", "--mount"]):
        probe = prefix(tmp_path_factory.mktemp("mount") / "disk", "64k", unshare)
        if shutil.which("unshare") and subprocess.run([*probe, "true"], capture_output=True).returncode == 0:
            return lambda folder, size: prefix(folder, size, unshare)
    pytest.skip("this kernel lets a user mount nothing: no file system can be filled")


def last_line(done):
    assert "Traceback" not in done.stdout + done.stderr
    return done.stderr.strip().splitlines()[-1]


def test_a_disk_that_fills_during_the_run(train, small_disk, tmp_path):
    # room for the best checkpoint of 108 kB, not for the last one beside it
    full = small_disk(tmp_path / "disk", "200k")
    done = train(*SMALL, "run_dir=disk/run", before=full, check=1)
    last = last_line(done)
    assert last.startswith("mmpds: the run failed: ")
    assert OUT_OF_ROOM in last
    assert re.search(r"\(\w+\.py:\d+\)$", last), "the place"
    run_dir = tmp_path / "disk-after" / "run"
    result = json.loads((run_dir / "results.json").read_text())
    assert result["status"] in ("failed", "interrupted"), "the truth as far as there was room for it"
    for checkpoint in (run_dir / "checkpoints").glob("*.ckpt"):
        torch.load(checkpoint, weights_only=True)  # whole or not there


def test_a_disk_that_is_full_from_the_start(train, small_disk, tmp_path):
    done = train(*SMALL, "run_dir=disk/run", before=small_disk(tmp_path / "disk", "4k"), check=1)
    last = last_line(done)
    assert OUT_OF_ROOM in last
    assert "disk/run" in last, "the place"


def test_a_cache_on_a_full_disk(train, small_disk, tmp_path):
    full = small_disk(tmp_path / "disk", "40k")
    done = train(*SMALL, "run_dir=run", "data.cache_dir=disk/cache", before=full, check=1)
    last = last_line(done)
    assert last.startswith("mmpds: the run failed: cache_dir=disk/cache: ")
    assert OUT_OF_ROOM in last
    assert "cache_dir=null" in last, "the cure"
    assert list((tmp_path / "disk-after" / "cache").iterdir()) == []
    result = results_of(tmp_path / "run")
    assert result["status"] == "failed"
    assert result["error"] in last


def test_an_exception_in_training(train, tmp_path):
    fault = ("+callbacks.fault._target_=tests.distributed.faults.Fault", "+callbacks.fault.step=3")
    done = train(*SMALL, *fault, "+callbacks.fault.action=raise", "run_dir=run", check=1)
    result = results_of(tmp_path)
    assert result["status"] == "failed"
    assert result["error"].startswith("RuntimeError: the planted fault (faults.py:")
    assert last_line(done) == f"mmpds: the run failed: {result['error']}"
    assert len(done.stderr.strip().splitlines()) == 1
    saved = (tmp_path / "run" / "logs" / "traceback-rank0.txt").read_text()
    assert saved.startswith("Traceback")
    assert saved.rstrip().endswith("RuntimeError: the planted fault")


def processes_of(name):
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found += [path.parent.name] if name in path.read_text() else []
        except OSError:  # it ended meanwhile
            continue
    return found


def wait_for(condition, seconds):
    end = time.monotonic() + seconds
    while not (met := condition()) and time.monotonic() < end:
        time.sleep(0.1)
    return met


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "Ctrl-C"])
@pytest.mark.parametrize("world", [("trainer=cpu_seq",), ("trainer=mpi_cpu", "ranks=2")], ids=["1 rank", "2 ranks"])
def test_an_interrupted_run_ends_soon_and_whole(tmp_path, world, number):
    name = f"run-{os.urandom(4).hex()}"
    last = tmp_path / name / "checkpoints" / "last.ckpt"
    endless = ("trainer.max_epochs=100000", "callbacks.last.every_n_steps=2", f"run_dir={name}")
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "train.py"), *SMALL, *world, *endless], cwd=tmp_path, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=os.environ | {"PYTHONPATH": str(ROOT)},
        start_new_session=True,
    )  # fmt: skip
    try:
        assert wait_for(lambda: last.exists() or process.poll() is not None, 90)
        time.sleep(0.5)  # into the run, not at its first checkpoint alone
        if number == signal.SIGINT:
            os.killpg(process.pid, number)  # a terminal sends it to all that it started
        else:
            process.send_signal(number)  # a scheduler sends it to the command
        out, err = process.communicate(timeout=30)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
    assert process.returncode not in (0, 2)
    assert "Traceback" not in out + err
    assert "interrupted" in err.strip().splitlines()[-1]
    assert wait_for(lambda: not processes_of(name), 5), f"left behind: {processes_of(name)}"
    assert results_of(tmp_path)["status"] == "interrupted"
    assert torch.load(last, weights_only=True)["global_step"] > 0
