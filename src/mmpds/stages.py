"""The stages of a run: build data, model and trainer from the configuration, fit, test, predict, and add up."""

from __future__ import annotations

import logging
import os
import resource
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
import torch
from hydra.utils import get_class, instantiate
from lightning.pytorch.callbacks import RichProgressBar
from omegaconf import OmegaConf, open_dict

from mmpds import results
from mmpds.callbacks import energy, timing_section
from mmpds.callbacks.predictions import gathered
from mmpds.callbacks.resume import AtomicCheckpointIO
from mmpds.check.trainer import INT8
from mmpds.evaluation import Sections
from mmpds.models.int8 import BATCHED, quantize
from mmpds.world import World, cores, cpu_features, threads
from mmpds.zero import ZeRO

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from mmpds.tasks import Task

OURS = ("launcher", "threads", "channels_last", "compile")
"""Keys of the trainer group that are not arguments of lightning.pytorch.Trainer."""
QUIET = (
    ".*does not have many workers.*",  # loader processes are data.workers' business
    ".*srun. command is available.*",  # whether srun starts the ranks is the trainer's choice here
    ".*smaller than the logging interval.*",
    ".*isinstance.treespec, LeafSpec.*",  # Lightning's, of torch
    ".*exists and is not empty.*",  # a resumed run goes on in its own folder
    ".*dataloader is not resumable.*",  # the data module's state says where to go on
    ".*module.* in eval mode.*",  # what stands still in a fine-tuning
    ".*custom batch sampler.*",  # ours shards exactly
    ".*sync_dist=True.*",  # metrics are gathered by torchmetrics before they are logged
    ".*is deprecated. Please use .torch.distributed.*",  # DeepSpeed's, of torch
    ".*threshold falls back to.*",  # every epoch; what counts is what the last one left, in results.json
)


class Run:
    """The objects of a run and its stages.

    Args:
        cfg: the composed configuration.
        world: this process among the ranks.
        started: when the user pressed enter, as time.time().
    """

    data: Any  # a LightningDataModule with `findings`, `notes`, `load_s`
    model: Any  # a LightningModule with `task`, `restated` and `load_weights`

    def __init__(self, cfg: DictConfig, world: World, started: float) -> None:
        for name in ("lightning.pytorch", "lightning.fabric"):
            logging.getLogger(name).setLevel(logging.WARNING)
        for text in QUIET:
            warnings.filterwarnings("ignore", text)
        self.cfg, self.world, self.run_dir = cfg, world, Path(cfg.run_dir)
        self.timing: dict[str, float] = {"startup_s": time.time() - started}
        torch.set_num_threads(threads(cfg, world))
        pl.seed_everything(cfg.seed, verbose=False)
        began = time.perf_counter()
        self.data, self.model = self._data_and_model()
        self.task: Task = get_class(f"mmpds.tasks.{self.model.task}.Task")(self)
        self.callbacks = {name: instantiate(node) for name, node in (cfg.callbacks or {}).items() if node}
        if "fit" not in cfg.stages:
            self.callbacks = {n: c for n, c in self.callbacks.items() if n not in ("best", "last", "ema")}
        self.trainer = self._trainer()
        self.timing["build_s"] = time.perf_counter() - began

    def _data_and_model(self) -> tuple[Any, Any]:
        cfg = self.cfg
        with open_dict(cfg):
            if OmegaConf.is_missing(cfg.data, "root"):
                cfg.data.root = None  # only another folder is tested or predicted
            if cfg.data.get("on_bad_image") == "auto":
                cfg.data.on_bad_image = "error" if "test" in cfg.stages and "fit" not in cfg.stages else "skip"
        data = instantiate(cfg.data, _convert_="all")
        kind: Any = get_class(cfg.model._target_)
        labels = {"findings": list(data.findings)} if kind.task == "detection" else {}
        if not cfg.checkpoint:
            model = instantiate(cfg.model, **labels, _convert_="all")
            if cfg.init_from and (fresh := model.load_weights(cfg.init_from)) and "fit" not in cfg.stages:
                raise ValueError(f"init_from={cfg.init_from} knows nothing of {', '.join(fresh)}: add fit to stages")
            return data, model
        stated = kind.restated(OmegaConf.to_container(cfg.model, resolve=True))
        with _reading("checkpoint", cfg.checkpoint):
            model = kind.load_from_checkpoint(cfg.checkpoint, map_location="cpu", weights_only=True, **stated)
        if labels:
            data.findings = model.findings  # another data set's labels, in the order of this model's outputs
        return data, model

    def _trainer(self) -> pl.Trainer:
        cfg = self.cfg
        arguments = {key: value for key, value in cfg.trainer.items() if key not in OURS}
        if arguments["precision"] == INT8:
            quantize(self.model)
            self.data.notes.append(BATCHED)
        if arguments["precision"] in ("auto", INT8):
            half = "bf16-mixed" if "fit" in cfg.stages else self.task.inference_precision
            arguments["precision"] = half if has_bfloat16(arguments["accelerator"]) else "32-true"
        if self.world.launcher != "none":
            # on CPU a device is a process: nodes may hold different numbers of ranks
            gpu = arguments["accelerator"] == "gpu"
            nodes = max(1, self.world.size // self.world.local_size) if gpu else 1
            arguments |= {"devices": self.world.size // nodes, "num_nodes": nodes}
        if cfg.trainer.channels_last:
            self.model.to(memory_format=torch.channels_last)
        if cfg.trainer.compile:
            self.model.compile()
        log = self.run_dir / "logs" / "metrics.csv"
        if log.exists() and self.world.rank == 0:  # Lightning would delete what the interrupted run logged
            log.rename(log.with_name(f"metrics-until-{time.strftime('%Y%m%d-%H%M%S')}.csv"))
        loggers = [instantiate(node) for node in (cfg.logger or {}).values() if node]
        # mpirun gives its ranks a terminal of their own: whether a person looks on, the launcher says
        watched = os.environ.get("TTY_COMPATIBLE", str(int(sys.stdout.isatty()))) == "1"
        bar = [RichProgressBar(leave=False)] if watched else []
        plugins = [*(instantiate(plugin) for plugin in arguments.pop("plugins", ())), AtomicCheckpointIO()]
        trainer: pl.Trainer = instantiate(
            arguments, plugins=plugins, logger=loggers, callbacks=[*self.callbacks.values(), *bar],
            default_root_dir=str(self.run_dir), enable_progress_bar=bool(bar),
            enable_checkpointing="best" in self.callbacks, _convert_="all",
        )  # fmt: skip
        return trainer

    def stages(self) -> dict[str, Any]:
        """Run the stages of the configuration; returns their part of results.json (complete on rank 0 only)."""
        cfg, trainer = self.cfg, self.trainer
        found: Sections = {"metrics": {}, "intervals": {}, "counts": {}, "warnings": []}
        weights: str | None = None  # those the model has now
        if "fit" in cfg.stages:
            trainer.fit(self.model, self.data, ckpt_path=self._resume_path(), weights_only=True)
            weights = getattr(self.callbacks.get("best"), "best_model_path", None) or None
            if weights and isinstance(trainer.strategy, ZeRO):
                trainer.strategy.consolidate(Path(weights))
        if "fit" in cfg.stages or self.task.needs_validation():
            trainer.validate(self.model, self.data, ckpt_path=weights, weights_only=True, verbose=False)
            found["metrics"] |= {n: float(v) for n, v in trainer.callback_metrics.items() if n.startswith("val/")}
            self.task.validated()  # the best weights are not the last
        if "test" in cfg.stages:
            trainer.test(self.model, self.data, verbose=False)
            self.task.tested(found)
        if "predict" in cfg.stages:
            trainer.predict(self.model, self.data, return_predictions=False)
            self.task.predicted(found)
        costs = self._costs()
        if self.world.rank == 0:
            self.task.keep(found)
            found["warnings"] += self.data.notes
            figures = {n: v for n, v in results.flatten(found | costs).items() if isinstance(v, float)}
            for logger in trainer.loggers:
                logger.log_metrics(figures)
        for logger in trainer.loggers:
            logger.finalize("success")
        return found | costs | {"artifacts": self._artifacts(), "error": None}

    def _resume_path(self) -> str | None:
        if self.cfg.resume in ("last", "auto"):
            last = self.run_dir / "checkpoints" / "last.ckpt"
            path = last if last.exists() else None
        else:
            path = self.cfg.resume
        if path and Path(path).is_file():  # DeepSpeed's checkpoint is a folder
            with _reading("resume", path):
                torch.load(path, map_location="meta", weights_only=True)
        return str(path) if path else None

    def _costs(self) -> dict[str, Any]:
        """Timing, energy and memory of all ranks, and what they ran on."""
        device = self.trainer.strategy.root_device
        gpu = device.type == "cuda"
        mine = {
            "timing": self.callbacks["timing"].summary(),
            "energy": self.callbacks["energy"].summary() if "energy" in self.callbacks else None,
            "rss": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            "device": torch.cuda.max_memory_allocated(device) if gpu else 0,
            "gpu": torch.cuda.get_device_name(device) if gpu else None,
            "load_s": self.data.load_s,
        }
        ranks = gathered(mine)
        self.timing["load_s"] = max(rank["load_s"] for rank in ranks)
        spent = self.timing | timing_section.combine([rank["timing"] for rank in ranks])
        joules = [rank["energy"] for rank in ranks if rank["energy"]]
        return {
            "timing": spent,
            "energy": energy.combine(joules, spent.get("items_total") or 0),
            "memory": {
                "peak_rss_bytes": max(rank["rss"] for rank in ranks),
                "peak_device_bytes": max(rank["device"] for rank in ranks),
            },
            "hardware": results.hardware([rank["gpu"] for rank in ranks if rank["gpu"]], cores()),
            "precision": f"{INT8}, " * (self.cfg.trainer.precision == INT8) + self.trainer.precision,
        }

    def _artifacts(self) -> dict[str, str]:
        names = {
            "config": results.CONFIG,
            **self.task.artifacts,
            "best": "checkpoints/best.ckpt",
            "last": "checkpoints/last.ckpt",
            "log": "logs/metrics.csv",
        }
        return {name: path for name, path in names.items() if (self.run_dir / path).exists()}


@contextmanager
def _reading(key: str, path: Any) -> Iterator[None]:
    """Turn whatever a damaged file raises into one sentence."""
    try:
        yield
    except Exception as error:
        text = str(error)
        if isinstance(error, UnpicklingError):
            text = "no checkpoint of PyTorch"  # its own text advises to trust the file
        raise ValueError(f"{key}={path} cannot be read: is it a whole checkpoint of this model? ({text})") from error


def has_bfloat16(accelerator: str) -> bool:
    """Whether the hardware computes in bfloat16, rather than emulating it."""
    if accelerator in ("gpu", "cuda"):
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(cpu_features() & {"avx512_bf16", "amx_bf16", "bf16"})
