"""DenseNet-121 for multi-label detection (Huang et al., CVPR 2017; on radiographs Rajpurkar et al. 2017).

Shapes: B = batch, H = W = pixels a side, C = findings.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import DenseNet

from mmpds.data.batch import PADDING, Batch
from mmpds.metrics.classification import DetectionMetrics
from mmpds.metrics.thresholds import Threshold
from mmpds.models import pretrained


class DenseBlock(nn.ModuleDict):
    """A block of torchvision's DenseNet that keeps what it has joined.

    torchvision joins all earlier features anew for each layer; joining the newest to the others gives the same
    numbers sooner, compiled above all (`make bench`). The layers keep their names in checkpoints.
    """

    def forward(self, features: Tensor) -> Tensor:
        """[B, K, H, W] to [B, K + layers x growth rate, H, W]."""
        for layer in self.values():
            new = layer.conv1(layer.relu1(layer.norm1(features)))
            new = layer.conv2(layer.relu2(layer.norm2(new)))
            new = F.dropout(new, layer.drop_rate, self.training)
            features = torch.cat([features, new], 1)
        return features


class DenseNet121(pl.LightningModule):
    """A DenseNet with one output a finding, a masked loss, and a threshold a finding fitted on validation.

    Args:
        findings: names of the outputs, in the order of the label columns.
        class_weights: `balanced` weighs positives by negatives / positives of the training split, `none` by 1.
        threshold: arguments of `Threshold`, the rule among them.
        learning_rate: peak of the schedule (linear warm-up, then cosine to zero) of AdamW.
        weight_decay: of the weights of convolutions and of the head; norms and biases have none.
        warmup_fraction: share of all steps over which the learning rate rises.
        drop_rate: dropout after each dense layer.
        growth_rate, block_config, init_features: the sizes of the DenseNet; the defaults are the 121-layer one.
    """

    input_scale: Tensor
    input_shift: Tensor
    positive_weight: Tensor

    def __init__(
        self, findings: Sequence[str], class_weights: str = "none", threshold: Mapping[str, Any] | None = None,
        learning_rate: float = 1e-3, weight_decay: float = 1e-2, warmup_fraction: float = 0.1,
        drop_rate: float = 0.0, growth_rate: int = 32, block_config: Sequence[int] = (6, 12, 24, 16),
        init_features: int = 64,
    ) -> None:  # fmt: skip
        super().__init__()
        self.findings = tuple(findings)
        # primitives only: the checkpoint then loads alone, with weights_only=True
        self.save_hyperparameters({
            "findings": list(findings), "class_weights": class_weights, "threshold": dict(threshold or {}),
            "learning_rate": learning_rate, "weight_decay": weight_decay, "warmup_fraction": warmup_fraction,
            "drop_rate": drop_rate, "growth_rate": growth_rate, "block_config": list(block_config),
            "init_features": init_features,
        })  # fmt: skip
        self.backbone = DenseNet(growth_rate, tuple(block_config), init_features, drop_rate=drop_rate)
        self.backbone.features.conv0 = nn.Conv2d(1, init_features, 7, stride=2, padding=3, bias=False)
        nn.init.kaiming_normal_(self.backbone.features.conv0.weight)
        for name, block in self.backbone.features.named_children():
            if name.startswith("denseblock"):
                setattr(self.backbone.features, name, DenseBlock(block.items()))
        self.head = nn.Linear(self.backbone.classifier.in_features, len(self.findings))
        self.backbone.classifier = nn.Identity()
        # what the weights expect of an image in [0, 1]; `load_weights` sets it to theirs
        self.register_buffer("input_scale", torch.tensor(4.0))
        self.register_buffer("input_shift", torch.tensor(-2.0))
        self.register_buffer("positive_weight", torch.ones(len(self.findings)))
        self.threshold = Threshold(list(findings), **dict(threshold or {}))
        self.val_metrics = DetectionMetrics(list(findings))

    def load_weights(self, weights: str, cache_dir: str | None = None) -> list[str]:
        """Start from pretrained weights: `imagenet`, a torchxrayvision name, or a local file.

        Returns:
            The findings that the weights know nothing of: their outputs are still random.

        Raises:
            PretrainedError: they cannot be had or do not fit; the text says what to do.
        """
        loaded = pretrained.densenet121(weights, cache_dir=cache_dir)
        fresh = loaded.load_into(self.backbone.features, self.head, self.findings)
        self.input_scale.fill_(loaded.scale)
        self.input_shift.fill_(loaded.shift)
        return fresh

    def forward(self, image: Tensor) -> Tensor:
        """Logits, float32 [B, C], of images float32 [B, 1, H, W] in [0, 1]."""
        features = self.backbone(image * self.input_scale + self.input_shift)
        # bfloat16 has 8 bits of mantissa: logits in it would tie and blur every threshold and ROC curve
        with torch.autocast(self.device.type, enabled=False):
            logit: Tensor = self.head(features.float())
        return logit

    def loss(self, logit: Tensor, batch: Batch) -> Tensor:
        """Mean binary cross-entropy over all entries; unlabelled and padding entries add nothing.

        Divided by the number of all entries, not of the labelled ones: then the mean over ranks is the mean
        over the global batch, at any number of ranks.
        """
        known = ~torch.isnan(batch["label"]) & (batch["index"] != PADDING).unsqueeze(1)
        target = batch["label"].nan_to_num()
        entries = F.binary_cross_entropy_with_logits(
            logit, target, weight=known.float(), pos_weight=self.positive_weight, reduction="sum"
        )
        return entries / known.numel()

    def on_fit_start(self) -> None:
        """Weigh the positives by the training split's prevalence."""
        if self.hparams["class_weights"] == "balanced":
            data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
            self.positive_weight.copy_(data.positive_weight())

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The loss of one batch."""
        loss = self.loss(self(batch["image"]), batch)
        self.log("train/loss", loss, prog_bar=True, batch_size=len(batch["image"]))
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Collect the scores that thresholds and metrics are made of."""
        logit = self(batch["image"])
        real = batch["index"] != PADDING
        self.threshold.update(logit[real].sigmoid(), batch["label"][real])
        self.val_metrics.update(logit[real].sigmoid(), batch["label"][real])

    def on_validation_epoch_end(self) -> None:
        """Fit the thresholds, then judge at them; both see the items of all ranks."""
        self.threshold.compute()
        self.val_metrics.threshold = self.threshold.value
        metrics = self.val_metrics.compute()
        # the best weights, validated once more after training, are no point of the learning curve
        curve = self.trainer.state.fn == "fit"
        for name, value in metrics.items():
            self.log(f"val/{name}", value, prog_bar=name == "auroc/macro", logger=curve)
        self.threshold.reset()
        self.val_metrics.reset()

    def test_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """Probabilities, float32 [B, C], and rows, int64 [B]."""
        return {"prob": self(batch["image"]).sigmoid(), "index": batch["index"]}

    predict_step = test_step

    def configure_optimizers(self) -> Any:
        """AdamW (Loshchilov & Hutter 2019), linear warm-up and cosine decay."""
        decayed = [p for p in self.parameters() if p.ndim > 1]
        plain = [p for p in self.parameters() if p.ndim <= 1]
        groups = [
            {"params": decayed, "weight_decay": self.hparams["weight_decay"]},
            {"params": plain, "weight_decay": 0.0},
        ]
        optimizer = torch.optim.AdamW(groups, lr=self.hparams["learning_rate"], fused=True)
        steps = int(self.trainer.estimated_stepping_batches)
        warmup = max(1, int(steps * self.hparams["warmup_fraction"]))

        def factor(step: int) -> float:
            if step < warmup:
                return (step + 1) / warmup
            return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))

        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
