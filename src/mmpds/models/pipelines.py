"""Pipelines of diffusers as folders: what a generator starts from, and what it leaves."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import Any, NamedTuple

from diffusers import AutoencoderKL, DDPMScheduler, DiffusionPipeline, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTokenizer

from mmpds.models import pixel_pipeline
from mmpds.models.pixel_pipeline import PixelPipeline

INDEX = "model_index.json"


class Parts(NamedTuple):
    """The parts of a text-to-image pipeline; `vae` is None for one of pixels, `patch` 1 for one of latents."""

    unet: Any
    text_encoder: Any
    vae: Any
    tokenizer: Any
    noise: Any  # the DDPMScheduler of training
    patch: int


def load(source: str) -> Parts:
    """The parts of a pipeline in a folder or under a hub id, float32; nothing but safetensors is read.

    Raises:
        ValueError: it cannot be had, or is no Stable Diffusion 1 or 2, and no `PixelPipeline`.
    """
    try:
        index = DiffusionPipeline.load_config(source)
        if missing := {"unet", "text_encoder", "tokenizer", "scheduler"} - set(index):
            raise ValueError(f"its {INDEX} names no {', '.join(sorted(missing))}")
        vae = AutoencoderKL.from_pretrained(source, subfolder="vae", use_safetensors=True) if "vae" in index else None
        return Parts(
            unet=UNet2DConditionModel.from_pretrained(source, subfolder="unet", use_safetensors=True),
            text_encoder=CLIPTextModel.from_pretrained(source, subfolder="text_encoder", use_safetensors=True),
            vae=vae,
            tokenizer=CLIPTokenizer.from_pretrained(source, subfolder="tokenizer"),
            noise=DDPMScheduler.from_pretrained(
                source, subfolder="scheduler", **({"clip_sample": False} if vae else {})
            ),
            patch=index.get("patch", 1),
        )
    except Exception as error:  # each library has errors of its own for a missing, damaged or other model
        reason = " ".join(str(error).split())[:300]
        cure = "give a folder that diffusers wrote with safetensors, or a hub id that can be reached from here"
        raise ValueError(f"model.pretrained={source}: {cure} ({reason})") from error


def save(parts: Parts, scheduler: Any, folder: Path) -> None:
    """Write a folder that `DiffusionPipeline.from_pretrained` loads.

    A pipeline of pixels is none of diffusers' own: the folder holds its code, which `trust_remote_code=True` allows.
    """
    unet = parts.unet
    if getattr(unet, "peft_config", None):
        unet = copy.deepcopy(unet)
        unet.fuse_lora()
        unet.unload_lora()
    shared = {"unet": unet, "text_encoder": parts.text_encoder, "tokenizer": parts.tokenizer, "scheduler": scheduler}
    if parts.vae is not None:
        StableDiffusionPipeline(
            **shared, vae=parts.vae, safety_checker=None, feature_extractor=None, requires_safety_checker=False
        ).save_pretrained(folder)
        return
    PixelPipeline(**shared, patch=parts.patch).save_pretrained(folder)
    source = Path(pixel_pipeline.__file__)
    shutil.copy(source, folder / "pipeline.py")
    index = json.loads((folder / INDEX).read_text())
    (folder / INDEX).write_text(json.dumps(index | {"_class_name": ["pipeline", "PixelPipeline"]}, indent=2) + "\n")
