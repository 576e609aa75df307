"""What is wrong with a model of images and texts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mmpds.check.problem import Problem, exists, nearest

if TYPE_CHECKING:
    from omegaconf import DictConfig

LOSSES = ("info_nce", "siglip")
STEMS = ("patch", "convolutions")
DTYPES = ("float16", "float32")
"""Of an archive's vectors."""


def contrasts(cfg: DictConfig) -> bool:
    """Whether the model compares images with texts."""
    return "zero_shot" in cfg.model


def writes(cfg: DictConfig) -> bool:
    """Whether the model writes texts of images."""
    return "longest" in cfg.model


def ranks_answers(cfg: DictConfig) -> bool:
    """Whether the model answers questions by comparing images with texts."""
    return "candidates" in cfg.model


def contrastive_problems(cfg: DictConfig) -> list[Problem]:
    """What keeps such a model from learning or from judging; nothing where there is none."""
    if not (contrasts(cfg) or writes(cfg)):
        return []
    model, found = cfg.model, []
    if ranks_answers(cfg):
        if "fit" in cfg.stages:
            cure = "model=clip_vqa learns nothing: train model=clip, then give stages=[test] checkpoint=FILE.ckpt"
            found.append(Problem("stages", list(cfg.stages), cure))
        texts = model.candidates
        if texts is not None and (isinstance(texts, str) or not texts or not all(isinstance(t, str) for t in texts)):
            found.append(Problem("model.candidates", texts, "give a list of texts: 'model.candidates=[yes,no]'"))
        if cfg.init_from:
            found.append(Problem("init_from", cfg.init_from, f"nothing is trained: give checkpoint={cfg.init_from}"))
    if contrasts(cfg) and (loss := model.get("loss", LOSSES[0])) not in LOSSES:
        found.append(Problem("model.loss", loss, nearest(str(loss), LOSSES)))
    if writes(cfg) and model.lora_rank and not (model.pretrained or cfg.checkpoint):
        cure = "it adds to pretrained weights: give model.pretrained=FOLDER"
        found.append(Problem("model.lora_rank", model.lora_rank, cure))
    if (stem := model.get("stem", STEMS[0])) not in STEMS:
        found.append(Problem("model.stem", stem, nearest(str(stem), STEMS)))
    if isinstance(source := model.pretrained, str) and source.startswith(("/", ".", "~")):
        found += exists("model.pretrained", source, "folder")
    if isinstance(source := model.get("tokenizer"), str) and source.startswith(("/", ".", "~")):
        found += exists("model.tokenizer", source, "file or folder")
    size = cfg.data.get("size")
    if "size" in model and not (model.pretrained or cfg.checkpoint) and size != model.size:
        cure = f"the model sees {model.size} pixels a side: give data.size={model.size}, or model.size={size}"
        found.append(Problem("data.size", size, cure))
    for text in model.get("zero_shot", {}).get("templates") or []:
        if "{}" not in str(text):
            found.append(Problem("model.zero_shot.templates", text, "write {} where the finding goes"))
    return found


def archive_problems(cfg: DictConfig) -> list[Problem]:
    """What keeps the embeddings callback from building an archive; nothing where there is none."""
    from omegaconf import OmegaConf

    if not (stated := (cfg.callbacks or {}).get("embeddings")):
        return []
    key, found = "callbacks.embeddings", []
    if not contrasts(cfg) or ranks_answers(cfg):
        found.append(Problem(key, "", "this model gives no embeddings: give model=clip"))
    if OmegaConf.is_missing(stated, "archive"):
        found.append(Problem(f"{key}.archive", "???", "give the folder of the archive"))
    if (dtype := stated.dtype) not in DTYPES:
        found.append(Problem(f"{key}.dtype", dtype, nearest(str(dtype), DTYPES)))
    return found
