"""Products of weights in int8 on a CPU, where its vector units multiply int8 four times as fast as float32 (VNNI)."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn

CODES = 127
"""Steps on either side of zero that a weight is rounded to."""


class Int8Linear(nn.Linear):
    """A linear layer that multiplies int8 numbers and adds them up in int32.

    Weights have a scale for each output; inputs one for each call, from their own range ("dynamic quantization"; the
    arithmetic is that of Jacob et al., CVPR 2018, section 2). The weights themselves stay beside what is packed of
    them: a checkpoint and a fingerprint are the same as before.
    """

    def pack(self) -> None:
        """Round the weights, as they are now, to int8."""
        weight = self.weight.detach().float()
        scale = (weight.abs().amax(dim=1) / CODES).clamp(min=torch.finfo(torch.float32).tiny).double()
        zero = torch.zeros_like(scale, dtype=torch.int64)
        with warnings.catch_warnings():  # "deprecated": torchao's layers, which are to follow it, take half as long again
            warnings.filterwarnings("ignore", ".*quantize_per_channel.*deprecated")
            codes = torch.quantize_per_channel(weight, scale, zero, 0, torch.qint8)
        bias = None if self.bias is None else self.bias.detach().float()
        self.packed = torch.ops.quantized.linear_prepack(codes, bias)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - nn.Linear's own name for it
        """Float [..., out] of the input's dtype, of float [..., in]."""
        product: Tensor = torch.ops.quantized.linear_dynamic(input.float(), self.packed)
        return product.to(input.dtype)


def quantize(network: nn.Module) -> None:
    """Let every linear layer of a network, its weights final and on a CPU, compute as `Int8Linear` does."""
    torch.backends.quantized.engine = "onednn"  # the one that is fast on large batches
    for module in network.modules():
        if type(module) is nn.Linear:
            module.__class__ = Int8Linear
            module.pack()  # type: ignore[operator]
