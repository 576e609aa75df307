"""How accuracy and AUROC of a detector fall as its test images are corrupted.

Shapes: N = images, C = findings that are judged, K = conditions (a corruption at a level), M = `METRICS`,
R = columns of item weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pandas as pd
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.plugins.precision import Precision

from mmpds.callbacks.predictions import gathered, write_table
from mmpds.data.batch import item_seed
from mmpds.data.corruptions import CORRUPTIONS, Condition, Item, Level, conditions, wrong_levels
from mmpds.data.transforms import to_image
from mmpds.metrics.classification import Array, Detection
from mmpds.metrics.intervals import Evaluation, interval, members, resamples
from mmpds.results import inert

METRICS = ("auroc", "balanced_accuracy", "accuracy")
BATCH = 32


class Robustness(Callback):
    """After a test, predicts test images again under each corruption and level, and judges each.

    Thresholds and calibration stay those of the undisturbed images: what is asked is how a detector in use does. Every
    rank predicts its share; rank 0 judges and writes. The images are a sample that is the same for any model, and at
    any number of ranks. They are cut into the same batches, too, so that the figures are equal.

    auroc: see `Ranking`.
    accuracy: share of labelled images that are decided rightly. Where a finding is rare this says little: a detector
        that flags nothing has one minus the prevalence, and corruption that silences a detector can raise it. Hence
    balanced_accuracy: mean of recall and specificity (Brodersen et al., ICPR 2010), 0.5 for any decision that does
        not depend on the image.

    Each is a metric `robustness/<corruption>/<level>/<metric>/macro`, the mean over the findings with and without
    which there are images. `.../<metric>_drop/macro` is that of the undisturbed images less it: above 0 where
    corruption harms. Its interval is of the paired difference, both being of the same images in each replicate of the
    bootstrap by patient: it tells of far smaller falls than the two intervals beside each other.

    Args:
        path: the CSV of all figures, a row a condition and finding.
        images: how many test images are judged, drawn at random; None for all.
        corruptions: corruption -> levels, or None for its own (see `CORRUPTIONS`); None for all of both.
        replicates: of the bootstrap behind the intervals; 0 for none.
        seed: of the bootstrap, the choice of images and the noise.

    Raises:
        ValueError: no such corruption or level, or no image.
    """

    def __init__(
        self, path: str, images: int | None = 500, corruptions: Mapping[str, Sequence[Level] | None] | None = None,
        replicates: int = 1000, seed: int = 0,
    ) -> None:  # fmt: skip
        wrong = [f"corruptions.{name}={value}: {cure}" for name, value, cure in wrong_levels(corruptions)]
        if images is not None and images < 1:
            wrong.append(f"images={images}: give a number above zero, or None for all test images")
        if wrong:
            raise ValueError("; ".join(wrong))
        self.path, self.images, self.corruptions = Path(path), images, corruptions
        self.replicates, self.seed = replicates, seed
        self._found = Evaluation({}, {}, {}, [])

    def summary(self) -> dict[str, Any]:
        """`metrics`, `intervals`, `counts` and `warnings` of the last test; of all ranks, on rank 0 only."""
        return vars(self._found)

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Predict this rank's share of the images; rank 0 judges all."""
        images = trainer.datamodule.images["test"]  # type: ignore[attr-defined]
        seeds = np.array([item_seed(self.seed, str(item)) for item in images.table["id"]])
        rows = np.sort(seeds.argsort()[: self.images])
        asked = conditions(self.corruptions, images.size)
        batches = [rows[start : start + BATCH] for start in range(0, len(rows), BATCH)]
        shares = range(trainer.global_rank, len(batches), trainer.world_size)
        mine = {}
        for at in shares:
            items = [
                Item(partial(images.source.image, int(images.rows[r])), images.size, seeds[r]) for r in batches[at]
            ]
            mine[at] = _predict(items, asked, pl_module, trainer.precision_plugin)
        ranks = gathered(mine)
        if trainer.global_rank == 0:
            done = {at: prob for rank in ranks for at, prob in rank.items()}
            prob = np.concatenate([done[at] for at in range(len(batches))], axis=1)
            label, group = images.label.numpy()[rows], images.table["group"].to_numpy()[rows]
            threshold = pl_module.threshold.value.cpu().numpy()  # type: ignore[union-attr, operator]
            self._found, table = judge(
                prob, label, threshold, pl_module.findings, asked, group, self.replicates, self.seed  # type: ignore[arg-type]
            )  # fmt: skip
            if len(table):
                write_table(self.path, table)


def _predict(items: Sequence[Item], asked: Sequence[Condition], model: Any, precision: Precision) -> Array:
    """Calibrated probabilities of a batch of items under each condition, float32 [K, B, C]."""
    found: list[Array] = []
    usual: Array | None = None
    for condition in asked:
        if condition.undisturbed and usual is not None:
            found.append(usual)
            continue
        apply = CORRUPTIONS[condition.corruption].apply
        batch = torch.stack([to_image(apply(item, condition.level)) for item in items]).to(model.device)
        with precision.test_step_context():
            prob = model.calibration.calibrate(model.probabilities(precision.convert_input(batch)))
        found.append(prob.float().cpu().numpy())
        usual = found[-1] if condition.undisturbed else usual
    return np.stack(found)


def judge(
    prob: Array, label: Array, threshold: Array, findings: Sequence[str], asked: Sequence[Condition], group: Array,
    replicates: int = 1000, seed: int = 0,
) -> tuple[Evaluation, pd.DataFrame]:  # fmt: skip
    """Judge predictions of the same images under several conditions.

    Args:
        prob: [K, N, findings] in [0, 1].
        label: [N, findings], 1, 0 or NaN (not labelled).
        threshold: [findings].
        findings: their names.
        asked: K conditions; each corruption has one that is undisturbed.
        group: [N], the patient of each image.
        replicates: of the bootstrap by group; 0 for no intervals.
        seed: of the bootstrap.

    Returns:
        The means over findings, named as `Robustness` says; and a table of all figures, a row a condition and finding:
        corruption, unit, level, undisturbed (1 or 0), finding (`macro` for the mean), and for each metric its value,
        `_low`, `_high`, `_drop`, `_drop_low` and `_drop_high`.
    """
    both = (label == 1).any(axis=0) & (label == 0).any(axis=0)
    member = members(prob[0], label, group)
    counts = {"robustness/images": len(label), "robustness/groups": int(member.max()) + 1}
    warnings = [
        f"robustness: {finding} is left out: none of {len(label)} images is known to be "
        f"{'without' if present else 'with'} it"
        for finding, present, judged in zip(findings, (label == 1).any(axis=0), both, strict=True)
        if not judged
    ]
    if not both.any():
        return Evaluation({}, {}, counts, warnings), pd.DataFrame()
    names = [finding for finding, judged in zip(findings, both, strict=True) if judged]
    label = label[:, both]
    detections = [Detection(each[:, both], label, threshold[both], names) for each in prob]
    value = _measures(detections, label, names, np.ones((len(label), 1)))
    again = np.full((*value.shape[:3], 0), np.nan)
    if replicates and counts["robustness/groups"] > 1:
        drawn = [_measures(detections, label, names, weight) for weight in resamples(member, replicates, seed)]
        again = np.concatenate(drawn, axis=3)
    elif replicates:
        warnings.append("robustness: no intervals: all images are of one patient")
    metrics: dict[str, float] = {}
    intervals: dict[str, tuple[float, float]] = {}
    rows: list[dict[str, Any]] = []
    usual = {condition.corruption: k for k, condition in enumerate(asked) if condition.undisturbed}
    for k, condition in enumerate(asked):
        # (figure, replicates), [M, C + 1] and [M, C + 1, R]
        figures = {"": (value[k, ..., 0], again[k])}
        if not condition.undisturbed:
            first = usual[condition.corruption]
            figures["_drop"] = value[first, ..., 0] - value[k, ..., 0], again[first] - again[k]
        for c, finding in enumerate([*names, "macro"]):
            row: dict[str, Any] = {
                "corruption": condition.corruption, "unit": CORRUPTIONS[condition.corruption].unit,
                "level": condition.name.partition("/")[2], "undisturbed": int(condition.undisturbed),
                "finding": inert(finding),
            }  # fmt: skip
            for m, metric in enumerate(METRICS):
                for kind, (points, replicated) in figures.items():
                    row[name := f"{metric}{kind}"] = float(points[m, c])
                    if ends := interval(replicated[m, c]):
                        row |= {f"{name}_low": ends[0], f"{name}_high": ends[1]}
                    if finding == "macro":
                        full = f"robustness/{condition.name}/{name}/macro"
                        metrics[full] = row[name]
                        intervals |= {full: ends} if ends else {}
            rows.append(row)
    if again.size and (withheld := len(metrics) - len(intervals)):
        warnings.append(
            f"robustness: {withheld} of {len(metrics)} intervals are withheld, for some findings are too rare among "
            f"{len(label)} images; give more by callbacks.robustness.images"
        )
    columns = [f"{m}{drop}{end}" for m in METRICS for drop in ("", "_drop") for end in ("", "_low", "_high")]
    order = ["corruption", "unit", "level", "undisturbed", "finding", *columns]
    return Evaluation(metrics, intervals, counts, warnings), pd.DataFrame(rows).reindex(columns=order)


def _measures(detections: Sequence[Detection], label: Array, names: Sequence[str], weight: Array) -> Array:
    """Every metric of each condition, finding and their mean under each column of weights [N, R]: [K, M, C + 1, R]."""
    positives, negatives = ((label == truth).T.astype(weight.dtype) @ weight for truth in (1, 0))
    total = positives + negatives
    found = []
    for detection in detections:
        named = detection(weight)
        auroc, recall, specificity = (
            np.stack([named[f"{metric}/{finding}"] for finding in names])
            for metric in ("auroc", "recall", "specificity")
        )
        with np.errstate(divide="ignore", invalid="ignore"):
            # a class that a replicate has drawn no image of has no rate, and no decisions to count either
            accuracy = (np.nan_to_num(recall) * positives + np.nan_to_num(specificity) * negatives) / total
        found.append([auroc, (recall + specificity) / 2, accuracy])
    each = np.array(found)
    return np.concatenate([each, each.mean(axis=2, keepdims=True)], axis=2)
