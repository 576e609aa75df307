"""A short name for what a model computes, such as the one in a synthetic image's provenance."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from torch import nn


def fingerprint(module: nn.Module, settings: Any = None) -> str:
    """16 hexadecimal digits that are equal for equal weights and settings, and for nothing else.

    Args:
        module: whose parameters and buffers count.
        settings: what besides changes the result, as JSON has it.
    """
    digest = hashlib.sha256(b"" if settings is None else json.dumps(settings, sort_keys=True).encode())
    for name, value in module.state_dict().items():
        digest.update(name.encode())
        digest.update(value.float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
