"""What several ranks' made-up timings say together."""

import pytest

from mmpds.callbacks.timing_section import combine


def stage(items, seconds, step, wait, comm, comm_steps=None):
    return {
        "total_s": seconds + 1, "cpu_s": seconds / 2, "warmup_s": 0.5, "items_total": items, "items": items,
        "batches": items // 2, "seconds": seconds, "step_ms": {"p50": step, "p95": step, "p99": step},
        "data_wait_fraction": wait, "comm_fraction": comm, "comm_steps": comm_steps,
    }  # fmt: skip


def test_ranks_are_combined_by_the_slowest():
    ranks = [
        {"rank": 0, "fit": stage(10, 2.0, 5.0, 0.5, 0.1)},
        {"rank": 1, "fit": stage(12, 4.0, 4.0, 0.2, 0.4)},
    ]
    section = combine(ranks)
    assert section["throughput_items_per_s"] == 22 / 4
    assert section["fit_s"] == 5
    assert section["cpu_s"] == 3
    assert section["test_s"] is None
    assert section["step_ms"]["p95"] == 5
    assert section["data_wait_fraction"] == pytest.approx((1 + 0.8) / 6)
    assert section["comm_fraction"] == pytest.approx((0.2 + 1.6) / 6)
    ranks[1]["fit"]["comm_fraction"] = None
    assert combine(ranks)["comm_fraction"] is None


def test_under_ddp_a_rank_waits_as_long_as_its_communication_exceeds_the_shortest_of_the_step():
    # they take turns in being late, so that the sums of both ranks are equal
    ranks = [
        {"rank": 0, "fit": stage(10, 4.0, 5.0, 0.0, 0.3, [0.9, 0.1, 0.2])},
        {"rank": 1, "fit": stage(10, 4.0, 5.0, 0.0, 0.3, [0.1, 0.9, 0.2])},
    ]
    section = combine(ranks)
    assert [rank["rank_wait_fraction"] for rank in section["per_rank"]] == pytest.approx([0.2, 0.2])
    assert section["rank_wait_fraction"] == pytest.approx(0.2)


def test_in_evaluation_the_early_ranks_wait_at_the_end():
    section = combine([
        {"rank": 0, "test": stage(10, 4.0, 5.0, 0.0, None)}, {"rank": 1, "test": stage(10, 3.0, 5.0, 0.0, None)},
    ])  # fmt: skip
    assert [rank["rank_wait_fraction"] for rank in section["per_rank"]] == [0.0, 0.25]
    assert section["rank_wait_fraction"] == 0.125


def test_waiting_that_cannot_be_told_from_computing_is_unknown():
    ranks = [{"rank": rank, "fit": stage(10, 4.0, 5.0, 0.0, None)} for rank in range(2)]
    assert combine(ranks)["rank_wait_fraction"] is None
    assert combine(ranks)["per_rank"][1]["rank_wait_fraction"] is None
