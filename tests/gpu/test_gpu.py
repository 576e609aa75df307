"""The same commands on a GPU: they finish, say what they cost, and find what the CPU finds."""

import pandas as pd
import pytest
import torch

from tests.conftest import TINY, results_of

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch.cuda finds no GPU on this machine")

EXACT = {"NVIDIA_TF32_OVERRIDE": "0"}
"""TensorFloat-32, cuDNN's default for convolutions, has 10 bits of mantissa."""


def check_costs(result):
    assert result["status"] == "finished"
    assert result["hardware"]["gpu"] == [torch.cuda.get_device_name(0)]
    assert result["energy"]["method"] == "nvml"
    assert result["energy"]["joules"] > 0
    assert 0 < result["memory"]["peak_device_bytes"] < torch.cuda.get_device_properties(0).total_memory
    assert result["timing"]["throughput_items_per_s"] > 0
    assert 0 < result["timing"]["step_ms"]["p50"] <= result["timing"]["step_ms"]["p99"]


def test_one_gpu(train, tmp_path):
    train("experiment=demo", *TINY, "trainer=gpu", check=0)
    result = results_of(tmp_path)
    check_costs(result)
    assert result["world_size"] == 1


def test_half_precision_on_one_gpu(train, tmp_path):
    train("experiment=demo", *TINY, "trainer=gpu", "trainer.precision=auto", check=0)
    result = results_of(tmp_path)
    check_costs(result)
    assert result["precision"] == (
        "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "32-true"
    )


def test_one_mpi_rank_on_one_gpu(train, tmp_path):
    train("experiment=demo", *TINY, "trainer=mpi_gpu", "ranks=1", check=0)
    result = results_of(tmp_path)
    check_costs(result)
    assert [rank["rank"] for rank in result["timing"]["per_rank"]] == [0]


def test_one_deepspeed_rank_on_one_gpu(train, tmp_path):
    pytest.importorskip("deepspeed", exc_type=ImportError)
    train("experiment=demo", *TINY, "trainer=deepspeed", "ranks=1", timeout=240, check=0)
    check_costs(results_of(tmp_path))


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_two_mpi_ranks_on_two_gpus(train, tmp_path):
    train("experiment=demo", *TINY, "trainer=mpi_gpu", "ranks=2", check=0)
    result = results_of(tmp_path)
    assert (result["status"], result["world_size"]) == ("finished", 2)
    assert len(result["hardware"]["gpu"]) == 2


def test_a_gpu_finds_what_the_cpu_finds(train, tmp_path):
    train("experiment=demo", *TINY, "stages=[fit]", "trainer=cpu", "run_dir=trained", check=0)
    for place in ("cpu", "gpu"):
        train(
            "experiment=demo", *TINY, "stages=[test]", "checkpoint=trained/checkpoints/last.ckpt", f"trainer={place}",
            f"run_dir={place}", environ=EXACT, check=0,
        )  # fmt: skip
    cpu, gpu = (results_of(tmp_path / place) for place in ("cpu", "gpu"))
    assert cpu["metrics"].keys() == gpu["metrics"].keys()
    assert len(cpu["metrics"]) > 20
    for name, value in cpu["metrics"].items():
        assert gpu["metrics"][name] == pytest.approx(value, abs=1e-3), name
    assert cpu["counts"] == gpu["counts"]


def test_training_on_a_gpu_begins_as_on_the_cpu(train, tmp_path):
    losses = []
    for place in ("cpu", "gpu"):
        train(
            "experiment=demo", *TINY, "stages=[fit]", "trainer.max_epochs=1", "trainer.log_every_n_steps=1",
            f"trainer={place}", f"run_dir={place}", environ=EXACT, check=0,
        )  # fmt: skip
        logged = pd.read_csv(tmp_path / place / "logs" / "metrics.csv")["train/loss"].dropna()
        losses.append(logged.tolist()[:3])  # later ones part: rounding decides the sign of small steps of Adam
    assert len(losses[0]) == 3
    assert losses[1] == pytest.approx(losses[0], abs=1e-3)
