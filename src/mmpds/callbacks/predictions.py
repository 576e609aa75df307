"""What a model predicts, gathered from all ranks and kept as a table that opens in a spreadsheet."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pandas as pd
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from mmpds.data.batch import PADDING
from mmpds.data.predictions import LABEL, PROBABILITY
from mmpds.results import inert, whole


class Predictions(Callback):
    """Collects each item's probabilities while testing, predicting, or validating outside of a fit.

    After the stage, `prob` holds those of all ranks on every rank: float32 [N, C] in the order of the split's
    table, every row once. It is None after a validation of a part of its items (`limit_val_batches`).
    """

    def __init__(self) -> None:
        self.prob: np.ndarray | None = None
        self._batches: list[dict[str, Tensor]] = []

    def _collect(self, outputs: Any) -> None:
        real = outputs["index"] != PADDING
        self._batches.append({name: outputs[name][real].cpu() for name in ("prob", "index")})

    def _gather(self) -> None:
        mine = {name: torch.cat([batch[name] for batch in self._batches]).numpy() for name in ("prob", "index")}
        self._batches = []
        ranks = gathered(mine)
        index = np.concatenate([rank["index"] for rank in ranks])
        prob = np.concatenate([rank["prob"] for rank in ranks])
        if not np.array_equal(np.sort(index), np.arange(len(index))):
            distinct = len(np.unique(index))
            raise RuntimeError(f"of {len(index)} gathered rows {distinct} are distinct: each must occur once")
        self.prob = np.empty_like(prob)
        self.prob[index] = prob

    def on_validation_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, *_: Any
    ) -> None:
        """Keep a validation batch's outputs; within a fit they are of weights that are no result yet."""
        if _of_result(trainer):
            self._collect(outputs)

    def on_test_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, *_: Any) -> None:
        """Keep a test batch's outputs: `prob` float32 [B, C] and `index` int64 [B]."""
        self._collect(outputs)

    def on_predict_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, *_: Any) -> None:
        """Keep a prediction batch's outputs."""
        self._collect(outputs)

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Gather all ranks' outputs."""
        if _of_result(trainer):
            self._gather()

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Gather all ranks' outputs."""
        self._gather()

    def on_predict_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Gather all ranks' outputs."""
        self._gather()


def gathered(mine: Any) -> list[Any]:
    """What every rank hands in, in the order of the ranks, on every rank; all ranks must call it."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return [mine]
    ranks: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(ranks, mine)
    return ranks


def _of_result(trainer: pl.Trainer) -> bool:
    whole = sum(trainer.num_val_batches) == len(trainer.val_dataloaders or ())
    return trainer.state.fn == "validate" and whole


def prediction_table(
    split: str, table: pd.DataFrame, findings: Sequence[str], prob: np.ndarray, decision: np.ndarray
) -> pd.DataFrame:
    """Rows of predictions.csv.

    Columns: split, id, group; sex, age, view and normal (1 or 0; blank where no finding is labelled) where the
    table knows them; then each finding's label, probability and decision.

    Args:
        split: the name of the split.
        table: its items, N rows.
        findings: C names.
        prob: float [N, C] in [0, 1].
        decision: bool [N, C].
    """
    columns: dict[str, Any] = {
        "split": split,
        "id": table["id"].astype(str).map(inert),
        "group": table["group"].astype(str).map(inert),
    }
    columns |= {name: table[name].map(inert) for name in ("sex", "age", "view") if name in table}
    if "normal" in table:
        labelled = table.reindex(columns=list(findings)).notna().any(axis=1)
        columns["normal"] = table["normal"].astype("Int64").where(labelled)
    for position, finding in enumerate(findings):
        name = inert(finding)
        columns[f"{name}{LABEL}"] = table.get(finding, np.nan)
        columns[f"{name}{PROBABILITY}"] = prob[:, position]
        columns[f"{name} decision"] = decision[:, position].astype(int)
    return pd.DataFrame(columns)


def write_table(path: Path, table: pd.DataFrame) -> None:
    """Write a CSV in one step, as RFC 4180 has it; texts must be inert already, or hold no file names."""
    # nine digits are every bit of a float32: what is read back is judged the same;
    # with bare newlines pandas would not quote a carriage return, and a cell could begin a row of its own
    with whole(path) as temporary:
        table.to_csv(temporary, index=False, float_format="%.9g", lineterminator="\r\n")


def rejected_table(rejected: pd.DataFrame) -> pd.DataFrame:
    """Rows of rejected.csv: id and reason."""
    return rejected.map(inert)
