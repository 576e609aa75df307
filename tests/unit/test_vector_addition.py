"""The study of vector addition: its runner from end to end, its checks, and the arithmetic of the study's table."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest

from tests.conftest import ROOT

FOLDER = ROOT / "experiments" / "vector_addition"
TOOLS = {"C": "gcc", "C++": "g++", "Fortran": "gfortran", "R": "Rscript", "Julia": "julia"}


@pytest.fixture
def study(monkeypatch):
    """The runner's modules, which are no package."""
    monkeypatch.syspath_prepend(FOLDER)
    names = ("run", "entries", "study", "tables")
    for name in names:
        monkeypatch.delitem(sys.modules, name, raising=False)
    import entries
    import run
    import study

    yield {"entries": entries, "run": run, "study": study}
    for name in names:
        sys.modules.pop(name, None)


def start(tmp_path, *arguments):
    command = [sys.executable, FOLDER / "run.py", "--output", tmp_path / "results.json", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=550)


@pytest.mark.timeout(600)
def test_the_whole_study_on_few_elements(tmp_path):
    before = (FOLDER / "README.md").read_text()
    done = start(tmp_path, "--elements", "10000", "--stream-elements", "20000", "--repeats", "2", "--rounds", "1")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    record = json.loads((tmp_path / "results.json").read_text())
    rows = {(row["language"], row["how"]): row for row in record["programs"]}
    for (language, how), row in rows.items():
        assert row["status"] in ("measured", "skipped"), row
        assert bool(row["reason"]) == (row["status"] == "skipped")
        if how == "sequential":
            assert (row["status"] == "measured") == (shutil.which(TOOLS.get(language, sys.executable)) is not None)
    assert rows["Python", "NumPy, MPI"]["status"] == "measured"
    assert rows["Python", "NumPy, MPI"]["transfer_s"] > 0
    numpy = rows["Python", "NumPy"]
    assert numpy["gb_per_s"] == pytest.approx(3 * 8 * 10_000 / numpy["min_s"] / 1e9)
    assert numpy["min_s"] <= numpy["p10_s"] <= numpy["median_s"] <= numpy["p90_s"]
    if shutil.which("gcc"):
        triads = [row for row in record["programs"] if row["bound"] == "memory" and row["status"] == "measured"]
        assert {row["elements"] for row in triads} == {20_000}
        fastest = max(row["gb_per_s"] for row in triads)
        assert numpy["share_of_memory"] == pytest.approx(numpy["gb_per_s"] / fastest)
    assert (FOLDER / "README.md").read_text() == before, "only the full measurement may renew the README"


@pytest.mark.parametrize("wrong", ["0", "ten", "1e7", str(2**31)])
def test_a_wrong_number_is_told_in_one_line(tmp_path, wrong):
    done = start(tmp_path, "--elements", wrong)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert f"{wrong} is not a whole number" in done.stderr


def test_expected_checksums_are_those_of_the_sum(study):
    i = np.arange(1000, dtype=object)
    c = i % 1000 + 3 * (i % 777)
    assert study["run"].expected(1000, 3) == (c.sum(), (c * (i % 97 + 1)).sum())
    swapped = c[::-1]
    assert (swapped * (i % 97 + 1)).sum() != study["run"].expected(1000, 3)[1]


def test_a_program_that_fails_is_told_and_does_not_end_the_others(study, tmp_path):
    entry = study["entries"].Entry
    broken = tmp_path / "broken.c"
    broken.write_text("int main(void) { return nothing; }\n")

    def prints(**fields):
        record = {"first_touch_s": 0.1, "times_s": [0.5], "transfer_s": [], "workers": 1, "sum": 0, "weighted": 0}
        return [sys.executable, "-c", f"print({json.dumps(json.dumps(record | fields))})"]

    right = dict(zip(("sum", "weighted"), study["run"].expected(10, 1), strict=True))
    programs = [
        entry("A", "wrong", prints(), 10),
        entry("B", "raises", [sys.executable, "-c", "raise ValueError('no luck')"], 10),
        entry("C", "absent", ["no-such-program"], 10),
        entry("D", "lacks a tool", ["no-such-tool"], 10, needs=["no-such-tool"]),
        entry("E", "alone", prints(**right), 10, workers=2),
        entry("F", "right", prints(**right), 10),
    ]
    if shutil.which("gcc"):
        programs.append(entry("G", "broken", ["never"], 10, build=[["gcc", str(broken), "-o", str(tmp_path / "out")]]))
    rows = study["run"].taken_in_turns(programs, 2, 1)
    told = [(row["status"], row["reason"]) for row in rows]
    assert [status for status, _ in told] == ["failed"] * 3 + ["skipped", "failed", "measured"] + ["failed"] * len(
        told[6:]
    )
    words = ["wrong result", "ValueError: no luck", "cannot be started", "no no-such-tool here", "with 1 workers", ""]
    for (_, reason), word in zip(told, words, strict=False):
        assert word in reason
    assert all("error" in reason and "nothing" in reason for _, reason in told[6:])
    assert len(rows[5]["rounds"]) == 2


def test_the_tables_arithmetic(study):
    rows = {(row["language"], row["how"]): row for row in study["study"].corrected({"C, sequential": 0.02})}
    assert rows["C++", "CUDA"]["gflops"] == pytest.approx(0.99, abs=0.005)
    assert rows["Julia", "threads"]["speedup"] == pytest.approx(33.7, abs=0.05)
    assert rows["Fortran", "OpenMP"]["speedup"] == pytest.approx(0.54, abs=0.005)
    assert rows["R", "MPI"]["speedup"] is None
    assert rows["C", "sequential"]["here_s"] == 0.02
    assert rows["C++", "OpenMP"]["here_s"] is None
