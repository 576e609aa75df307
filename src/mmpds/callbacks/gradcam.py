"""Where a detector looked: heat maps of test images, scored against boxes, and a gallery of them.

Shapes: C = findings, K = boxes.
"""

from __future__ import annotations

import io
import re
from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import lightning.pytorch as pl
import numpy as np
import pandas as pd
import torch
from lightning.pytorch.callbacks import Callback

from mmpds.callbacks.heat_maps import heat_maps, overlay
from mmpds.callbacks.predictions import Predictions, gathered, write_table
from mmpds.data.transforms import to_image
from mmpds.metrics.localization import Localization, localize, overlap
from mmpds.results import inert

OUTCOMES = ("true positive", "false positive", "false negative", "true negative")
FLAGGED = OUTCOMES[:2]
TOLERANCE = 15 / 500
"""15 pixels of the some 500 a side that the pointing game's first images had (Zhang et al., IJCV 2018)."""
BATCH = 16


class _Case(NamedTuple):
    """One finding in one test image: why it is explained, and what is needed for it."""

    row: int
    column: int
    boxes: np.ndarray | None  # where the finding is present and boxed
    outcome: str  # "" where it is not labelled
    shown: bool  # in the gallery


class _Explained(NamedTuple):
    """What a rank hands over of a case."""

    case: _Case
    scores: dict[str, float]
    empty: bool  # the map is zero everywhere
    png: bytes


class GradCam(Callback):
    """After a test, explains the images that have boxes, and some right and wrong decisions of each finding.

    Maps of a finding that is present and boxed are scored against its boxes: see `mmpds.metrics.localization`. The
    gallery takes, of each finding and outcome, the first images in the table's order: a fair sample, not the best
    ones. Every rank explains its share; rank 0 writes.

    Args:
        folder: where the pictures and gallery.csv go.
        method: one of `heat_maps.METHODS`.
        layers: names of submodules whose maps are averaged; None for the model's own `cam_layers`.
        tolerance: of the pointing game, in fractions of the image's side.
        level: of the box IoU, in shares of a map's maximum.
        not_in_macro: findings left out of the macro means.
        per_outcome: pictures of each finding and outcome; 0 for no gallery.
        replicates: of the bootstrap behind the intervals.
        seed: of the bootstrap.
    """

    def __init__(
        self, folder: str, method: str = "gradcam++", layers: Sequence[str] | None = None, tolerance: float = TOLERANCE,
        level: float = 0.5, not_in_macro: Collection[str] = (), per_outcome: int = 2, replicates: int = 1000,
        seed: int = 0,
    ) -> None:  # fmt: skip
        self.folder, self.per_outcome = Path(folder), per_outcome
        self.method, self.layers = method, layers
        self.tolerance, self.level = tolerance, level
        self.not_in_macro, self.replicates, self.seed = tuple(not_in_macro), replicates, seed
        self._found = Localization({}, {}, {}, [])

    def summary(self) -> dict[str, Any]:
        """`metrics`, `intervals`, `counts` and `warnings` of the last test; of all ranks, on rank 0 only."""
        return vars(self._found)

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Explain this rank's share of the cases; rank 0 adds up."""
        images = trainer.datamodule.images["test"]  # type: ignore[attr-defined]
        (predictions,) = (callback for callback in trainer.callbacks if isinstance(callback, Predictions))  # type: ignore[attr-defined]
        prob: Any = predictions.prob
        cases = self._cases(images, pl_module, prob)
        mine = self._explain(images, pl_module, cases[trainer.global_rank :: trainer.world_size])
        ranks = gathered(mine)
        if trainer.global_rank == 0:
            done = sorted((explained for rank in ranks for explained in rank), key=lambda one: one.case[:2])
            self._found = self._judge(done, images, pl_module.findings)  # type: ignore[arg-type]
            self._hang(done, images, pl_module.findings, prob)  # type: ignore[arg-type]

    def _cases(self, images: Any, model: Any, prob: np.ndarray) -> list[_Case]:
        """All that is explained, the same on every rank."""
        decision = model.threshold.decide(torch.from_numpy(prob)).numpy()
        label, ids = images.label.numpy(), images.table["id"]
        known = getattr(images.source, "boxes", None)
        known = pd.DataFrame(columns=["id", "finding"]) if known is None else known[known["id"].isin(ids)]
        boxes = {key: rows[["x", "y", "w", "h"]].to_numpy(float) for key, rows in known.groupby(["id", "finding"])}
        cases = []
        for column, finding in enumerate(model.findings):
            shown: Counter[str] = Counter()
            for row, image in enumerate(ids):
                truth = label[row, column]
                outcome = "" if np.isnan(truth) else _outcome(bool(truth), bool(decision[row, column]))
                shown[outcome] += 1
                case = _Case(
                    row, column, boxes.get((image, finding)) if truth == 1 else None, outcome,
                    shown=bool(outcome) and shown[outcome] <= self.per_outcome,
                )  # fmt: skip
                cases += [case] if case.shown or case.boxes is not None else []
        return cases

    def _explain(self, images: Any, model: Any, cases: list[_Case]) -> list[_Explained]:
        done = []
        for start in range(0, len(cases), BATCH):
            part = cases[start : start + BATCH]
            pixels = [images.source.image(int(images.rows[case.row]), images.size) for case in part]
            columns = [case.column for case in part]
            heats = heat_maps(model, torch.stack([*map(to_image, pixels)]), columns, self.method, self.layers)
            for case, grey, heat in zip(part, pixels, heats, strict=True):
                scores = {} if case.boxes is None else overlap(heat, case.boxes, self.tolerance, self.level)
                png = io.BytesIO()
                if case.shown:
                    overlay(grey, heat, case.boxes).save(png, "png")
                done.append(_Explained(case, scores, not heat.any(), png.getvalue()))
        return done

    def _judge(self, done: list[_Explained], images: Any, findings: Sequence[str]) -> Localization:
        judged = [one for one in done if one.scores]
        group = images.table["group"].to_numpy()
        items = pd.DataFrame([
            {"finding": findings[one.case.column], "group": group[one.case.row], "boxes": one.case.boxes, **one.scores}
            for one in judged
        ])  # fmt: skip
        found = localize(
            items, images.size, tolerance=self.tolerance, level=self.level, not_in_macro=self.not_in_macro,
            replicates=self.replicates, seed=self.seed,
        )  # fmt: skip
        empty = Counter(findings[one.case.column] for one in judged if one.empty)
        for finding, count in empty.items():
            of = found.counts[f"boxed/{finding}"]
            found.warnings.append(
                f"{finding}: {count} of {of} heat maps are zero everywhere: they score as chance does"
            )
        return found

    def _hang(self, done: list[_Explained], images: Any, findings: Sequence[str], prob: np.ndarray) -> None:
        """Write the gallery: right and wrong cases of each finding in turn, and a table of them."""
        shown = sorted(
            (one for one in done if one.case.shown),
            key=lambda one: (one.case.column, OUTCOMES.index(one.case.outcome), one.case.row),
        )
        if not shown:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        rows = []
        for number, one in enumerate(shown, start=1):
            row, column, _, outcome, _ = one.case
            finding = findings[column]
            name = re.sub(r"\W+", "-", f"{number:03d} {finding} {outcome}").lower() + ".png"
            (self.folder / name).write_bytes(one.png)
            rows.append({
                "file": name, "id": inert(str(images.table["id"].iat[row])), "finding": inert(finding),
                "label": int(images.label[row, column]), "probability": prob[row, column],
                "decision": int(outcome in FLAGGED), "outcome": outcome,
            })  # fmt: skip
        write_table(self.folder / "gallery.csv", pd.DataFrame(rows))


def _outcome(truth: bool, flagged: bool) -> str:
    return f"{'true' if truth == flagged else 'false'} {'positive' if flagged else 'negative'}"
