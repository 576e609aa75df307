"""What is wrong with a test of robustness."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mmpds.check.generation import generates
from mmpds.check.problem import Problem
from mmpds.data.corruptions import wrong_levels

if TYPE_CHECKING:
    from omegaconf import DictConfig


def robustness_problems(cfg: DictConfig) -> list[Problem]:
    """What keeps the robustness callback from judging; nothing where there is none."""
    if not (stated := (cfg.callbacks or {}).get("robustness")):
        return []
    key, found = "callbacks.robustness", []
    if generates(cfg):
        found.append(Problem(key, "", "it judges detectors, and this model makes images; use callbacks=diffusion"))
    images = stated.get("images")
    if images is not None and (isinstance(images, bool) or not isinstance(images, int) or images < 1):
        found.append(Problem(f"{key}.images", images, "give a whole number above zero, or null for all test images"))
    for name, value, cure in wrong_levels(stated.get("corruptions")):
        found.append(Problem(f"{key}.corruptions{f'.{name}' if name else ''}", value, cure))
    return found
