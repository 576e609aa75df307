"""ZeRO on two CPU ranks: killed, it goes on, and its best checkpoint is a file that every trainer reads.

GPUs add NCCL, bfloat16 weights and offloading to CPU memory; all else is the same code.
"""

import pytest
import torch

from mmpds.results import read
from tests.conftest import TINY

pytest.importorskip("deepspeed", exc_type=ImportError)
from mmpds import zero

RECIPE = ("experiment=demo", *TINY, "callbacks.last.every_n_steps=2", "trainer.threads=1", "ranks=2")
ZERO2, ZERO3 = ("trainer=deepspeed", "trainer.accelerator=cpu"), ("trainer=deepspeed_zero3", "trainer.accelerator=cpu")
pytestmark = pytest.mark.timeout(1800)


@pytest.mark.parametrize("stage", [ZERO2, ZERO3], ids=["ZeRO-2", "ZeRO-3"])
def test_zero(train, tmp_path, stage):
    train(*RECIPE, *stage, "run_dir=whole", timeout=500, check=0)
    whole = read(tmp_path / "whole")
    best = tmp_path / "whole" / "checkpoints" / "best.ckpt"

    # one file, of float32 weights, which one process tests with the same result
    saved = torch.load(best, weights_only=True)
    assert {tensor.dtype for tensor in saved["state_dict"].values() if tensor.is_floating_point()} == {torch.float32}
    train(
        *RECIPE[:-1], "trainer=cpu_seq", "stages=[test]", f"checkpoint={best}", "run_dir=tested", timeout=500, check=0
    )
    tested = read(tmp_path / "tested")["metrics"]
    assert {name for name in tested if name.startswith("test/auroc")}
    for name, value in tested.items():
        assert value == pytest.approx(whole["metrics"][name], abs=1e-5), name

    # killed and resumed, to the same number of steps
    fault = ("+callbacks.fault._target_=tests.distributed.faults.Fault", "+callbacks.fault.step=10")
    assert train(*RECIPE, *stage, "stages=[fit]", "run_dir=killed", *fault, timeout=500).returncode != 0
    train(*RECIPE, *stage, "stages=[fit]", "run_dir=killed", "resume=last", timeout=500, check=0)
    assert zero.read(tmp_path / "killed" / "checkpoints" / "last.ckpt")["global_step"] == 14
