"""Exact search on a GPU: the hits of the CPU."""

import numpy as np
import pytest
import torch

from mmpds.search import exact
from tests.unit.search.test_exact import vectors

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch.cuda finds no GPU on this machine")


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("queries", [0, 1, 40])
def test_a_gpu_finds_what_the_cpu_finds(monkeypatch, dtype, queries):
    monkeypatch.setattr(exact, "SCORES", 1 << 16)  # several blocks
    archive, asked = vectors(9 * exact.UNIT).astype(dtype), vectors(queries, seed=1)
    shards = [archive[: 4 * exact.UNIT], archive[4 * exact.UNIT :]]
    there, here = (exact.Exact(shards, device=device).search(asked, 10) for device in ("cuda", "cpu"))
    assert np.allclose(there.score, here.score, atol=1e-5)
    assert (there.row == here.row).mean() > 0.99 if queries else there.row.shape == (0, 10)
