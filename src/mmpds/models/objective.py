"""What a denoiser is trained to tell, and how much each noise level counts."""

from __future__ import annotations

from typing import Any

from torch import Tensor


def weighted_errors(
    scheduler: Any, predicted: Tensor, clean: Tensor, noise: Tensor, time: Tensor, gamma: float | None
) -> Tensor:
    """Squared error of each prediction, float32 [B], under min-SNR weighting (Hang et al., ICCV 2023, section 3.4).

    Args:
        scheduler: of diffusers, with betas on the CPU; its `prediction_type` says what is to be told: `epsilon`, the
            noise, or `v_prediction`, the velocity (Salimans & Ho, ICLR 2022).
        predicted: what the network made of `clean` with `noise` added, [B, K, h, w].
        clean: what is denoised, float32 [B, K, h, w].
        noise: standard normal, float32 [B, K, h, w].
        time: the noise levels, int64 [B].
        gamma: the signal-to-noise ratio beyond which a level counts no more; None weighs all alike.
    """
    velocity = scheduler.config.prediction_type == "v_prediction"
    target = scheduler.get_velocity(clean, noise, time) if velocity else noise
    error: Tensor = (predicted.float() - target).square().mean(dim=(1, 2, 3))
    if gamma is None:
        return error
    kept: Tensor = scheduler.alphas_cumprod.to(time.device)[time]
    ratio = kept / (1 - kept)
    return error * ratio.clamp(max=gamma) / (ratio + 1 if velocity else ratio)
