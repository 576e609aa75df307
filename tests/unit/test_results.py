"""results.json is whole or old, says what happened, and never hides an error behind its own."""

import errno
import json
import math
import os
import platform
import subprocess
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from mmpds import results

NUMBERS = st.floats(allow_nan=True, allow_infinity=True)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | NUMBERS | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=12,
)


def full_disk(*_):
    raise OSError(errno.ENOSPC, "No space left on device")


def nulled(value):
    """What JSON can hold of a value."""
    if isinstance(value, dict):
        return {key: nulled(item) for key, item in value.items()}
    if isinstance(value, list):
        return [nulled(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


@given(content=st.dictionaries(st.text(), JSON))
def test_what_is_written_is_read_back_with_null_for_what_json_has_not(content, tmp_path_factory):
    folder = tmp_path_factory.getbasetemp()
    results.write(folder, content)

    def refuse(name):
        raise AssertionError(f"{name} is no JSON")

    strict = json.loads((folder / results.FILE).read_text(), parse_constant=refuse)
    assert strict == results.read(folder) == nulled(content)


def test_tuples_and_numbered_keys_become_json(tmp_path):
    results.write(tmp_path, {"interval": (0.25, float("nan")), "by_rank": {0: np.float64(1.5)}})
    assert results.read(tmp_path) == {"interval": [0.25, None], "by_rank": {"0": 1.5}}


@pytest.mark.parametrize("fault", ["disk", "rename", "content"])
def test_a_failing_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, fault):
    results.write(tmp_path, {"status": "interrupted"})
    content = {"status": "finished"}
    if fault == "disk":
        monkeypatch.setattr(results.os, "fsync", full_disk)
    elif fault == "rename":
        monkeypatch.setattr(type(tmp_path), "replace", full_disk)
    else:
        content["error"] = object()
    with pytest.raises((OSError, TypeError)):
        results.write(tmp_path, content)
    assert [path.name for path in tmp_path.iterdir()] == [results.FILE]
    assert results.status(tmp_path) == "interrupted"


def test_a_text_is_on_disk_before_it_takes_the_old_ones_place(tmp_path, monkeypatch):
    path = tmp_path / "a.txt"
    path.write_text("old")
    seen = []

    def fsync(descriptor):
        seen.append((os.fstat(descriptor).st_size, path.read_text()))

    monkeypatch.setattr(results.os, "fsync", fsync)
    results.write_text(path, "the new one")
    assert seen == [(len("the new one"), "old")]
    assert path.read_text() == "the new one"


def test_there_may_be_no_results_yet(tmp_path):
    assert results.read(tmp_path) == results.read(tmp_path / "nowhere") == {}
    assert results.status(tmp_path) is None


def test_a_run_marked_failed_keeps_what_was_known(tmp_path):
    results.write(tmp_path, {"run_id": "r1", "status": "interrupted", "error": None})
    results.mark(tmp_path, "failed", "rank 1 was killed")
    assert results.read(tmp_path) == {"run_id": "r1", "status": "failed", "error": "rank 1 was killed"}


def test_marking_on_a_full_disk_or_in_no_folder_is_silent(tmp_path, monkeypatch):
    results.mark(tmp_path / "nowhere", "failed", "why")
    results.write(tmp_path, {"status": "interrupted"})
    monkeypatch.setattr(results.os, "fsync", full_disk)
    results.mark(tmp_path, "failed", "why")
    assert results.read(tmp_path) == {"status": "interrupted"}


def test_a_time_taken_from_outside_joins_those_of_the_run(tmp_path):
    results.write(tmp_path, {"status": "finished", "timing": {"fit_s": 2.0}})
    results.add_timing(tmp_path, "command_s", 3.5)
    assert results.read(tmp_path) == {"status": "finished", "timing": {"fit_s": 2.0, "command_s": 3.5}}


def test_a_run_without_times_gets_none_from_outside(tmp_path):
    results.add_timing(tmp_path / "nowhere", "command_s", 3.5)
    results.write(tmp_path, {"status": "failed"})
    results.add_timing(tmp_path, "command_s", 3.5)
    assert results.read(tmp_path) == {"status": "failed"}


def test_a_run_that_starts_counts_as_interrupted(tmp_path):
    cfg = OmegaConf.create({"name": "demo", "seed": 3, "again": "${seed}"})
    results.save_config(cfg, tmp_path / "a" / "r1", ["-m", "seed=3", "--cfg", "hydra.x=1"], started=12.5)
    found = results.read(tmp_path / "a" / "r1")
    assert (found["schema"], found["status"], found["error"]) == (1, "interrupted", None)
    assert (found["experiment"], found["run_id"], found["seed"], found["started"]) == ("demo", "r1", 3, 12.5)
    assert found["command"] == "python train.py -m seed=3 --cfg hydra.x=1"
    assert found["overrides"] == ["seed=3", "hydra.x=1"]
    assert (tmp_path / "a" / "r1" / results.CONFIG).read_text() == "name: demo\nseed: 3\nagain: 3\n"


def test_a_row_has_every_scalar_under_a_dotted_name():
    row = results.flatten({
        "run_id": "r1", "status": "finished", "error": None, "seed": 1,
        "metrics": {"test/auroc/macro": 0.75, "test/auroc/Nodule": None},
        "timing": {"fit_s": 2.5, "step_ms": {"p50": 1.0}, "per_rank": [{"rank": 0}]},
        "energy": {"joules": 7, "method": "estimate"}, "memory": {"peak_rss_bytes": 10},
    })  # fmt: skip
    assert row == {
        "run": "r1", "status": "finished", "test/auroc/macro": 0.75, "test/auroc/Nodule": None,
        "timing.fit_s": 2.5, "energy.joules": 7, "energy.method": "estimate", "memory.peak_rss_bytes": 10,
        "error": None,
    }  # fmt: skip


def test_a_row_of_a_run_that_came_to_nothing():
    assert results.flatten({"run_id": "r1", "status": "failed", "error": "why", "metrics": None}) == {
        "run": "r1", "status": "failed", "error": "why",
    }  # fmt: skip


def test_the_newest_checkpoint_is_the_last_written_of_the_same_settings(tmp_path):
    cfg = OmegaConf.create({"seed": 1, "stages": ["fit", "test"], "data": {"split_seed": 0}})
    assert results.newest_checkpoint(tmp_path / "nowhere", cfg) is None
    for name, age, seed in (("b", 50, 1), ("a", 5, 1), ("c", 500, 1), ("other", 1, 2)):
        path = tmp_path / name / "checkpoints" / "last.ckpt"
        path.parent.mkdir(parents=True)
        path.touch()
        os.utime(path, (0, time.time() - age))
        OmegaConf.save(OmegaConf.merge(cfg, {"seed": seed, "stages": ["fit"]}), tmp_path / name / results.CONFIG)
    (tmp_path / "unsaved").mkdir()
    assert results.newest_checkpoint(tmp_path, cfg) == tmp_path / "a" / "checkpoints" / "last.ckpt"


@pytest.fixture
def source(tmp_path, monkeypatch):
    """The package's place, moved to a folder outside any checkout; returns a way to run git there."""
    for name in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    monkeypatch.setattr(results, "__file__", str(tmp_path / "results.py"))
    who = ["-c", "user.name=a", "-c", "user.email=a@example.org"]

    def git(*arguments):
        command = ["git", "-C", str(tmp_path), *who, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    return git


def test_the_commit_names_the_source_and_says_if_it_was_changed(source, tmp_path):
    assert results.git_commit() is None
    source("init", "--quiet")
    (tmp_path / "results.py").write_text("1")
    source("add", ".")
    source("commit", "--quiet", "-m", "first")
    source("tag", "-a", "v1", "-m", "v1")  # a tag's name would hide the commit
    commit = source("rev-parse", "HEAD")[:12]
    assert results.git_commit() == commit
    (tmp_path / "results.py").write_text("2")
    assert results.git_commit() == f"{commit}-dirty"


def test_without_git_there_is_no_commit(source, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert results.git_commit() is None


def test_versions_are_those_of_what_runs():
    found = results.versions()
    assert found["python"] == platform.python_version()
    assert found["numpy"] == np.__version__
    assert {"torch", "lightning", "torchmetrics"} < found.keys()


def test_a_package_that_is_not_there_has_no_version(monkeypatch):
    monkeypatch.setattr(results, "PACKAGES", ("numpy", "no-such-package"))
    assert results.versions().keys() == {"python", "numpy"}


def test_hardware_is_counted_in_bytes():
    found = results.hardware(["a GPU"], cores=3)
    assert (found["gpu"], found["cores"]) == (["a GPU"], 3)
    assert found["cpu"]
    assert 2**28 < found["memory_bytes"] < 2**50
