"""What keeps the stages of a run from starting."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmpds.check.contrastive import ranks_answers
from mmpds.check.generation import generates, has_prompts
from mmpds.check.problem import Problem, exists, nearest
from mmpds.results import CONFIG, UNTRAINED, changed

if TYPE_CHECKING:
    from omegaconf import DictConfig

STAGES = ("fit", "test", "predict", "evaluate")


def stage_problems(cfg: DictConfig) -> list[Problem]:
    """What a stage lacks: its weights, its images, or a name that exists."""
    found = [Problem("stages", s, f"no such stage; {nearest(str(s), STAGES)}") for s in cfg.stages if s not in STAGES]
    if not cfg.stages:
        found.append(Problem("stages", "[]", "nothing to do; choose from " + ", ".join(STAGES)))
    found += exists("checkpoint", cfg.checkpoint, "checkpoint")
    if cfg.init_from not in (None, "imagenet") and not str(cfg.init_from).startswith("densenet121-res224-"):
        found += exists("init_from", cfg.init_from, "file, and no name such as imagenet or densenet121-res224-all")
    spared = cfg.model.get("freeze_epochs", 0) or cfg.model.get("backbone_learning_rate_factor", 1) != 1
    if "fit" in cfg.stages and spared and not cfg.init_from and cfg.resume in (None, "auto"):
        cure = "a backbone that is frozen or slow must know something: give FILE.ckpt, or a name such as imagenet"
        found.append(Problem("init_from", None, cure))
    if "fit" in cfg.stages and cfg.checkpoint:
        found.append(
            Problem(
                "checkpoint",
                cfg.checkpoint,
                "stages has fit: use init_from= to start from weights, resume= to go on",
            )
        )
    if "fit" not in cfg.stages and not cfg.checkpoint and not cfg.init_from and not cfg.model.get("pretrained"):
        other = "model.pretrained=FOLDER" if generates(cfg) or ranks_answers(cfg) else "init_from=NAME"
        found.append(Problem("checkpoint", None, f"stages has no fit: give checkpoint=PATH, or {other}"))
    if cfg.resume == "last" and "fit" not in cfg.stages:
        found.append(Problem("resume", "last", "there is no training to go on with; resume=auto goes on with images"))
    elif cfg.resume in ("last", "auto"):
        found += _resume_problems(cfg)
    elif cfg.resume is not None:
        found += exists("resume", cfg.resume, "checkpoint")
    if "predict" in cfg.stages and not (generates(cfg) or has_prompts(cfg)) and not cfg.data.get("predict_root"):
        found.append(Problem("data.predict_root", None, "stages has predict: give a folder of images"))
    return found


def _resume_problems(cfg: DictConfig) -> list[Problem]:
    """Whether there is a training of these settings to go on with."""
    runs = Path(cfg.run_dir) if cfg.run_dir else Path("runs") / (cfg.name or "train")
    pattern = "checkpoints/last.ckpt" if cfg.run_dir else "*/checkpoints/last.ckpt"
    saved = sorted(runs.glob(pattern), key=lambda path: path.stat().st_mtime, reverse=True)
    if not saved:
        cure = f"no {runs / pattern}: nothing to go on with; resume=auto starts anew"
        return [Problem("resume", "last", cure)] if cfg.resume == "last" else []
    if "fit" not in cfg.stages or (cfg.resume == "auto" and not cfg.run_dir):
        return []
    if not all(changed(path.parents[1], cfg, but=UNTRAINED) for path in saved):
        return []
    newest = saved[0]
    other = "; ".join(changed(newest.parents[1], cfg, but=UNTRAINED))
    cure = (
        f"{newest} was trained otherwise ({other}): give the same settings, or resume={newest}, "
        "which goes on all the same, in a folder of its own"
    )
    return [Problem("resume", cfg.resume, cure)]


def start_problems(cfg: DictConfig) -> list[Problem]:
    """Whether weights have seen what they would be tested on: those that training starts from, and a checkpoint's."""
    from omegaconf import OmegaConf

    key = "init_from" if "fit" in cfg.stages or not cfg.checkpoint else "checkpoint"
    config = Path(str(cfg[key])).parent.parent / CONFIG
    if not {"fit", "test"} & set(cfg.stages) or not cfg[key] or not config.is_file():
        return []
    before: Any = OmegaConf.to_container(OmegaConf.load(config)).get("data", {})  # type: ignore[union-attr]
    now: Any = OmegaConf.to_container(cfg.data, resolve=True)
    old_root, root, test_root = (
        str(Path(str(given)).resolve()) for given in (before.get("root"), now.get("root"), now.get("test_root"))
    )
    told = "else it would be tested on patients that it knows"
    if now.get("test_root") and "fit" not in cfg.stages:
        return [Problem("data.test_root", test_root, f"{key} was trained there: {told}")] * (test_root == old_root)
    sources = [{k: v for k, v in (data.get("source") or {}).items() if k != "images"} for data in (before, now)]
    if root != old_root or sources[0] != sources[1]:
        return []  # other images
    deciding = ["split"]
    if key == "init_from" or now.get("split") == "own":
        deciding += ["split_seed", "fractions"]
    if key == "init_from" and now.get("split") == "own":
        deciding += ["findings"]  # by which patients are split; a checkpoint brings its own
    found = [(f"data.{name}", before[name], now.get(name)) for name in deciding if name in before]
    old_count, count = ((data.get("source") or {}).get("images") for data in (before, now))
    if isinstance(count, int):  # of phantoms, whose first ones are the same
        found.append(("data.source.images", old_count, count))
    return [
        Problem(name, new, f"{key} was trained with {'null' if old is None else old}: {told}")
        for name, old, new in found
        if old != new
    ]
