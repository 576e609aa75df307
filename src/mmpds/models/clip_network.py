"""CLIP's two encoders: transformers' own, from pretrained weights or from sizes.

Shapes: B = batch, H = W = pixels a side.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

from mmpds.models.pipelines import had


def load(source: str) -> tuple[Any, CLIPTokenizer]:
    """The CLIPModel, float32, and the tokenizer of a hub id or a folder; nothing but safetensors is read.

    Raises:
        ValueError: they cannot be had.
    """
    with had("model.pretrained", source):
        network = CLIPModel.from_pretrained(source, use_safetensors=True, dtype=torch.float32)
        return network, CLIPTokenizer.from_pretrained(source)


def build(
    size: int, vision: Mapping[str, Any], text: Mapping[str, Any], width: int, stem: str, log_scale: float
) -> Any:
    """A CLIPModel of random weights; the arguments are those of `Clip`.

    Raises:
        ValueError: the sizes do not fit one another.
    """
    vision = {"num_channels": 1} | dict(vision) | {"image_size": size}
    text = dict(text)
    if pieces := text.get("vocab_size"):  # until there is a tokenizer
        text = {"bos_token_id": pieces - 2, "eos_token_id": pieces - 1, "pad_token_id": pieces - 1} | text
    network = CLIPModel(CLIPConfig(
        text_config=text, vision_config=vision, projection_dim=width, logit_scale_init_value=log_scale,
    ))  # fmt: skip
    if stem == "convolutions":
        known: Any = network.config.vision_config
        network.vision_model.embeddings.patch_embedding = ConvStem(
            known.num_channels, known.hidden_size, known.patch_size
        )
    return network


class ConvStem(nn.Sequential):
    """From pixels to patches in steps of two, float [B, channels, H, W] to [B, width, H / patch, W / patch].

    Args:
        channels: of the image.
        width: of the vision transformer.
        patch: pixels a side of a patch, a power of two.

    Raises:
        ValueError: `patch` is none.
    """

    def __init__(self, channels: int, width: int, patch: int) -> None:
        halvings = patch.bit_length() - 1
        if patch != 2**halvings or not halvings:
            raise ValueError(f"vision.patch_size={patch}: stem=convolutions halves the image; give a power of two")
        widths = [channels, *(max(16, width >> (halvings - 1 - step)) for step in range(halvings))]
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            layers += [nn.Conv2d(before, after, 3, stride=2, padding=1, bias=False), nn.GroupNorm(1, after), nn.GELU()]
        super().__init__(*layers, nn.Conv2d(widths[-1], width, 1))

    @property
    def weight(self) -> Tensor:
        """Where transformers looks for the type of the weights."""
        return self[0].weight  # type: ignore[return-value]


def primitives(config: Any) -> dict[str, Any]:
    """What of a configuration of transformers differs from its defaults, as numbers, texts, lists and dictionaries."""
    return {
        name: value
        for name, value in config.to_diff_dict().items()
        if isinstance(value, int | float | str | bool | list) and name not in ("transformers_version", "model_type")
    }
