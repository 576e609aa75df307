"""Run under mpirun: one training step of a tiny CLIP on the same global batch; write its loss and gradients."""

import os
import sys
from functools import partial

from mmpds.launch import rendezvous
from mmpds.world import adopt

world = adopt(os.environ)
rendezvous(world, os.environ)

import lightning.pytorch as pl  # noqa: E402 - the rank must be known first
import torch  # noqa: E402
from lightning.pytorch.plugins.environments import TorchElasticEnvironment  # noqa: E402
from lightning.pytorch.strategies import DDPStrategy  # noqa: E402

from mmpds.callbacks.predictions import gathered  # noqa: E402
from mmpds.data.module import ImageData  # noqa: E402
from mmpds.data.phantom import Phantom  # noqa: E402
from mmpds.models.clip import Clip  # noqa: E402
from mmpds.run import leave  # noqa: E402

VISION = {
    "patch_size": 16, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
}  # fmt: skip
TEXT = {"vocab_size": 600, "max_position_embeddings": 40, "projection_dim": 8} | {
    name: value for name, value in VISION.items() if name != "patch_size"
}


class Kept(Clip):
    """Keeps what a step gave."""

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        self.seen = float(loss.detach())
        return loss

    def on_before_optimizer_step(self, optimizer):
        self.gradient = {name: p.grad.clone() for name, p in self.named_parameters() if p.grad is not None}


def main(loss, out):
    pl.seed_everything(0, verbose=False)
    model = Kept(findings=["Pneumonia"], size=32, vision=VISION, text=TEXT, width=8, loss=loss)
    multi = {"devices": 1}
    if world.size > 1:
        strategy = DDPStrategy(process_group_backend="gloo")
        multi = {"strategy": strategy, "plugins": [TorchElasticEnvironment()], "devices": world.size}
    trainer = pl.Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, use_distributed_sampler=False, max_steps=1,
        enable_checkpointing=False, enable_model_summary=False, limit_val_batches=0, **multi,
    )  # fmt: skip
    # few images of few kinds: some reports occur twice in the batch, also on two ranks
    source = partial(Phantom, images=60, findings=["Pneumonia"], seed=3)
    data = ImageData(source, size=32, batch_size=24, cache_dir=None, augment=False, seed=1)
    trainer.fit(model, data)
    losses = gathered(model.seen)
    if world.rank == 0:
        torch.save({"loss": sum(losses) / len(losses), "gradient": model.gradient}, out)


main(*sys.argv[1:])
leave(0)
