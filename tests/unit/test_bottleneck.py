"""Made-up measurements, each with one thing that limits it, which must be named with the figure that shows it."""

import pytest

from mmpds.bottleneck import COMPUTE, EVIDENCE, bottleneck, evidence, limits


def rank(seconds=10.0, items=100, wait=0.0, comm=0.0, rank_wait=0.0, batches=10, warmup=1.0, warmup_items=10):
    return {
        "items_total": items + warmup_items, "items": items, "batches": batches, "warmup_s": warmup,
        "seconds": seconds, "data_wait_fraction": wait, "comm_fraction": comm, "rank_wait_fraction": rank_wait,
    }  # fmt: skip


def run(*ranks, threads=1, cores=64, gpus=0, **timing):
    return {
        "world_size": len(ranks), "threads_per_rank": threads, "hardware": {"cores": cores, "gpu": ["H100"] * gpus},
        "timing": {"startup_s": 0.2, "build_s": 0.1, "load_s": 0.1, "command_s": 11.5, "per_rank": list(ranks)}
        | timing,
    }  # fmt: skip


ONE = run(rank())


def named(result, reference=ONE, triad=None, scope="steady"):
    found = limits(result, reference, triad)
    shares = getattr(found, scope)
    assert sum(shares.values()) == pytest.approx(1)
    assert all(share >= 0 for share in shares.values())
    name = bottleneck(shares)
    return name, evidence(name, shares, found.facts)


def test_a_run_that_loses_nothing_is_limited_by_computing():
    assert named(run(rank(), rank())) == ("compute", "the ranks compute 100% of their time")
    assert named(ONE, scope="command")[0] == COMPUTE


def test_a_loss_of_less_than_a_tenth_is_no_bottleneck():
    assert named(run(rank(wait=0.09), rank(wait=0.09)))[0] == "compute"
    assert named(run(rank(wait=0.11), rank(wait=0.11)))[0] == "loading"


def test_loading():
    assert named(run(rank(wait=0.4), rank(wait=0.2))) == ("loading", "the ranks wait 30% of their time for data")


def test_communication_without_the_waiting_inside_of_it():
    name, why = named(run(rank(comm=0.5, rank_wait=0.1), rank(comm=0.4)))
    assert name == "communication"
    assert why == "the all-reduce takes 40% of the ranks' time, waiting for slower ranks not counted"


def test_imbalance_inside_the_all_reduce_of_ddp():
    name, why = named(run(rank(comm=0.5, rank_wait=0.45), rank(comm=0.05)))
    assert name == "imbalance"
    assert why.startswith("the ranks wait 22% of their time for the slowest")


def test_imbalance_at_the_end_of_an_evaluation():
    name, why = named(run(rank(5.0, comm=None, rank_wait=0.5), rank(10.0, comm=None)))
    assert name == "imbalance"
    assert why == "the ranks wait 25% of their time for the slowest; theirs are 5 to 10 s"


def test_too_few_batches_to_share():
    ranks = [rank(10.0, 8, batches=2), *(rank(5.0, 4, batches=1, rank_wait=0.5) for _ in range(3))]
    name, why = named(run(*ranks), reference=None)
    assert name == "too few items"
    assert why == "5 batches, at most 2 a rank, leave 4 ranks idle for 38% of their time"


def test_the_studys_six_items_on_24_ranks_never_leave_the_warm_up():
    busy = rank(0.0, 0, batches=0, warmup=420.0, warmup_items=1)
    idle = rank(0.0, 0, batches=0, warmup=0.0, warmup_items=0)
    result = run(*[busy] * 6, *[idle] * 18, command_s=430.0)
    assert named(result) == ("too few items", "6 items, at most 1 a rank, leave 24 ranks idle for 75% of their time")
    assert named(result, scope="command")[0] == "too few items"


def test_memory_bandwidth_where_stream_loses_as_well():
    slow = run(rank(15.0), rank(15.0))
    name, why = named(slow, triad={1: 10e9, 2: 13e9})
    assert name == "memory bandwidth"
    assert why.startswith("an item costs 1.50 times the reference's core seconds")
    assert why.endswith("STREAM's triad on 2 cores reaches 1.30 times that of one")
    assert named(slow, triad={1: 10e9, 2: 19.9e9})[0] == "slower compute", "STREAM scales: memory is not the reason"
    assert named(slow)[0] == "slower compute", "without STREAM nobody knows"


def test_threads_that_share_a_part_of_the_work():
    name, why = named(run(rank(7.5), threads=2), triad={1: 10e9, 2: 10e9})
    assert name == "serial part"
    assert why.startswith("an item costs 1.50 times the reference's core seconds: 2 threads")


def test_more_ranks_than_cores():
    name, why = named(run(*[rank(15.0)] * 3, cores=2))
    assert name == "too few cores"
    assert why.startswith("3 threads share 2 cores: an item costs 1.50 times")
    shared = run(*[rank(15.0)] * 3, cores=2, test_s=17.0, cpu_s=34.0)
    assert named(shared)[0] == "too few cores"
    nodes = run(*[rank(15.0)] * 3, cores=2, test_s=17.0, cpu_s=50.0)
    assert named(nodes)[0] == "slower compute", "all three worked all the time: there was another node"


def test_start_up_of_the_command_but_not_of_its_steady_state():
    result = run(rank(), startup_s=15.0, command_s=27.0)
    assert named(result)[0] == "compute"
    assert named(result, scope="command") == ("start-up", "15.2 of 27 s go by before the steady state")


def test_only_what_a_warm_up_takes_longer_than_later_batches_is_start_up():
    slow = limits(run(rank(warmup=9.0), command_s=19.5))
    assert slow.facts["cold_s"] == pytest.approx(0.4 + 8.0)
    quick = limits(run(rank(warmup=0.5), command_s=11.5))
    assert quick.facts["cold_s"] == pytest.approx(0.4)


def test_the_end_of_the_command():
    assert named(run(rank(), command_s=16.4), scope="command") == (
        "the end", "5 of 16.4 s go to validation, other stages, metrics, reports and the end",
    )  # fmt: skip


def test_gpus_are_compared_with_one_gpu():
    one, two = run(rank(), gpus=1), run(rank(14.0), rank(14.0), gpus=2, cores=1)
    assert named(two, one)[0] == "slower compute", "GPUs are not short of cores"


def test_what_was_not_measured_has_no_limit():
    assert limits({"timing": {"per_rank": []}}).steady == {}
    assert limits({"timing": {"per_rank": [{"rank": 0, "seconds": 7.0}]}}).steady == {}, "of an older version"
    assert bottleneck({}) is None
    assert limits(run(rank(), command_s=None)).command == {}


def test_every_name_has_its_sentence():
    facts = limits(ONE).facts | {"excess": 1.5, "triad": 1.2, "command_s": 9.0, "cold_s": 3.0, "end_s": 1.0}
    for name in EVIDENCE:
        assert any(character.isdigit() for character in evidence(name, {name: 0.5}, facts))
