"""Whether a network is fed the range of values that its weights were trained on."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from mmpds.data.batch import PADDING, Batch

MOST_ITEMS = 32
"""Enough for a mean over items and pixels; the first layer's answers to more would cost memory."""


class InputRange(Callback):
    """Compares the first batch of validating, testing or predicting with what batch normalisation remembers.

    The running mean and variance of the first BatchNorm2d are those of the images that the weights were trained
    on, behind one linear layer. Measured in passing: two hooks during the model's own forward, gone after the batch,
    which a compiled model runs uncompiled.
    """

    def __init__(self) -> None:
        self._measured: dict[str, float] = {}
        self._hooks: list[RemovableHandle] = []

    def summary(self) -> dict[str, float] | None:
        """What the first batch of the last stage was like on this rank; None where nothing can be compared.

        variance_ratio: of the first BatchNorm's input, batch / training; median over its channels.
        mean_shift: |batch mean - training mean| / training standard deviation; median over its channels.
        items: images looked at, at most 32.
        minimum, maximum: of the first convolution's input, in its own units.
        """
        complete = {"variance_ratio", "minimum"} <= self._measured.keys()
        return dict(self._measured) if complete else None

    def _watch(self, module: pl.LightningModule, batch: Batch, batch_idx: int) -> None:
        if batch_idx:
            return
        self._measured = {}
        norms = (layer for layer in module.modules() if isinstance(layer, (nn.BatchNorm2d, nn.SyncBatchNorm)))
        # means of exactly 0 never saw an image; published weights often lack the count of batches
        norm = next((layer for layer in norms if layer.running_mean is not None and layer.running_mean.any()), None)
        convolution = next((layer for layer in module.modules() if isinstance(layer, nn.Conv2d)), None)
        real = (batch["index"] != PADDING).nonzero().flatten()[:MOST_ITEMS]
        if norm is None or convolution is None or not len(real):
            return

        def at_input(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            low, high = torch.aminmax(inputs[0][real])
            self._measured |= {"items": len(real), "minimum": float(low), "maximum": float(high)}

        def at_norm(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            self._measured |= _compare(layer, inputs[0][real].float())

        # a compiler would build graphs broken at the hooks, for one batch
        torch.compiler.set_stance("force_eager")
        self._hooks = [convolution.register_forward_pre_hook(at_input), norm.register_forward_pre_hook(at_norm)]

    def _leave(self) -> None:
        if self._hooks:
            torch.compiler.set_stance("default")
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def on_validation_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Watch the first batch, unless training goes on: its statistics still move."""
        if trainer.state.fn == "validate":
            self._watch(pl_module, batch, batch_idx)

    def on_test_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Watch the first batch."""
        self._watch(pl_module, batch, batch_idx)

    def on_predict_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Watch the first batch."""
        self._watch(pl_module, batch, batch_idx)

    def on_validation_batch_end(self, *_: Any) -> None:
        """Take the hooks away."""
        self._leave()

    def on_test_batch_end(self, *_: Any) -> None:
        """Take the hooks away."""
        self._leave()

    def on_predict_batch_end(self, *_: Any) -> None:
        """Take the hooks away."""
        self._leave()

    def on_exception(self, *_: Any) -> None:
        """Take the hooks away from a batch that broke."""
        self._leave()


def _compare(norm: Any, features: Tensor) -> dict[str, float]:
    """Statistics of features float32 [B, K, H, W] beside the running ones of their batch normalisation."""
    height, width = features.shape[2] // 16, features.shape[3] // 16
    # zeros padded around an image of any scale are an edge with contrast
    inner = features[:, :, height : features.shape[2] - height, width : features.shape[3] - width]
    variance, mean = torch.var_mean(inner, dim=(0, 2, 3), correction=0)
    # with the layer's own epsilon, so that channels that never answer compare as equal
    trained = norm.running_var.float() + norm.eps
    ratio = ((variance + norm.eps) / trained).log().median().exp()
    shift = ((mean - norm.running_mean.float()).abs() / trained.sqrt()).median()
    return {"variance_ratio": float(ratio), "mean_shift": float(shift)}
