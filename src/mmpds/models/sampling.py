"""The denoising loop around diffusers' components: from seeds and prompt embeddings to latents.

Shapes: B = images, C = latent channels, h = w = latent pixels a side, T = tokens, D = embedding width.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import diffusers
import torch
from diffusers import SchedulerMixin, UNet2DConditionModel
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from mmpds.models.feature_cache import feature_cache

SCHEDULERS: dict[str, tuple[str, dict[str, Any]]] = {
    "ddim": ("DDIMScheduler", {}),
    "ddpm": ("DDPMScheduler", {}),
    "dpm++": ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++"}),
    "dpm++_karras": ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++", "use_karras_sigmas": True}),
    "euler": ("EulerDiscreteScheduler", {}),
    "euler_a": ("EulerAncestralDiscreteScheduler", {}),
    "heun": ("HeunDiscreteScheduler", {}),
    "lcm": ("LCMScheduler", {}),
    "pndm": ("PNDMScheduler", {"skip_prk_steps": True}),  # as Stable Diffusion uses it
    "unipc": ("UniPCMultistepScheduler", {}),
}
"""Short names of diffusers' schedulers, each with its class and settings."""

SAMPLING = {
    "scheduler": "dpm++",
    "steps": 25,
    "guidance_scale": 5.0,
    "negative_prompt": "",
    "cache_interval": 1,
    "size": None,
}
"""How a generator samples where nothing else is said."""


def make_scheduler(name: str, config: Mapping[str, Any]) -> SchedulerMixin:
    """A scheduler for sampling that has the noise schedule of training.

    With `rescale_betas_zero_snr` its steps end at the last timestep (`trailing`), for a model trained to start from
    pure noise must be asked to (Lin et al., WACV 2024, section 3.3).

    Args:
        name: one of `SCHEDULERS`.
        config: that of the training scheduler: betas, prediction type and the rest.

    Raises:
        ValueError: the name is unknown, or its scheduler cannot sample a model of zero terminal SNR.
    """
    if name not in SCHEDULERS:
        raise ValueError(f"scheduler={name!r} is unknown: choose one of {', '.join(SCHEDULERS)}")
    zero_snr = bool(config.get("rescale_betas_zero_snr"))
    capable = [n for n, (kind, _) in SCHEDULERS.items() if "rescale_betas_zero_snr" in _parameters(kind)]
    if zero_snr and name not in capable:
        raise ValueError(
            f"scheduler={name!r} cannot sample a model that was trained with rescale_betas_zero_snr=true: "
            f"choose one of {', '.join(capable)}"
        )
    kind, settings = SCHEDULERS[name]
    spacing = {"timestep_spacing": "trailing"} if zero_snr else {}
    scheduler: SchedulerMixin = getattr(diffusers, kind).from_config(dict(config), **settings, **spacing)
    return scheduler


def generators(seeds: Sequence[int]) -> list[torch.Generator]:
    """A source of random numbers an item: always the CPU's, so that a seed means the same on every device."""
    return [torch.Generator("cpu").manual_seed(int(seed)) for seed in seeds]


def initial_noise(random: Sequence[torch.Generator], shape: Sequence[int]) -> Tensor:
    """The noise that sampling starts from: what a diffusers pipeline draws for `generator=random`.

    Args:
        random: B generators, one an item, as from `generators`.
        shape: of an item, [C, h, w].

    Returns:
        float32 [B, C, h, w], standard normal.
    """
    noise: Tensor = randn_tensor((len(random), *shape), generator=list(random), dtype=torch.float32)
    return noise


def sample(
    unet: UNet2DConditionModel,
    scheduler: SchedulerMixin,
    embeddings: Tensor,
    unconditional: Tensor | None,
    seeds: Sequence[int],
    shape: Sequence[int],
    steps: int,
    guidance_scale: float,
    cache_interval: int = 1,
) -> Tensor:
    """Denoise B images with classifier-free guidance (Ho & Salimans 2022): u + scale (c - u).

    u and c are computed in one batch of 2B. Latents and the scheduler's arithmetic are float32, whatever the UNet's.
    In float32 the latents are those of `diffusers.StableDiffusionPipeline`; an item is the same in any batch, as far
    as the UNet's own arithmetic is.

    Args:
        unet: a noise, v or sample predictor in evaluation mode, of any floating dtype.
        scheduler: as from `make_scheduler`; a copy is used, for it holds a state.
        embeddings: of the prompts, [B, T, D].
        unconditional: of the empty or negative prompt, [B, T, D] or [1, T, D]; None only without guidance.
        seeds: B of them.
        shape: of an item's latents, [C, h, w].
        steps: of the scheduler; `heun` calls the UNet twice in nearly each, `pndm` once more in all.
        guidance_scale: up to 1 = no guidance, which halves the work.
        cache_interval: every how many calls the UNet's deep blocks are computed (`feature_cache`); 1 = exactly.

    Returns:
        float32 [B, C, h, w] on the UNet's device, scaled as in training (before the division by the autoencoder's
        scaling_factor).

    Raises:
        ValueError: an argument is impossible; the text names each.
    """
    guided = guidance_scale > 1
    problems = [
        f"{name}={value} must be at least 1"
        for name, value in {"steps": steps, "cache_interval": cache_interval}.items()
        if value < 1
    ]
    if len(seeds) != len(embeddings):
        problems.append(f"there are {len(seeds)} seeds for {len(embeddings)} embeddings: give one each")
    if guided and unconditional is None:
        problems.append(f"guidance_scale={guidance_scale} needs the embedding of the empty prompt as `unconditional`")
    if problems:
        raise ValueError("; ".join(problems))
    network: Any = unet
    schedule: Any = copy.deepcopy(scheduler)
    random, device = generators(seeds), network.device
    # on the CPU, where the schedule's own tables are: each step then copies a number and waits for no device
    schedule.set_timesteps(steps)
    noisy = {"generator": random} if "generator" in inspect.signature(schedule.step).parameters else {}
    context = embeddings
    if guided and unconditional is not None:
        context = torch.cat([unconditional.expand_as(embeddings), embeddings])
    context = context.to(device, network.dtype)
    latents: Tensor = initial_noise(random, shape).to(device) * schedule.init_noise_sigma
    with feature_cache(unet, cache_interval):
        for timestep in schedule.timesteps:
            scaled = schedule.scale_model_input(torch.cat([latents] * 2) if guided else latents, timestep)
            predicted = network(scaled.to(network.dtype), timestep, encoder_hidden_states=context, return_dict=False)[0]
            predicted = predicted.float()
            if guided:
                free, conditional = predicted.chunk(2)
                predicted = free + guidance_scale * (conditional - free)
            with torch.autocast(device.type, enabled=False):  # it would run UniPC's sums in bfloat16
                latents = schedule.step(predicted, timestep, latents, return_dict=False, **noisy)[0]
    return latents


def _parameters(kind: str) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(getattr(diffusers, kind).__init__).parameters
