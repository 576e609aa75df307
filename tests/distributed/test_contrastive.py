"""The contrastive loss of ranks really started: negatives are those of the global batch, gradients too."""

import os
import subprocess
import sys

import pytest
import torch

from tests.conftest import ROOT
from tests.distributed.test_ranks import AS_ROOT, MPIRUN

WORKER = ROOT / "tests" / "distributed" / "contrastive_worker.py"


def step(ranks, loss, out):
    environment = os.environ | AS_ROOT | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [*MPIRUN, str(ranks), sys.executable, str(WORKER), loss, str(out)]
    done = subprocess.run(command, env=environment, timeout=120, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return torch.load(out, weights_only=True)


@pytest.mark.parametrize("loss", ["info_nce", "siglip"])
def test_loss_and_gradients_of_a_global_batch_are_the_same_at_any_number_of_ranks(loss, tmp_path):
    alone, pair = (step(ranks, loss, tmp_path / f"{ranks}.pt") for ranks in (1, 2))
    assert pair["loss"] == pytest.approx(alone["loss"], abs=1e-5)
    assert set(pair["gradient"]) == set(alone["gradient"])
    for name, gradient in alone["gradient"].items():
        assert torch.allclose(pair["gradient"][name], gradient, atol=1e-5), name
    assert max(float(gradient.abs().max()) for gradient in alone["gradient"].values()) > 1e-3
