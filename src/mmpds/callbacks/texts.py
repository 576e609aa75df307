"""What a model writes of each item, gathered from all ranks; and of questions, what it writes without their image."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback

from mmpds.callbacks.predictions import gathered
from mmpds.data.batch import PADDING
from mmpds.data.sampling import Draw

BLANK, SHUFFLED = "blank", "shuffled"


class Texts(Callback):
    """Collects the texts of a test or a prediction; `written` has those of all ranks, by the row of what they answer.

    The model gives `text` and `row` in its step.

    Args:
        controls: whether questions are asked twice more after a test: of a blank image (`blank`), which shows what the
            question alone tells, and of another patient's (`shuffled`).
        bert_score: folder of an encoder of transformers for BERTScore; None for none.
        replicates: of the bootstrap behind the intervals.
        seed: of the bootstrap, and of who gets whose image.
    """

    def __init__(
        self, controls: bool = False, bert_score: str | None = None, replicates: int = 1000, seed: int = 0
    ) -> None:
        self.controls, self.bert_score, self.replicates, self.seed = controls, bert_score, replicates, seed
        self.written: dict[str, list[str]] = {}
        self._kept: list[tuple[int, str]] = []

    def on_test_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, *_: Any) -> None:
        """Keep a batch's texts."""
        self._kept += zip(outputs["row"], outputs["text"], strict=True)

    on_predict_batch_end = on_test_batch_end  # type: ignore[assignment]

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Gather all ranks' texts, then ask again without the image."""
        self.written = {"prediction": self._gathered()}
        if not self.controls:
            return
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        images = data.images["test"]
        other = torch.from_numpy(partners(images.table["group"].to_numpy(), self.seed))
        for name in (BLANK, SHUFFLED):
            with torch.inference_mode(), trainer.precision_plugin.forward_context():
                for batch in data.test_dataloader():
                    if name == BLANK:
                        batch["image"] = torch.zeros_like(batch["image"])
                    else:
                        rows = other[batch["index"].where(batch["index"] != PADDING, 0)].tolist()
                        batch["image"] = torch.stack([images[Draw(row)]["image"] for row in rows])
                    batch = trainer.strategy.batch_to_device(trainer.precision_plugin.convert_input(batch))
                    outputs: Any = pl_module.test_step(batch, 0)
                    self._kept += zip(outputs["row"], outputs["text"], strict=True)
            self.written[name] = self._gathered()

    def on_predict_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Gather all ranks' texts."""
        self.written = {"prediction": self._gathered()}

    def _gathered(self) -> list[str]:
        """The texts of all ranks in the order of their rows, on every rank.

        Raises:
            RuntimeError: a row lacks a text or has several.
        """
        found = sorted(pair for rank in gathered(self._kept) for pair in rank)
        self._kept = []
        if [row for row, _ in found] != list(range(len(found))):
            raise RuntimeError(f"of {len(found)} texts {len(dict(found))} are of distinct items: each must occur once")
        return [text for _, text in found]


def partners(group: np.ndarray, seed: int) -> np.ndarray:
    """For each image the row of another group's, int64 [N]; its own where there is one group only."""
    order = np.random.default_rng(seed).permutation(len(group))
    found = np.empty(len(group), dtype=np.int64)
    for place, row in enumerate(order):
        after = (order[(place + step) % len(order)] for step in range(1, len(order) + 1))
        found[row] = next((other for other in after if group[other] != group[row]), row)
    return found
