"""Class activation maps of a detector, and a picture of one.

Shapes: B = images, S = pixels a side, C = findings, K = boxes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import cv2
import numpy as np
import torch
from PIL import Image, ImageDraw
from pytorch_grad_cam import GradCAM, GradCAMPlusPlus, HiResCAM, LayerCAM
from pytorch_grad_cam.utils.image import show_cam_on_image
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import Tensor, nn

METHODS = {"gradcam": GradCAM, "gradcam++": GradCAMPlusPlus, "hirescam": HiResCAM, "layercam": LayerCAM}
"""Selvaraju et al., ICCV 2017; Chattopadhay et al., WACV 2018; Draelos & Carin 2020; Jiang et al., IEEE TIP 2021."""
PANEL = 192
"""Pixels a side of each half of a picture."""


class _Eager(nn.Module):
    """A model's forward pass, uncompiled: compiled code would run past the hooks on its layers."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> Tensor:
        logit: Tensor = self.model.forward(image)
        return logit


def heat_maps(
    model: Any, image: Tensor, column: Sequence[int], method: str = "gradcam++", layers: Sequence[str] | None = None
) -> np.ndarray:
    """Class activation maps, each of one output of the model: float32 [B, S, S] in [0, 1].

    They are computed in float32 in evaluation mode, also inside `torch.inference_mode`; the model is left as it was.
    The maps of several layers are averaged. Where nothing speaks for the finding, a map is zero everywhere.

    Args:
        model: gives logits [B, C] of `image`; `cam_layers` are the submodules that it wants explained.
        image: float32 [B, 1, S, S] in [0, 1].
        column: B positions of outputs.
        method: one of `METHODS`.
        layers: names of submodules whose outputs are feature maps [B, channels, height, width]; None for the model's.

    Raises:
        ValueError: no such method or layer.
    """
    modules = dict(model.named_modules())
    wrong = [] if method in METHODS else [f"method={method}: choose from {', '.join(METHODS)}"]
    wrong += [
        f"layers: the model has no module {name}; null takes its own choice"
        for name in layers or ()
        if name not in modules
    ]
    if wrong:
        raise ValueError("; ".join(wrong))
    targets = [modules[name] for name in layers] if layers else list(model.cam_layers)
    with _explicable(model):
        cam = METHODS[method](_Eager(model), targets)
        try:
            # made here, a copy can take gradients, which a tensor of inference mode cannot
            copy = image.to(cam.device, copy=True).requires_grad_()
            maps: np.ndarray = cam(copy, [ClassifierOutputTarget(position) for position in column])
        finally:  # as a context manager it would swallow an IndexError
            cam.activations_and_grads.release()
    return maps


@contextmanager
def _explicable(model: nn.Module) -> Iterator[None]:
    """Gradients of the activations, in float32, and none of the weights; afterwards all is as before."""
    training = {module: module.training for module in model.modules()}
    grads = [(weight, weight.requires_grad, weight.grad) for weight in model.parameters()]
    device = next(model.parameters()).device.type
    with torch.inference_mode(False), torch.enable_grad(), torch.autocast(device, enabled=False):
        try:
            for weight, _, _ in grads:
                weight.requires_grad_(False)
            yield
        finally:
            for module, mode in training.items():
                module.training = mode
            for weight, wanted, grad in grads:
                weight.requires_grad_(wanted)
                weight.grad = grad


def overlay(pixels: np.ndarray, heat: np.ndarray, boxes: np.ndarray | None = None) -> Image.Image:
    """An image, and beside it the same under its heat map; boxes are drawn in both.

    Args:
        pixels: uint8 [S, S].
        heat: float [S, S] in [0, 1].
        boxes: [K, 4], x, y, width, height in fractions of the image.
    """
    grey = np.repeat(pixels[..., np.newaxis], 3, axis=2)
    hot = show_cam_on_image(grey.astype(np.float32) / 255, heat, use_rgb=True, colormap=cv2.COLORMAP_INFERNO)
    picture = Image.new("RGB", (2 * PANEL, PANEL))
    for place, panel in enumerate((grey, hot)):
        half = Image.fromarray(panel).resize((PANEL, PANEL), Image.Resampling.BICUBIC)
        pen = ImageDraw.Draw(half)
        for x, y, width, height in np.empty((0, 4)) if boxes is None else boxes * PANEL:
            pen.rectangle((x, y, x + width, y + height), outline=(80, 220, 255))
        picture.paste(half, (place * PANEL, 0))
    return picture
