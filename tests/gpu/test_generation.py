"""The generator on a GPU: the same images as on the CPU, and what they cost."""

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from tests.conftest import results_of
from tests.gpu.test_gpu import EXACT, check_costs

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch.cuda finds no GPU on this machine")

TRAIN = (
    "experiment=diffusion_phantom", "stages=[fit]", "data.source.images=60", "data.batch_size=6",
    "data.cache_dir=cache", "model.unet.block_out_channels=[32,32,64]", "model.size=32",
    "trainer.max_epochs=1", "report=false",
)  # fmt: skip
# batches of one prompt: there are then more than the warm-up takes
GENERATE = (
    "experiment=generate", "data.prompts=study", "data.batch_size=1", "model.sampling.steps=4", "report=false",
)  # fmt: skip


def images(folder):
    table = pd.read_csv(folder / "images" / "manifest.csv")
    return np.stack([np.asarray(Image.open(folder / "images" / name), dtype=int) for name in table["file"]])


def test_a_gpu_makes_the_images_of_the_cpu(train, tmp_path):
    train(*TRAIN, "trainer=gpu", "trainer.precision=32-true", "run_dir=fit", check=0, environ=EXACT)
    weights = "checkpoint=fit/checkpoints/best.ckpt"
    for trainer in ("cpu", "gpu"):
        train(
            *GENERATE, weights, f"trainer={trainer}", "trainer.precision=32-true", f"run_dir={trainer}", check=0,
            environ=EXACT,
        )  # fmt: skip
    assert np.abs(images(tmp_path / "gpu") - images(tmp_path / "cpu")).max() <= 1
    check_costs(results_of(tmp_path / "gpu"))


def test_half_precision_and_mpi_on_a_gpu(train, tmp_path):
    train(*TRAIN, "trainer=gpu", "run_dir=fit", check=0)
    train(*GENERATE, "checkpoint=fit/checkpoints/best.ckpt", "trainer=mpi_gpu", "ranks=1", "run_dir=out", check=0)
    assert results_of(tmp_path / "out")["precision"] == "bf16-true"
    assert images(tmp_path / "out").std() > 0
