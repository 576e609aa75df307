"""Run under mpirun: test a tiny model on 1, 5, 6 and 7 images and write what rank 0 knows of them."""

import json
import os
import sys
from functools import partial
from pathlib import Path

from mmpds.launch import rendezvous
from mmpds.world import adopt

world = adopt(os.environ)
rendezvous(world, os.environ)

import lightning.pytorch as pl  # noqa: E402 - the rank must be known first
import numpy as np  # noqa: E402
from lightning.pytorch.plugins.environments import TorchElasticEnvironment  # noqa: E402
from lightning.pytorch.strategies import DDPStrategy  # noqa: E402
from PIL import Image  # noqa: E402

from mmpds.callbacks.predictions import Predictions  # noqa: E402
from mmpds.data.chest_xray import ChestXray  # noqa: E402
from mmpds.data.module import ImageData  # noqa: E402
from mmpds.data.phantom import Phantom  # noqa: E402
from mmpds.metrics.intervals import evaluate  # noqa: E402
from mmpds.models.densenet import DenseNet121  # noqa: E402
from mmpds.run import leave  # noqa: E402


def write_images(root, count):
    phantom = Phantom(images=count, seed=5)
    for row in range(count):
        folder = root / ("NORMAL" if row % 2 else "PNEUMONIA")
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(phantom.image(row, 32)).save(folder / f"person{row}_bacteria_{row}.png")


def main(folder, out):
    found = {}
    pl.seed_everything(0, verbose=False)
    model = DenseNet121(["Pneumonia"], growth_rate=4, block_config=(1, 1, 1, 1), init_features=8)
    for count in (1, 5, 6, 7):
        root = Path(folder) / str(count)
        if not root.exists() and world.rank == 0:
            write_images(root, count)
        multi = {"devices": 1}
        if world.size > 1:
            strategy = DDPStrategy(process_group_backend="gloo")
            multi = {"strategy": strategy, "plugins": [TorchElasticEnvironment()], "devices": world.size}
        trainer = pl.Trainer(
            accelerator="cpu", logger=False, enable_progress_bar=False, use_distributed_sampler=False,
            callbacks=[predictions := Predictions()], default_root_dir=folder, **multi,
        )  # fmt: skip
        trainer.strategy.setup_environment()
        trainer.strategy.barrier()
        data = ImageData(
            partial(ChestXray, findings=["Pneumonia"]), test_root=str(root), size=32, batch_size=world.size
        )
        trainer.test(model, data, verbose=False)
        images = data.images["test"]
        data.images |= {
            "train": images,
            "val": images,
        }  # the same items through validation: torchmetrics does the gathering there
        trainer.validate(model, data, verbose=False)
        judged = evaluate(predictions.prob, images.label.numpy(), np.array([0.5]), ["Pneumonia"], replicates=0)
        logged = {name: float(value) for name, value in trainer.callback_metrics.items()}
        found[count] = {
            "rows": sorted(images.table["id"]), "prob": predictions.prob.tolist(), "metrics": judged.metrics | logged,
            "threshold": model.threshold.value.tolist(),
        }  # fmt: skip
    if world.rank == 0:
        Path(out).write_text(json.dumps(found))


main(*sys.argv[1:])
leave(0)
