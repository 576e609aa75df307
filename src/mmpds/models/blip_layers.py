"""Layers of BLIP that differ from transformers': fused attention, heeded masks, a stem of convolutions; CLIP's weights.

Shapes: B = batch, S = patches and one, D = width.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.models.blip.modeling_blip import BlipAttention, BlipVisionEmbeddings
from transformers.models.blip.modeling_blip_text import BlipTextAttention

from mmpds.models.clip_network import ConvStem
from mmpds.world import cpu_features

CLIP = "clip.vision_model."
SCORES = 2**19
"""Scores of attention that fit a core's cache."""
CHUNKED = "avx512_bf16" in cpu_features() and "amx_bf16" not in cpu_features()
"""Whether this CPU has bfloat16 in vector units alone: PyTorch's fused kernel is then as slow as in float32."""
RENAMED = (("pre_layrnorm.", "embeddings.norm."), (".out_proj.", ".projection."))


class NormedEmbeddings(BlipVisionEmbeddings):
    """Embeddings of grey patches: a few small convolutions, and the norm that CLIP has behind them and BLIP lacks.

    Args:
        config: a BlipVisionConfig.
    """

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        for place in (self.class_embedding, self.position_embedding):
            nn.init.trunc_normal_(place, std=config.initializer_range)
        self.patch_embedding = ConvStem(1, config.hidden_size, config.patch_size)  # type: ignore[assignment]
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, pixel_values: Tensor, interpolate_pos_encoding: bool = False) -> Tensor:
        """States, float [B, S, D], of images, float [B, 1, H, W]."""
        states: Tensor = self.norm(super().forward(pixel_values, interpolate_pos_encoding))
        return states


def chunked_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attention, a few heads at a time, so that their scores stay in the cache; in 577 positions 1.6 times as fast.

    Scores are bfloat16, as in transformers' own attention.

    Args:
        query: bfloat16 [B, heads, S, D / heads], like what is returned.
        key: the same.
        value: the same.
    """
    batch, heads, positions, width = query.shape
    few = max(1, SCORES * torch.get_num_threads() // positions**2)
    parts = (states.flatten(0, 1).split(few) for states in (query * width**-0.5, key, value))
    seen = [torch.bmm(torch.bmm(q, k.transpose(1, 2)).softmax(dim=-1), v) for q, k, v in zip(*parts, strict=True)]
    return torch.cat(seen).view(batch, heads, positions, width)


class FusedAttention(BlipAttention):
    """The attention of transformers' BLIP by the kernel that is fastest here."""

    def forward(self, hidden_states: Tensor, **_: Any) -> tuple[Tensor, None]:  # type: ignore[override]
        """See BlipAttention; gives no attention weights."""
        heads = self.qkv(hidden_states).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        dropped = self.dropout.p if self.training else 0.0
        query, key, value = heads.unbind()
        half = query.device.type == "cpu" and query.dtype == torch.bfloat16
        if CHUNKED and half and not self.training and not torch.compiler.is_compiling():
            seen = chunked_attention(query, key, value)
        else:
            seen = F.scaled_dot_product_attention(query, key, value, dropout_p=dropped)
        return self.projection(seen.transpose(1, 2).flatten(2)), None


class MaskedAttention(BlipTextAttention):
    """The attention of transformers' BLIP, whose own forgets the mask where it attends to an encoder's states."""

    def forward(
        self, hidden_states: Tensor, attention_mask: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None, past_key_values: Any = None, **_: Any,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """See BlipTextAttention."""
        seen, weights = self.self(
            hidden_states, attention_mask=attention_mask, encoder_hidden_states=encoder_hidden_states,
            encoder_attention_mask=attention_mask, past_key_values=past_key_values,
        )  # fmt: skip
        return self.output(seen, hidden_states), weights


OURS: dict[type, type] = {BlipAttention: FusedAttention, BlipTextAttention: MaskedAttention}


def adapt(network: nn.Module) -> None:
    """Let a BLIP of transformers attend as `FusedAttention` and `MaskedAttention` do; its weights stay as they are."""
    for module in network.modules():
        module.__class__ = OURS.get(type(module), type(module))


def merged(network: nn.Module) -> dict[str, Tensor]:
    """The weights of a network, its low-rank additions merged into those they add to; the network stays as it is."""
    copied = copy.deepcopy(network)
    for module in copied.modules():
        if hasattr(module, "base_layer"):
            module.merge()  # type: ignore[operator]
    return {n.replace(".base_layer", ""): v for n, v in copied.state_dict().items() if ".lora_" not in n}


def clip_tower(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The vision tower of a checkpoint of `Clip` as weights of a BlipVisionModel with `NormedEmbeddings`; or nothing.

    Args:
        state: the checkpoint's state dict.
    """
    found: dict[str, Tensor] = {}
    for name, value in state.items():
        if not name.startswith(CLIP):
            continue
        name = name.removeprefix(CLIP)
        for theirs, ours in RENAMED:
            name = name.replace(theirs, ours)
        if ".q_proj." in name:
            parts = [state[CLIP + name.replace("q_proj", f"{part}_proj")] for part in "qkv"]
            found[name.replace("q_proj", "qkv")] = torch.cat(parts)
        elif name == "embeddings.class_embedding":
            found[name] = value[None, None]
        elif name == "embeddings.position_embedding.weight":
            found["embeddings.position_embedding"] = value[None]
        elif not (".k_proj." in name or ".v_proj." in name or name.endswith("position_ids")):
            found[name] = value
    return found
