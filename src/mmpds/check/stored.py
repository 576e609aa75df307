"""What keeps predictions that exist already from being evaluated."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mmpds.check.problem import Problem, exists, is_file
from mmpds.check.trainer import thread_problems

if TYPE_CHECKING:
    from omegaconf import DictConfig


def stored_problems(cfg: DictConfig, size: int) -> list[Problem]:
    """What keeps predictions that exist already from being evaluated."""
    from omegaconf import OmegaConf

    found, data = [], cfg.data
    if list(cfg.stages) != ["evaluate"]:
        cure = "evaluate stands alone, and predictions of a file have no images to fit or test: give stages=[evaluate]"
        found.append(Problem("stages", cfg.stages, cure))
    if "answers" in set(data):
        if OmegaConf.is_missing(data, "answers") or data.answers is None:
            cure = "give a run's texts.csv, or a CSV or JSON of id and answer with data.root: data.answers=FILE"
            found.append(Problem("data.answers", "???", cure))
        else:
            found += is_file("data.answers", data.answers)
        found += exists("data.root", data.root, "folder")
    elif "predictions" not in set(data):
        found.append(Problem("data", "", "stages has evaluate: give data=predictions data.predictions=FILE"))
    else:
        if OmegaConf.is_missing(data, "predictions") or data.predictions is None:
            cure = "give a run's predictions.csv, or a CSV of ids and probabilities: data.predictions=FILE"
            found.append(Problem("data.predictions", "???", cure))
        else:
            found += is_file("data.predictions", data.predictions)
        found += is_file("data.labels", data.labels)
        if not isinstance(share := data.fit_fraction, float) or not 0 < share < 1:
            found.append(Problem("data.fit_fraction", share, "give a share above 0 and below 1"))
    for key in ("checkpoint", "init_from", "resume"):
        if cfg[key] is not None:
            found.append(Problem(key, cfg[key], "evaluate has no model: leave it out"))
    if "wandb" in cfg.logger:
        found.append(Problem("logger", "wandb", "evaluate logs nothing but results.json: leave it out"))
    if cfg.trainer.launcher != "none" or size > 1:
        found.append(Problem("trainer", cfg.trainer.launcher, "evaluate is one process: use trainer=cpu"))
    return found + thread_problems(cfg)
