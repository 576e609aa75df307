"""What keeps a composed configuration from running."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from mmpds.check.callbacks import callback_problems
from mmpds.check.contrastive import archive_problems, contrastive_problems
from mmpds.check.data import data_problems
from mmpds.check.generation import generation_problems, has_prompts
from mmpds.check.model import model_problems
from mmpds.check.problem import Problem
from mmpds.check.stages import stage_problems, start_problems
from mmpds.check.stored import stored_problems
from mmpds.check.trainer import trainer_problems
from mmpds.world import World, ranks

if TYPE_CHECKING:
    from omegaconf import DictConfig


def config_problems(cfg: DictConfig, world: World) -> list[Problem]:
    """What keeps a composed configuration from running in this world: the ranks adopted, or those to be started."""
    faults = _type_problems(cfg)
    wrong = {fault.key for fault in faults}  # what could not be counted with
    launched = world.launcher != "none"
    alone = {"ranks", "data.batch_size"} & wrong or "batch_size" not in cfg.data
    size = world.size if launched else 1 if alone else ranks(cfg)
    found = [
        *faults,
        *model_problems(cfg),
        *generation_problems(cfg),
        *contrastive_problems(cfg),
        *archive_problems(cfg),
    ]
    if "evaluate" in cfg.stages or {"predictions", "answers"} & set(cfg.data):  # `in cfg.data` is false of ???
        return [*found, *stored_problems(cfg, size)]
    found += callback_problems(cfg)
    if not has_prompts(cfg):
        found += data_problems(cfg)
    if world.launcher == "torchrun" and not cfg.run_dir and os.environ.get("TORCHELASTIC_RUN_ID", "none") == "none":
        found.append(
            Problem("run_dir", None, "torchrun gave its ranks no name to share; give run_dir=PATH, or --rdzv-id=NAME")
        )
    if "stages" not in wrong:
        found += [*stage_problems(cfg), *start_problems(cfg)]
    if "ranks" not in wrong:
        found += trainer_problems(cfg, size, launched)
    # a batch of prompts is one rank's
    if not has_prompts(cfg) and not {"ranks", "data.batch_size"} & wrong and (batch := cfg.data.batch_size) % size:
        near = max(size, round(batch / size) * size)
        found.append(
            Problem("data.batch_size", batch, f"does not divide over {size} ranks; give a multiple, such as {near}")
        )
    return found


def _type_problems(cfg: DictConfig) -> list[Problem]:
    from omegaconf import ListConfig

    found = []
    if not isinstance(cfg.stages, ListConfig):
        found.append(Problem("stages", cfg.stages, f"give a list: stages=[{cfg.stages}]"))
    if cfg.ranks != "auto" and (not isinstance(cfg.ranks, int) or cfg.ranks < 1):
        found.append(Problem("ranks", cfg.ranks, "give a whole number above zero, or auto"))
    if not isinstance(cfg.bootstrap, int) or cfg.bootstrap < 0:
        found.append(Problem("bootstrap", cfg.bootstrap, "give a whole number; 0 for no intervals"))
    sizes = {f"data.{key}": cfg.data[key] for key in ("size", "batch_size") if key in cfg.data}
    found += [
        Problem(key, value, "give a whole number above zero")
        for key, value in sizes.items()
        if not isinstance(value, int) or value < 1
    ]
    shares = cfg.data.get("fractions")
    if "fractions" in cfg.data and (
        not isinstance(shares, ListConfig) or len(shares) != 3
        or not all(isinstance(share, int | float) and share >= 0 for share in shares) or abs(sum(shares) - 1) > 1e-6
    ):  # fmt: skip
        found.append(Problem("data.fractions", shares, "give three shares (train, val, test) that add up to 1"))
    return found
