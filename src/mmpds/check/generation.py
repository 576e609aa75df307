"""What is wrong with a generator, and with the prompts that it is given."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmpds import results
from mmpds.check.problem import Problem, exists, is_file, nearest
from mmpds.data.prompt_sets import read_items
from mmpds.data.schedule import SCHEDULES

if TYPE_CHECKING:
    from omegaconf import DictConfig

PREDICTIONS = ("epsilon", "v_prediction")
SCHEDULERS = ("ddim", "ddpm", "dpm++", "dpm++_karras", "euler", "euler_a", "heun", "lcm", "pndm", "unipc")


def generates(cfg: DictConfig) -> bool:
    """Whether the model makes images of texts."""
    return "unet" in cfg.model


def has_prompts(cfg: DictConfig) -> bool:
    """Whether the data are prompts, not images."""
    return "prompts" in cfg.data


def generation_problems(cfg: DictConfig) -> list[Problem]:
    """What keeps a generator from learning, or prompts from being drawn; nothing where there is neither."""
    found = _prompt_problems(cfg) if has_prompts(cfg) else []
    if not generates(cfg):
        cure = "prompts are for a generator: give model=diffusion, or images such as data=phantom"
        return [*found, Problem("model", "", cure)] if has_prompts(cfg) else found
    model, callbacks = cfg.model, cfg.callbacks or {}
    found += _sampling_problems(model.sampling)
    if (kind := model.noise.get("prediction_type", "epsilon")) not in PREDICTIONS:
        found.append(Problem("model.noise.prediction_type", kind, nearest(str(kind), PREDICTIONS)))
    if not isinstance(share := model.caption_dropout, int | float) or not 0 <= share < 1:
        found.append(Problem("model.caption_dropout", share, "give a share from 0 to below 1"))
    if not isinstance(rank := model.lora_rank, int) or rank < 0:
        found.append(Problem("model.lora_rank", rank, "give a whole number; 0 to train all weights"))
    elif rank and not model.pretrained and "fit" in cfg.stages:
        found.append(Problem("model.lora_rank", rank, "it adds to pretrained weights: give model.pretrained=FOLDER"))
    for key in ("pretrained", "vae"):
        if isinstance(source := model[key], str) and source.startswith(("/", ".", "~")):
            found += exists(f"model.{key}", source, "folder")
    if "fit" in cfg.stages and not (model.pretrained or model.vae is None or isinstance(model.vae, str)):
        cure = "it would be random; give model.vae=FOLDER of a trained AutoencoderKL, or model.pretrained=FOLDER"
        found.append(Problem("model.vae", "", cure))
    if "predict" in cfg.stages and not has_prompts(cfg):
        found.append(Problem("data", "", "stages has predict: a generator draws prompts; give data=prompts"))
    if "predict" in cfg.stages and not callbacks.get("images"):
        found.append(Problem("callbacks", "", "the images would not be kept; use callbacks=diffusion"))
    size, looks = cfg.data.get("size"), {"fit", "test"} & set(cfg.stages)
    if looks and not has_prompts(cfg) and not (model.pretrained or cfg.checkpoint) and size != model.size:
        cure = f"the model makes {model.size} pixels a side: give data.size={model.size}, or model.size={size}"
        found.append(Problem("data.size", size, cure))
    if quality := callbacks.get("quality"):
        found += is_file("callbacks.quality.classifier", quality.get("classifier"))
    return found


def _sampling_problems(stated: Any) -> list[Problem]:
    sampling = {key: value for key, value in stated.items() if value is not None}  # null: a checkpoint's own
    found = []
    if (name := sampling.get("scheduler", "ddim")) not in SCHEDULERS:
        found.append(Problem("model.sampling.scheduler", name, nearest(str(name), SCHEDULERS)))
    found += [
        Problem(f"model.sampling.{key}", value, "give a whole number above zero")
        for key in ("steps", "cache_interval")
        if not isinstance(value := sampling.get(key, 1), int) or value < 1
    ]
    if not isinstance(scale := sampling.get("guidance_scale", 1), int | float) or scale < 1:
        found.append(Problem("model.sampling.guidance_scale", scale, "give a number from 1 (no guidance) up"))
    if not isinstance(size := sampling.get("size", 1), int) or size < 1:
        found.append(Problem("model.sampling.size", size, "give pixels a side, or null for those of the training"))
    return found


def _prompt_problems(cfg: DictConfig) -> list[Problem]:
    data, found = cfg.data, exists("data.root", cfg.data.root, "folder")
    if not found and data.prompts != "phantom":  # whose captions need numpy, before threads are capped
        try:
            texts = data.prompts if isinstance(data.prompts, str) else list(data.prompts or ())
            read_items(texts, data.root, data.count, data.images_per_prompt)
        except ValueError as error:
            key, _, cure = str(error).partition(": ")
            found.append(Problem(key, "", cure))
    if list(cfg.stages) != ["predict"]:
        found.append(Problem("stages", cfg.stages, "prompts have no images to fit or test: give stages=[predict]"))
    if data.schedule not in SCHEDULES:
        found.append(Problem("data.schedule", data.schedule, nearest(str(data.schedule), SCHEDULES)))
    limit = cfg.trainer.get("limit_predict_batches")
    if limit is not None and cfg.trainer.launcher != "none" and cfg.ranks != 1:
        cure = "ranks that it stops would be waited for; use data.count instead"
        found.append(Problem("trainer.limit_predict_batches", limit, cure))
    return found + _other_images(cfg)


def _other_images(cfg: DictConfig) -> list[Problem]:
    """Whether a given run directory holds images of other settings; the images' own marks are read when it runs."""
    run_dir = Path(str(cfg.run_dir))
    if not cfg.run_dir or not (run_dir / results.CONFIG).is_file() or not any(run_dir.glob("images/*.png")):
        return []
    other = results.changed(run_dir, cfg)
    if results.status(run_dir) == "finished":
        end = (run_dir / results.FILE).stat().st_mtime
        files = [Path(str(value)) for value in (cfg.checkpoint, cfg.init_from, cfg.data.prompts)]
        other += [f"{file} was written later" for file in files if file.is_file() and file.stat().st_mtime > end]
    cure = f"holds images of other settings ({'; '.join(other)}); give another run_dir, or delete the folder"
    return [Problem("run_dir", cfg.run_dir, cure)] if other else []
