"""What a test plants in a run so that a signal finds it where it is to."""

import os
import socket
import time
from pathlib import Path

from lightning.pytorch.callbacks import Callback

from mmpds.callbacks.resume import LastCheckpoint
from tests.slurm.cluster import PATIENCE_S


class Hold(Callback):
    """Rank 0 waits at a step for a signal, as its job runs for the first time; each rank says where it runs.

    Its peers go on to the next collective, where a signal cannot be handled.

    Args:
        step: the step; 0: never.
        folder: where each rank leaves a file of its node's name, and `held` appears when the step is reached.
    """

    def __init__(self, folder: str, step: int = 0) -> None:
        self.folder, self.step = Path(folder), step

    def setup(self, trainer, pl_module, stage):
        self.folder.mkdir(exist_ok=True)
        (self.folder / f"rank{trainer.global_rank}").write_text(socket.gethostname())

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if (trainer.global_step, trainer.global_rank) != (self.step, 0) or "SLURM_RESTART_COUNT" in os.environ:
            return
        (self.folder / "held").touch()
        (last,) = (callback for callback in trainer.callbacks if isinstance(callback, LastCheckpoint))
        end = time.monotonic() + PATIENCE_S
        while not last.received and time.monotonic() < end:
            time.sleep(0.1)
