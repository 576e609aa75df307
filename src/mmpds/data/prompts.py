"""Prompts as a LightningDataModule: what a generator makes images of, batched the same for any number of ranks."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

import lightning.pytorch as pl
import numpy as np
import pandas as pd
import torch

from mmpds.data.batch import PromptBatch, item_seed
from mmpds.data.prompt_sets import read_items
from mmpds.data.schedule import SCHEDULES, turns


class PromptBatches:
    """The batches of one rank; as a loader it has the same length on every rank, and may end before it.

    Batches are formed of all rows before they are handed out: what a batch holds, and so every bit of its images,
    does not depend on the number of ranks.

    Args:
        table: a row an item, with `prompt` and `seed`.
        rows: of the table, those to be made, int [N].
        batch_size: items a batch.
        schedule: see `turns`.
    """

    def __init__(
        self, table: pd.DataFrame, rows: np.ndarray, batch_size: int, schedule: str, rank: int, world_size: int
    ) -> None:
        self.table, self.schedule, self.rank, self.world_size = table, schedule, rank, world_size
        self.batches = [rows[start : start + batch_size] for start in range(0, len(rows), batch_size)]

    def __len__(self) -> int:
        """The most batches that a rank can get; with several ranks one more, for Lightning must ask until all end.

        It stops at the length, and calls no hook of the prediction where that is 0. Of a loader without a length it
        fetches a batch ahead, which would be taken from a rank that is free.
        """
        if self.world_size == 1:
            return max(1, len(self.batches))
        share = 1 if self.schedule == "dynamic" else self.world_size
        return -(-len(self.batches) // share) + 1

    def __iter__(self) -> Iterator[PromptBatch]:
        """This rank's batches; ends on all ranks at the same time."""
        for turn in turns(len(self.batches), self.schedule, self.rank, self.world_size):
            rows = self.batches[turn]
            items = self.table.iloc[rows]
            yield {
                "prompt": items["prompt"].tolist(),
                "seed": torch.tensor(items["seed"].to_numpy()),
                "index": torch.tensor(rows, dtype=torch.int64),
            }


class PromptData(pl.LightningDataModule):
    """Prompts for `Trainer.predict`, on any number of ranks.

    table: a row an image: `id` (str, unique, fit for a file's name), `prompt` (str), `seed` (int64, in [0, 2**63),
        the item's own: `item_seed` of the run's seed and the id).
    missing: rows still to be made, int [N], to be set before the loader is made; None: all.

    Args:
        prompts: `study`, `phantom`, `vqa_rad`, the path of a text file or a list of texts (see `read_prompts`).
        root: the folder that holds VQA-RAD; for prompts=vqa_rad alone.
        count: the first so many prompts; None: all.
        images_per_prompt: images of each; with several, ids end in -0, -1, …
        batch_size: images a call of the model: those of one rank, whatever the number of ranks.
        schedule: `static` or `dynamic` (see `turns`).
        seed: the run's.

    Raises:
        ValueError: all that is wrong with the arguments; the text names each, its value and the cure.
    """

    def __init__(
        self, prompts: str | Sequence[str] = "study", root: str | None = None, count: int | None = None,
        images_per_prompt: int = 1, batch_size: int = 4, schedule: str = "static", seed: int = 0,
    ) -> None:  # fmt: skip
        super().__init__()
        began = time.perf_counter()
        wrong = []
        if not (isinstance(batch_size, int) and batch_size >= 1):
            wrong.append(f"data.batch_size={batch_size}: give a whole number from 1 up")
        if schedule not in SCHEDULES:
            wrong.append(f"data.schedule={schedule}: unknown; take {' or '.join(SCHEDULES)}")
        items: list[tuple[str, str]] = []
        try:
            items = read_items(prompts, root, count, images_per_prompt)
        except ValueError as error:
            wrong.append(str(error))
        if wrong:
            raise ValueError("; ".join(wrong))
        self.table = pd.DataFrame(items, columns=["id", "prompt"])
        self.table["seed"] = np.array([item_seed(seed, name) for name in self.table["id"]], dtype=np.int64)
        self.batch_size, self.schedule = batch_size, schedule
        self.missing: np.ndarray | None = None
        self.findings: tuple[str, ...] = ()
        self.rejected = pd.DataFrame(columns=["id", "reason"])
        self.notes: list[str] = []
        self.load_s = time.perf_counter() - began

    def predict_dataloader(self) -> PromptBatches:
        """This rank's batches of the items still to be made.

        Raises:
            ValueError: the trainer would stop some of several ranks early, for which the others would wait.
        """
        rank, world_size = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        if self.trainer and world_size > 1:
            limit = self.trainer.limit_predict_batches
            if isinstance(limit, int) or limit < 1:
                raise ValueError(f"trainer.limit_predict_batches={limit} on {world_size} ranks; use data.count instead")
        rows = np.arange(len(self.table)) if self.missing is None else np.asarray(self.missing, dtype=np.int64)
        loader = PromptBatches(self.table, rows, self.batch_size, self.schedule, rank, world_size)
        batches = len(loader.batches)
        if 0 < batches < world_size:
            idle = world_size - batches
            items = f"{len(rows)} item{'s' * (len(rows) > 1)} in {batches} batch{'es' * (batches > 1)}"
            have = f"{idle} rank{'s have' if idle > 1 else ' has'}"
            self.notes.append(f"{items} on {world_size} ranks: {have} nothing to do")
        return loader
