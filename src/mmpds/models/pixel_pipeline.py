"""A diffusers pipeline for a diffusion model of pixels; a saved one carries this file, and needs diffusers alone."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from diffusers import DiffusionPipeline, ImagePipelineOutput
from diffusers.image_processor import VaeImageProcessor
from diffusers.utils.torch_utils import randn_tensor
from torch.nn import functional as F


class PixelPipeline(DiffusionPipeline):  # type: ignore[misc]
    """Text to image without an autoencoder: the network sees squares of `patch` by `patch` pixels as channels.

    Args:
        unet: a UNet2DConditionModel.
        text_encoder: a CLIPTextModel.
        tokenizer: its CLIPTokenizer.
        scheduler: any scheduler of diffusers.
        patch: pixels a side of what the network sees as one.
    """

    model_cpu_offload_seq = "text_encoder->unet"

    def __init__(self, unet: Any, text_encoder: Any, tokenizer: Any, scheduler: Any, patch: int = 1) -> None:
        super().__init__()
        self.register_modules(unet=unet, text_encoder=text_encoder, tokenizer=tokenizer, scheduler=scheduler)
        self.register_to_config(patch=patch)

    @torch.no_grad()
    def __call__(
        self, prompt: str | Sequence[str], height: int | None = None, width: int | None = None,
        num_inference_steps: int = 25, guidance_scale: float = 5.0, negative_prompt: str = "",
        generator: Any = None, output_type: str = "pil", return_dict: bool = True,
    ) -> Any:  # fmt: skip
        """Images of the prompts; the arguments are those of StableDiffusionPipeline."""
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        text = self._embedded(prompts)
        if guidance_scale > 1:
            text = torch.cat([self._embedded([negative_prompt] * len(prompts)), text])
        size, patch = self.unet.config.sample_size, self.config.patch
        shape = [len(prompts), self.unet.config.in_channels]
        shape += [side // patch if side else size for side in (height, width)]
        self.scheduler.set_timesteps(num_inference_steps, device=self._execution_device)
        image = randn_tensor(shape, generator=generator, device=self._execution_device, dtype=text.dtype)
        image = image * self.scheduler.init_noise_sigma
        random = {"generator": generator} if "generator" in inspect.signature(self.scheduler.step).parameters else {}
        for time in self.progress_bar(self.scheduler.timesteps):
            noisy = torch.cat([image] * 2) if guidance_scale > 1 else image
            noise = self.unet(self.scheduler.scale_model_input(noisy, time), time, text).sample
            if guidance_scale > 1:
                free, asked = noise.chunk(2)
                noise = free + guidance_scale * (asked - free)
            image = self.scheduler.step(noise, time, image, **random).prev_sample
        image = VaeImageProcessor().postprocess(F.pixel_shuffle(image, patch), output_type=output_type)
        return ImagePipelineOutput(images=image) if return_dict else (image,)

    def _embedded(self, texts: list[str]) -> torch.Tensor:
        tokens = self.tokenizer(
            texts, padding="max_length", max_length=self.tokenizer.model_max_length, truncation=True,
            return_tensors="pt",
        )  # fmt: skip
        embedded: torch.Tensor = self.text_encoder(tokens.input_ids.to(self._execution_device))[0]
        return embedded
