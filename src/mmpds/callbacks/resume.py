"""A run killed at any step and resumed ends with the weights of an uninterrupted one, bit by bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.callbacks import Callback, Checkpoint

from mmpds.results import whole


class StepSeed(Callback):
    """Seeds each training step's random numbers from (seed, rank, step).

    Dropout and noise are then a function of where a run stands, and no generator's state need be saved.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Seed torch on the CPU and on the rank's device."""
        place = [self.seed, trainer.global_rank, trainer.current_epoch, batch_idx]
        torch.manual_seed(int(np.random.SeedSequence(place).generate_state(1, np.uint64)[0]))


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside its place, then renames it.

    Lightning writes to /tmp first: moved to another file system, that is a copy, which a kill or a full disk
    cuts short over the good checkpoint that was there.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """See TorchCheckpointIO."""
        with whole(Path(path)) as temporary:
            super().save_checkpoint(checkpoint, temporary, storage_options)


class LastCheckpoint(Checkpoint):
    """Keeps `last.ckpt`, written atomically every so many steps and at the end of every epoch.

    Args:
        path: the file.
        every_n_steps: batches between two writes within an epoch.
    """

    def __init__(self, path: str, every_n_steps: int = 200) -> None:
        if every_n_steps < 1:
            raise ValueError(f"every_n_steps={every_n_steps}: give a whole number above zero")
        self.path, self.every_n_steps = Path(path), every_n_steps

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save in the middle of an epoch; its last batch waits for the validation that follows it."""
        last = batch_idx + 1 == trainer.num_training_batches
        if (batch_idx + 1) % self.every_n_steps == 0 and not last:
            trainer.save_checkpoint(self.path)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save after the epoch's validation."""
        trainer.save_checkpoint(self.path)
