"""What every model that gives a probability a finding has in common: calibration, a threshold a finding, metrics.

Shapes: B = batch, H = W = pixels a side, C = findings.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import lightning.pytorch as pl
from torch import Tensor

from mmpds.data.batch import PADDING, Batch
from mmpds.metrics.calibration import Calibration
from mmpds.metrics.classification import DetectionMetrics
from mmpds.metrics.thresholds import GIVEN, Threshold


class Detector(pl.LightningModule):
    """A model whose probabilities are calibrated and thresholded on validation, and judged at those thresholds.

    Its `forward` gives logits, float32 [B, C], of images float32 [B, 1, H, W] in [0, 1]. With `exclusive` findings
    exactly one is true of an image, and their probabilities add up to one.
    """

    task = "detection"
    exclusive = False

    def configure_detection(
        self, findings: Sequence[str], calibration: str, threshold: Mapping[str, Any] | None
    ) -> None:
        """Make what is fitted on validation; the arguments are those of `Calibration` and `Threshold`.

        Raises:
            ValueError: an unknown method or rule.
        """
        self.findings = tuple(findings)
        self.threshold = Threshold(list(findings), **dict(threshold or {}))
        self.calibration = Calibration(list(findings), calibration)
        self.val_metrics = DetectionMetrics(list(findings))

    @staticmethod
    def restated(settings: Mapping[str, Any]) -> dict[str, Any]:
        """What of a configuration's settings a checkpoint takes over: thresholds that are stated, not fitted."""
        threshold = settings.get("threshold", {})
        return {"threshold": threshold} if threshold.get("rule") in GIVEN else {}

    def probabilities(self, image: Tensor) -> Tensor:
        """Probabilities before calibration, float32 [B, C]."""
        logit: Tensor = self(image)
        return logit.softmax(dim=1) if self.exclusive else logit.sigmoid()

    def validation_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """Collect the scores that thresholds and metrics are made of; returns what `test_step` does."""
        prob = self.probabilities(batch["image"])
        real = batch["index"] != PADDING
        for scores in (self.calibration, self.threshold, self.val_metrics):
            scores.update(prob[real], batch["label"][real])
        return {"prob": prob, "index": batch["index"]}

    def on_validation_epoch_end(self) -> None:
        """Fit the calibration, then the thresholds, then judge at them; all see the items of all ranks."""
        self.calibration.compute()
        self.threshold.map(self.calibration.calibrate)
        self.val_metrics.map(self.calibration.calibrate)
        self.threshold.compute()
        self.val_metrics.threshold = self.threshold.value
        metrics = self.val_metrics.compute()
        # the best weights, validated once more after training, are no point of the learning curve
        curve = self.trainer.state.fn == "fit"
        for name, value in metrics.items():
            self.log(f"val/{name}", value, prog_bar=name == "auroc/macro", logger=curve)
        for scores in (self.calibration, self.threshold, self.val_metrics):
            scores.reset()

    def test_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """Calibrated probabilities, float32 [B, C], and rows, int64 [B]."""
        prob: Tensor = self.calibration.calibrate(self.probabilities(batch["image"]))
        return {"prob": prob, "index": batch["index"]}

    def predict_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """What `test_step` gives."""
        return self.test_step(batch, batch_idx)
