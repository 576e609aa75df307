"""Pipelines of diffusers: the parts that a generator starts from, new or of a folder, and the folder that it leaves."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from diffusers import AutoencoderKL, DDPMScheduler, DiffusionPipeline, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.utils import logging as diffusers_logging
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer
from transformers.utils import logging as transformers_logging

from mmpds.models import pixel_pipeline, vocabulary
from mmpds.models.pixel_pipeline import PixelPipeline

INDEX = "model_index.json"
LORA_TARGETS = ("to_q", "to_k", "to_v", "to_out.0")
PREDICTIONS = ("epsilon", "v_prediction")


class Parts(NamedTuple):
    """The parts of a text-to-image pipeline; `vae` is None for one of pixels, `patch` 1 for one of latents."""

    unet: Any
    text_encoder: Any
    vae: Any
    tokenizer: Any
    noise: Any  # the DDPMScheduler of training
    patch: int

    @property
    def shrink(self) -> int:
        """Pixels a side that the network sees as one: those of a latent, or of a square of pixels."""
        return _shrink(self.vae, self.patch)


def scratch(
    unet: Mapping[str, Any], text_encoder: Mapping[str, Any], vae: str | Mapping[str, Any] | None, size: int,
    channels: int, patch: int, noise: Mapping[str, Any],
) -> Parts:  # fmt: skip
    """New parts of random weights, without a tokenizer; see `Diffusion` for the arguments.

    Raises:
        ValueError: an argument's value cannot work; the text names it and the cure.
    """
    marks = {"bos_token_id": vocabulary.SMALLEST - 2, "eos_token_id": vocabulary.SMALLEST - 1}
    text = CLIPTextModel(CLIPTextConfig(**dict(text_encoder) | marks))
    images = autoencoder(vae) if vae else None
    held = images.config.latent_channels if images else channels * patch**2
    if size % (shrink := _shrink(images, patch)):
        raise ValueError(f"size={size}: give a multiple of {shrink}")
    network = UNet2DConditionModel(
        **unet, sample_size=size // shrink, in_channels=held, out_channels=held,
        cross_attention_dim=text.config.hidden_size,
    )  # fmt: skip
    # as Stable Diffusion has it: latents know no bounds, and diffusers' pipeline insists on the offset
    stated = ({"clip_sample": False, "steps_offset": 1} if images else {}) | dict(noise)
    return Parts(network, text, images, None, _learnable(DDPMScheduler(**stated)), patch)


def load(source: str) -> Parts:
    """The parts of a pipeline in a folder or under a hub id, float32; nothing but safetensors is read.

    Raises:
        ValueError: it cannot be had, or is no Stable Diffusion 1 or 2, and no `PixelPipeline`.
    """
    _quiet()
    with had("model.pretrained", source):
        index = DiffusionPipeline.load_config(source)
        if missing := {"unet", "text_encoder", "tokenizer", "scheduler"} - set(index):
            raise ValueError(f"its {INDEX} names no {', '.join(sorted(missing))}")
        if "text_encoder_2" in index:
            raise ValueError("it has two text encoders")
        vae = AutoencoderKL.from_pretrained(source, subfolder="vae", use_safetensors=True) if "vae" in index else None
        unet = UNet2DConditionModel.from_pretrained(source, subfolder="unet", use_safetensors=True)
        if vae and unet.config.in_channels != vae.config.latent_channels:
            raise ValueError(f"its network takes {unet.config.in_channels} channels: it is none of text alone")
        bounds = {"clip_sample": False} if vae else {}  # latents know none
        return Parts(
            unet=unet,
            text_encoder=CLIPTextModel.from_pretrained(source, subfolder="text_encoder", use_safetensors=True),
            vae=vae,
            tokenizer=CLIPTokenizer.from_pretrained(source, subfolder="tokenizer"),
            noise=_learnable(DDPMScheduler.from_pretrained(source, subfolder="scheduler", **bounds)),
            patch=index.get("patch", 1),
        )


def autoencoder(given: str | Mapping[str, Any]) -> Any:
    """An AutoencoderKL: that of a folder or hub id, or a random one of these arguments.

    Raises:
        ValueError: it cannot be had.
    """
    if isinstance(given, Mapping):
        return AutoencoderKL(**given)
    _quiet()
    with had("model.vae", given):
        return AutoencoderKL.from_pretrained(given, use_safetensors=True)


def add_lora(unet: Any, rank: int) -> None:
    """Let nothing of a network learn but low-rank additions to its attention (Hu et al., ICLR 2022)."""
    from peft import LoraConfig

    unet.requires_grad_(False)
    unet.add_adapter(LoraConfig(r=rank, lora_alpha=rank, target_modules=list(LORA_TARGETS)))


def absolute(source: Any) -> Any:
    """The full path of a folder that is there; whatever else, as it is."""
    return str(Path(source).resolve()) if isinstance(source, str) and Path(source).is_dir() else source


def _learnable(noise: Any) -> Any:
    """The scheduler, unless its prediction cannot be learnt.

    Raises:
        ValueError: it cannot.
    """
    kind = noise.config
    if kind.prediction_type not in PREDICTIONS:
        raise ValueError(f"noise.prediction_type={kind.prediction_type}: choose from {', '.join(PREDICTIONS)}")
    if kind.prediction_type == "epsilon" and kind.rescale_betas_zero_snr:
        raise ValueError("noise.rescale_betas_zero_snr=true: pure noise holds no noise to tell; use v_prediction")
    return noise


def _shrink(vae: Any, patch: int) -> int:
    return 2 ** (len(vae.config.block_out_channels) - 1) if vae else patch


@contextmanager
def had(key: str, source: str) -> Iterator[None]:
    """Turn the libraries' errors into one sentence."""
    cure = "give a folder that diffusers wrote with safetensors, or a hub id that can be reached from here"
    if source.startswith(("/", ".", "~")) and not Path(source).is_dir():
        raise ValueError(f"{key}={source}: no such folder; {cure}")
    try:
        yield
    except Exception as error:  # each library has errors of its own for a missing, damaged or other model
        reason = " ".join(str(error).split())[:300]
        raise ValueError(f"{key}={source}: {cure} ({reason})") from error


@contextmanager
def started_from(file: str) -> Iterator[dict[str, Any]]:
    """A checkpoint to start from; whatever fails while it is read and taken over becomes one sentence."""
    try:
        yield torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file raises anything
        reason = " ".join(str(error).split())[:300]
        raise ValueError(f"init_from={file}: is it a checkpoint of this model and its sizes? ({reason})") from error


def _quiet() -> None:
    """No bars for reading and writing weights: they are short, and break a run's own output."""
    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]


def save(parts: Parts, scheduler: Any, folder: Path) -> None:
    """Write a folder that `DiffusionPipeline.from_pretrained` loads.

    A pipeline of pixels is none of diffusers' own: the folder holds its code, which `trust_remote_code=True` allows.
    """
    _quiet()
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
