"""Times are what a run with known delays must take; DDP's averaging stays its own, bit for bit."""

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch.utils.data import DataLoader, Dataset

from mmpds.callbacks.timing import Timing
from mmpds.callbacks.timing_section import KEPT, combine

STEP, WAIT, VALIDATION = 0.02, 0.01, 0.15  # seconds
WORLD = 3  # 1/3 is no power of two: an average taken in another way would differ in its last bits
QUIET = {
    "accelerator": "cpu", "logger": False, "enable_checkpointing": False, "enable_progress_bar": False,
    "enable_model_summary": False, "num_sanity_val_steps": 1, "use_distributed_sampler": False,
}  # fmt: skip


class Slow(Dataset):
    """Batches of 4 that take WAIT to load; the last item of each third batch only pads."""

    def __init__(self, batches: int, wait: float = WAIT) -> None:
        self.batches, self.wait = batches, wait

    def __len__(self):
        return self.batches

    def __getitem__(self, row):
        time.sleep(self.wait)
        index = torch.arange(4) + 4 * row
        index[3] = -1 if row % 3 == 2 else index[3]
        image = torch.rand(4, 8, generator=torch.Generator().manual_seed(row))
        return {"image": image, "index": index}


class Tiny(LightningModule):
    def __init__(self, step: float = STEP) -> None:
        super().__init__()
        self.layers = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Linear(8, 1))
        self.step = step

    def forward(self, batch):
        time.sleep(self.step)
        return self.layers(batch["image"]).square().mean()

    def training_step(self, batch, batch_idx):
        return self(batch)

    def validation_step(self, batch, batch_idx):
        time.sleep(VALIDATION)

    def test_step(self, batch, batch_idx):
        self(batch)

    def predict_step(self, batch, batch_idx):
        return self(batch)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def loader(batches, wait=WAIT):
    return DataLoader(Slow(batches, wait), batch_size=None)


@pytest.fixture(scope="module")
def timed():
    timing = Timing()
    trainer = Trainer(max_epochs=2, callbacks=[timing], **QUIET)
    model = Tiny()
    trainer.fit(model, loader(9), loader(1))
    trainer.test(model, loader(6), verbose=False)
    trainer.predict(model, loader(2))
    return json.loads(json.dumps(timing.summary()))


def test_training(timed):
    fit = timed["fit"]
    assert fit["items_total"] == 2 * (9 * 4 - 3)
    assert fit["items"] == fit["items_total"] - (3 * 4 - 1)
    assert fit["seconds"] >= 15 * (STEP + WAIT)
    assert fit["seconds"] < 15 * (STEP + WAIT) + VALIDATION  # two validations are left out, not even one is in
    assert fit["total_s"] > fit["seconds"] + fit["warmup_s"] + 2 * VALIDATION
    assert fit["warmup_s"] >= 3 * (STEP + WAIT)
    assert STEP * 1e3 <= fit["step_ms"]["p50"] <= fit["step_ms"]["p95"] <= fit["step_ms"]["p99"]
    assert fit["data_wait_fraction"] == pytest.approx(15 * WAIT / fit["seconds"], rel=0.25)
    assert fit["comm_fraction"] == 0
    assert fit["batches"] == 15


def test_section(timed):
    section = combine([timed])
    assert section["throughput_items_per_s"] == timed["fit"]["items"] / timed["fit"]["seconds"]
    assert section["fit_items_per_s"] == section["throughput_items_per_s"]
    assert section["test_items_per_s"] == timed["test"]["items"] / timed["test"]["seconds"]
    assert section["predict_items_per_s"] is None  # two batches never leave the warm-up
    assert section["predict_s"] > 2 * (STEP + WAIT)
    assert section["items_total"] == 66 + 22 + 8
    assert section["per_rank"] == [
        {"rank": 0} | {name: timed["fit"][name] for name in KEPT} | {"rank_wait_fraction": 0.0}
    ]


def test_nothing_ran():
    section = combine([Timing().summary()])
    assert section["throughput_items_per_s"] is None
    assert section["step_ms"] == {"p50": None, "p95": None, "p99": None}
    assert section["per_rank"] == []


def test_a_run_that_breaks_keeps_its_times():
    class Breaks(Tiny):
        def training_step(self, batch, batch_idx):
            if batch_idx == 5:
                raise ValueError("broken")
            return self(batch)

    timing = Timing(warmup_steps=2)
    with pytest.raises(ValueError, match="broken"):
        Trainer(max_epochs=1, callbacks=[timing], **QUIET).fit(Breaks(0.0), loader(9, 0.0))
    assert combine([timing.summary()])["items"] == 3 * 4 - 1
    assert combine([timing.summary()])["fit_s"] > 0


def test_warmup_must_be_positive():
    with pytest.raises(ValueError, match="warmup_steps=0"):
        Timing(warmup_steps=0)


def worker(out: Path) -> None:
    """One rank that trains twice, timed and not; a higher rank takes longer, so the lower ones wait."""
    from lightning.pytorch.plugins.environments import LightningEnvironment
    from lightning.pytorch.strategies import DDPStrategy

    rank = int(os.environ["LOCAL_RANK"])

    class Skewed(Tiny):
        def on_before_optimizer_step(self, optimizer):
            self.last = [p.grad.clone() for p in self.parameters()]

        def forward(self, batch):
            time.sleep(0.02 * rank)
            return self.layers(batch["image"] + rank).square().mean()

    runs = []
    for callbacks in ([Timing()], []):
        torch.manual_seed(0)
        model = Skewed()
        strategy = DDPStrategy(cluster_environment=LightningEnvironment(), process_group_backend="gloo")
        trainer = Trainer(max_epochs=1, devices=WORLD, callbacks=callbacks, strategy=strategy, **QUIET)
        trainer.fit(model, loader(9, 0.0), loader(1, 0.0))
        summary = callbacks[0].summary() if callbacks else None
        runs.append({"state": model.state_dict(), "grads": model.last, "summary": summary})
    torch.save(runs, out / str(rank))


def test_ddp_averages_as_ever_and_says_how_long_it_takes(tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    variables = {
        "WORLD_SIZE": str(WORLD), "NODE_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port,
        "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path),
    }  # fmt: skip
    processes = [
        subprocess.Popen(
            [sys.executable, __file__, str(tmp_path)],
            env=os.environ | variables | {"LOCAL_RANK": str(rank)}, stderr=subprocess.PIPE, text=True,
        )
        for rank in range(WORLD)
    ]  # fmt: skip
    try:
        for process in processes:
            error = process.communicate(timeout=100)[1]
            assert process.returncode == 0, error
    finally:
        for process in processes:
            process.kill()
    ranks = []
    for rank in range(WORLD):
        timed, plain = torch.load(tmp_path / str(rank), weights_only=True)
        assert all(torch.equal(a, b) for a, b in zip(timed["grads"], plain["grads"], strict=True))
        assert all(torch.equal(timed["state"][key], value) for key, value in plain["state"].items())
        ranks.append(timed["summary"])
    assert [rank["rank"] for rank in ranks] == list(range(WORLD))
    assert 0.5 < ranks[0]["fit"]["comm_fraction"] < 1  # it waits for the slower ranks
    assert 0 < ranks[-1]["fit"]["comm_fraction"] < 0.5
    section = combine(ranks)
    assert section["items"] == WORLD * (6 * 4 - 2)
    waits = [rank["rank_wait_fraction"] for rank in section["per_rank"]]
    assert waits == sorted(waits, reverse=True), "the higher a rank, the longer its steps"
    assert waits[0] > 0.5
    assert waits[-1] < 0.1, "nobody keeps the slowest waiting"


if __name__ == "__main__":
    worker(Path(sys.argv[1]))
