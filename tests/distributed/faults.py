"""Faults that a test plants in a run through its configuration."""

import os
import signal

from lightning.pytorch.callbacks import Callback


class Fault(Callback):
    """At one training step of one rank: `kill` it outright, or `raise`."""

    def __init__(self, step: int, rank: int = 0, action: str = "kill") -> None:
        self.step, self.rank, self.action = step, rank, action

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_step == self.step and trainer.global_rank == self.rank:
            if self.action == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            raise RuntimeError("the planted fault")


class PredictionFault(Callback):
    """Kills one rank outright after so many batches of a prediction."""

    def __init__(self, step: int, rank: int = 0) -> None:
        self.step, self.rank = step, rank

    def on_predict_batch_end(self, trainer, pl_module, outputs, batch, batch_idx, dataloader_idx=0):
        if batch_idx + 1 == self.step and trainer.global_rank == self.rank:
            os.kill(os.getpid(), signal.SIGKILL)
