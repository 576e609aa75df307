"""Pretrained DenseNet-121 weights, translated from every form they are published in to the one our models take.

Shapes: C = findings, F = features of the last layer (1024 for DenseNet-121).
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mmpds.models import weight_files
from mmpds.models.weight_files import PretrainedError

__all__ = ["TORCHXRAYVISION", "Pretrained", "PretrainedError", "densenet121"]

log = logging.getLogger(__name__)

TORCHXRAYVISION = tuple(
    f"densenet121-res224-{data}" for data in ("all", "nih", "pc", "chex", "rsna", "mimic_nb", "mimic_ch")
)
"""Names of torchxrayvision's DenseNet-121 weights (Cohen et al., MIDL 2022)."""

# (scale, shift): scale * image + shift is what the weights were trained on.
XRAY_INPUT = (2048.0, -1024.0)  # torchxrayvision.datasets.normalize: [-1024, 1024]
IMAGENET_INPUT = (1 / 0.226, -0.449 / 0.226)  # mean and deviation of ImageNet, averaged over R, G and B
SCRATCH_INPUT = (4.0, -2.0)  # radiographs have a mean near 0.5 and a deviation near 0.25


@dataclass(frozen=True)
class Pretrained:
    """Weights in the shape our models take, and the input that they expect.

    features: state dict for `torchvision.models.densenet121().features` whose conv0 takes one channel,
        float32; empty where training starts from scratch.
    rows: finding, in lower case with blanks → (weight float32 [F], bias float32 []), for those that the
        weights were trained on.
    scale, shift: the weights expect `scale * image + shift` for an image in [0, 1].
    """

    features: dict[str, Tensor]
    rows: dict[str, tuple[Tensor, Tensor]]
    scale: float
    shift: float

    def load_into(self, features: nn.Module, head: nn.Linear, findings: Sequence[str]) -> list[str]:
        """Copy the weights into a body and a classifier [C, F], whose rows are the C `findings`.

        Names are compared without case and `_` equals a blank; rows of other findings stay as they are.

        Returns:
            The findings whose rows stay as they are.

        Raises:
            PretrainedError: a tensor is missing, left over or of another shape.
        """
        known = [name for name in findings if _plain(name) in self.rows]
        fresh = [name for name in findings if name not in known]
        try:
            if self.features:
                features.load_state_dict(self.features)
                log.info("pretrained body; classifier rows loaded: %s; freshly initialised: %s", known, fresh)
            with torch.no_grad():
                for row, finding in enumerate(findings):
                    if finding in known:
                        weight, bias = self.rows[_plain(finding)]
                        head.weight[row].copy_(weight)
                        head.bias[row].copy_(bias)
        except RuntimeError as error:
            raise PretrainedError(f"the weights do not fit this network: {error}") from error
        return fresh


def densenet121(
    weights: str | None,
    *,
    cache_dir: str | Path | None = None,
    sha256: str | None = None,
) -> Pretrained:
    """Weights of a DenseNet-121 (Huang et al., CVPR 2017) for one-channel images.

    Args:
        weights: None or "none" (from scratch), "imagenet", a name in `TORCHXRAYVISION`, or a path: a
            checkpoint of ours, a .safetensors, or a state dict saved by torch.
        cache_dir: folder of downloads; default `<torch hub>/mmpds`.
        sha256: expected hash of torchxrayvision's file. Without one the first file is trusted, its hash
            recorded beside it and demanded ever after.

    Raises:
        PretrainedError: the weights cannot be had, are not the expected file or are no DenseNet.
    """
    folder = Path(cache_dir or Path(torch.hub.get_dir()) / "mmpds").expanduser()
    if weights is None or weights == "none":
        return Pretrained({}, {}, *SCRATCH_INPUT)
    if weights == "imagenet":
        return _translate(weight_files.imagenet(folder), (), weights)
    if weights in TORCHXRAYVISION:
        return _translate(*weight_files.torchxrayvision(weights, folder, sha256), weights)
    path = Path(weights).expanduser()
    if path.is_file():
        cure = "give a Lightning checkpoint of ours, a .safetensors or a plain torch state dict"
        with weight_files.refusal(f"cannot read weights={str(path)!r}", cure):
            return _translate(*weight_files.read(path), str(path))
    names = ", ".join(("none", "imagenet", *TORCHXRAYVISION))
    raise PretrainedError(f"weights={weights!r} is neither a file nor one of: {names}")


def _plain(name: str) -> str:
    return name.casefold().replace("_", " ").strip()


def _translate(state: Mapping[str, Any], names: Sequence[str], source: str) -> Pretrained:
    """Find body and classifier in a state dict; `names` label the rows of its classifier ("" = untrained)."""
    bodies = [key.removesuffix("conv0.weight") for key in state if key.endswith("features.conv0.weight")]
    if len(bodies) != 1:
        raise PretrainedError(
            f"{source} holds {len(bodies)} DenseNet bodies (keys ending in features.conv0.weight), not one: "
            "give the state dict of a DenseNet-121"
        )
    body = bodies[0]
    ours = body.endswith("backbone.features.")
    root = body.removesuffix("backbone.features." if ours else "features.")
    # torchvision's published files still say `norm.1`, a name that modules may no longer have
    features = {
        re.sub(r"\.(norm|conv)\.([12])\.", r".\1\2.", key.removeprefix(body)): value.float()
        if value.is_floating_point()
        else value
        for key, value in state.items()
        if key.startswith(body)
    }
    channels = features["conv0.weight"].shape[1]
    if channels == 3:
        features["conv0.weight"] = features["conv0.weight"].sum(1, keepdim=True)
    elif channels != 1:
        raise PretrainedError(f"{source}: conv0 takes {channels} channels: only 1 and 3 are understood")
    if ours:
        if f"{root}input_scale" not in state:
            raise PretrainedError(f"{source} has no input_scale and input_shift: save it again with this version")
        scale, shift = float(state[f"{root}input_scale"]), float(state[f"{root}input_shift"])
    else:
        scale, shift = IMAGENET_INPUT if channels == 3 else XRAY_INPUT
    head = f"{root}{'head' if ours else 'classifier'}."
    rows = {}
    if names and f"{head}weight" in state:
        weight, bias = state[f"{head}weight"].float(), state[f"{head}bias"].float()
        if len(weight) != len(names):
            raise PretrainedError(f"{source}: {len(weight)} classifier rows but {len(names)} findings")
        rows = {_plain(name): (weight[row], bias[row]) for row, name in enumerate(names) if name}
    return Pretrained(features, rows, scale, shift)
