"""Greedy decoding of a batch: the likeliest token each time, what is past kept, who has ended left out.

Shapes: B = texts, S = states that a text is written of, D = their width, L = tokens.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, EncoderDecoderCache


@torch.inference_mode()
def greedy(decoder: Any, states: Tensor, seen: Tensor | None, longest: int) -> list[list[int]]:
    """The tokens that a decoder of transformers' BLIP writes of each item, start and end left out.

    They are those of its `generate` for each item alone, as far as rounding lets other shapes of a matrix product
    give the same likeliest token.

    Args:
        decoder: a BlipTextLMHeadModel.
        states: float [B, S, D].
        seen: int64 [B, S], 1 where there is a state, 0 where there is padding; None: all are there.
        longest: tokens at most, the end included.
    """
    config = decoder.config
    cache = EncoderDecoderCache(DynamicCache(config=config), DynamicCache(config=config))
    texts: list[list[int]] = [[] for _ in states]
    alive = torch.arange(len(states), device=states.device)
    token = torch.full((len(states), 1), config.bos_token_id, device=states.device)
    for _ in range(longest):
        logits = decoder(
            input_ids=token, encoder_hidden_states=states, encoder_attention_mask=seen, past_key_values=cache,
            use_cache=True, logits_to_keep=1,
        ).logits  # fmt: skip
        token = logits[:, -1].argmax(dim=-1, keepdim=True)
        going = token[:, 0] != config.sep_token_id
        for text, item, goes in zip(alive.tolist(), token[:, 0].tolist(), going.tolist(), strict=True):
            if goes:
                texts[text].append(item)
        if not going.any():
            break
        if not going.all():
            alive, token, states = alive[going], token[going], states[going]
            seen = None if seen is None else seen[going]
            cache.batch_select_indices(going.nonzero()[:, 0])
    return texts
