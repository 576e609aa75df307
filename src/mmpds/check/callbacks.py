"""Whether the callbacks suit the model, before it has been trained for hours."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mmpds.check.contrastive import contrasts, ranks_answers, writes
from mmpds.check.generation import generates
from mmpds.check.problem import Problem
from mmpds.data.corruptions import wrong_levels

if TYPE_CHECKING:
    from omegaconf import DictConfig

DETECTS = "val/auroc/macro"
"""What only detectors log."""


def callback_problems(cfg: DictConfig) -> list[Problem]:
    """What a run needs to report its results, and what looks for things that its model does not have."""
    stated, found = cfg.callbacks or {}, []
    texts, judged = writes(cfg) or ranks_answers(cfg), {"fit", "test"} & set(cfg.stages)
    asks = str(cfg.data.get("_target_")).endswith("QuestionData")
    own = "diffusion" if generates(cfg) else "default" if not texts else "answers" if asks else "captions"
    if not stated.get("timing"):
        found.append(Problem("callbacks.timing", None, "every run's record has it: leave it as it is"))
    keeps = None if generates(cfg) else "texts" if texts else "predictions"
    if keeps and not stated.get(keeps) and (judged or ("predict" in cfg.stages and not stated.get("embeddings"))):
        cure = f"nothing else keeps what this model predicts: leave out callbacks=, or give callbacks={own}"
        found.append(Problem(f"callbacks.{keeps}", None, cure))
    if (texts or generates(cfg)) and "fit" in cfg.stages and (best := stated.get("best")) and best.monitor == DETECTS:
        cure = f"only detectors log it: leave out callbacks=, or give callbacks={own}"
        found.append(Problem("callbacks.best.monitor", DETECTS, cure))
    if stated.get("gradcam") and (contrasts(cfg) or texts or generates(cfg)):
        cure = "it explains the features of a detector such as model=densenet121; leave it out"
        found.append(Problem("callbacks.gradcam", "", cure))
    if keeps == "predictions":
        found += [
            Problem(
                f"trainer.{key}",
                cfg.trainer[key],
                "a detector is judged on whole splits: give fewer images, or leave it out",
            )
            for key in ("limit_test_batches", "limit_predict_batches", "fast_dev_run")
            if not _whole(cfg.trainer.get(key))
        ]
    return found + _robustness_problems(cfg)


def _whole(limit: object) -> bool:
    """Whether one of Lightning's limits is none; 1 is one batch, 1.0 all of them."""
    return limit is None or limit is False or (isinstance(limit, float) and limit == 1)


def _robustness_problems(cfg: DictConfig) -> list[Problem]:
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
