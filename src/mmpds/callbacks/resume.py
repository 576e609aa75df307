"""A run killed at any step and resumed ends with the weights of an uninterrupted one, bit by bit."""

from __future__ import annotations

import signal
import threading
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.callbacks import Callback, Checkpoint
from lightning.pytorch.utilities.exceptions import SIGTERMException

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


ASKED = 10
"""Batches after which ranks on GPUs ask one another for signals: for an answer the host waits for the device."""


class LastCheckpoint(Checkpoint):
    """Keeps `last.ckpt`, written atomically every so many steps, at the end of every epoch, and before a kill.

    A scheduler that wants its nodes back sends SIGTERM, and SIGUSR1 before the time is up (`sbatch --signal`). The
    batch at hand is then finished, its state saved, and the process ended, by SIGUSR1 itself where it was that, so
    that a batch script can tell the two apart.

    Args:
        path: the file.
        every_n_steps: batches between two writes within an epoch.
    """

    def __init__(self, path: str, every_n_steps: int = 200) -> None:
        if every_n_steps < 1:
            raise ValueError(f"every_n_steps={every_n_steps}: give a whole number above zero")
        self.path, self.every_n_steps = Path(path), every_n_steps
        self.received = 0  # the signal; 0: none

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take the signals, after Lightning, which gives them back at the end to whom they belonged."""
        if threading.current_thread() is threading.main_thread():
            # Lightning's own handler of SIGTERM calls a collective, wherever in a step each rank may be
            for number in (signal.SIGTERM, signal.SIGUSR1):
                signal.signal(number, self._receive)

    def _receive(self, number: int, _: Any) -> None:
        self.received = number

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save in the middle of an epoch; its last batch waits for the validation that follows it."""
        if batch_idx + 1 == trainer.num_training_batches:
            return
        waits = trainer.world_size > 1 and trainer.strategy.root_device.type != "cpu"
        received = self._received_by_any(trainer) if not waits or (batch_idx + 1) % ASKED == 0 else 0
        if received or (batch_idx + 1) % self.every_n_steps == 0:
            trainer.save_checkpoint(self.path)
        if received:
            self._end(trainer, received)

    def on_validation_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        """End each rank by itself, for their batches may differ in number; there is nothing new to save."""
        if self.received:
            self._end(trainer, self.received)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save after the epoch's validation."""
        trainer.save_checkpoint(self.path)
        if received := self._received_by_any(trainer):
            self._end(trainer, received)

    def _received_by_any(self, trainer: pl.Trainer) -> int:
        """The signal that any rank has received, the same number on all; 0: none."""
        if trainer.world_size == 1:
            return self.received
        mine = torch.tensor(self.received, device=trainer.strategy.root_device)
        return int(trainer.strategy.reduce(mine, reduce_op="max"))

    def _end(self, trainer: pl.Trainer, number: int) -> None:
        if number == signal.SIGTERM:
            raise SIGTERMException
        for logger in trainer.loggers:
            logger.finalize("interrupted")
        signal.signal(number, signal.SIG_DFL)
        signal.raise_signal(number)
