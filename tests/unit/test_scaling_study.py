"""The scaling study on made-up measurements whose answers are known: its model, its ratios, its tables, its page."""

import json
import sys

import pytest

from tests.conftest import ROOT

FOLDER = ROOT / "experiments" / "scaling"
MODULES = ("measure", "model", "contestants", "workloads", "tables", "page", "overhead")
START, RANK, SERIAL, SHARED = 8.0, 1.5, 0.01, 0.2


@pytest.fixture
def study(monkeypatch):
    """The study's modules, which are no package."""
    for path in (FOLDER.parent, FOLDER):
        monkeypatch.syspath_prepend(path)
    for name in MODULES:
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    yield {name: __import__(name) for name in MODULES}
    for name in MODULES:
        sys.modules.pop(name, None)


def seconds(ranks, items):
    return START + RANK * (ranks - 1) + items * (SERIAL + SHARED / ranks)


def result(ranks, items, rate, slower=1.0):
    """A finished run of so many ranks at so many items a second."""
    each = items / ranks
    rank = {"items_total": each, "items": each - 4, "batches": 6, "warmup_s": 1.0, "data_wait_fraction": 0.0,
            "seconds": (each - 4) * ranks / rate, "comm_fraction": 0.0, "rank_wait_fraction": 0.0}  # fmt: skip
    timing = {"startup_s": 4.0, "build_s": 2.0, "load_s": 0.1, "warmup_s": 1.0, "throughput_items_per_s": rate,
              "predict_s": items / rate, "items_total": items, "command_s": slower * seconds(ranks, items),
              "per_rank": [rank | {"rank": number} for number in range(ranks)]}  # fmt: skip
    return {"status": "finished", "error": None, "world_size": ranks, "threads_per_rank": 1, "timing": timing,
            "hardware": {"cores": 2, "gpu": []}, "energy": {"joules_per_item": 1.0, "method": "estimate"}}  # fmt: skip


def measured(study, name="generation", rounds=3):
    """Every contestant's results: two ranks are 1.9 times as fast as one, two processes twice."""
    found = {}
    for each in study["contestants"].contestants(study["workloads"].WORKLOADS[name], [1, 2]):
        speed = {1: 4.0, 2: 7.6}[each.ranks] if not each.lacks else None
        runs = [result(each.ranks, each.items, speed * (1 + 0.01 * turn)) for turn in range(rounds)] if speed else []
        found[each] = [[run, run] for run in runs] if each.copies > 1 else runs
    return found


def test_the_model_finds_the_terms_that_made_the_times(study):
    observed = [(p, n, seconds(p, n)) for p in (1, 2) for n in (32, 64)]
    fitted = study["model"].fitted(observed)
    assert fitted.__dict__ == pytest.approx({"start": START, "rank": RANK, "serial": SERIAL, "shared": SHARED})
    assert fitted(8, 500) == pytest.approx(seconds(8, 500))


@pytest.mark.parametrize("places", [[(1, 32), (1, 64)], [(1, 32), (2, 32)], [(1, 32), (1, 64), (2, 32)]])
def test_the_model_is_not_fitted_to_what_cannot_tell_its_terms_apart(study, places):
    with pytest.raises(ValueError, match="two numbers of items for each of two"):
        study["model"].fitted([(p, n, seconds(p, n)) for p, n in places])


def test_amdahls_fraction(study):
    serial = 0.25
    speedup = 1 / (serial + (1 - serial) / 4)
    assert study["model"].serial_fraction(speedup, 4) == pytest.approx(serial)
    assert study["model"].serial_fraction(2.0, 2) == 0


@pytest.mark.parametrize("name", ["generation", "detection_training", "detection_inference", "clip_embedding"])
def test_each_workload_states_the_same_work_for_every_way(study, name):
    workload = study["workloads"].WORKLOADS[name]

    def batch(ranks, weak=False):
        made = workload.command(workload.items, ranks, "FILE", weak=weak)
        assert not any(
            "{" + key in text for text in made for key in ("items", "batch", "images", "share", "rest", "checkpoint")
        )
        return int(next(text for text in made if text.startswith("data.batch_size=")).partition("=")[2])

    expected = {"generation": (4, 4), "detection_training": (32, 64)}.get(name, (2 * batch(1), 2 * batch(1)))
    assert (batch(2), batch(2, weak=True)) == expected


def test_what_the_runs_say_together(study):
    found = study["contestants"].concluded(measured(study), {1: 10e9, 2: 18e9})
    rows = {row["job"]: row for row in found["strong"]}
    mpi = rows["trainer=mpi_cpu,ranks=2"]
    assert mpi["speedup_steady"] == pytest.approx(1.9)
    assert mpi["command_limit"] == "start-up"
    assert rows["trainer=gpu"]["status"] == "skipped"
    assert found["weak"][0]["efficiency"]["median"] == pytest.approx(0.95)
    assert found["independent"]["ratio"]["median"] == pytest.approx(7.6 / 8)
    unseen = found["model"]["unseen"]
    assert (unseen["ranks"], unseen["items"]) == (2, 96)
    assert unseen["error"] == pytest.approx(0)
    assert found["model"]["predicted"][3]["seconds"]["median"] == pytest.approx(seconds(8, 32))


def test_the_longest_run_is_no_part_of_the_fit(study):
    found = measured(study)
    longest = max((each for each in found if each.kind == "model"), key=lambda each: each.items)
    found[longest] = [result(longest.ranks, longest.items, 7.6, slower=1.25) for _ in found[longest]]
    unseen = study["contestants"].concluded(found, {})["model"]["unseen"]
    assert unseen["error"] == pytest.approx(1 / 1.25 - 1), "the model still says what it said"


def test_training_has_a_run_of_the_same_batch_for_the_model(study):
    kinds = [(each.kind, each.ranks) for each in measured(study, "detection_training")]
    assert kinds.count(("model", 2)) == 2
    found = study["contestants"].concluded(measured(study, "detection_training"), {})
    assert [place[:2] for place in found["model"]["observed"]] == [[1, 320], [2, 320], [1, 640], [2, 640], [2, 960]]


def test_the_tables_and_the_page_show_what_was_measured(study):
    found = study["contestants"].concluded(measured(study), {1: 10e9, 2: 18e9})
    found |= {"title": "Generation", "items": 32, "rounds": 3, "target": 0.97}
    ratios = {"training ÷ bare loop": {"median": 0.96, "min": 0.95, "max": 0.97, "target": 0.97}}
    record = {"title": "A machine", "triad": {1: 10e9, 2: 18e9}, "workloads": {"generation": found},
              "overhead": {"ratios": ratios}, "git_commit": None}  # fmt: skip
    text = study["tables"].markdown_of(record)
    assert "10 GB/s on 1 core, 18 GB/s on 2 cores" in text
    assert "| Generation | 2 | 1.9 |" in text
    assert "trainer=gpu: skipped: no GPU here" in text
    assert study["tables"].missed(record) == ["Generation, MPI ÷ independent processes", "training ÷ bare loop"]
    html = study["page"].html(record)
    assert html.count('<div class="plot"') == 4
    assert "script-src 'sha256-" in html
    assert "src=" not in html.partition("<script")[0], "it loads nothing"


TRAIN = """
import json, pathlib, sys
given = dict(text.lstrip("+").split("=", 1) for text in sys.argv[1:])
if given.get("data.count") == "-1":
    sys.exit("no such prompts")
run_dir = pathlib.Path(given["run_dir"])
run_dir.mkdir(parents=True)
(run_dir / "results.json").write_text(pathlib.Path(given.get("ranks", "1") + ".json").read_text())
with open("order.txt", "a") as file:
    print(given["trainer"], given.get("ranks", "-"), given.get("data.count", "-"), given.get("seed", "-"), file=file)
"""


@pytest.fixture
def stand_in(study, monkeypatch, tmp_path):
    """A train.py that does nothing but leave results."""
    (tmp_path / "train.py").write_text(TRAIN)
    for ranks in (1, 2):
        (tmp_path / f"{ranks}.json").write_text(json.dumps(result(ranks, 64, 4.0 * ranks)))
    monkeypatch.setattr(study["contestants"], "ROOT", tmp_path)
    return tmp_path


def test_contestants_take_turns(study, stand_in):
    workload = study["workloads"].WORKLOADS["generation"]
    found = study["contestants"].taken_in_turns(workload, [1, 2], 2, stand_in / "runs")
    lines = [line.split() for line in (stand_in / "order.txt").read_text().splitlines()]
    assert lines[0] == ["cpu_seq", "-", "-", "-"], "the step that makes the checkpoint"
    first, second = ([line[:3] for line in lines if line[3] == turn] for turn in "12")
    longest = [["mpi_cpu", "1", "64"], ["mpi_cpu", "2", "96"]]
    assert [line for line in first if line not in longest] == second, "the model's runs are made once"
    assert [line for line in longest if line in first] == longest
    assert second[-2:] == [["cpu_seq", "-", "32"]] * 2, "independent processes"
    told = study["contestants"].concluded(found, {})
    assert all(row["command_s"] > 0 for row in told["strong"] if row["status"] == "finished")
    assert told["independent"]["ratio"]["median"] == pytest.approx(1.0)


def test_a_run_that_fails_ends_the_study_with_its_words(study, stand_in):
    with pytest.raises(SystemExit, match="no such prompts"):
        study["contestants"].started(["data.count=-1", f"run_dir={stand_in / 'run'}"])[0]()
