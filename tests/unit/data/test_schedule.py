"""What each rank would take, without ranks; the shared counter is tested with real ones (tests/distributed)."""

import time

import pytest
import torch.distributed as dist

from mmpds.data.schedule import SharedCounter, turns


@pytest.fixture
def group(monkeypatch):
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("schedule", ["static", "dynamic"])
@pytest.mark.parametrize("batches", [0, 1, 5])
def test_one_process_takes_all_in_order_without_a_counter(batches, schedule):
    assert list(turns(batches, schedule, 0, 1)) == list(range(batches))
    assert not dist.is_initialized()


def test_the_counter_counts_from_zero_and_anew_each_time(group):
    for _ in range(2):
        counter = SharedCounter()
        assert [counter.take() for _ in range(4)] == [0, 1, 2, 3]


def test_a_rank_alone_does_not_wait(group):
    counter = SharedCounter()
    began = time.monotonic()
    counter.wait()
    assert time.monotonic() - began < 1
