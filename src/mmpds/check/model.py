"""What is wrong with the model of a run, and with what looks at it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mmpds.check.contrastive import contrasts
from mmpds.check.data import ATTRIBUTES
from mmpds.check.problem import Problem, nearest

if TYPE_CHECKING:
    from omegaconf import DictConfig

CLASS_WEIGHTS = ("none", "balanced")
CALIBRATIONS = ("none", "temperature", "isotonic")
HEAT_MAPS = ("gradcam", "gradcam++", "hirescam", "layercam")
LOSSES = ("bce", "focal")
RULES = (
    "fixed",
    "paper",
    "f1",
    "youden",
    "sensitivity@specificity",
    "specificity@sensitivity",
    "class_specific",
)


def model_problems(cfg: DictConfig) -> list[Problem]:
    """What is wrong with the model, its thresholds, its loss and its heat maps."""
    rule = cfg.model.get("threshold", {}).get("rule", "f1")
    found = []
    if (method := cfg.model.get("calibration", "none")) not in CALIBRATIONS:
        found.append(Problem("model.calibration", method, nearest(str(method), CALIBRATIONS)))
    if (by := cfg.model.get("threshold_by")) not in (None, *ATTRIBUTES):
        found.append(Problem("model.threshold_by", by, f"no such attribute; {nearest(str(by), ATTRIBUTES)}"))
    elif by and rule in ("fixed", "class_specific"):
        found.append(Problem("model.threshold_by", by, f"rule {rule} states its thresholds; choose a rule that fits"))
    method = ((cfg.callbacks or {}).get("gradcam") or {}).get("method", "gradcam")
    if method not in HEAT_MAPS:
        found.append(Problem("callbacks.gradcam.method", method, nearest(str(method), HEAT_MAPS)))
    if "_target_" not in cfg.model and "evaluate" not in cfg.stages:
        found.append(Problem("model", "none", "no model to fit or test; give model=densenet121, or stages=[evaluate]"))
    if rule not in RULES:
        found.append(Problem("model.threshold.rule", rule, f"no such rule; {nearest(str(rule), RULES)}"))
    if (weights := cfg.model.get("class_weights", "none")) not in CLASS_WEIGHTS:
        found.append(Problem("model.class_weights", weights, nearest(str(weights), CLASS_WEIGHTS)))
    if not contrasts(cfg) and (loss := cfg.model.get("loss", "bce")) not in LOSSES:
        found.append(Problem("model.loss", loss, nearest(str(loss), LOSSES)))
    if not isinstance(epochs := cfg.model.get("freeze_epochs", 0), int) or epochs < 0:
        found.append(Problem("model.freeze_epochs", epochs, "give a whole number; 0 to train all from the start"))
    factor = cfg.model.get(key := "backbone_learning_rate_factor", 1.0)
    if not isinstance(factor, int | float) or not factor > 0:
        found.append(Problem(f"model.{key}", factor, "give a number above zero; model.freeze_epochs keeps it still"))
    return found
