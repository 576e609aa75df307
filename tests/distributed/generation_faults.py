"""A fault that a test plants in the generation of images, and that does not come again."""

import os
import signal
import time
from pathlib import Path

import torch
from lightning.pytorch.callbacks import Callback


class Once(Callback):
    """Strikes ranks before their second batch, in the first run only: each leaves a file `<marker>-<rank>`.

    `kill`: the rank kills itself outright. `wait`: it waits to be killed.
    """

    def __init__(self, marker: str, action: str, rank: int | None = None) -> None:
        self.marker, self.action, self.rank = marker, action, rank

    def on_predict_batch_start(self, trainer, pl_module, batch, batch_idx, dataloader_idx=0):
        file = Path(f"{self.marker}-{trainer.global_rank}")
        if batch_idx != 1 or self.rank not in (None, trainer.global_rank) or file.exists():
            return
        file.touch()
        if self.action == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(600)


class Poison(Callback):
    """Turns the embedding of prompts that hold a word into NaN."""

    def __init__(self, word: str) -> None:
        self.word = word

    def on_predict_start(self, trainer, pl_module):
        embed = pl_module.embed

        def poisoned(texts):
            found = embed(texts)
            struck = torch.tensor([self.word in text for text in texts])
            return torch.where(struck[:, None, None], torch.nan, found)

        pl_module.embed = poisoned
