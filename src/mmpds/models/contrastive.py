"""Losses that draw an image and its text together and push the others of the global batch away.

Shapes: B = this rank's items, N = items of all ranks, D = width of an embedding.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

LOSSES = ("info_nce", "siglip")


def contrast(
    kind: str, image: Tensor, text: Tensor, all_image: Tensor, all_text: Tensor, same: Tensor, scale: Tensor,
    bias: Tensor,
) -> Tensor:  # fmt: skip
    """The loss of this rank's items against those of all ranks; its mean over ranks is that of the global batch.

    Pairs with the same text are right matches of one another: a normal radiograph's report fits every other one.

    info_nce: cross-entropy over the batch, of images and of texts, in the mean of both (Radford et al., ICML 2021);
        the target is spread evenly over the right matches (Yang et al., CVPR 2022, equations 2 and 3).
    siglip: every pair is judged by itself, right or wrong (Zhai et al., ICCV 2023, section 3.2).

    Args:
        kind: one of `LOSSES`.
        image: float32 [B, D], of unit length.
        text: float32 [B, D], as the images'.
        all_image: float32 [N, D], of all ranks.
        all_text: float32 [N, D], of all ranks.
        same: bool [B, N], which of all items have the text of this rank's; each at least its own.
        scale: the factor of the cosines, a scalar above zero.
        bias: added to them, for `siglip`; a scalar.
    """
    to_text, to_image = scale * image @ all_text.T, scale * text @ all_image.T
    if kind == "siglip":
        sign = 2 * same.to(image.dtype) - 1
        return -(F.logsigmoid(sign * (to_text + bias)) + F.logsigmoid(sign * (to_image + bias))).sum(1).mean() / 2
    target = same / same.sum(1, keepdim=True)
    return (F.cross_entropy(to_text, target) + F.cross_entropy(to_image, target)) / 2


def names(texts: Sequence[str]) -> Tensor:
    """An int64 [B] that is equal for equal texts, on any rank."""
    digests = (hashlib.sha256(text.encode()).digest()[:8] for text in texts)
    return torch.tensor([int.from_bytes(digest, "big", signed=True) for digest in digests])
