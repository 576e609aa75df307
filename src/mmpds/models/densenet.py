"""DenseNet-121 for multi-label detection (Huang et al., CVPR 2017; on radiographs Rajpurkar et al. 2017).

Shapes: B = batch, H = W = pixels a side, C = findings.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import DenseNet
from torchvision.ops import sigmoid_focal_loss

from mmpds.data.batch import PADDING, Batch
from mmpds.models import pretrained
from mmpds.models.detector import Detector
from mmpds.models.optimization import adamw

LOSSES = ("bce", "focal")
FOCAL_GAMMA = 2.0
"""The exponent that Lin et al. found best."""


class DenseBlock(nn.ModuleDict):
    """A block of torchvision's DenseNet that keeps what it has joined.

    torchvision joins all earlier features anew for each layer; joining the newest to the others gives the same
    numbers sooner, compiled above all (`make bench`). The layers keep their names in checkpoints.
    """

    def forward(self, features: Tensor) -> Tensor:
        """[B, K, H, W] to [B, K + layers x growth rate, H, W]."""
        layer: Any
        for layer in self.values():
            new = layer.conv1(layer.relu1(layer.norm1(features)))
            new = layer.conv2(layer.relu2(layer.norm2(new)))
            new = F.dropout(new, layer.drop_rate, self.training)
            features = torch.cat([features, new], 1)
        return features


class DenseNet121(Detector):
    """A DenseNet with one output a finding, a masked loss, and a threshold a finding fitted on validation.

    Args:
        findings: names of the outputs, in the order of the label columns.
        loss: `bce`, or `focal`: binary cross-entropy whose entries weigh (1 - probability of the true label)^2, so
            that what is easy counts less (Lin et al., ICCV 2017).
        class_weights: `balanced` weighs positives by negatives / positives of the training split, `none` by 1; in
            the place of the focal loss's alpha, too.
        calibration: the method of `Calibration`: none, temperature or isotonic; it comes before the threshold.
        threshold: arguments of `Threshold`, the rule among them.
        learning_rate: peak of the schedule (linear warm-up, then cosine to zero) of AdamW.
        backbone_learning_rate_factor: the backbone's learning rate, in that of the head (discriminative rates,
            Howard & Ruder, ACL 2018).
        freeze_epochs: the backbone is left as it is, statistics of its norms included, for so many epochs; its
            own warm-up begins thereafter.
        weight_decay: of the weights of convolutions and of the head; norms and biases have none.
        warmup_fraction: share of all steps (of a part's, where the backbone is frozen first) over which the learning
            rate rises.
        drop_rate: dropout after each dense layer.
        growth_rate, block_config, init_features: the sizes of the DenseNet; the defaults are the 121-layer one.

    Raises:
        ValueError: an unknown loss, a factor that is not above zero, or a negative number of epochs.
    """

    input_scale: Tensor
    input_shift: Tensor
    positive_weight: Tensor

    def __init__(
        self, findings: Sequence[str], class_weights: str = "none", calibration: str = "none",
        threshold: Mapping[str, Any] | None = None,
        learning_rate: float = 1e-3, weight_decay: float = 1e-2, warmup_fraction: float = 0.1,
        drop_rate: float = 0.0, growth_rate: int = 32, block_config: Sequence[int] = (6, 12, 24, 16),
        init_features: int = 64, loss: str = "bce", backbone_learning_rate_factor: float = 1.0, freeze_epochs: int = 0,
    ) -> None:  # fmt: skip
        super().__init__()
        wrong = [f"loss={loss}: choose from {', '.join(LOSSES)}"] if loss not in LOSSES else []
        if not backbone_learning_rate_factor > 0:
            wrong.append(f"backbone_learning_rate_factor={backbone_learning_rate_factor}: give a number above zero")
        if freeze_epochs < 0:
            wrong.append(f"freeze_epochs={freeze_epochs}: give 0 or more")
        if wrong:
            raise ValueError("; ".join(wrong))
        # primitives only: the checkpoint then loads alone, with weights_only=True
        self.save_hyperparameters({
            "findings": list(findings), "class_weights": class_weights, "calibration": calibration,
            "threshold": dict(threshold or {}), "learning_rate": learning_rate,
            "weight_decay": weight_decay, "warmup_fraction": warmup_fraction, "drop_rate": drop_rate,
            "growth_rate": growth_rate, "block_config": list(block_config), "init_features": init_features,
            "loss": loss, "freeze_epochs": freeze_epochs,
            "backbone_learning_rate_factor": backbone_learning_rate_factor,
        })  # fmt: skip
        self.backbone = DenseNet(growth_rate, tuple(block_config), init_features, drop_rate=drop_rate)
        self.backbone.features.conv0 = nn.Conv2d(1, init_features, 7, stride=2, padding=3, bias=False)
        nn.init.kaiming_normal_(self.backbone.features.conv0.weight)
        for name, block in self.backbone.features.named_children():
            if name.startswith("denseblock"):
                setattr(self.backbone.features, name, DenseBlock(block.items()))
        self.frozen = False  # whether this training step leaves the backbone alone
        self.head = nn.Linear(self.backbone.classifier.in_features, len(findings))
        self.backbone.classifier = nn.Identity()
        # what the weights expect of an image in [0, 1]; `load_weights` sets it to theirs
        self.register_buffer("input_scale", torch.tensor(4.0))
        self.register_buffer("input_shift", torch.tensor(-2.0))
        self.register_buffer("positive_weight", torch.ones(len(findings)))
        self.configure_detection(findings, calibration, threshold)

    @property
    def cam_layers(self) -> tuple[nn.Module, nn.Module]:
        """The layers whose mean class activation map localises best (experiments/grad_cam).

        Their maps are 1/8 and 1/16 of the image's side; that of the last block, 1/32, is too coarse to point with.
        """
        features = self.backbone.features
        return features.transition2.conv, features.transition3.conv

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
        frozen = self.frozen and self.training
        with torch.set_grad_enabled(torch.is_grad_enabled() and not frozen):
            features = self.backbone(image * self.input_scale + self.input_shift)
        # bfloat16 has 8 bits of mantissa: logits in it would tie and blur every threshold and ROC curve
        with torch.autocast(self.device.type, enabled=False):
            logit: Tensor = self.head(features.float())
        return logit

    def loss(self, logit: Tensor, batch: Batch) -> Tensor:
        """Mean loss over all entries, those of positives times their weight; unlabelled and padding ones add nothing.

        Divided by the number of all entries, not of the labelled ones: then the mean over ranks is the mean
        over the global batch, at any number of ranks.
        """
        known = ~torch.isnan(batch["label"]) & (batch["index"] != PADDING).unsqueeze(1)
        target = batch["label"].nan_to_num()
        if self.hparams["loss"] == "focal":
            entries: Tensor = sigmoid_focal_loss(logit, target, alpha=-1, gamma=FOCAL_GAMMA)
            total = (entries * known * torch.where(target == 1, self.positive_weight, 1)).sum()
        else:
            total = F.binary_cross_entropy_with_logits(
                logit, target, weight=known.float(), pos_weight=self.positive_weight, reduction="sum"
            )
        return total / known.numel()

    def on_fit_start(self) -> None:
        """Weigh the positives by the training split's prevalence."""
        if self.hparams["class_weights"] == "balanced":
            data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
            self.positive_weight.copy_(data.positive_weight())

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Freeze or unfreeze: asked at each step, for a resumed epoch has no start."""
        self.frozen = self.current_epoch < self.hparams["freeze_epochs"]
        if self.backbone.training == self.frozen:
            self.backbone.train(not self.frozen)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The loss of one batch."""
        loss = self.loss(self(batch["image"]), batch)
        self.log("train/loss", loss, prog_bar=True, batch_size=len(batch["image"]))
        if self.frozen:  # DDP waits for every weight's gradient: these are zero
            loss = loss + 0 * torch.stack([p.sum() for p in self.backbone.parameters()]).sum()
        return loss

    def on_after_backward(self) -> None:
        """Without a gradient, AdamW neither decays a frozen weight nor counts a step of its moments."""
        if self.frozen:
            for parameter in self.backbone.parameters():
                parameter.grad = None

    def configure_optimizers(self) -> Any:
        """See `adamw`; its groups are the same while the backbone is frozen and after: a run resumes in either."""
        steps = int(self.trainer.estimated_stepping_batches)  # asking makes the loader, whose length comes next
        steps_per_epoch = math.ceil(self.trainer.num_training_batches / self.trainer.accumulate_grad_batches)
        frozen = self.hparams["freeze_epochs"] * steps_per_epoch
        factor, rate = self.hparams["backbone_learning_rate_factor"], self.hparams["learning_rate"]
        parts = [(self.backbone.parameters(), rate * factor, frozen), (self.head.parameters(), rate, 0)]
        if (factor, frozen) == (1, 0):  # as before there was fine-tuning: what was begun then can be resumed
            parts = [(self.parameters(), rate, 0)]
        return adamw(parts, self.hparams["weight_decay"], steps, self.hparams["warmup_fraction"])
