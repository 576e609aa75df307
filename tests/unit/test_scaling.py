"""Speed-ups of hand-made jobs whose answers are known, among them those of the study's own table."""

import pytest

from mmpds import scaling


def job(trainer, rate, command, *others, ranks=1, threads=1, gpus=0, items=100, **more):
    """A finished job: `rate` images/s, `command` seconds in all, of which 10 are the stage."""
    timing = {
        "fit_s": None, "test_s": None, "predict_s": 10.0, "startup_s": 4.0, "build_s": 1.0, "load_s": 0.5,
        "warmup_s": 2.0, "throughput_items_per_s": rate, "items_total": items, "command_s": command,
        "per_rank": [{"rank": rank, "seconds": 7.0 + rank} for rank in range(ranks)],
    }  # fmt: skip
    return {
        "status": "finished", "error": None, "overrides": [f"trainer={trainer}", "experiment=generate", *others],
        "world_size": ranks, "threads_per_rank": threads, "hardware": {"cores": 2, "gpu": ["L40S"] * gpus},
        "timing": timing, "energy": {"joules": 50.0, "joules_per_item": 0.5, "method": "estimate"}, **more,
    }  # fmt: skip


def undone(trainer, status, error, *others):
    return {"status": status, "error": error, "overrides": [f"trainer={trainer}", "experiment=generate", *others]}


def by_job(results):
    rows = scaling.compare(results)
    assert len({row["job"] for row in rows}) == len(rows)
    return {row["job"]: row for row in rows}


def test_the_studys_runtimes_give_its_true_ratios():
    # six images each: 24 ranks of which six can work, one GPU, two GPUs
    rows = by_job([
        job("cpu_seq", 6 / 6571.81, 6571.81, items=6), job("cpu", 6 / 7294.51, 7294.51, threads=12, items=6),
        job("mpi_cpu", 6 / 2536.36, 2536.36, ranks=24, items=6), job("gpu", 6 / 49.88, 49.88, gpus=1, items=6),
        job("mpi_gpu", 6 / 40.69, 40.69, ranks=2, gpus=2, items=6),
    ])  # fmt: skip
    assert {name: round(row["speedup_command"], 1) for name, row in rows.items()} == {
        "trainer=cpu_seq": 1.0, "trainer=cpu": 0.9, "trainer=mpi_cpu": 2.6, "trainer=gpu": 131.8,
        "trainer=mpi_gpu": 161.5,
    }  # fmt: skip
    assert rows["trainer=mpi_cpu"]["efficiency"] == pytest.approx(0.108, abs=5e-4)
    assert rows["trainer=mpi_cpu"]["remark"] == "6 items keep at most 6 of 24 ranks busy"
    assert rows["trainer=gpu"]["efficiency"] == 1.0, "one GPU is the reference of GPUs"
    assert rows["trainer=mpi_gpu"]["efficiency"] == pytest.approx(0.613, abs=5e-4)
    assert [rows["trainer=mpi_gpu"][name] for name in ("processors", "unit")] == [2, "GPU"]


def test_start_up_is_in_the_speed_up_of_the_command_alone():
    rows = by_job([job("cpu_seq", 1.0, 120.0), job("gpu", 50.0, 24.0, gpus=1)])
    assert rows["trainer=gpu"]["speedup_steady"] == 50.0
    assert rows["trainer=gpu"]["speedup_command"] == 5.0


def test_the_cold_parts_stand_beside_the_steady_seconds_of_the_slowest_rank():
    row = by_job([job("cpu_seq", 1.0, 30.0), job("mpi_cpu", 2.0, 20.0, ranks=2)])["trainer=mpi_cpu"]
    assert [row[name] for name in scaling.COLD] == [4.0, 1.0, 0.5, 2.0, 8.0]


def test_seeds_share_a_row_and_each_is_compared_with_its_own_reference():
    sequential = [job("cpu_seq", rate, 30.0, f"seed={seed}") for seed, rate in ((1, 1.0), (2, 2.0), (3, 4.0))]
    threads = [job("cpu", rate, 20.0, f"seed={seed}", threads=2) for seed, rate in ((1, 1.5), (2, 4.0), (3, 7.0))]
    rows = scaling.compare([*sequential, *threads])
    row = rows[1]
    assert [row["job"], row["jobs"], len(rows)] == ["trainer=cpu", 3, 2]
    assert [row[f"speedup_steady{end}"] for end in ("", "_min", "_max")] == [1.75, 1.5, 2.0]
    assert [row[f"images_per_s{end}"] for end in ("", "_min", "_max")] == [4.0, 1.5, 7.0]
    assert row["efficiency"] == 0.875
    ((_, heads, cells), _) = scaling.tables(rows)
    assert cells[1][heads.index("speed-up")] == "1.75 (1.5–2)"
    assert cells[1][heads.index("efficiency")] == "88 (75–100) %"
    assert cells[0][heads.index("speed-up")] == "1", "no spread where there is none"


def test_only_jobs_of_the_same_work_are_compared():
    rows = by_job([
        job(trainer, rate, 30.0, f"model.steps={steps}", threads=threads)
        for trainer, threads, steps, rate in (
            ("cpu_seq", 1, 10, 4.0), ("cpu", 2, 10, 6.0), ("cpu_seq", 1, 20, 2.0), ("cpu", 2, 20, 3.5),
        )
    ])  # fmt: skip
    assert rows["trainer=cpu,model.steps=10"]["speedup_steady"] == 1.5
    assert rows["trainer=cpu,model.steps=20"]["speedup_steady"] == 1.75
    assert rows["trainer=cpu,model.steps=20"]["reference"] == "trainer=cpu_seq,model.steps=20"


def test_without_a_sequential_job_the_slowest_of_one_rank_is_named():
    fast, slow = job("gpu", 50.0, 20.0, gpus=1), job("cpu", 2.0, 30.0, threads=2)
    slow["timing"]["predict_s"] = 25.0
    rows = scaling.compare([fast, slow, job("mpi_cpu", 3.0, 25.0, ranks=2)])
    assert {row["reference"] for row in rows} == {"trainer=cpu"}
    assert rows[2]["speedup_steady"] == 1.5
    assert rows[2]["efficiency"] == 1.5, "two cores against the two threads of the reference"
    assert scaling.remarks(rows) == [
        "no trainer=cpu_seq finished: trainer=cpu is the reference, the slowest of one rank"
    ]


def test_ranks_may_differ_under_one_trainer():
    rows = by_job([job("mpi_cpu", n * 0.75, 30.0, f"ranks={n}", ranks=n) for n in (1, 2, 4)])
    assert rows["ranks=4"]["speedup_steady"] == 4.0
    assert rows["ranks=4"]["reference"] == "ranks=1"


def test_a_job_that_did_not_finish_is_a_row_with_its_reason():
    rows = scaling.compare([
        job("cpu_seq", 1.0, 30.0), undone("gpu", "skipped", "trainer=gpu: no GPU here"),
        undone("mpi_cpu", "failed", "rank 1 was killed"),
    ])  # fmt: skip
    assert [row["status"] for row in rows] == ["finished", "skipped", "failed"]
    assert "speedup_steady" not in rows[1]
    assert scaling.remarks(rows) == [
        "trainer=gpu: skipped: trainer=gpu: no GPU here", "trainer=mpi_cpu: failed: rank 1 was killed",
    ]  # fmt: skip
    assert [line[:2] for line in scaling.tables(rows)[0][2]][1] == ["trainer=gpu", "skipped"]


def test_a_failed_seed_leaves_the_others_figures():
    rows = by_job([
        job("cpu_seq", 1.0, 30.0, "seed=1"), job("cpu_seq", 1.0, 30.0, "seed=2"), job("cpu", 3.0, 30.0, "seed=1"),
        undone("cpu", "failed", "no space left", "seed=2"),
    ])  # fmt: skip
    assert rows["trainer=cpu"]["status"] == "1 of 2 finished"
    assert rows["trainer=cpu"]["speedup_steady"] == 3.0
    assert rows["trainer=cpu"]["remark"] == "failed: no space left"


def test_nothing_at_all_finished():
    rows = scaling.compare([undone("gpu", "skipped", "no GPU"), undone("mpi_gpu", "skipped", "no GPU")])
    assert "no speed-up: no job of one rank finished" in scaling.remarks(rows)
    assert [heads for _, heads, _ in scaling.tables(rows)] == [["job", "status", "on"]]


def test_jobs_run_in_one_way_are_not_compared():
    assert scaling.compare([job("cpu", 1.0, 30.0, f"seed={seed}") for seed in (1, 2)]) == []
    assert scaling.compare([]) == []


def test_utilisation_is_a_column_where_cpu_time_was_recorded():
    plain, timed = job("cpu_seq", 1.0, 30.0), job("cpu", 1.5, 25.0, threads=2)
    assert "utilisation" not in scaling.tables(scaling.compare([plain, timed]))[0][1]
    timed["timing"]["cpu_s"] = 15.0
    rows = scaling.compare([plain, timed])
    assert rows[1]["utilisation"] == 0.75, "15 s of CPU in 10 s on 2 cores"
    assert scaling.tables(rows)[0][2][1][-1] == "75 %"


def test_joules_carry_their_method():
    ((_, heads, cells), _) = scaling.tables(scaling.compare([job("cpu_seq", 1.0, 30.0), job("cpu", 1.5, 25.0)]))
    assert cells[0][heads.index("J/image")] == "0.5 estimate"


def test_a_stage_that_was_warm_up_alone_has_no_throughput():
    row = by_job([job("cpu_seq", 1.0, 30.0), job("mpi_cpu", None, 20.0, ranks=2)])["trainer=mpi_cpu"]
    assert "speedup_steady" not in row
    assert row["speedup_command"] == 1.5
    assert row["remark"] == "no steady state: every batch was warm-up"


def test_a_command_that_found_images_made_has_no_time_of_the_whole():
    resumed = job("cpu", 1.5, 5.0, counts={"predict/already_made": 90})
    row = by_job([job("cpu_seq", 1.0, 30.0), resumed])["trainer=cpu"]
    assert "speedup_command" not in row
    assert row["speedup_steady"] == 1.5


def test_rows_come_in_the_order_of_the_command():
    rows = scaling.compare([job("cpu", 1.0, 9.0, started=20.0), job("cpu_seq", 1.0, 9.0, started=10.0)])
    assert [row["job"] for row in rows] == ["trainer=cpu_seq", "trainer=cpu"]


def test_each_row_names_what_limits_it_with_the_figure_that_shows_it():
    def rank(number, seconds, wait):
        return {
            "rank": number, "items_total": 60, "items": 50, "batches": 5, "warmup_s": 1.0, "seconds": seconds,
            "data_wait_fraction": wait, "comm_fraction": 0.0, "rank_wait_fraction": 0.0,
        }  # fmt: skip

    jobs = [job("cpu_seq", 1.0, 20.0, f"seed={seed}") for seed in (1, 2, 3)]
    jobs += [job("mpi_cpu", 1.0, 60.0, f"seed={seed}", ranks=2) for seed in (1, 2, 3)]
    for number, each in enumerate(jobs):
        wait = 0.0 if number < 3 else 0.1 * number
        each["timing"]["per_rank"] = [rank(place, 10.0 / (1 - wait), wait) for place in range(each["world_size"])]
    rows = by_job(jobs)
    row = rows["trainer=mpi_cpu"]
    spread = [row[f"steady/loading{end}"] for end in ("", "_min", "_max")]
    assert spread == pytest.approx([0.4, 0.3, 0.5])
    assert row["steady_limit"] == "loading"
    assert row["steady_evidence"] == "the ranks wait 40% of their time for data"
    assert rows["trainer=cpu_seq"]["steady_limit"] == "compute"
    assert row["command_limit"] == "the end"
    (said,) = scaling.remarks([row])
    assert said.startswith("trainer=mpi_cpu: loading limits the steady state: the ranks wait 40% of their time")
    assert "; the end limits the whole command: " in said
    title, heads, cells = scaling.tables(list(rows.values()))[2]
    assert title.startswith("What limits it")
    assert heads == ["job", "status", "on", "whole command", "steady state", "compute", "loading"]
    assert cells[1][3:] == ["the end", "loading", "60 (50–70) %", "40 (30–50) %"]
