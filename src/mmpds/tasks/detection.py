"""A detector's stages: predictions.csv, the judgement at fitted thresholds, heat maps."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from omegaconf import OmegaConf

from mmpds import tracking
from mmpds.callbacks.predictions import prediction_table, rejected_table, write_table
from mmpds.evaluation import Sections, add, judge
from mmpds.metrics.multiclass import multiclass

if TYPE_CHECKING:
    from mmpds.stages import Run


LOOKS = ("gradcam", "embedding_quality", "robustness")
"""Callbacks that judge something more of the test split."""


class Task:
    """See `mmpds.tasks.Task`; the model has `findings`, `threshold` and `calibration`.

    Args:
        run: whose data, model and callbacks these are.
    """

    inference_precision = "bf16-mixed"
    artifacts = {"predictions": "predictions.csv", "rejected": "rejected.csv", "robustness": "robustness.csv"}

    def __init__(self, run: Run) -> None:
        self.run = run
        self.tables: list[pd.DataFrame] = []

    def needs_validation(self) -> bool:
        """Pretrained weights have no thresholds yet; embeddings need none."""
        if list(self.run.cfg.stages) == ["predict"] and "embeddings" in self.run.callbacks:
            return False
        return not (self.run.model.threshold.fitted and self.run.model.calibration.fitted)

    def validated(self) -> None:
        """Keep the validation split's rows, unless only a part of it was seen."""
        if self.run.callbacks["predictions"].prob is not None:
            self.tables.append(self._predicted("val")[-1])

    def tested(self, found: Sections) -> None:
        """Judge the test split, on rank 0."""
        prob, decision, rows = self._predicted("test")
        self.tables.append(rows)
        if self.run.world.rank == 0:
            self._judge(prob, decision, found)

    def predicted(self, found: Sections) -> None:
        """Keep the rows of a folder of images; where they are embedded, they are in the archive, earlier ones too."""
        if embeddings := self.run.callbacks.get("embeddings"):
            found["counts"] |= embeddings.summary()
            return
        self.tables.append(self._predicted("predict")[-1])

    def keep(self, found: Sections) -> None:
        """Write predictions.csv and rejected.csv; send a few test images to the loggers."""
        run, data = self.run, self.run.data
        if self.tables:
            write_table(run.run_dir / "predictions.csv", pd.concat(self.tables))
        if count := len(data.rejected):
            write_table(run.run_dir / "rejected.csv", rejected_table(data.rejected))
            found["counts"]["rejected"] = count
            found["warnings"].append(f"{count} unreadable images left out: rejected.csv")
        if "test" in run.cfg.stages:
            tracking.log_samples(run.trainer.loggers, data.images["test"], run.cfg.log_images)

    def _predicted(self, split: str) -> tuple[np.ndarray, np.ndarray, pd.DataFrame]:
        """Probabilities and decisions, [N, C], of the split that a stage has just seen; and its predictions.csv."""
        model = self.run.model
        prob = self.run.callbacks["predictions"].prob
        if split == "val":  # the calibration was fitted on these, after they were predicted
            prob = model.calibration.calibrate(torch.from_numpy(prob)).numpy()
        decision = model.threshold.decide(torch.from_numpy(prob)).numpy()
        table = self.run.data.images[split].table
        return prob, decision, prediction_table(split, table, model.findings, prob, decision)

    def _judge(self, prob: np.ndarray, decision: np.ndarray, found: Sections) -> None:
        """Add the judgement of the test split to `found`."""
        cfg, model, data = self.run.cfg, self.run.model, self.run.data
        callbacks: dict[str, Any] = self.run.callbacks
        threshold, images = model.threshold, data.images["test"]
        kept = {"threshold.rule": threshold.rule, "calibration": model.calibration.method}
        if "@" in threshold.rule:
            level = threshold.rule.rpartition("@")[2]
            kept[f"threshold.{level}"] = getattr(threshold, level)
        for key, own in kept.items() if cfg.checkpoint else ():
            if (asked := OmegaConf.select(cfg.model, key)) not in (None, own):
                found["warnings"].append(f"model.{key}={asked} not applied: a checkpoint keeps its own, {own}")
        add(found, judge(
            prob, images.label.numpy(), decision, images.table, threshold, model.findings, replicates=cfg.bootstrap,
            seed=cfg.seed, input_range=callbacks["input_range"].summary() if "input_range" in callbacks else None,
            leaked=data.leaked,
        ))  # fmt: skip
        looks = [callbacks[name].summary() for name in LOOKS if name in callbacks]
        if model.exclusive:
            looks.append(vars(multiclass(
                prob, images.label.numpy(), model.findings, group=images.table["group"].to_numpy(),
                replicates=cfg.bootstrap, seed=cfg.seed,
            )))  # fmt: skip
        for looked in looks:
            for section in ("metrics", "intervals", "counts"):
                found[section] |= {f"test/{name}": value for name, value in looked[section].items()}
            found["warnings"] += looked["warnings"]
        found["calibration"] = {"method": model.calibration.method}
        found["warnings"] += [f"{finding}: {why}" for finding, why in model.calibration.unfit.items()]
