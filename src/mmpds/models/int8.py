"""Linear layers in int8 on a CPU, whose vector units multiply int8 four times as fast as float32 (VNNI).

Shapes: K = inputs of a layer, N = its outputs.
"""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn

QMAX = 127
BATCHED = "int8 rounds what a batch holds by its range: an item's result depends a little on the others of its batch"


class Int8Linear(nn.Linear):
    """A linear layer whose weights and inputs are rounded to int8, multiplied, and added up in int32.

    Weights have a scale for each output (per channel), inputs one for each call (per tensor, dynamic); see Jacob et al.
    (CVPR 2018), section 2. What else is in a batch thus changes an item's result by a rounding. The float weights stay
    beside their codes: checkpoints and fingerprints are as before. Only `quantize` makes one.
    """

    packed: torch.ScriptObject  # the codes, int8 [N, K], in the order of the kernel, their scales, and the bias

    def pack(self) -> None:
        """Round the weights, as they are now, to codes in [-127, 127]."""
        weight = self.weight.detach().float()
        scale = (weight.abs().amax(dim=1) / QMAX).clamp(min=torch.finfo(torch.float32).tiny).double()
        zero = torch.zeros_like(scale, dtype=torch.int64)
        with warnings.catch_warnings():  # deprecated for torchao, whose layers take 1.2 times as long here
            warnings.filterwarnings("ignore", ".*quantize_per_channel.*deprecated")
            codes = torch.quantize_per_channel(weight, scale, zero, 0, torch.qint8)
        self.packed = torch.ops.quantized.linear_prepack(
            codes, None if self.bias is None else self.bias.detach().float()
        )

    def forward(self, input: Tensor) -> Tensor:
        """Float [..., N] of the input's dtype, of float [..., K]."""
        product: Tensor = torch.ops.quantized.linear_dynamic(input.float(), self.packed)
        return product.to(input.dtype)


def quantize(network: nn.Module) -> None:
    """Turn a network's linear layers into `Int8Linear`, but for LoRA's, in place; for inference on a CPU.

    Weights that are loaded afterwards have no effect. PyTorch's engine of quantized kernels is set to oneDNN, in the
    whole process.

    Raises:
        RuntimeError: this build of PyTorch has no oneDNN.
    """
    torch.backends.quantized.engine = "onednn"  # the one that is fast on large batches
    for name, module in network.named_modules():
        if type(module) is nn.Linear and ".lora_" not in name:
            module.__class__ = Int8Linear
            module.pack()  # type: ignore[operator]
