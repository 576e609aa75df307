"""Run under mpirun: hand prompts out to the ranks and write who got which, or fail on one rank."""

import json
import os
import sys
import time
from pathlib import Path

from mmpds.launch import rendezvous
from mmpds.world import adopt

world = adopt(os.environ)
rendezvous(world, os.environ)

import lightning.pytorch as pl  # noqa: E402 - the rank must be known first
import numpy as np  # noqa: E402
import torch.distributed as dist  # noqa: E402
from lightning.pytorch.plugins.environments import TorchElasticEnvironment  # noqa: E402
from lightning.pytorch.strategies import DDPStrategy  # noqa: E402

from mmpds.data.prompts import PromptData  # noqa: E402
from mmpds.run import leave  # noqa: E402

# name: prompts, rows still to be made, seconds that a batch takes rank 0 (others need none)
CASES = {
    "one": (1, None, 0.0),
    "five": (5, None, 0.0),
    "nine": (9, None, 0.0),
    "resumed": (9, [1, 4, 6, 7, 8], 0.0),
    "nothing left": (9, [], 0.0),
    "rank 0 is slow": (24, None, 0.4),
}


class Toy(pl.LightningModule):
    """Keeps what it is asked for."""

    def __init__(self, slow):
        super().__init__()
        self.slow, self.rows, self.worked, self.ended = slow, [], 0, 0

    def predict_step(self, batch):
        self.rows.append(batch["index"].tolist())
        if world.rank == 0:
            time.sleep(self.slow)
        elif self.slow < 0:
            raise RuntimeError("the planted fault")
        self.worked = time.time()

    def on_predict_end(self):
        self.ended = time.time()


def predict(count, missing, slow, schedule):
    multi = {"devices": 1}
    if world.size > 1:
        strategy = DDPStrategy(process_group_backend="gloo")
        multi = {"strategy": strategy, "plugins": [TorchElasticEnvironment()], "devices": world.size}
    trainer = pl.Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, use_distributed_sampler=False,
        enable_checkpointing=False, enable_model_summary=False, **multi,
    )  # fmt: skip
    data = PromptData([f"prompt {place}" for place in range(count)], batch_size=2, schedule=schedule)
    data.missing = None if missing is None else np.array(missing)
    model = Toy(slow)
    trainer.predict(model, data, return_predictions=False)
    mine = {"rows": model.rows, "worked": model.worked, "ended": model.ended, "notes": data.notes}
    ranks = [mine] * world.size
    if world.size > 1:
        dist.all_gather_object(ranks, mine)
    return ranks


def main(out, fault):
    if fault == "fault":
        try:
            predict(9, None, -1 if world.rank else 0, "dynamic")
        except RuntimeError as error:
            sys.stderr.write(f"{error}\n")
            leave(1)
    found = {
        schedule: {name: predict(*case, schedule) for name, case in CASES.items()} for schedule in ("static", "dynamic")
    }
    if world.rank == 0:
        Path(out).write_text(json.dumps(found))


main(*sys.argv[1:])
leave(0)
