"""What is wrong with the data of a run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mmpds.check.generation import generates
from mmpds.check.problem import Problem, exists, nearest

if TYPE_CHECKING:
    from omegaconf import DictConfig

REBALANCE = ("none", "balanced", "equal_normal")
BAD_IMAGE = ("auto", "skip", "error")
SPLIT = ("own", "official")
ATTRIBUTES = ("sex", "age_band", "view")


def data_problems(cfg: DictConfig) -> list[Problem]:
    """What is wrong with the images that a run is to read."""
    from omegaconf import OmegaConf

    data, found = cfg.data, []
    elsewhere = "fit" not in cfg.stages and (data.get("test_root") or data.get("predict_root"))
    if OmegaConf.is_missing(data, "root"):
        if not elsewhere:
            found.append(Problem("data.root", "???", "give the folder that holds the data set: data.root=PATH"))
    else:
        found += exists("data.root", data.get("root"), "folder")
    for key in ("test_root", "predict_root"):
        found += exists(f"data.{key}", data.get(key), "folder")
    for key, known in (("rebalance", REBALANCE), ("on_bad_image", BAD_IMAGE), ("split", SPLIT)):
        if data.get(key, known[0]) not in known:
            found.append(Problem(f"data.{key}", data[key], nearest(str(data[key]), known)))
    by = data.get("rebalance_by") or []
    if isinstance(by, str):
        found.append(Problem("data.rebalance_by", by, f"give a list: data.rebalance_by=[{by}]"))
    else:
        found += [
            Problem("data.rebalance_by", name, f"no such attribute; {nearest(str(name), ATTRIBUTES)}")
            for name in by
            if name not in ATTRIBUTES
        ]
    if not generates(cfg) and isinstance(data.size, int) and 0 < data.size < 32:
        found.append(Problem("data.size", data.size, "DenseNet halves the image five times: give 32 or more"))
    return found
