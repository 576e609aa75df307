"""What is denoised in place of images, and the way back.

Shapes: B = batch, C = image channels (1 or 3), H = W = pixels a side; K, h, w = channels and sides of what is denoised.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from mmpds.models.memo import Memo


class Latents:
    """Latents of an autoencoder (Rombach et al., CVPR 2022), or squares of pixels folded into channels.

    Args:
        vae: an AutoencoderKL, which stands still; None to fold.
        patch: pixels a side of a square that is folded.
        channels: K.
    """

    def __init__(self, vae: Any, patch: int, channels: int) -> None:
        self.vae, self.patch, self.channels = vae, patch, channels
        self.kept = Memo()

    def encode(self, image: Tensor, drawn: bool, keys: Sequence[Hashable] | None = None) -> Tensor:
        """What is denoised, float32 [B, K, h, w], of images float [B, 1, H, W] in [0, 1].

        Args:
            image: grey; where the model has colours, each of them is this grey.
            drawn: a latent is drawn from its distribution, as for training; else it is the mean.
            keys: of B images that are the same whenever their key is: the autoencoder sees each once.
        """
        if self.vae is None:
            return F.pixel_unshuffle(image.expand(-1, self.channels // self.patch**2, -1, -1) * 2 - 1, self.patch)
        if keys is None:
            moments = self.moments(image)
        else:  # not float16, which torch.stack refuses under the CPU's autocast
            kept = self.kept.of(keys, lambda places: self.moments(image[places]).bfloat16())
            moments = torch.stack(kept).to(image.device, torch.float32)
        mean, log_variance = moments.chunk(2, dim=1)
        if drawn:
            mean = mean + torch.exp(0.5 * log_variance.clamp(-30, 20)) * torch.randn_like(mean)
        scaled: Tensor = mean * self.vae.config.scaling_factor
        return scaled

    def decode(self, latent: Tensor) -> Tensor:
        """Images, float32 [B, C, H, W] in [0, 1], of what was denoised, [B, K, h, w]."""
        if self.vae is None:
            image = F.pixel_shuffle(latent, self.patch)
        else:
            self.vae.enable_slicing()  # on a CPU no slower, and a batch needs the memory of one image
            image = self.vae.decode((latent / self.vae.config.scaling_factor).to(self.vae.dtype)).sample
        return (image.float() / 2 + 0.5).clamp(0, 1)

    def moments(self, image: Tensor) -> Tensor:
        """Mean and log variance of images' latents, [B, 2 K, h, w]."""
        with torch.no_grad():
            colours = image.expand(-1, self.vae.config.in_channels, -1, -1) * 2 - 1
            moments: Tensor = self.vae.encode(colours).latent_dist.parameters
        return moments
