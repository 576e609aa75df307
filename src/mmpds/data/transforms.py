"""From stored uint8 pixels to what a model receives, with an augmentation that its seed alone decides."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2


def to_image(pixels: np.ndarray) -> Tensor:
    """uint8 [H, W] to float32 [1, H, W] in [0, 1]."""
    return torch.from_numpy(pixels).unsqueeze(0).to(torch.float32).div_(255)


class Augment:
    """Small turns, shifts, zooms and exposure changes, such as patients and machines differ by.

    No left-right flip: on a chest radiograph it moves the heart to the other side. Drawn by Pillow on the stored
    8 bits, which is faster than the same on float tensors.
    """

    def __init__(self) -> None:
        bilinear = v2.InterpolationMode.BILINEAR
        self.transform = v2.Compose(
            [
                v2.RandomAffine(degrees=7, translate=(0.05, 0.05), scale=(0.9, 1.1), interpolation=bilinear),
                v2.ColorJitter(brightness=0.15, contrast=0.15),
            ]
        )

    def __call__(self, pixels: np.ndarray, seed: int) -> np.ndarray:
        """uint8 [H, W] to the same; equal seeds give equal images."""
        # torchvision draws from the global generator, which must not see what an item needed
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return np.array(self.transform(Image.fromarray(pixels)))
