"""Killed at any step and resumed: the same weights, bit by bit, at one rank and at two."""

import pytest
import torch

from tests.conftest import TINY

RECIPE = (
    "experiment=demo", *TINY, "stages=[fit]", "callbacks=ema", "callbacks.ema.decay=0.9",
    "callbacks.last.every_n_steps=2",
    "model.drop_rate=0.2", "data.rebalance=balanced", "trainer.max_epochs=3",
)  # fmt: skip
WORLDS = {1: ["trainer=cpu_seq"], 2: ["trainer=mpi_cpu", "ranks=2"]}


def tensors(node, name=""):
    if isinstance(node, torch.Tensor):
        yield name, node
    elif isinstance(node, dict):
        for key, value in node.items():
            yield from tensors(value, f"{name}/{key}")
    elif isinstance(node, list | tuple):
        for key, value in enumerate(node):
            yield from tensors(value, f"{name}/{key}")


def state(run_dir):
    saved = torch.load(run_dir / "checkpoints" / "last.ckpt", weights_only=True)
    parts = {key: saved[key] for key in ("state_dict", "optimizer_states", "current_model_state", "averaging_state")}
    return dict(tensors(parts)) | {"step": torch.tensor(saved["global_step"])}


# 7 batches an epoch, saved after batches 2, 4, 6 and at its end: killed inside an epoch, just after its last
# batch and before the validation, and inside a later epoch
@pytest.mark.parametrize(("ranks", "steps"), [(1, [3, 7, 20]), (2, [12])])
def test_killed_and_resumed_is_bit_identical(train, tmp_path, ranks, steps):
    train(*RECIPE, *WORLDS[ranks], "run_dir=whole", check=0)
    whole = state(tmp_path / "whole")
    assert int(whole["step"]) == 21
    for step in steps:
        fault = ["+callbacks.fault._target_=tests.distributed.faults.Fault", f"+callbacks.fault.step={step}"]
        killed = train(*RECIPE, *WORLDS[ranks], f"run_dir=killed{step}", *fault)
        assert killed.returncode != 0
        assert int(state(tmp_path / f"killed{step}")["step"]) < 21
        train(*RECIPE, *WORLDS[ranks], f"run_dir=killed{step}", "resume=last", check=0)
        resumed = state(tmp_path / f"killed{step}")
        assert resumed.keys() == whole.keys()
        different = [name for name in whole if whole[name].numpy().tobytes() != resumed[name].numpy().tobytes()]
        assert different == []
